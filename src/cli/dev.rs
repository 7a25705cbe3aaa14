//! `ringway dev`: a node with no configuration and a key in memory, and two clients to paste.

use super::engine::{Choice, choose};
use super::serve::{Node, START_SHARDS, fit_open_files, run};
use super::{CliError, DevArgs, now_s, print};
use crate::auth::{KeyAlgorithm, KeyMaterial};
use crate::config::Settings;
use crate::control::logging;
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const KEY_ID: &str = "dev";
const SUBJECT: &str = "dev";
const SESSION: &str = "s-42";
const TOKEN_LIFETIME_S: u64 = 86_400;

pub(super) fn dev(arguments: &DevArgs) -> Result<(), CliError> {
    let mut settings = settings(arguments)?;
    let engine = choose(settings.server.engine)?;
    // A machine with few open files still runs a node to try out, whatever its engine.
    fit_open_files(&mut settings, engine.engine);
    let mut secret = [0_u8; 32];
    aws_lc_rs::rand::fill(&mut secret).map_err(|_| CliError("no random bytes from the operating system".to_owned()))?;
    let token = token(&secret, now_s());
    let keys = vec![KeyMaterial { key_id: KEY_ID.to_owned(), algorithm: KeyAlgorithm::Hs256, bytes: secret.to_vec() }];
    let log = logging::start(settings.diagnostics.log_format, settings.diagnostics.log_level)?;
    let node = Node { settings, keys, tls: None, dev: true, reload: None, engine: engine.clone() };
    let ended = run(node, START_SHARDS, |address, admin| {
        // If stdout is closed, nobody reads the text; the node runs all the same.
        drop(print(&welcome(address, admin, &engine, &token)));
    });
    log.flush();
    ended
}

fn settings(arguments: &DevArgs) -> Result<Settings, CliError> {
    // Through the parser, so that what `serve` refuses is refused here in the same words.
    let text = format!(
        "[server]\nlisten = \"{}\"\nshards = {}\nengine = {:?}\n[admin]\nlisten = \"{}\"\n",
        arguments.listen, arguments.shards, arguments.engine, arguments.admin
    );
    Settings::parse(&text, [])
        .map_err(|error| CliError(error.0.into_iter().map(|problem| problem.message).collect::<Vec<_>>().join("\n")))
}

/// A JWT (RFC 7519) signed with HS256, for every session, good for a day.
fn token(secret: &[u8], now_s: u64) -> String {
    let header = serde_json::json!({ "alg": "HS256", "typ": "JWT", "kid": KEY_ID });
    let claims = serde_json::json!({
        "sub": SUBJECT, "sid": ["*"], "roles": ["agent"], "iat": now_s, "nbf": now_s, "exp": now_s + TOKEN_LIFETIME_S
    });
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// The address to connect to: a wildcard address is reached over the loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn hello(client: &str, token: &str) -> String {
    format!(
        r#"{{"type":"rw.hello","id":"1","session_id":"{SESSION}","payload":{{"client_id":"{SUBJECT}/{client}","auth_token":"{token}"}}}}"#
    )
}

fn welcome(address: SocketAddr, admin: SocketAddr, engine: &Choice, token: &str) -> String {
    let url = format!("ws://{}/v1/ws", reachable(address));
    let open = if address.ip().is_loopback() {
        String::new()
    } else {
        format!(
            "  - it listens on {address}, beyond this machine: anybody who has the token below, read off the wire too, is in\n"
        )
    };
    format!(
        r#"ringway dev {version}

  url      {url}
  admin    http://{admin}/metrics
  engine   {engine}: {why}

NOT for the Internet:
{open}  - no TLS: tokens and messages cross the network in the clear
  - one key, in memory: tokens end with this process
  - the token below opens every session, for a day, to whoever has it
  - pages of localhost and of local files may connect

token

{token}

terminal 1, with websocat; then type lines like
  {{"type":"chat","id":"m-1","session_id":"{SESSION}","payload":"hello from ana"}}   (a new id each time)

(printf '%s\n' '{ana}'; cat) | websocat --protocol ringway.v1 {url}

terminal 2, with Python (pip install websockets): says hello, prints what comes

python3 -c '
import json, uuid
from websockets.sync.client import connect
with connect("{url}", subprotocols=["ringway.v1"]) as ws:
    ws.send("""{bob}""")
    ws.send(json.dumps({{"type":"chat","id":str(uuid.uuid4()),"session_id":"{SESSION}","payload":"hello from bob"}}))
    for message in ws:
        print(message)
'

Ctrl-C ends it.

"#,
        version = env!("CARGO_PKG_VERSION"),
        engine = engine.engine,
        why = engine.why,
        ana = hello("ana", token),
        bob = hello("bob", token),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::probe;
    use serde_json::Value;

    fn arguments(listen: &str, admin: &str) -> DevArgs {
        DevArgs { listen: listen.parse().unwrap(), admin: admin.parse().unwrap(), shards: 1, engine: "auto".to_owned() }
    }

    #[test]
    fn the_token_is_signed_and_bounded() {
        let secret = [7; 32];
        let token = token(&secret, 1_000);
        let parts: Vec<&str> = token.split('.').collect();
        let part = |index: usize| URL_SAFE_NO_PAD.decode(parts[index]).unwrap();
        let claims: Value = serde_json::from_slice(&part(1)).unwrap();
        assert_eq!((&claims["sub"], &claims["exp"]), (&"dev".into(), &(1_000 + TOKEN_LIFETIME_S).into()));
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        hmac::verify(&key, format!("{}.{}", parts[0], parts[1]).as_bytes(), &part(2)).unwrap();
        assert!(TOKEN_LIFETIME_S <= Settings::default().auth.lifetime_s_max);
    }

    #[test]
    fn the_lines_to_paste_are_whole() {
        let address: SocketAddr = "0.0.0.0:8080".parse().unwrap();
        let engine = Choice { engine: probe::Engine::MonoioEpoll, why: "not ring: it is refused".into(), fallen_back: true };
        let text = welcome(address, "127.0.0.1:9090".parse().unwrap(), &engine, "a.b.c");
        assert!(text.contains("\n  engine   monoio on epoll: not ring: it is refused\n"), "{text}");
        assert!(text.contains("websocat --protocol ringway.v1 ws://127.0.0.1:8080/v1/ws\n"), "{text}");
        assert!(text.contains("it listens on 0.0.0.0:8080, beyond this machine"), "{text}");
        let hellos = text.lines().filter_map(|line| Some(&line[line.find("{\"type\":\"rw.hello\"")?..=line.rfind('}')?]));
        let clients: Vec<Value> = hellos.map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(clients.len(), 2, "{text}");
        for (hello, client) in clients.iter().zip(["dev/ana", "dev/bob"]) {
            assert_eq!((&hello["payload"]["client_id"], &hello["payload"]["auth_token"]), (&client.into(), &"a.b.c".into()));
        }
        assert!(!welcome("[::1]:1".parse().unwrap(), address, &engine, "t").contains("beyond this machine"));
    }

    #[test]
    fn what_serve_refuses_dev_refuses() {
        let error = settings(&arguments("127.0.0.1:1", "0.0.0.0:2")).unwrap_err().0;
        assert!(error.starts_with("admin.listen = \"0.0.0.0:2\": must be a loopback address"), "{error}");
        assert!(settings(&arguments("0.0.0.0:1", "[::1]:2")).is_ok());
        let other = DevArgs { engine: "tokio".to_owned(), ..arguments("0.0.0.0:1", "[::1]:2") };
        let error = settings(&other).unwrap_err().0;
        assert!(error.starts_with("server.engine = \"tokio\"") && error.contains("\"auto\""), "{error}");
    }
}
