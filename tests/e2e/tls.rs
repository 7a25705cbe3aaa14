//! wss: TLS 1.2 and 1.3 with ALPN http/1.1, over the same port and the same code.

use crate::client::{Client, Hello, Stream, code, upgrade};
use crate::gateway::Gateway;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

fn data(name: &str) -> String {
    format!("{}/tests/data/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

pub fn start(shards: &str, more: &[(&str, &str)]) -> Gateway {
    let (certificate, key) = (format!("{:?}", data("localhost.cert.pem")), format!("{:?}", data("localhost.key.pem")));
    let mut settings = vec![("server.shards", shards), ("tls.certificate", &certificate), ("tls.key", &key)];
    settings.extend(more);
    Gateway::start(&settings)
}

pub fn client(versions: &[&'static rustls::SupportedProtocolVersion], alpn: &[&str]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for name in ["localhost.cert.pem", "renewed.cert.pem"] {
        roots.add(CertificateDer::from_pem_file(data(name)).unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

pub async fn connect(gateway: &Gateway, connector: &TlsConnector) -> std::io::Result<(Box<dyn Stream>, Option<Vec<u8>>)> {
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await?;
    let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    Ok((Box::new(stream), alpn))
}

pub const ALL: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

async fn join(gateway: &Gateway, connector: &TlsConnector, session: &str, client_id: &str) -> Client {
    let (stream, _) = connect(gateway, connector).await.unwrap();
    let (stream, status, head) = upgrade(stream, "/v1/ws", "").await;
    assert_eq!(status, 101, "{head}");
    Client::over(stream).greet(Hello::new(session, client_id)).await
}

#[tokio::test]
async fn messages_cross_tls_on_both_versions_and_both_shards() {
    let gateway = start("2", &[("limits.messages_per_second", "0"), ("limits.bytes_per_second", "0")]);
    for (round, version) in ALL.into_iter().enumerate() {
        let connector = client(&[version], &["http/1.1"]);
        // Several sessions, so that some connections change shards with their TLS state.
        for number in 0..6 {
            let session = format!("s-{round}-{number}");
            let mut ana = join(&gateway, &connector, &session, "ana").await;
            let mut ben = join(&gateway, &connector, &session, "ben").await;
            for size in [1, 1_000, 20_000, 60_000] {
                ana.publish("session", "x".repeat(size)).await;
            }
            let heard = ben.heard().await;
            assert_eq!(heard.iter().map(|text| text.as_str().unwrap().len()).collect::<Vec<_>>(), [1, 1_000, 20_000, 60_000]);
            assert_eq!(code(&ana.command("rw.history", json!({"limit": 0})).await), "envelope.invalid");
            ana.close().await;
            ben.vanish().await;
        }
    }
    gateway.until_metric("ringway_connections", "", |connections| connections == 0);
    assert!(gateway.metric("ringway_handed_over_total", "") >= 1);
}

#[tokio::test]
async fn alpn_is_http_1_1_or_nothing() {
    let gateway = start("1", &[]);
    let (_, alpn) = connect(&gateway, &client(&ALL, &["h2", "http/1.1"])).await.unwrap();
    assert_eq!(alpn.as_deref(), Some(&b"http/1.1"[..]));
    let (_, alpn) = connect(&gateway, &client(&ALL, &[])).await.unwrap();
    assert_eq!(alpn, None);
    let error = connect(&gateway, &client(&ALL, &["h2"])).await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    let mut clear = crate::raw::Raw::connect(gateway.address);
    clear.send(crate::raw::UPGRADE.as_bytes());
    assert!(!clear.rest().starts_with(b"HTTP"), "clear text on a TLS port is no HTTP");
}

/// The certificate that the gateway shows.
async fn shown(gateway: &Gateway) -> CertificateDer<'static> {
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let stream = client(&ALL, &[]).connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test]
async fn a_reload_takes_a_new_certificate_and_a_broken_one_keeps_the_old() {
    let folder = crate::gateway::folder();
    let put = |pair: &str, key: &str| {
        std::fs::copy(data(&format!("{pair}.cert.pem")), folder.join("cert.pem")).unwrap();
        std::fs::copy(data(&format!("{key}.key.pem")), folder.join("key.pem")).unwrap();
    };
    let read = |name: &str| CertificateDer::from_pem_file(data(name)).unwrap();
    let (old, renewed) = (read("localhost.cert.pem"), read("renewed.cert.pem"));
    put("localhost", "localhost");
    let (certificate, key) = (format!("{:?}", folder.join("cert.pem")), format!("{:?}", folder.join("key.pem")));
    let settings = [("tls.certificate", &*certificate), ("tls.key", &*key), ("server.shards", "2")];
    let mut gateway = Gateway::start(&settings);
    let mut ana = join(&gateway, &client(&ALL, &[]), "s", "ana").await;
    assert_eq!(shown(&gateway).await, old);

    put("renewed", "other");
    gateway.reload(&settings);
    let line = gateway.logged("the refusal", |line| line["message"].as_str().unwrap().starts_with("reload refused"));
    let error = line["error"].as_str().unwrap();
    assert!(error.contains(": tls.key: ") && error.contains("the private key does not belong"), "{line}");
    std::fs::write(folder.join("cert.pem"), "no certificate").unwrap();
    gateway.reload(&settings);
    gateway.logged("the second refusal", |line| line["error"].as_str().is_some_and(|text| text.contains("no certificate")));
    assert_eq!(shown(&gateway).await, old);

    put("renewed", "renewed");
    gateway.reload(&settings);
    gateway.logged("the change", |line| line["setting"] == "tls.certificate, its file");
    gateway.logged("that it reloaded", |line| line["message"].as_str().unwrap().starts_with("reloaded"));
    // Each shard takes it with its next turn; who accepts the next connection is the kernel's choice.
    let deadline = std::time::Instant::now() + crate::gateway::PATIENCE;
    let mut in_a_row = 0;
    while in_a_row < 20 {
        in_a_row = if shown(&gateway).await == renewed { in_a_row + 1 } else { 0 };
        assert!(std::time::Instant::now() < deadline, "the old certificate is still shown");
    }
    ana.publish("session", "a connection from before goes on").await;
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_key_of_another_certificate_does_not_start() {
    let folder = crate::gateway::folder();
    std::fs::write(folder.join("secret"), crate::gateway::SECRET).unwrap();
    let (certificate, key) = (format!("{:?}", data("localhost.cert.pem")), format!("{:?}", data("other.key.pem")));
    std::fs::write(folder.join("ringway.toml"), crate::gateway::config(&[("tls.certificate", &certificate), ("tls.key", &key)]))
        .unwrap();
    let (exit, _, stderr) = crate::gateway::run(&["serve", "--config", folder.join("ringway.toml").to_str().unwrap()]);
    std::fs::remove_dir_all(folder).unwrap();
    assert_eq!((exit, stderr.lines().count()), (1, 1), "{stderr}");
    assert!(stderr.contains(": tls.key: "), "{stderr}");
}
