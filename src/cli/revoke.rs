//! `ringway token revoke` and `ringway token revocations`.

use super::admin_client::{decode, get, good, request, segment};
use super::{CliError, RevokeArgs, keys, now_s, print};
use crate::control::escape::text as plain;
use crate::control::{RevocationList, RevocationRequest, Revoked};
use std::fmt::Write;

const PATH: &str = "/v1/revocations";

pub(super) fn revoke(arguments: &RevokeArgs) -> Result<(), CliError> {
    let RevokeArgs { jti, client_id, sub, issued_before_s, .. } = arguments.clone();
    let until_s = match &arguments.keep {
        Some(time) => Some(now_s() + keys::ttl_s(time).map_err(|error| CliError(error.to_string()))?),
        None => None,
    };
    let wanted = RevocationRequest { jti, client_id, sub, issued_before_s, until_s };
    let answer = if arguments.lift {
        let target = [("jti", &wanted.jti), ("client_id", &wanted.client_id), ("sub", &wanted.sub)];
        let query: Vec<String> =
            target.iter().filter_map(|(key, name)| Some(format!("{key}={}", segment(name.as_ref()?)))).collect();
        request(&arguments.admin, "DELETE", &format!("{PATH}?{}", query.join("&")), None)?
    } else {
        let body = serde_json::to_string(&wanted).map_err(|error| CliError(error.to_string()))?;
        request(&arguments.admin, "POST", PATH, Some(&body))?
    };
    let revoked: Revoked = decode(&good(answer)?)?;
    print(&told(&revoked, arguments.lift))?;
    if revoked.unanswered_shards.is_empty() { Ok(()) } else { Err(unanswered(&revoked)) }
}

fn told(revoked: &Revoked, lifted: bool) -> String {
    match (lifted, revoked.connections_closed) {
        (true, _) => "lifted\n".to_owned(),
        (false, 1) => "revoked; 1 connection closed\n".to_owned(),
        (false, closed) => format!("revoked; {closed} connections closed\n"),
    }
}

fn unanswered(revoked: &Revoked) -> CliError {
    CliError(format!("shards that did not answer in time: {:?}; they apply it when they run again", revoked.unanswered_shards))
}

pub(super) fn list(admin: &str, limit: u16, json: bool) -> Result<(), CliError> {
    let body = good(get(admin, &format!("{PATH}?limit={limit}"))?)?;
    if json {
        return print(&format!("{body}\n"));
    }
    print(&table(&decode(&body)?))
}

fn table(list: &RevocationList) -> String {
    let mut out = format!("{:9}  {:32}  {:15}  {}\n", "KIND", "NAME", "ISSUED BEFORE", "UNTIL");
    let seconds = |seconds: Option<u64>| seconds.map_or_else(|| "-".to_owned(), |seconds| seconds.to_string());
    for entry in &list.revocations {
        let named = [("jti", &entry.jti), ("client_id", &entry.client_id), ("sub", &entry.sub)];
        let Some((kind, name)) = named.iter().find_map(|(kind, name)| Some((*kind, name.as_ref()?))) else { continue };
        let (issued_before, until) = (seconds(entry.issued_before_s), seconds(entry.until_s));
        let _ = writeln!(out, "{kind:9}  {:32}  {issued_before:15}  {until}", plain(name));
    }
    if list.truncated {
        out.push_str("… and more; raise --limit to see them\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_revocations() {
        let token = RevocationRequest { jti: Some("t\u{1b}".into()), until_s: Some(9), ..RevocationRequest::default() };
        let user = RevocationRequest {
            sub: Some("ana".into()),
            issued_before_s: Some(5),
            until_s: Some(9),
            ..RevocationRequest::default()
        };
        let text = table(&RevocationList { revocations: vec![token, user], truncated: true });
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[1], ["jti", "t\\x1b", "-", "9"]);
        assert_eq!(words[2], ["sub", "ana", "5", "9"]);
        assert!(text.ends_with("raise --limit to see them\n"), "{text}");
    }

    #[test]
    fn what_came_of_it() {
        assert_eq!(told(&Revoked { connections_closed: 1, ..Revoked::default() }, false), "revoked; 1 connection closed\n");
        assert_eq!(told(&Revoked::default(), true), "lifted\n");
        let stuck = unanswered(&Revoked { connections_closed: 0, unanswered_shards: vec![3] });
        assert!(stuck.0.contains("[3]"), "{stuck}");
    }
}
