//! `/healthz` and `/readyz` on the clients' port, asked byte for byte as balancers and supervisors ask; docs/OPERATING.md has their
//! configurations.

use crate::gateway::{Gateway, PATIENCE};
use crate::raw::Raw;
use rustix::process::Signal;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// Requests of probes, exactly as a kubelet of 1.31, HAProxy 2.6 and nginx 1.22 send them.
const PROBES: [(&str, &str); 7] = [
    (
        "kubelet, httpGet",
        "GET /healthz HTTP/1.1\r\nHost: 10.0.0.5:8080\r\nUser-Agent: kube-probe/1.31\r\nAccept: */*\r\nConnection: close\r\n\r\n",
    ),
    (
        "kubelet, httpGet",
        "GET /readyz HTTP/1.1\r\nHost: 10.0.0.5:8080\r\nUser-Agent: kube-probe/1.31\r\nAccept: */*\r\nConnection: close\r\n\r\n",
    ),
    ("HAProxy, option httpchk GET /healthz", "GET /healthz HTTP/1.0\r\n\r\n"),
    ("HAProxy, option httpchk GET /readyz", "GET /readyz HTTP/1.0\r\n\r\n"),
    ("HAProxy, http-check send", "GET /readyz HTTP/1.1\r\nhost: ringway\r\nconnection: close\r\n\r\n"),
    (
        "nginx, proxy_pass",
        "GET /healthz HTTP/1.0\r\nHost: gw\r\nConnection: close\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n",
    ),
    ("HAProxy, option httpchk HEAD /readyz", "HEAD /readyz HTTP/1.0\r\n\r\n"),
];

/// The whole answer, to the end that the gateway makes.
fn ask(gateway: &Gateway, ahead: &[u8], request: &str) -> String {
    let mut raw = Raw::connect(gateway.address);
    assert!(raw.send(ahead) && raw.send(request.as_bytes()));
    String::from_utf8(raw.rest()).unwrap()
}

fn until_ready(gateway: &Gateway) {
    let deadline = Instant::now() + PATIENCE;
    while !ask(gateway, b"", "GET /readyz HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200 ") {
        assert!(Instant::now() < deadline, "never ready");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn balancers_and_supervisors_are_answered_on_the_clients_port() {
    let proxied = [("server.proxy_protocol", "true"), ("server.trusted_proxies", r#"["127.0.0.1"]"#)];
    // A proxy that checks for itself (HAProxy: check-send-proxy) has no client to name.
    for (settings, ahead) in
        [(&[][..], &b""[..]), (&proxied, b"PROXY UNKNOWN\r\n"), (&proxied, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")]
    {
        let gateway = Gateway::start(&[settings, &[("server.shards", "2")]].concat());
        let deadline = Instant::now() + PATIENCE;
        while gateway.admin("/readyz").0 != 200 {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(20));
        }
        for (who, request) in PROBES {
            let told = ask(&gateway, ahead, request);
            let word = if request.contains("healthz") { "ok" } else { "ready" };
            assert!(told.starts_with("HTTP/1.1 200 OK\r\nConnection: close\r\n"), "{who}: {told}");
            let body = if request.starts_with("HEAD") { String::new() } else { format!("{word}\n") };
            assert!(
                told.ends_with(&format!("\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\r\n{body}", word.len() + 1)),
                "{who}: {told}"
            );
        }
        assert_eq!(gateway.metric("ringway_probes_total", ""), PROBES.len() as u64);
        assert_eq!(gateway.metric("ringway_http_refused_total", ""), 0);
        // HAProxy's request if none is configured.
        assert!(ask(&gateway, ahead, "OPTIONS / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 400 "));
        let listed = gateway.admin("/v1/connections").1;
        assert!(!listed.contains("http_answered") || listed.matches("connection_id").count() == 1, "{listed}");
    }
}

#[test]
fn with_tls_probes_are_https() {
    let data = |name: &str| format!("{:?}", format!("{}/tests/data/tls/{name}", env!("CARGO_MANIFEST_DIR")));
    let gateway = Gateway::start(&[("tls.certificate", &data("localhost.cert.pem")), ("tls.key", &data("localhost.key.pem"))]);
    for (who, request) in PROBES {
        let mut tls = crate::tls_hostile::Tls::connect(&gateway, &rustls::version::TLS13);
        tls.send(request.as_bytes());
        let mut told = Vec::new();
        rustls::Stream::new(&mut tls.tls, &mut tls.stream).read_to_end(&mut told).unwrap();
        let told = String::from_utf8(told).unwrap();
        assert!(told.starts_with("HTTP/1.1 200 OK\r\n") || request.contains("readyz"), "{who}: {told}");
    }
    let mut plain = Raw::connect(gateway.address);
    assert!(plain.stream.write_all(PROBES[0].1.as_bytes()).is_ok());
    assert!(!plain.rest().starts_with(b"HTTP/"), "in the clear there is nothing to be had");
}

#[test]
fn a_drain_is_told_here_before_clients_are() {
    let mut gateway = Gateway::start(&[("drain.not_ready_ms", "2000")]);
    until_ready(&gateway);
    gateway.signal(Signal::TERM);
    gateway.logged("that it drains", |line| line["message"] == "draining");
    let deadline = Instant::now() + Duration::from_millis(1_500);
    loop {
        let told = ask(&gateway, b"", PROBES[1].1);
        if told.starts_with("HTTP/1.1 503 Service Unavailable\r\n") {
            assert!(told.ends_with("\r\n\r\ndraining\n"), "{told}");
            break;
        }
        assert!(Instant::now() < deadline, "{told}");
    }
    assert!(ask(&gateway, b"", PROBES[0].1).ends_with("\r\n\r\nok\n"), "restarted it shall not be");
    assert!(gateway.ended().success());
}

#[test]
fn where_it_is_off_there_is_nothing() {
    let gateway = Gateway::start(&[("server.health", "false")]);
    assert!(ask(&gateway, b"", PROBES[0].1).starts_with("HTTP/1.1 404 "));
    assert!(ask(&gateway, b"", PROBES[2].1).starts_with("HTTP/1.1 400 "));
    assert_eq!(gateway.metric("ringway_probes_total", ""), 0);
}
