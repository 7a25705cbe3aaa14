//! The memory of an idle connection (docs/REFERENCE.md): 2 KiB, and no memory that the kernel takes 2 MiB at a time.

use crate::client::Client;
use crate::gateway::Gateway;

const CONNECTIONS: usize = 1_000;
/// More than one connection takes on any engine (monoio: 4 KiB): these also pay for the first pages of every table, and for a
/// debug build.
const BYTES_A_CONNECTION: usize = 6 * 1024;

#[tokio::test]
async fn idle_connections_take_little_memory() {
    let gateway = Gateway::start(&[("server.max_connections", "2000"), ("limits.connections_per_ip", "0")]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let huge_pages = status.lines().find(|line| line.starts_with("THP_enabled"));
    assert!(huge_pages.is_none_or(|line| line.ends_with('0')), "{huge_pages:?}");
    let _first = Client::join(&gateway, "first", "first").await;

    let before = gateway.rss_bytes();
    let mut clients = Vec::new();
    for number in 0..CONNECTIONS {
        clients.push(Client::join(&gateway, &format!("s-{number}"), &format!("c-{number}")).await);
    }
    let each = gateway.rss_bytes().saturating_sub(before) / CONNECTIONS;
    assert!(each <= BYTES_A_CONNECTION, "{each} B a connection");
}
