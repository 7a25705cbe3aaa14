//! An address is one gateway's: a second one there ends and says so, whichever engine runs it and however the two write the address.

use crate::client::Client;
use crate::gateway::{Gateway, PATIENCE, SECRET, config, folder, run};
use rustix::process::Signal;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Instant;

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Starts a gateway where another should be in its way. Returns exit code and stderr.
fn second(address: &str, more: &[(&str, &str)]) -> (i32, String) {
    let (folder, listen) = (folder(), format!("{address:?}"));
    std::fs::write(folder.join("secret"), SECRET).unwrap();
    let settings = [&[("server.listen", listen.as_str()), ("server.shards", "2")], more].concat();
    std::fs::write(folder.join("ringway.toml"), config(&settings)).unwrap();
    let (exit, _, stderr) = run(&["serve", "--config", folder.join("ringway.toml").to_str().unwrap()]);
    std::fs::remove_dir_all(folder).unwrap();
    (exit, stderr)
}

fn is_in_use(address: &str, (exit, stderr): (i32, String)) {
    let line = stderr.lines().last().unwrap_or_default();
    assert_eq!(exit, 1, "{address}: {stderr}");
    assert!(line.starts_with(&format!("ringway: server.listen {address}: the address is in use")), "{stderr}");
}

#[test]
fn a_second_gateway_at_an_address_ends_and_names_it() {
    let has_v6 = TcpListener::bind("[::1]:0").is_ok();
    let pairs = [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.1", "[::]"),
        ("[::]", "127.0.0.1"),
        ("[::]", "[::1]"),
        ("[::1]", "[::1]"),
    ];
    std::thread::scope(|scope| {
        for (number, (first, then)) in
            pairs.into_iter().filter(|(first, then)| has_v6 || !first.contains('[') && !then.contains('[')).enumerate()
        {
            scope.spawn(move || {
                let port = free_port();
                let (first, then) = (format!("\"{first}:{port}\""), format!("{then}:{port}"));
                // Over what the machine has and over epoll, each beside the other and beside itself.
                let engines = [r#""auto""#, r#""epoll""#];
                let (engine, other) = (engines[number % 2], engines[number / 2 % 2]);
                let gateway = Gateway::start(&[("server.listen", &first), ("server.engine", engine)]);
                is_in_use(&then, second(&then, &[("server.engine", other)]));
                assert_eq!(gateway.admin("/readyz").0, 200);
            });
        }
    });
}

#[tokio::test]
async fn a_gateway_that_was_killed_is_followed_by_another_at_once() {
    for address in ["127.0.0.1", "0.0.0.0"] {
        let listen = format!("\"{address}:{}\"", free_port());
        let mut gateway = Gateway::start(&[("server.listen", &listen), ("server.shards", "2")]);
        for round in 0..3 {
            gateway.address.set_ip([127, 0, 0, 1].into());
            // Some have gone and leave TIME_WAIT behind, some are there.
            let ana = Client::join(&gateway, "s", "ana").await;
            let _ben = Client::join(&gateway, "s", "ben").await;
            ana.close().await;
            // Not waited for: the next one starts while the first goes.
            gateway.signal(if round == 1 { Signal::TERM } else { Signal::KILL });
            gateway = gateway.again();
        }
    }
}

#[test]
fn of_two_that_start_at_once_one_serves() {
    for round in 0..2 {
        let port = free_port();
        let mut children: Vec<_> = ["127.0.0.1", "0.0.0.0"]
            .map(|ip| {
                let folder = folder();
                std::fs::write(folder.join("secret"), SECRET).unwrap();
                let listen = format!("\"{ip}:{port}\"");
                std::fs::write(folder.join("ringway.toml"), config(&[("server.listen", &listen)])).unwrap();
                let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
                command.args(["serve", "--config"]).arg(folder.join("ringway.toml"));
                (command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap(), folder)
            })
            .into();
        let deadline = Instant::now() + PATIENCE;
        let ended = loop {
            let ended: Vec<_> = children.iter_mut().map(|(child, _)| child.try_wait().unwrap()).collect();
            if ended.iter().any(Option::is_some) || Instant::now() > deadline {
                break ended;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        for (mut child, folder) in children {
            child.kill().unwrap();
            child.wait().unwrap();
            std::fs::remove_dir_all(folder).unwrap();
        }
        assert_eq!(ended.iter().flatten().map(std::process::ExitStatus::code).collect::<Vec<_>>(), [Some(1)], "round {round}");
    }
}

#[tokio::test]
async fn an_address_is_shared_where_both_say_so() {
    let listen = format!("\"127.0.0.1:{}\"", free_port());
    let shared = [("server.listen", listen.as_str()), ("server.listen_shared", "true")];
    let (first, next) = (Gateway::start(&shared), Gateway::start(&shared));
    assert_eq!(first.address, next.address);
    is_in_use(&first.address.to_string(), second(&first.address.to_string(), &[]));
    let mut clients = Vec::new();
    let accepted = |gateway: &Gateway| gateway.metric("ringway_accepted_total", "");
    for number in 0..64 {
        clients.push(Client::join(&first, &format!("s-{number}"), "ana").await);
        if accepted(&first) > 0 && accepted(&next) > 0 {
            return;
        }
    }
    panic!("one of them got all 64 connections");
}
