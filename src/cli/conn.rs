//! `ringway conn ls` and `ringway conn show`.

use super::admin_client::{decode, get, good, segment};
use super::{CliError, print};
use crate::control::ConnectionList;
use crate::control::escape::text as plain;
use crate::shard::port::{ConnectionInfo, SessionInfo};
use std::fmt::Write;

const HEADINGS: [&str; 11] =
    ["CONNECTION", "SHARD", "STATE", "CLIENT", "PEER", "SESSIONS", "LAG", "BUFFERED", "AGE", "IDLE", "CLOSED"];

pub(super) fn list(admin: &str, limit: u16, json: bool) -> Result<(), CliError> {
    let body = good(get(admin, &format!("/v1/connections?limit={limit}"))?)?;
    if json {
        return print(&format!("{body}\n"));
    }
    print(&table(&decode(&body)?))
}

pub(super) fn show(admin: &str, id: &str, json: bool) -> Result<(), CliError> {
    let body = good(get(admin, &format!("/v1/connections/{}", segment(id)))?)?;
    if json {
        return print(&format!("{body}\n"));
    }
    print(&details(&decode(&body)?))
}

/// A duration in words.
fn lasted(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{ms}ms"),
        10_000..600_000 => format!("{}s", ms / 1000),
        600_000..36_000_000 => format!("{}m", ms / 60_000),
        _ => format!("{}h", ms / 3_600_000),
    }
}

fn state(info: &ConnectionInfo) -> String {
    serde_json::to_value(info.state).ok().and_then(|value| Some(value.as_str()?.to_owned())).unwrap_or_default()
}

fn closed(info: &ConnectionInfo) -> String {
    match (&info.close_reason, info.close_code) {
        (Some(reason), Some(code)) => format!("{reason} ({code})"),
        (Some(reason), None) => reason.clone(),
        (None, _) => "-".to_owned(),
    }
}

fn row(info: &ConnectionInfo) -> [String; 11] {
    let lag = info.sessions.iter().map(SessionInfo::lag).max().unwrap_or(0);
    let client = if info.client_id.is_empty() { "-" } else { &info.client_id };
    [
        plain(&info.connection_id),
        info.shard.to_string(),
        state(info),
        plain(client),
        info.peer.to_string(),
        info.sessions.len().to_string(),
        lag.to_string(),
        info.buffered_bytes.to_string(),
        lasted(info.age_ms),
        lasted(info.idle_ms),
        plain(&closed(info)),
    ]
}

fn table(list: &ConnectionList) -> String {
    let rows: Vec<[String; 11]> = list.connections.iter().map(row).collect();
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([HEADINGS[column].len()]).max().unwrap_or_default()
    };
    let widths: [usize; 11] = std::array::from_fn(width);
    let mut out = String::new();
    let mut line = |cells: &[&str]| {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(padded.join("  ").trim_end());
        out.push('\n');
    };
    line(&HEADINGS);
    for row in &rows {
        line(&row.each_ref().map(String::as_str));
    }
    if list.truncated {
        out.push_str("… and more; raise --limit to see them\n");
    }
    if !list.unanswered_shards.is_empty() {
        let _ = writeln!(out, "shards that did not answer: {:?}", list.unanswered_shards);
    }
    out
}

fn details(info: &ConnectionInfo) -> String {
    let mut out = String::new();
    for (heading, cell) in HEADINGS.iter().zip(row(info)) {
        let _ = writeln!(out, "{:10}  {cell}", heading.to_ascii_lowercase());
    }
    let _ = writeln!(out, "{:10}  {} in, {} out", "messages", info.messages_in, info.messages_out);
    for session in &info.sessions {
        let mirrored = if session.mirrored { ", through a mirror" } else { "" };
        let (name, lag) = (plain(&session.session_id), session.lag());
        let _ = writeln!(out, "session     {name}: at {} of {}, {lag} behind{mirrored}", session.cursor_seq, session.head_seq);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{self, ControlOptions, EngineLabels};
    use crate::shard::port::{ConnectionState, Snapshot};
    use std::sync::Arc;
    use std::time::Duration;

    fn info() -> ConnectionInfo {
        ConnectionInfo {
            connection_id: "c-1".into(),
            shard: 1,
            peer: [10, 0, 0, 1].into(),
            client_id: "ana/\u{1b}[31m".into(),
            state: ConnectionState::Closed,
            sessions: vec![SessionInfo { session_id: "s-42".into(), head_seq: 50, cursor_seq: 41, mirrored: true }],
            buffered_bytes: 12,
            age_ms: 700_000,
            idle_ms: 999,
            messages_in: 3,
            messages_out: 4,
            close_reason: Some("too_slow".into()),
            close_code: Some(4508),
        }
    }

    #[test]
    fn a_table_of_connections() {
        let list = ConnectionList { connections: vec![info()], truncated: true, unanswered_shards: vec![3] };
        let text = table(&list);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("CONNECTION  SHARD  STATE   CLIENT"), "{text}");
        assert!(lines[1].contains("too_slow (4508)") && lines[1].contains("11m") && lines[1].contains("999ms"), "{text}");
        assert_eq!(lines[2..], ["… and more; raise --limit to see them", "shards that did not answer: [3]"]);
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn a_running_listener_is_understood() {
        let options = ControlOptions {
            engine: EngineLabels { engine: "ring", driver: "io_uring" },
            listen: "127.0.0.1:0".parse().unwrap(),
            socket: None,
            snapshot: Arc::new(Snapshot::default()),
            reload: None,
            signals: false,
            tick: Duration::from_secs(1),
        };
        let control = control::spawn(options, Vec::new()).unwrap();
        let url = format!("http://{}", control.address());
        let list: ConnectionList = decode(&good(get(&url, "/v1/connections?limit=5").unwrap()).unwrap()).unwrap();
        let refused = show(&url, "c-1", false).unwrap_err().0;
        control.ask(control::Command::Stop);
        assert_eq!(control.wait(), control::Outcome::Stopped);
        assert_eq!(list, ConnectionList::default());
        assert!(refused.starts_with("no shard knows this connection"), "{refused}");
    }

    #[test]
    fn one_in_detail() {
        let text = details(&info());
        assert!(text.contains("session     s-42: at 41 of 50, 9 behind, through a mirror\n"), "{text}");
        assert!(text.contains("state       closed\n"), "{text}");
    }
}
