//! Descriptors on the real kernel: accepting, running out of them, giving them away, leaving none behind.
#![allow(clippy::disallowed_methods, reason = "peers that block, and clocks that bound the tests")]

use super::tests::{bell, connect, drivers, engine, options, play, send_all, shared};
use super::{Options, Portable};
use crate::io::ring::listen;
use crate::io::{Event, Io, Next, Read, Sent};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::spawn;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Returns `true` in a process of this test's own, which it starts and waits for: descriptors and their limit are the process's.
fn alone(test: &str) -> bool {
    const CHILD: &str = "RINGWAY_TEST_PORTABLE_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", &format!("io::portable::descriptor_tests::{test}")]).env(CHILD, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    false
}

#[test]
fn accepting_rests_without_descriptors_and_recovers() {
    if !alone("accepting_rests_without_descriptors_and_recovers") {
        return;
    }
    use rustix::process::{Resource, getrlimit, setrlimit};
    for driver in drivers() {
        // With no descriptor left for the socket, and with one left, which its duplicate lacks.
        for spare in [0, 1] {
            let (mut engine, address) = engine(driver);
            let peer = connect(address);
            let before = getrlimit(Resource::Nofile);
            let state = shared((Vec::new(), None));
            let kept = Rc::clone(&state);
            let (mut first, mut others) = (true, Vec::new());
            play(&mut engine, move |_, event, now| {
                if std::mem::take(&mut first) {
                    // The engine's own descriptors are open by now; the lowest free number decides.
                    let mut none = before;
                    none.current = Some(u64::try_from(lowest_free(spare)).unwrap());
                    setrlimit(Resource::Nofile, none).unwrap();
                }
                let (failed_ns, accepted_ns): &mut (Vec<u64>, Option<u64>) = &mut kept.borrow_mut();
                match event {
                    Some(Event::AcceptFailed(error)) => {
                        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
                        failed_ns.push(now.mono_ns);
                        setrlimit(Resource::Nofile, before).unwrap();
                        // The connection was accepted, and is lost.
                        others.extend((spare == 1).then(|| connect(address)));
                    }
                    Some(Event::Accepted { .. }) => *accepted_ns = Some(now.mono_ns),
                    _ => {}
                }
                if accepted_ns.is_some() { Next::Stop } else { Next::Idle }
            });
            let (failed_ns, accepted_ns) = state.take();
            assert_eq!(failed_ns.len(), 1, "{driver:?}");
            assert!(accepted_ns.unwrap() - failed_ns[0] >= 100_000_000, "{driver:?}: a failure is followed by a rest");
            drop(peer);
            assert_eq!(engine.edge().stats().accepts_failed, 1);
        }
    }
}

/// The number above which no descriptor may be opened, so that `spare` more can be.
fn lowest_free(spare: usize) -> usize {
    let open: Vec<OwnedFd> = (0..=spare).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
    usize::try_from(std::os::fd::AsRawFd::as_raw_fd(&open[spare])).unwrap()
}

#[test]
fn more_connections_than_fit_are_refused_and_accepting_goes_on() {
    for driver in drivers() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let options = Options { connections_max: 100, ..options(driver) };
        let mut engine = Portable::new(options, Some(listener), [bell()].into(), None).unwrap();
        let peers: Vec<_> = (0..150).map(|_| connect(address)).collect();
        let (mut conns, mut refused, mut later) = (Vec::new(), 0, None);
        let (again, wait) = mpsc::channel::<()>();
        let late = spawn(move || wait.recv().map(|()| connect(address)).unwrap());
        play(&mut engine, move |io, event, _| {
            match event {
                Some(Event::Accepted { conn, .. }) if conns.len() == 100 => later = Some(conn),
                Some(Event::Accepted { conn, .. }) => conns.push(conn),
                Some(Event::AcceptFailed(error)) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::QuotaExceeded);
                    refused += 1;
                    if refused == 50 {
                        assert_eq!(conns.len(), 100);
                        io.close(conns[7]);
                        again.send(()).unwrap();
                    }
                }
                _ => {}
            }
            match later {
                Some(conn) => {
                    assert!(conn.index == conns[7].index && conn.generation != conns[7].generation);
                    Next::Stop
                }
                None => Next::Idle,
            }
        });
        assert_eq!(engine.edge().stats().accepts_failed, 50);
        drop(late.join().unwrap());
        drop(peers);
    }
}

#[test]
fn accepting_stops_and_goes_on() {
    for driver in drivers() {
        let (mut engine, address) = engine(driver);
        let (mut peers, mut accepted, mut turns) = (vec![connect(address)], 0, 0);
        play(&mut engine, move |io, event, now| {
            match event {
                Some(Event::Accepted { .. }) => {
                    accepted += 1;
                    io.accept(false);
                    peers.push(connect(address));
                }
                None if accepted > 0 => {
                    turns += 1;
                    match turns {
                        1..5 => assert_eq!(accepted, 1, "accepted though accepting was off"),
                        5 => io.accept(true),
                        _ if accepted == 2 => return Next::Stop,
                        _ => {}
                    }
                    return Next::At(now.mono_ns + 2_000_000);
                }
                _ => {}
            }
            Next::Idle
        });
    }
}

#[test]
fn a_dropped_engine_frees_its_port_and_its_descriptors() {
    if !alone("a_dropped_engine_frees_its_port_and_its_descriptors") {
        return;
    }
    let before = descriptors();
    for driver in drivers() {
        for round in 0..20 {
            let (mut engine, address) = engine(driver);
            let mut peers: Vec<_> = (0..8).map(|_| connect(address)).collect();
            let mut accepted = 0;
            play(&mut engine, move |io, event, _| {
                if let Some(Event::Accepted { conn, .. }) = event {
                    accepted += 1;
                    io.read(conn, Read::Stream);
                    // Some sockets also have a poll waiting, which a full send buffer keeps from ending.
                    if accepted % 2 == 0 {
                        while send_all(io, conn, &[0; 65_536]) == Sent::Bytes(65_536) {}
                        io.want_write(conn);
                    }
                }
                if accepted == 8 { Next::Stop } else { Next::Idle }
            });
            // In the listener's queue, not yet reported.
            peers.push(connect(address));
            drop(engine);
            // The engine's listeners share their port; this one shares with nobody.
            let again = std::net::TcpListener::bind(address);
            assert!(again.is_ok(), "{driver:?}, round {round}: {again:?}");
            for (number, mut peer) in peers.into_iter().enumerate() {
                let ended = std::io::copy(&mut peer, &mut std::io::sink());
                let waits = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
                assert!(!waits, "{driver:?}, round {round}: peer {number} is still held");
            }
        }
    }
    assert_eq!(descriptors(), before);
}

/// The poll of a socket that was given away waits for bytes that now belong to its new owner.
#[test]
fn a_socket_that_is_given_away_is_let_go_of_though_nothing_comes() {
    if !alone("a_socket_that_is_given_away_is_let_go_of_though_nothing_comes") {
        return;
    }
    for driver in drivers() {
        let (mut engine, address) = engine(driver);
        let peer = connect(address);
        // Plus two that a run watches: the bell's and the listener's.
        let before = descriptors() + 2;
        let (mut conn, mut turns) = (None, 0);
        play(&mut engine, move |io, event, now| {
            match event {
                Some(Event::Accepted { conn: accepted, .. }) => {
                    conn = Some(accepted);
                    io.read(accepted, Read::Stream);
                }
                Some(Event::Quiet { conn }) => drop(io.detach(conn).unwrap()),
                None => {
                    turns += 1;
                    match turns {
                        // The poll of the connection waits in the kernel by now.
                        10 => io.read(conn.unwrap(), Read::Off),
                        20 => {
                            assert_eq!(descriptors(), before, "{driver:?}: the duplicate is still open");
                            return Next::Stop;
                        }
                        _ => {}
                    }
                    return Next::At(now.mono_ns + 2_000_000);
                }
                _ => {}
            }
            Next::Idle
        });
        drop(peer);
    }
}
