//! `ringway key new`, `token new` and `token verify`: from arguments to `cli::keys`, and its results to stdout.

use super::{CliError, KeyNewArgs, TokenNewArgs, TokenVerifyArgs, keys, now_s, print};
use crate::auth::{KeyAlgorithm, TokenPolicy};
use crate::limits::TOKEN_BYTES_MAX;
use crate::time::Tick;
use std::io::{BufRead, Read};

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError(error.to_string())
}

pub(super) fn key_new(arguments: &KeyNewArgs) -> Result<(), CliError> {
    let algorithm = KeyAlgorithm::from_name(arguments.alg.name())
        .ok_or_else(|| CliError(format!("{} is not a supported key algorithm", arguments.alg.name())))?;
    print(&keys::key_new(algorithm, arguments.kid.as_deref(), &arguments.out).map_err(failed)?)
}

pub(super) fn token_new(arguments: &TokenNewArgs) -> Result<(), CliError> {
    let request = keys::TokenRequest {
        subject: arguments.sub.clone(),
        sessions: arguments.sid.clone(),
        roles: arguments.role.clone(),
        ttl_s: keys::ttl_s(&arguments.ttl).map_err(failed)?,
        issuer: arguments.issuer.clone(),
        audience: arguments.audience.clone(),
        scope: arguments.scope.clone(),
    };
    let token = keys::token_new(&arguments.key, arguments.kid.as_deref(), &request, now_s()).map_err(failed)?;
    print(&format!("{token}\n"))
}

pub(super) fn token_verify(arguments: &TokenVerifyArgs) -> Result<(), CliError> {
    let token = match &arguments.token {
        Some(token) => token.clone(),
        None => first_line()?,
    };
    let policy = TokenPolicy {
        issuer: arguments.issuer.as_deref().map(Into::into),
        audience: arguments.audience.as_deref().map(Into::into),
        ..TokenPolicy::default()
    };
    let now = Tick { mono_ns: 0, wall_ms: now_s() * 1_000 };
    let claims = keys::token_verify(&arguments.key, token.trim(), &policy, now).map_err(failed)?;
    print(&format!("{claims}\n"))
}

fn first_line() -> Result<String, CliError> {
    let mut line = String::new();
    std::io::stdin().lock().take(TOKEN_BYTES_MAX as u64 + 2).read_line(&mut line).map_err(failed)?;
    Ok(line)
}
