//! The control thread against shards that are threads with a port and no sockets.

use super::*;
use crate::auth::{Revocation, Revocations};
use crate::config::Settings;
use crate::limits::REVOCATIONS_MAX;
use crate::shard::counters::shared_counters;
use crate::shard::port::{Bell, ConnectionInfo, ConnectionPage, ConnectionState, PortMessage, PortReceiver, Purged, port};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Condvar;
use std::sync::Mutex;
use std::thread::JoinHandle;

#[derive(Default)]
struct ThreadBell {
    rung: Mutex<bool>,
    wake: Condvar,
}

impl Bell for ThreadBell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.wake.notify_one();
    }
}

impl ThreadBell {
    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.wake.wait(rung).unwrap();
        }
        *rung = false;
    }
}

fn info(shard: usize, number: u64) -> ConnectionInfo {
    ConnectionInfo {
        connection_id: format!("c-{shard}-{number}"),
        shard,
        peer: [127, 0, 0, 1].into(),
        client_id: "ana".into(),
        state: ConnectionState::Open,
        sessions: Vec::new(),
        buffered_bytes: 0,
        age_ms: 1,
        idle_ms: 1,
        messages_in: 0,
        messages_out: 0,
        close_reason: None,
        close_code: None,
    }
}

/// The messages that a fake shard received.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    configured: usize,
    drained_over_ms: Option<u64>,
    stopped: bool,
}

/// A shard with `connections` connections, which closes them on a drain if it is `polite`.
fn fake_shard(number: usize, connections: u64, polite: bool) -> (Port, JoinHandle<Told>) {
    let bell = Arc::new(ThreadBell::default());
    let counters = shared_counters();
    counters.connections.set(connections);
    let (door, receiver): (Port, PortReceiver) = port(number, bell.clone(), counters.clone());
    let thread = std::thread::spawn(move || {
        let mut told = Told::default();
        loop {
            bell.wait();
            counters.turns.increment();
            while let Some(message) = receiver.pop() {
                match message {
                    PortMessage::Configure { reply, .. } => {
                        told.configured += 1;
                        reply.map(|reply| reply.send(0));
                    }
                    PortMessage::Drain { window_ms, .. } => {
                        told.drained_over_ms = Some(window_ms);
                        if polite {
                            counters.connections.set(0);
                        }
                    }
                    PortMessage::Stop => {
                        told.stopped = true;
                        return told;
                    }
                    PortMessage::Probe { reply } => drop(reply.send(())),
                    PortMessage::Purge { session_id, reply } => drop(reply.send(match &*session_id {
                        "fails" => Err("the disk says no".to_owned()),
                        _ => Ok((number == 1).then_some(Purged { messages: 7 })),
                    })),
                    PortMessage::ListConnections { from, limit, reply } => {
                        let end = connections.min(from + limit as u64);
                        let page = ConnectionPage {
                            connections: (from..end).map(|index| info(number, index)).collect(),
                            next: (end < connections).then_some(end),
                        };
                        drop(reply.send(page));
                    }
                    PortMessage::ShowConnection { connection_id, reply } => {
                        let found =
                            (0..connections).map(|index| info(number, index)).find(|info| info.connection_id == connection_id);
                        drop(reply.send(found));
                    }
                    PortMessage::WhatIsLeft { reply } => drop(reply.send(Vec::new())),
                }
            }
        }
    });
    (door, thread)
}

fn snapshot(text: &str) -> Arc<Snapshot> {
    Arc::new(Snapshot { settings: Arc::new(Settings::parse(text, []).unwrap()), ..Snapshot::default() })
}

fn options(text: &str) -> ControlOptions {
    ControlOptions {
        listen: "127.0.0.1:0".parse().unwrap(),
        socket: None,
        snapshot: snapshot(text),
        reload: None,
        signals: false,
        tick: Duration::from_millis(20),
        engine: EngineLabels { engine: "ring", driver: "io_uring" },
    }
}

/// Status and body.
fn get_with(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\n{headers}\r\n").unwrap();
    let mut text = String::new();
    // Read to the end: every answer closes its connection.
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.to_ascii_lowercase().contains("connection: close"), "{head}");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    get_with(address, path, "Host: localhost\r\n")
}

fn until(mut what: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if what() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    panic!("did not come about in 10 s");
}

#[test]
fn a_live_node_is_healthy_ready_and_shows_its_connections() {
    let (first, first_thread) = fake_shard(0, 300, true);
    let (second, second_thread) = fake_shard(1, 2, true);
    let control = spawn(options(""), vec![first, second]).unwrap();
    let address = control.address();
    until(|| get(address, "/readyz").0 == 200);
    assert_eq!(get(address, "/healthz"), (200, "ok\n".to_owned()));
    let (status, metrics) = get(address, "/metrics");
    assert_eq!(status, 200);
    assert!(metrics.contains("\nringway_connections{shard=\"0\"} 300\n") && metrics.contains("\nringway_ready 1\n"));

    let list: ConnectionList = serde_json::from_str(&get(address, "/v1/connections").1).unwrap();
    assert_eq!((list.connections.len(), list.truncated), (302, false));
    let list: ConnectionList = serde_json::from_str(&get(address, "/v1/connections?limit=260").1).unwrap();
    assert_eq!((list.connections.len(), list.truncated), (260, true));
    for bad in ["0", "10001", "x", "-1"] {
        assert_eq!(get(address, &format!("/v1/connections?limit={bad}")).0, 400, "{bad}");
    }
    let shown: ConnectionInfo = serde_json::from_str(&get(address, "/v1/connections/c-1-1").1).unwrap();
    assert_eq!(shown, info(1, 1));
    let (status, body) = get(address, "/v1/connections/c-9-9");
    assert!(status == 404 && body.contains("closed ones are kept for 10 minutes"), "{body}");
    assert_eq!(get(address, "/elsewhere").0, 404);
    assert_eq!(get_with(address, "/metrics", "Host: rebound.example\r\n").0, 421);
    assert_eq!(get_with(address, "/metrics", "Host: localhost\r\nOrigin: https://evil.example\r\n").0, 403);

    assert!(control.ask(Command::Stop));
    assert_eq!(control.wait(), Outcome::Stopped);
    assert!(first_thread.join().unwrap().stopped && second_thread.join().unwrap().stopped);
}

#[test]
fn a_shard_that_does_not_turn_is_named() {
    let (live, thread) = fake_shard(0, 0, true);
    // Nothing runs behind this port.
    let (dead, _receiver) = port(1, Arc::new(ThreadBell::default()), shared_counters());
    let control = spawn(options(""), vec![live, dead]).unwrap();
    let address = control.address();
    until(|| get(address, "/healthz") == (503, "shard 1 has not turned for 5 s\n".to_owned()));
    let (status, reason) = get(address, "/readyz");
    assert!(status == 503 && reason.starts_with("shard 1 "), "{reason}");
    assert!(get(address, "/metrics").1.contains("\nringway_shard_stuck{shard=\"1\"} 1\n"));
    control.ask(Command::Stop);
    assert_eq!(control.wait(), Outcome::Stopped);
    assert!(thread.join().unwrap().stopped);
}

#[test]
fn a_log_that_has_failed_is_named_and_restarts_nothing() {
    let counters = shared_counters();
    let (door, receiver) = port(0, Arc::new(ThreadBell::default()), Arc::clone(&counters));
    let control = spawn(options(""), vec![door]).unwrap();
    let address = control.address();
    assert_eq!(get(address, "/healthz"), (200, "ok\n".to_owned()));
    counters.log_failed.set(1);
    let degraded = "degraded: the log of shard 0 has failed; look at the disk, then restart\n";
    assert_eq!(get(address, "/healthz"), (200, degraded.to_owned()));
    control.ask(Command::Stop);
    drop(receiver);
    assert_eq!(control.wait(), Outcome::Stopped);
}

#[test]
fn a_drain_ends_when_all_have_gone() {
    let (door, thread) = fake_shard(0, 5, true);
    let control = spawn(options("[drain]\nnot_ready_ms = 300\nwindow_ms = 77"), vec![door]).unwrap();
    let address = control.address();
    until(|| get(address, "/readyz").0 == 200);
    control.ask(Command::Drain);
    until(|| get(address, "/readyz").1.starts_with("draining"));
    assert_eq!(get(address, "/healthz").0, 200);
    assert_eq!(control.wait(), Outcome::Drained);
    assert_eq!(thread.join().unwrap(), Told { configured: 0, drained_over_ms: Some(77), stopped: true });
}

#[test]
fn a_drain_ends_with_its_grace() {
    let (door, thread) = fake_shard(0, 5, false);
    let control = spawn(options("[drain]\ngrace_ms = 200"), vec![door]).unwrap();
    control.ask(Command::Drain);
    assert_eq!(control.wait(), Outcome::GraceOver(5));
    assert!(thread.join().unwrap().stopped);
}

#[test]
fn asked_twice_it_stops_at_once() {
    let (door, thread) = fake_shard(0, 5, false);
    let control = spawn(options("[drain]\ngrace_ms = 3600000"), vec![door]).unwrap();
    control.ask(Command::Drain);
    control.ask(Command::Drain);
    assert_eq!(control.wait(), Outcome::Stopped);
    assert!(thread.join().unwrap().stopped);
}

#[test]
fn a_reload_reaches_the_shards_and_a_bad_one_does_not() {
    let (door, thread) = fake_shard(0, 0, true);
    let (asked, answers) = mpsc::channel();
    let mut count = 0;
    let reload: Reload = Box::new(move || {
        count += 1;
        asked.send(count).map_err(|error| error.to_string())?;
        if count != 2 {
            return Err("line 1: not TOML".to_owned());
        }
        let new = snapshot("[limits]\nmessages_per_second = 5");
        Ok(Reloaded { changes: new.settings.diff(&Settings::default()), snapshot: new })
    });
    let control = spawn(ControlOptions { reload: Some(reload), ..options("") }, vec![door]).unwrap();
    // The third begins when what the second brought is in force.
    for expected in [1, 2, 3] {
        control.ask(Command::Reload);
        assert_eq!(answers.recv_timeout(Duration::from_secs(10)), Ok(expected));
    }
    control.ask(Command::Drain);
    assert_eq!(control.wait(), Outcome::Drained);
    assert_eq!(thread.join().unwrap().configured, 1);
}

#[test]
fn what_cannot_be_listened_on_is_told_before_anything_runs() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let error = Control::build(ControlOptions { listen, ..options("") }).unwrap_err();
    assert!(error.to_string().starts_with(&format!("admin.listen = \"{listen}\" cannot be listened on: ")), "{error}");
    let public = ControlOptions { listen: "0.0.0.0:0".parse().unwrap(), ..options("") };
    assert!(matches!(Control::build(public), Err(ControlError::NotLoopback(_))));
    drop(Control::build(options("")).unwrap());
}

/// Connections to the admin listener that ask nothing, ask slowly, or take no answer.
#[test]
fn probes_are_answered_whoever_holds_connections() {
    let (door, thread) = fake_shard(0, 10_000, true);
    let control = spawn(options(""), vec![door]).unwrap();
    let address = control.address();
    until(|| get(address, "/readyz").0 == 200);
    let mut held: Vec<TcpStream> = Vec::new();
    let post = "POST /v1/purge HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{";
    // More than a socket's buffers take, asked for and not read.
    let list = "GET /v1/connections?limit=10000 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for said in ["", "GET /healthz HTTP/1.1\r\nHost: lo", post, list, "\r\n"] {
        for _ in 0..200 {
            // The listener's queue may be full of them for a moment.
            let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(5)) else { continue };
            // An error means that the connection is cut off already, which is as good.
            let _ = stream.write_all(said.as_bytes());
            held.push(stream);
        }
        let began = now();
        assert_eq!(get(address, "/healthz"), (200, "ok\n".to_owned()), "{said:?}");
        assert_eq!(get(address, "/readyz").0, 200, "{said:?}");
        assert!(began.elapsed() < Duration::from_secs(4), "{said:?}: {:?}", began.elapsed());
    }
    let cut = get(address, "/metrics")
        .1
        .lines()
        .find_map(|line| line.strip_prefix("ringway_admin_connections_cut_total ")?.parse().ok());
    assert!(cut.is_some_and(|cut: u64| cut > 500), "{cut:?}");
    drop(held);
    control.ask(Command::Stop);
    assert_eq!(control.wait(), Outcome::Stopped);
    assert!(thread.join().unwrap().stopped);
}

/// A request has its time, of which its body is a part.
#[test]
fn who_asks_too_slowly_is_cut_off() {
    let control = spawn(options(""), Vec::new()).unwrap();
    let head = "POST /v1/purge HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n";
    let began = now();
    let slow: Vec<TcpStream> = ["", "GET /he", head]
        .iter()
        .map(|said| {
            let mut stream = TcpStream::connect(control.address()).unwrap();
            stream.write_all(said.as_bytes()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream
        })
        .collect();
    for mut stream in slow {
        let mut told = String::new();
        let ended = stream.read_to_string(&mut told);
        assert!(!ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "{told}");
        assert!(told.is_empty() || told.starts_with("HTTP/1.1 413 "), "{told}");
    }
    assert!((4..15).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    control.ask(Command::Stop);
    assert_eq!(control.wait(), Outcome::Stopped);
}

/// Files that nothing comes from: the reload waits, and nothing else does; a second one comes after it.
#[test]
fn a_reload_that_hangs_holds_up_nothing_else() {
    let (door, thread) = fake_shard(0, 0, true);
    let (go, gone) = mpsc::channel::<()>();
    let (asked, reloads) = mpsc::channel();
    let reload: Reload = Box::new(move || {
        let _ = asked.send(());
        let _ = gone.recv();
        Ok(Reloaded { changes: Vec::new(), snapshot: snapshot("") })
    });
    let control = spawn(ControlOptions { reload: Some(reload), ..options("") }, vec![door]).unwrap();
    let reloading = || reloads.recv_timeout(Duration::from_secs(10));
    (0..3).for_each(|_| assert!(control.ask(Command::Reload)));
    assert_eq!(reloading(), Ok(()));
    assert_eq!(get(control.address(), "/healthz").0, 200);
    assert_eq!(post_to("/v1/revocations", control.address(), r#"{"sub":"ana"}"#).0, 200);
    go.send(()).unwrap();
    assert_eq!(reloading(), Ok(()), "what was asked for meanwhile is done, once");
    assert!(reloads.try_recv().is_err());
    control.ask(Command::Drain);
    assert_eq!(control.wait(), Outcome::Drained);
    // The revocation and the first reload; the second never came back.
    assert_eq!(thread.join().unwrap().configured, 2);
}

#[expect(clippy::disallowed_methods, reason = "a test that waits in earnest")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

fn post(address: SocketAddr, json: &str) -> (u16, String) {
    post_to("/v1/revocations", address, json)
}

#[test]
fn a_purge_is_asked_of_the_sessions_home_and_told_as_it_says() {
    let (doors, threads): (Vec<Port>, Vec<_>) = (0..2).map(|number| fake_shard(number, 0, true)).unzip();
    let control = spawn(options(""), doors).unwrap();
    let purge = |json: &str| post_to("/v1/purge", control.address(), json);
    assert_eq!(purge(r#"{"session_id":"s"}"#), (200, r#"{"messages":7}"#.to_owned()));
    let (status, body) = purge(r#"{"session_id":"fails"}"#);
    assert!(status == 507 && body.contains("the disk says no"), "{body}");
    for bad in ["{}", r#"{"session_id":"s","more":1}"#, "s"] {
        let (status, body) = purge(bad);
        assert!(status == 400 && body.contains("the body is no purge"), "{body}");
    }
    assert_eq!(get(control.address(), "/v1/purge").0, 405);
    control.ask(Command::Stop);
    assert_eq!(control.wait(), Outcome::Stopped);
    assert!(threads.into_iter().all(|thread| thread.join().unwrap().stopped));
}

fn post_to(path: &str, address: SocketAddr, json: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", json.len());
    write!(stream, "POST {path} HTTP/1.1\r\n{head}\r\n{json}").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn a_shard_whose_port_is_full_is_named_and_gets_the_newest_when_it_has_room() {
    let (live, thread) = fake_shard(0, 0, true);
    let (full, receiver) = port(1, Arc::new(ThreadBell::default()), shared_counters());
    while full.send(PortMessage::Drain { window_ms: 0, restart: false }).is_ok() {}
    let control = spawn(options(""), vec![live, full]).unwrap();
    for user in ["ana", "ben"] {
        let (status, body) = post(control.address(), &format!(r#"{{"sub":"{user}"}}"#));
        assert_eq!((status, &*body), (200, r#"{"connections_closed":0,"unanswered_shards":[1]}"#));
    }
    // Nothing of it was queued behind what was there, and what comes once there is room is the whole list, and once.
    let mut told = Vec::new();
    until(|| {
        told.extend(std::iter::from_fn(|| receiver.pop()).filter_map(|message| match message {
            PortMessage::Configure { snapshot, .. } => Some(snapshot.revocations.len()),
            _ => None,
        }));
        !told.is_empty()
    });
    assert_eq!(told, [2]);
    control.ask(Command::Stop);
    assert_eq!(control.wait(), Outcome::Stopped);
    assert!(thread.join().unwrap().stopped);
}

#[test]
fn a_full_list_refuses_and_counts() {
    let entry = |number: usize| Revocation::Token { token_id: format!("t-{number}").into(), until_s: u64::MAX };
    let revocations = Arc::new(Revocations::new((0..REVOCATIONS_MAX).map(entry), 0).unwrap());
    let snapshot = Arc::new(Snapshot { revocations, ..(*snapshot("")).clone() });
    let control = spawn(ControlOptions { snapshot, ..options("") }, Vec::new()).unwrap();
    let (status, body) = post(control.address(), r#"{"jti":"one-more"}"#);
    assert!(status == 507 && body.contains("rotate the signing key"), "{body}");
    assert_eq!(post(control.address(), r#"{"jti":"t-5"}"#).0, 200, "what is there already needs no room");
    let metrics = get(control.address(), "/metrics").1;
    assert!(metrics.contains("\nringway_revocations_refused_total 1\n"));
    assert!(metrics.contains(&format!("\nringway_revocations {REVOCATIONS_MAX}\n")));
    let list: RevocationList = serde_json::from_str(&get(control.address(), "/v1/revocations?limit=7").1).unwrap();
    assert_eq!((list.revocations.len(), list.truncated), (7, true));
    assert_eq!(get(control.address(), "/v1/revocations?limit=10001").0, 400);
    control.ask(Command::Stop);
    assert_eq!(control.wait(), Outcome::Stopped);
}
