//! Where `key new`, `token new` and `token verify` go over to `cli::keys`.

use super::{CliError, KeyNewArgs, TokenNewArgs, TokenVerifyArgs};

fn absent(command: &str) -> CliError {
    CliError(format!("{command}: this build has no key tools"))
}

pub(super) fn key_new(_arguments: &KeyNewArgs) -> Result<(), CliError> {
    Err(absent("key new"))
}

pub(super) fn token_new(_arguments: &TokenNewArgs) -> Result<(), CliError> {
    Err(absent("token new"))
}

pub(super) fn token_verify(_arguments: &TokenVerifyArgs) -> Result<(), CliError> {
    Err(absent("token verify"))
}
