//! The client's address: the peer's, unless a trusted proxy names another (PROXY protocol, or a header).

use crate::gateway::Gateway;
use crate::raw::{Raw, UPGRADE};
use serde_json::Value;

/// The addresses of the connections, as the admin listener lists them.
fn peers(gateway: &Gateway) -> Vec<String> {
    let (_, body) = gateway.admin("/v1/connections");
    let list: Value = serde_json::from_str(&body).unwrap();
    list["connections"].as_array().unwrap().iter().map(|connection| connection["peer"].as_str().unwrap().to_owned()).collect()
}

fn with_header(line: &str) -> String {
    format!("{}{line}\r\n\r\n", UPGRADE.strip_suffix("\r\n").unwrap())
}

#[test]
fn the_proxy_protocol_of_a_trusted_proxy_names_the_client() {
    let gateway = Gateway::start(&[("server.proxy_protocol", "true"), ("server.trusted_proxies", r#"["127.0.0.0/8"]"#)]);
    let mut raw = Raw::connect(gateway.address);
    assert!(raw.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 443\r\n"));
    raw.upgrade(UPGRADE);
    assert_eq!(peers(&gateway), ["192.0.2.7"]);
    let mut second = Raw::connect(gateway.address);
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend([198, 51, 100, 9, 192, 0, 2, 1, 4, 210, 1, 187]);
    assert!(second.send(&header));
    second.upgrade(UPGRADE);
    assert!(peers(&gateway).contains(&"198.51.100.9".to_owned()));
    let mut without = Raw::connect(gateway.address);
    assert!(without.send(UPGRADE.as_bytes()));
    assert_eq!(without.rest(), b"", "a proxy that does not say whom it speaks for is not answered");
}

#[test]
fn nobody_else_is_believed() {
    let gateway = Gateway::start(&[
        ("server.proxy_protocol", "true"),
        ("server.trusted_proxies", r#"["10.0.0.0/8"]"#),
        ("server.client_ip_header", r#""x-forwarded-for""#),
    ]);
    let mut raw = Raw::connect(gateway.address);
    raw.upgrade(&with_header("X-Forwarded-For: 192.0.2.7"));
    assert_eq!(peers(&gateway), ["127.0.0.1"]);
    let mut liar = Raw::connect(gateway.address);
    assert!(liar.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 443\r\n"));
    assert!(liar.send(UPGRADE.as_bytes()));
    assert!(liar.head().starts_with("HTTP/1.1 400 "));
}

#[test]
fn a_trusted_proxys_header_names_the_client_and_limits_count_it() {
    let gateway = Gateway::start(&[
        ("server.trusted_proxies", r#"["127.0.0.1"]"#),
        ("server.client_ip_header", r#""x-forwarded-for""#),
        ("limits.connections_per_ip", "2"),
    ]);
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut raw = Raw::connect(gateway.address);
        raw.upgrade(&with_header("X-Forwarded-For: 203.0.113.66, 192.0.2.7"));
        held.push(raw);
    }
    assert_eq!(peers(&gateway), ["192.0.2.7", "192.0.2.7"], "what the client wrote before it is not believed");
    let mut third = Raw::connect(gateway.address);
    assert!(third.send(with_header("X-Forwarded-For: 192.0.2.7").as_bytes()));
    assert!(third.head().starts_with("HTTP/1.1 429 "));
    let mut other = Raw::connect(gateway.address);
    other.upgrade(&with_header("X-Forwarded-For: 192.0.2.8"));
}

/// Of connections that come at once and stay, some are accepted and the rest are told when to try again.
#[test]
fn handshakes_are_bounded_for_an_address_and_for_a_shard() {
    for (settings, let_in, status, limit) in [
        (
            &[("limits.handshakes_per_ip_per_second", "1"), ("limits.handshakes_per_ip_burst", "3")][..],
            3,
            429,
            "handshakes_per_ip",
        ),
        (&[("limits.half_open_per_ip", "2")], 2, 429, "half_open_per_ip"),
        (&[("limits.handshakes_per_second", "1")], 2, 503, "handshakes_per_shard"),
    ] {
        let gateway = Gateway::start(settings);
        let mut held = Vec::new();
        let heads: Vec<String> = (0..20)
            .map(|_| {
                let mut raw = Raw::connect(gateway.address);
                assert!(raw.send(UPGRADE.as_bytes()));
                let head = raw.head();
                held.push(raw);
                head
            })
            .collect();
        let (accepted, refused): (Vec<_>, Vec<_>) = heads.iter().partition(|head| head.starts_with("HTTP/1.1 101 "));
        assert!(accepted.len() >= let_in && !refused.is_empty(), "{limit}: {heads:?}");
        let told = |head: &&&String| head.starts_with(&format!("HTTP/1.1 {status} ")) && head.contains("Retry-After: 1");
        assert_eq!(refused.iter().filter(told).count(), refused.len(), "{limit}: {refused:?}");
        let counted = gateway.metric("ringway_limits_reached_total", &format!("limit=\"{limit}\""));
        assert_eq!(counted, refused.len() as u64, "{limit}");
    }
}
