//! SIGTERM (protocol.md section 5, "Going away"): not ready, goaway, 1012, exit code 0 within the grace.

use crate::client::Client;
use crate::gateway::Gateway;
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Returns `true` if a new connection is upgraded. Refused, reset, answered 503: each sends the client elsewhere.
fn lets_in(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut answer = [0; 12];
    stream.write_all(crate::raw::UPGRADE.as_bytes()).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer == *b"HTTP/1.1 101"
}

#[tokio::test]
async fn a_drain_tells_closes_and_ends() {
    let mut gateway = Gateway::start(&[
        ("server.shards", "2"),
        ("drain.not_ready_ms", "600"),
        ("drain.window_ms", "400"),
        ("drain.grace_ms", "5000"),
    ]);
    let mut clients = Vec::new();
    for number in 0..8 {
        clients.push(Client::join(&gateway, &format!("s-{number}"), &format!("c{number}")).await);
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while gateway.admin("/readyz").0 != 200 {
        assert!(Instant::now() < deadline, "never ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    gateway.signal(Signal::TERM);
    gateway.logged("that it drains", |line| line["message"].as_str().is_some_and(|message| message.contains("drain")));
    let (status, body) = gateway.admin("/readyz");
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("draining"), "{body}");
    assert_eq!(gateway.admin("/healthz").0, 200, "alive all the same");
    clients[0].publish("session", "still served").await;

    for client in &mut clients {
        let goaway = client.take("rw.goaway").await;
        assert_eq!(goaway["payload"]["reconnect_within_ms"], 400, "{goaway}");
        assert!(goaway["payload"]["restart"].is_boolean(), "{goaway}");
    }
    assert!(!lets_in(gateway.address), "new ones go elsewhere");
    for client in &mut clients {
        assert_eq!(client.closed().await.0, Some(1012));
    }
    assert_eq!(gateway.ended().code(), Some(0), "{:#?}", gateway.log());
}

#[tokio::test]
async fn the_grace_ends_who_does_not_go() {
    let mut gateway = Gateway::start(&[("drain.window_ms", "50"), ("drain.grace_ms", "500"), ("limits.close_ms", "60000")]);
    let mut raw = crate::raw::Raw::connect(gateway.address);
    raw.upgrade(crate::raw::UPGRADE);
    let began = Instant::now();
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.ended().code(), Some(0), "{:#?}", gateway.log());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let mut gateway = Gateway::start(&[("drain.not_ready_ms", "60000"), ("drain.grace_ms", "60000")]);
    let _client = Client::join(&gateway, "s", "ana").await;
    gateway.signal(Signal::TERM);
    gateway.logged("that it drains", |line| line["message"].as_str().is_some_and(|message| message.contains("drain")));
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.ended().code(), Some(0), "{:#?}", gateway.log());
}
