//! The engine on the real kernel, over loopback, on both of monoio's drivers.
#![allow(clippy::disallowed_methods, reason = "peers that block, and clocks that bound the tests")]

use super::{Driver, Options, Portable};
pub(super) use crate::io::disk_suite::pattern;
use crate::io::ring::listen;
use crate::io::{ConnId, Event, Io, Next, Read, Send, Sent, Shard};
use crate::time::Tick;
use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(10);

/// A shard that is a single function: called with every event, and with none for a turn.
struct Play<F> {
    step: F,
    until: Instant,
    slept: usize,
}

impl<F: FnMut(&mut dyn Io, Option<Event<'_>>, Tick) -> Next> Shard for Play<F> {
    fn event<I: Io>(&mut self, io: &mut I, event: Event<'_>, now: Tick) {
        (self.step)(io, Some(event), now);
    }

    fn turn<I: Io>(&mut self, io: &mut I, now: Tick) -> Next {
        assert!(Instant::now() < self.until, "the test's time is over");
        match (self.step)(io, None, now) {
            // A deadline, so that the step is called again.
            Next::Idle => Next::At(now.mono_ns + 100_000_000),
            next => next,
        }
    }

    fn before_sleep(&mut self) -> bool {
        self.slept += 1;
        true
    }
}

/// The drivers that work on this machine.
pub(super) fn drivers() -> Vec<Driver> {
    let uring = crate::io::probe::probe(crate::io::probe::Engine::MonoioUring).is_ok();
    if uring { vec![Driver::Uring, Driver::Epoll] } else { vec![Driver::Epoll] }
}

pub(super) fn bell() -> Arc<OwnedFd> {
    use rustix::event::{EventfdFlags, eventfd};
    Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap())
}

pub(super) const fn options(driver: Driver) -> Options {
    Options { shard: 0, connections_max: 256, spin_us: 0, driver }
}

pub(super) fn engine(driver: Driver) -> (Portable, SocketAddr) {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    (Portable::new(options(driver), Some(listener), [bell()].into(), None).unwrap(), address)
}

/// Runs until the function stops it. Returns how often the shard slept.
pub(super) fn play(engine: &mut Portable, step: impl FnMut(&mut dyn Io, Option<Event<'_>>, Tick) -> Next + 'static) -> usize {
    engine.edge().accept(true);
    engine.run(Play { step, until: Instant::now() + DEADLINE, slept: 0 }).unwrap().slept
}

pub(super) fn shared<T>(value: T) -> Rc<RefCell<T>> {
    Rc::new(RefCell::new(value))
}

pub(super) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Writes `bytes` bytes of the pattern and ends its side.
fn writer(address: SocketAddr, bytes: usize, piece: usize) -> JoinHandle<()> {
    spawn(move || {
        let mut stream = connect(address);
        for chunk in pattern(0, bytes).chunks(piece) {
            stream.write_all(chunk).unwrap();
        }
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
    })
}

pub(super) fn send_all(io: &mut dyn Io, conn: ConnId, bytes: &[u8]) -> Sent {
    let mut out = Vec::new();
    io.send_batch(&[Send { conn, parts: &[bytes] }], &mut out);
    out[0]
}

#[test]
fn many_connections_are_echoed() {
    for driver in drivers() {
        let (mut engine, address) = engine(driver);
        let peers: Vec<_> = (0..4)
            .map(|_| {
                spawn(move || {
                    let mut streams: Vec<_> = (0..16).map(|_| connect(address)).collect();
                    for round in 0..50 {
                        let sent = pattern(round, 1 + round * 60);
                        streams.iter_mut().for_each(|stream| stream.write_all(&sent).unwrap());
                        for stream in &mut streams {
                            let mut got = vec![0; sent.len()];
                            stream.read_exact(&mut got).unwrap();
                            assert_eq!(got, sent);
                        }
                    }
                })
            })
            .collect();
        let mut ended = 0;
        play(&mut engine, move |io, event, _| {
            match event {
                Some(Event::Accepted { conn, peer }) => {
                    assert!(peer.ip().is_loopback());
                    io.read(conn, Read::Stream);
                }
                Some(Event::Received { conn, bytes }) => assert_eq!(send_all(io, conn, bytes), Sent::Bytes(bytes.len())),
                Some(Event::Ended { conn, .. }) => {
                    io.close(conn);
                    ended += 1;
                }
                _ => {}
            }
            if ended == 64 { Next::Stop } else { Next::Idle }
        });
        peers.into_iter().for_each(|peer| peer.join().unwrap());
        assert_eq!(engine.edge().sockets(), 0, "{driver:?}");
    }
}

/// Reads one writer's stream to its end and calls `each` on every receive; the bytes must be the whole pattern.
fn takes_all(driver: Driver, bytes: usize, mut each: impl FnMut(&mut dyn Io, ConnId, Option<Event<'_>>) + 'static) {
    let (mut engine, address) = engine(driver);
    let peer = writer(address, bytes, 10_000);
    let got = shared(Vec::new());
    let (taken, mut over) = (Rc::clone(&got), false);
    play(&mut engine, move |io, event, _| {
        match event {
            Some(Event::Accepted { conn, .. }) => io.read(conn, Read::Stream),
            Some(Event::Received { conn, bytes }) => {
                taken.borrow_mut().extend_from_slice(bytes);
                each(io, conn, None);
            }
            Some(Event::Quiet { conn }) => each(io, conn, Some(Event::Quiet { conn })),
            Some(Event::Ended { conn, error }) => {
                assert!(error.is_none(), "{error:?}");
                io.close(conn);
                over = true;
            }
            _ => {}
        }
        if over { Next::Stop } else { Next::Idle }
    });
    let got = got.take();
    assert!(got == pattern(0, bytes), "{driver:?}: {} of {bytes} bytes, or not in order", got.len());
    peer.join().unwrap();
}

#[test]
fn a_flood_has_its_share_and_others_get_through() {
    const TOTAL: usize = 20_000_000;
    for driver in drivers() {
        let (mut engine, address) = engine(driver);
        let flooder = writer(address, TOTAL, 1_000_000);
        let pinger = spawn(move || {
            let mut stream = connect(address);
            for _ in 0..100 {
                stream.write_all(&[255]).unwrap();
                stream.read_exact(&mut [0; 1]).unwrap();
            }
        });
        let got = shared(0);
        let (taken, mut ended, mut in_turn) = (Rc::clone(&got), 0, 0);
        play(&mut engine, move |io, event, _| {
            match event {
                Some(Event::Accepted { conn, .. }) => io.read(conn, Read::Stream),
                // The pattern has no 255.
                Some(Event::Received { conn, bytes: bytes @ [255] }) => assert_eq!(send_all(io, conn, bytes), Sent::Bytes(1)),
                Some(Event::Received { bytes, .. }) => {
                    in_turn += bytes.len();
                    assert!(in_turn <= 128 * 1024 + 16 * 1024, "{in_turn} bytes of one connection in a turn");
                    *taken.borrow_mut() += bytes.len();
                    // Time for the flooder to keep the socket filled.
                    std::thread::sleep(Duration::from_micros(100));
                }
                Some(Event::Ended { conn, .. }) => {
                    io.close(conn);
                    ended += 1;
                }
                None => in_turn = 0,
                _ => {}
            }
            if ended == 2 { Next::Stop } else { Next::Idle }
        });
        assert_eq!(*got.borrow(), TOTAL);
        assert!(engine.edge().stats().flooding > 0, "{driver:?}");
        flooder.join().unwrap();
        pinger.join().unwrap();
    }
}

#[test]
fn reading_off_and_on_again_loses_nothing() {
    for driver in drivers() {
        let rounds = shared(0);
        let (counted, mut off) = (Rc::clone(&rounds), false);
        takes_all(driver, 2_000_000, move |io, conn, event| match event {
            Some(_) => {
                assert!(off, "Quiet without Off");
                off = false;
                *counted.borrow_mut() += 1;
                io.read(conn, Read::Stream);
            }
            None => {
                assert!(!off, "bytes after Off");
                off = true;
                // Off and on and off again within one event: one Quiet.
                io.read(conn, Read::Off);
                io.read(conn, Read::Stream);
                io.read(conn, Read::Off);
            }
        });
        assert!(*rounds.borrow() >= 100, "{driver:?}: {rounds:?} rounds");
    }
}

#[test]
fn once_upon_a_stream_loses_nothing() {
    for driver in drivers() {
        let mut stream = true;
        takes_all(driver, 2_000_000, move |io, conn, event| {
            assert!(event.is_none(), "a Quiet that nobody asked for");
            stream = !stream;
            io.read(conn, if stream { Read::Stream } else { Read::Once });
        });
    }
}

#[test]
fn once_reads_once_and_off_reads_nothing() {
    for driver in drivers() {
        let (mut engine, address) = engine(driver);
        let mut peer = connect(address);
        peer.write_all(&pattern(0, 40_000)).unwrap();
        let (mut conn, mut receives, mut looks) = (None, 0, 0);
        play(&mut engine, move |io, event, now| {
            match event {
                Some(Event::Accepted { conn: accepted, .. }) => {
                    conn = Some(accepted);
                    io.read(accepted, Read::Once);
                }
                Some(Event::Received { .. }) => receives += 1,
                None if receives > 0 => {
                    looks += 1;
                    match looks {
                        1..10 => assert_eq!(receives, 1, "one receive, though more waits"),
                        10 => io.read(conn.unwrap(), Read::Once),
                        11..20 => assert!(receives <= 2, "two receives"),
                        _ => {
                            assert_eq!(receives, 2);
                            return Next::Stop;
                        }
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

#[test]
fn short_sends_are_exact_and_a_dead_socket_fails() {
    const TOTAL: usize = 16 << 20;
    for driver in drivers() {
        let (mut engine, address) = engine(driver);
        let (go, wait) = mpsc::channel();
        let peer = spawn(move || {
            let mut stream = connect(address);
            wait.recv().unwrap();
            let mut got = vec![0; TOTAL];
            stream.read_exact(&mut got).unwrap();
            assert!(got == pattern(0, TOTAL));
        });
        let data = pattern(0, TOTAL);
        let (mut at, mut failed) = (0, false);
        let short = shared(0);
        let counted = Rc::clone(&short);
        play(&mut engine, move |io, event, _| {
            match event {
                Some(Event::Accepted { conn, .. } | Event::Writable { conn }) => loop {
                    // Sixteen parts that leave as one.
                    let piece = &data[at..data.len().min(at + 160_000)];
                    let parts: Vec<&[u8]> = piece.chunks(10_000).collect();
                    let mut out = Vec::new();
                    io.send_batch(&[Send { conn, parts: &parts }], &mut out);
                    match out[0] {
                        Sent::Bytes(taken) => {
                            at += taken;
                            if taken < piece.len() {
                                *counted.borrow_mut() += 1;
                                go.send(()).unwrap_or(());
                                io.want_write(conn);
                                break;
                            }
                            if at == TOTAL {
                                io.read(conn, Read::Stream);
                                break;
                            }
                        }
                        Sent::Failed(errno) => panic!("errno {errno}"),
                    }
                },
                Some(Event::Ended { conn, .. }) => {
                    // The peer is gone: the first send may still be taken, a later one is answered by its reset.
                    let until = Instant::now() + Duration::from_secs(2);
                    while !failed && Instant::now() < until {
                        failed = matches!(send_all(io, conn, b"x"), Sent::Failed(_));
                    }
                    io.close(conn);
                    assert_eq!(send_all(io, conn, b"x"), Sent::Failed(libc::EBADF));
                }
                _ => {}
            }
            if failed { Next::Stop } else { Next::Idle }
        });
        assert!(*short.borrow() > 0, "{driver:?}");
        peer.join().unwrap();
    }
}

#[test]
fn a_writable_is_told_once_for_each_time_it_was_asked_for() {
    for driver in drivers() {
        let (mut engine, address) = engine(driver);
        let peer = connect(address);
        let (mut asked, mut told, mut looks) = (0, 0, 0);
        play(&mut engine, move |io, event, now| {
            match event {
                Some(Event::Accepted { conn, .. }) => {
                    io.want_write(conn);
                    io.want_write(conn);
                    asked = 1;
                }
                Some(Event::Writable { conn }) => {
                    told += 1;
                    assert!(told <= asked, "told without having been asked");
                    if asked < 5 {
                        io.want_write(conn);
                        asked += 1;
                    }
                }
                None if told == 5 => {
                    looks += 1;
                    return if looks == 5 { Next::Stop } else { Next::At(now.mono_ns + 2_000_000) };
                }
                _ => {}
            }
            Next::Idle
        });
        drop(peer);
    }
}

#[test]
fn closes_with_polls_in_flight_free_their_slots() {
    const ALL: usize = 1_000;
    for driver in drivers() {
        let (mut engine, address) = engine(driver);
        let peer = spawn(move || {
            for _ in 0..ALL {
                let mut stream = connect(address);
                // Either way it ends: with an end of stream, or reset.
                let _ = stream.write_all(b"hello");
                let _ = stream.read(&mut [0; 8]);
            }
        });
        let (mut accepted, mut waiting) = (0, Vec::new());
        play(&mut engine, move |io, event, _| {
            match event {
                Some(Event::Accepted { conn, .. }) => {
                    accepted += 1;
                    io.read(conn, Read::Stream);
                    io.want_write(conn);
                    if accepted % 2 == 0 { io.close(conn) } else { waiting.push(conn) }
                }
                // The polls of these wait in the kernel.
                None => waiting.drain(..).for_each(|conn| io.close(conn)),
                Some(Event::Received { conn, .. } | Event::Writable { conn } | Event::Ended { conn, .. }) => {
                    assert!(waiting.contains(&conn), "an event of a closed socket");
                }
                _ => {}
            }
            if accepted == ALL && waiting.is_empty() { Next::Stop } else { Next::Idle }
        });
        peer.join().unwrap();
        assert_eq!(engine.edge().sockets(), 0);
    }
}

#[test]
fn a_socket_that_is_closed_in_its_own_event_is_told_of_no_more() {
    for driver in drivers() {
        let (mut engine, address) = engine(driver);
        let mut peer = connect(address);
        peer.write_all(&pattern(0, 100_000)).unwrap();
        let (mut closed, mut looks) = (false, 0);
        play(&mut engine, move |io, event, now| {
            match event {
                Some(Event::Accepted { conn, .. }) => io.read(conn, Read::Stream),
                Some(Event::Received { conn, .. }) => {
                    assert!(!closed, "an event of a closed socket");
                    closed = true;
                    io.read(conn, Read::Off);
                    io.close(conn);
                    assert!(io.detach(conn).is_none(), "it is gone");
                }
                Some(Event::Quiet { .. } | Event::Ended { .. }) => panic!("{event:?} of a closed socket"),
                None if closed => {
                    looks += 1;
                    return if looks == 5 { Next::Stop } else { Next::At(now.mono_ns + 2_000_000) };
                }
                _ => {}
            }
            Next::Idle
        });
        // The rest is answered by a reset, or the stream has ended.
        assert_eq!(peer.read(&mut [0; 1]).unwrap_or(0), 0);
    }
}

#[test]
fn bells_wake_a_shard_that_sleeps() {
    for driver in drivers() {
        let bells: Arc<[Arc<OwnedFd>]> = [bell(), bell()].into();
        let theirs = Arc::clone(&bells);
        let target = spawn(move || {
            let options = Options { shard: 1, ..options(driver) };
            let mut engine = Portable::new(options, None, theirs, None).unwrap();
            let mut heard = 0;
            play(&mut engine, move |io, event, _| {
                if matches!(event, Some(Event::Bell)) {
                    heard += 1;
                    io.ring_bell(0);
                }
                if heard == 100 { Next::Stop } else { Next::Idle }
            })
        });
        let mut engine = Portable::new(options(driver), None, bells, None).unwrap();
        let (mut first, mut heard) = (true, 0);
        let begun = Instant::now();
        let slept = play(&mut engine, move |io, event, _| {
            if std::mem::take(&mut first) {
                io.ring_bell(1);
            }
            if matches!(event, Some(Event::Bell)) {
                heard += 1;
                if heard < 100 {
                    io.ring_bell(1);
                }
            }
            if heard == 100 { Next::Stop } else { Next::Idle }
        });
        // How often depends on who else wants the cores.
        assert!(slept + target.join().unwrap() > 0, "they sleep between the bells");
        // Without a bell, the 100 ms of the test's own turns would have woken it.
        assert!(begun.elapsed() < Duration::from_secs(5), "{driver:?}: {:?}", begun.elapsed());
    }
}

#[test]
fn a_shard_that_comes_again_lets_events_in_and_does_not_sleep() {
    for driver in drivers() {
        let (mut engine, address) = engine(driver);
        let peer = spawn(move || connect(address).write_all(b"now").unwrap());
        let (turns, mut got) = (shared(0), false);
        let counted = Rc::clone(&turns);
        let slept = play(&mut engine, move |io, event, _| {
            match event {
                Some(Event::Accepted { conn, .. }) => io.read(conn, Read::Stream),
                Some(Event::Received { .. }) => got = true,
                Some(Event::Bell) => panic!("its own bell is not told"),
                None => *counted.borrow_mut() += 1,
                _ => {}
            }
            if got && *counted.borrow() > 1_000 { Next::Stop } else { Next::Again }
        });
        assert_eq!(slept, 0, "{driver:?}");
        peer.join().unwrap();
    }
}

#[test]
fn a_shard_that_spins_does_not_sleep_at_once() {
    for driver in drivers() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let options = Options { spin_us: 10_000, ..options(driver) };
        let mut engine = Portable::new(options, Some(listener), [bell()].into(), None).unwrap();
        let peer = connect(address);
        let (mut turns, mut accepted_ns) = (0, None);
        let slept = play(&mut engine, move |_, event, now| {
            if let Some(Event::Accepted { .. }) = event {
                accepted_ns = Some(now.mono_ns);
                turns = 0;
            }
            turns += 1;
            match accepted_ns {
                // The engine polls for 10 ms, and then sleeps until the turn that is due.
                Some(since) if now.mono_ns >= since + 50_000_000 => {
                    assert!(turns > 10, "{turns} turns");
                    Next::Stop
                }
                Some(since) => Next::At(since + 50_000_000),
                None => Next::Idle,
            }
        });
        assert!((1..5).contains(&slept), "{driver:?} slept {slept} times");
        drop(peer);
    }
}

#[test]
fn a_socket_changes_engines_with_bytes_in_flight() {
    const TOTAL: usize = 1_000_000;
    for driver in drivers() {
        let (mut engine, address) = engine(driver);
        let peer = writer(address, TOTAL, 3_000);
        let state = shared((Vec::new(), None));
        let (kept, mut off) = (Rc::clone(&state), false);
        play(&mut engine, move |io, event, _| {
            let (got, handed) = &mut *kept.borrow_mut();
            match event {
                Some(Event::Accepted { conn, .. }) => io.read(conn, Read::Stream),
                Some(Event::Received { conn, bytes }) => {
                    assert!(!off, "bytes after Off");
                    got.extend_from_slice(bytes);
                    if got.len() > 20_000 {
                        off = true;
                        io.read(conn, Read::Off);
                    }
                }
                Some(Event::Quiet { conn }) => *handed = io.detach(conn),
                _ => {}
            }
            if handed.is_some() { Next::Stop } else { Next::Idle }
        });
        let (mut got, handed): (Vec<u8>, Option<OwnedFd>) = state.take();
        let other = spawn(move || {
            let mut engine = Portable::new(options(driver), None, [bell()].into(), None).unwrap();
            let conn = engine.edge().adopt(handed.unwrap()).unwrap();
            engine.edge().read(conn, Read::Stream);
            let (rest, mut over) = (shared(Vec::new()), false);
            let taken = Rc::clone(&rest);
            play(&mut engine, move |_, event, _| {
                match event {
                    Some(Event::Received { bytes, .. }) => taken.borrow_mut().extend_from_slice(bytes),
                    Some(Event::Ended { .. }) => over = true,
                    _ => {}
                }
                if over { Next::Stop } else { Next::Idle }
            });
            got.append(&mut rest.borrow_mut());
            got
        });
        assert!(other.join().unwrap() == pattern(0, TOTAL), "{driver:?}");
        peer.join().unwrap();
    }
}

#[test]
fn a_turn_that_is_due_at_once_comes_at_once() {
    for driver in drivers() {
        let (mut engine, _) = engine(driver);
        let mut turns = 0;
        let begun = Instant::now();
        let slept = play(&mut engine, move |_, _, now| {
            turns += 1;
            if turns == 1_000 { Next::Stop } else { Next::At(now.mono_ns + 1_000) }
        });
        // With a millisecond of monoio's timers for each it would take a second.
        assert!(slept == 0 && begun.elapsed() < Duration::from_millis(900), "{driver:?}: {slept}, {:?}", begun.elapsed());
    }
}

#[test]
fn turns_come_at_their_time() {
    for driver in drivers() {
        let (mut engine, _) = engine(driver);
        let (mut at, mut turns) = (0, 0);
        play(&mut engine, move |_, event, now| {
            // The first one may be followed at once: the timer is new to the runtime.
            assert!(event.is_none() && (now.mono_ns >= at || turns == 1), "a turn before its time with no event");
            turns += 1;
            at = now.mono_ns + 5_000_000;
            if turns == 6 { Next::Stop } else { Next::At(at) }
        });
    }
}
