//! The engine on the real kernel, over loopback.
#![allow(clippy::disallowed_methods, reason = "peers that block, and clocks that bound the tests")]

use super::{Bells, FREE, Options, Ring, listen};
pub(super) use crate::io::disk_suite::pattern;
use crate::io::{ConnId, Event, Io, Next, Read, Send, Sent, Shard};
use crate::time::Tick;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(10);

/// A shard that is a single function: called with every event, and with none for a turn.
struct Play<F> {
    step: F,
    until: Instant,
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
}

fn engine(buffers: u16, buffer_bytes: u32) -> (Ring, SocketAddr) {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let options = Options { shard: 0, connections_max: 256, buffers, buffer_bytes, spin_us: 0 };
    (Ring::new(options, Some(listener), Bells::new(1), eventfd(), None).unwrap(), address)
}

pub(super) fn eventfd() -> Arc<OwnedFd> {
    Arc::new(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap())
}

pub(super) fn play(ring: &mut Ring, step: impl FnMut(&mut dyn Io, Option<Event<'_>>, Tick) -> Next) {
    ring.accept(true);
    ring.run(&mut Play { step, until: Instant::now() + DEADLINE }).unwrap();
}

fn connect(address: SocketAddr) -> TcpStream {
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

fn send_all(io: &mut dyn Io, conn: ConnId, bytes: &[u8]) -> Sent {
    let mut out = Vec::new();
    io.send_batch(&[Send { conn, parts: &[bytes] }], &mut out);
    out[0]
}

#[test]
fn many_connections_are_echoed() {
    let (mut ring, address) = engine(256, 2048);
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
    play(&mut ring, |io, event, _| {
        match event {
            Some(Event::Accepted { conn, .. }) => io.read(conn, Read::Stream),
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
}

/// Reads one writer's stream to its end and calls `each` on every receive; the bytes must be the whole pattern.
fn takes_all(ring: &mut Ring, address: SocketAddr, bytes: usize, mut each: impl FnMut(&mut dyn Io, ConnId, Option<Event<'_>>)) {
    let peer = writer(address, bytes, 10_000);
    let mut got = Vec::new();
    let mut over = false;
    play(ring, |io, event, _| {
        match event {
            Some(Event::Accepted { conn, .. }) => io.read(conn, Read::Stream),
            Some(Event::Received { conn, bytes }) => {
                got.extend_from_slice(bytes);
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
    assert!(got == pattern(0, bytes), "{} of {bytes} bytes, or not in order", got.len());
    peer.join().unwrap();
}

#[test]
fn a_flood_is_read_singly_and_others_get_through() {
    const TOTAL: usize = 4_000_000;
    let (mut ring, address) = engine(256, 512);
    let flooder = writer(address, TOTAL, 100_000);
    let pinger = spawn(move || {
        let mut stream = connect(address);
        for _ in 0..100 {
            stream.write_all(&[255]).unwrap();
            stream.read_exact(&mut [0; 1]).unwrap();
        }
    });
    let (mut got, mut ended, mut out) = (Vec::new(), 0, Vec::new());
    play(&mut ring, |io, event, _| {
        match event {
            Some(Event::Accepted { conn, .. }) => io.read(conn, Read::Stream),
            // The pattern has no 255.
            Some(Event::Received { conn, bytes: bytes @ [255] }) => assert_eq!(send_all(io, conn, bytes), Sent::Bytes(1)),
            Some(Event::Received { bytes, .. }) => got.extend_from_slice(bytes),
            Some(Event::Ended { conn, .. }) => {
                io.close(conn);
                ended += 1;
            }
            // A turn with sends enters more than once, and each enter may fill 33 buffers for one connection.
            None => (0..3).for_each(|_| io.send_batch(&[], &mut out)),
            _ => {}
        }
        if ended == 2 { Next::Stop } else { Next::Idle }
    });
    assert!(got == pattern(0, TOTAL), "{} of {TOTAL} bytes, or not in order", got.len());
    assert!(ring.stats.flooding > 0);
    flooder.join().unwrap();
    pinger.join().unwrap();
}

#[test]
fn exhausted_buffers_lose_nothing() {
    let (mut ring, address) = engine(2, 64);
    takes_all(&mut ring, address, 300_000, |_, _, _| {});
    assert!(ring.stats.buffers_exhausted > 0 && ring.stats.rearmed > 0);
}

#[test]
fn reading_off_and_on_again_loses_nothing() {
    let (mut ring, address) = engine(64, 256);
    let (mut rounds, mut off) = (0, false);
    takes_all(&mut ring, address, 2_000_000, |io, conn, event| match event {
        Some(_) => {
            assert!(off, "Quiet without Off");
            (rounds, off) = (rounds + 1, false);
            io.read(conn, Read::Stream);
        }
        None if !off => {
            off = true;
            // Off and on and off again within one event: one Quiet, and only once the kernel holds no read.
            io.read(conn, Read::Off);
            io.read(conn, Read::Stream);
            io.read(conn, Read::Off);
        }
        None => {}
    });
    assert!(rounds >= 200, "{rounds} rounds");
}

#[test]
fn a_quiet_waits_for_a_read_that_was_armed_since() {
    let (mut ring, address) = engine(16, 256);
    let peer = connect(address);
    let mut handed = None;
    play(&mut ring, |io, event, _| {
        match event {
            Some(Event::Accepted { conn, .. }) => {
                io.read(conn, Read::Off);
                io.read(conn, Read::Stream);
                io.read(conn, Read::Off);
            }
            Some(Event::Quiet { conn }) => handed = io.detach(conn),
            _ => {}
        }
        if handed.is_some() { Next::Stop } else { Next::Idle }
    });
    drop(peer);
}

#[test]
fn once_reads_once() {
    let (mut ring, address) = engine(16, 100);
    let mut peer = connect(address);
    peer.write_all(&pattern(0, 250)).unwrap();
    let (mut received, mut asked, mut until) = (Vec::new(), 0, None);
    play(&mut ring, |io, event, now| {
        match event {
            Some(Event::Accepted { conn, .. }) => {
                asked += 1;
                io.read(conn, Read::Once);
            }
            Some(Event::Received { conn, bytes }) => {
                received.extend_from_slice(bytes);
                assert_eq!(received.len(), (asked * 100).min(250), "more than was asked for");
                if asked == 1 {
                    asked += 1;
                    io.read(conn, Read::Once);
                } else {
                    until = Some(now.mono_ns + 30_000_000);
                }
            }
            _ => {}
        }
        match until {
            Some(at) if now.mono_ns >= at => Next::Stop,
            Some(at) => Next::At(at),
            None => Next::Idle,
        }
    });
    assert_eq!(received, pattern(0, 200));
}

#[test]
fn short_sends_are_exact_and_a_dead_socket_fails() {
    const TOTAL: usize = 16 << 20;
    let (mut ring, address) = engine(16, 256);
    let (go, wait) = mpsc::channel();
    let peer = spawn(move || {
        let mut stream = connect(address);
        wait.recv().unwrap();
        let mut got = vec![0; TOTAL];
        stream.read_exact(&mut got).unwrap();
        assert!(got == pattern(0, TOTAL));
    });
    let data = pattern(0, TOTAL);
    let (mut at, mut short, mut failed) = (0, 0, false);
    play(&mut ring, |io, event, _| {
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
                            short += 1;
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
    assert!(short > 0 && at == TOTAL);
    peer.join().unwrap();
}

#[test]
fn closes_with_operations_in_flight_free_their_slots() {
    const ALL: usize = 1_000;
    let (mut ring, address) = engine(64, 256);
    let peer = spawn(move || {
        for _ in 0..ALL {
            let mut stream = connect(address);
            // Either way it ends: with an end of stream, or reset.
            let _ = stream.write_all(b"hello");
            let _ = stream.read(&mut [0; 8]);
        }
    });
    let (mut accepted, mut idle_since) = (0, None);
    play(&mut ring, |io, event, now| {
        if let Some(Event::Accepted { conn, .. }) = event {
            accepted += 1;
            io.read(conn, Read::Stream);
            io.want_write(conn);
            io.close(conn);
        }
        if accepted == ALL {
            let since = *idle_since.get_or_insert(now.mono_ns);
            if now.mono_ns >= since + 200_000_000 { Next::Stop } else { Next::At(since + 200_000_000) }
        } else {
            Next::Idle
        }
    });
    peer.join().unwrap();
    assert!(ring.slots.iter().all(|slot| slot.fd == FREE), "a closed socket is kept");
    assert_eq!(ring.free.len(), ring.slots.len());
}

#[test]
fn bells_reach_a_ring_that_comes_late_and_eventfds_ring() {
    let (bells, bell) = (Bells::new(3), eventfd());
    let options = |shard| Options { shard, connections_max: 8, buffers: 8, buffer_bytes: 64, spin_us: 0 };
    let (theirs, late) = (Arc::clone(&bells), Arc::clone(&bell));
    let (heard, hears) = mpsc::channel();
    let target = spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        let mut ring = Ring::new(options(1), None, theirs, eventfd(), None).unwrap();
        let mut rung = false;
        play(&mut ring, |_, event, _| {
            rung |= matches!(event, Some(Event::Bell));
            if rung { Next::Stop } else { Next::Idle }
        });
        drop(ring);
        heard.send(()).unwrap();
        rustix::io::write(&late, &1_u64.to_ne_bytes()).unwrap();
    });
    let mut ring = Ring::new(options(0), None, bells, bell, None).unwrap();
    let (mut first, mut rung) = (true, false);
    play(&mut ring, |io, event, _| {
        if std::mem::take(&mut first) {
            io.ring_bell(1);
        }
        rung |= matches!(event, Some(Event::Bell));
        if rung { Next::Stop } else { Next::Idle }
    });
    hears.try_recv().unwrap();
    assert!(ring.stats.bells_retried > 0);
    // A shard that has ended is not rung for ever.
    ring.ring_bell(1);
    assert!(ring.bells_failed.is_empty());
    target.join().unwrap();
}

#[test]
fn a_socket_changes_rings_with_bytes_in_flight() {
    const TOTAL: usize = 1_000_000;
    let (mut ring, address) = engine(64, 256);
    let peer = writer(address, TOTAL, 3_000);
    let (mut got, mut handed, mut off) = (Vec::new(), None, false);
    play(&mut ring, |io, event, _| {
        match event {
            Some(Event::Accepted { conn, .. }) => io.read(conn, Read::Stream),
            Some(Event::Received { conn, bytes }) => {
                got.extend_from_slice(bytes);
                if got.len() > 20_000 && !std::mem::replace(&mut off, true) {
                    io.read(conn, Read::Off);
                }
            }
            Some(Event::Quiet { conn }) => handed = io.detach(conn),
            _ => {}
        }
        if handed.is_some() { Next::Stop } else { Next::Idle }
    });
    let other = spawn(move || {
        let (mut ring, _) = engine(64, 256);
        let conn = ring.adopt(handed.unwrap()).unwrap();
        ring.read(conn, Read::Stream);
        let mut over = false;
        play(&mut ring, |_, event, _| {
            match event {
                Some(Event::Received { bytes, .. }) => got.extend_from_slice(bytes),
                Some(Event::Ended { .. }) => over = true,
                _ => {}
            }
            if over { Next::Stop } else { Next::Idle }
        });
        got
    });
    assert!(other.join().unwrap() == pattern(0, TOTAL));
    peer.join().unwrap();
}

#[test]
fn turns_come_at_their_time() {
    let (mut ring, _) = engine(8, 64);
    let (mut at, mut turns) = (0, 0);
    play(&mut ring, |_, event, now| {
        assert!(event.is_none() && now.mono_ns >= at, "a turn before its time with no event");
        turns += 1;
        at = now.mono_ns + 5_000_000;
        if turns == 5 { Next::Stop } else { Next::At(at) }
    });
    assert_eq!(turns, 5);
}

/// Returns `true` in a process of this test's own, which it starts and waits for: descriptors and their limit are the process's.
fn alone(test: &str) -> bool {
    const CHILD: &str = "RINGWAY_TEST_DESCRIPTORS_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", &format!("io::ring::tests::{test}")]).env(CHILD, "1").output().unwrap();
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
    let (mut ring, address) = engine(8, 64);
    let peer = connect(address);
    let before = getrlimit(Resource::Nofile);
    let mut none = before;
    none.current = Some(3);
    setrlimit(Resource::Nofile, none).unwrap();
    let (mut failed_ns, mut accepted_ns) = (Vec::new(), None);
    play(&mut ring, |_, event, now| {
        match event {
            Some(Event::AcceptFailed(error)) => {
                assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
                failed_ns.push(now.mono_ns);
                if failed_ns.len() == 2 {
                    setrlimit(Resource::Nofile, before).unwrap();
                }
            }
            Some(Event::Accepted { .. }) => accepted_ns = Some(now.mono_ns),
            _ => {}
        }
        if accepted_ns.is_some() { Next::Stop } else { Next::Idle }
    });
    assert_eq!(failed_ns.len(), 2, "each failure is followed by a rest");
    assert!(failed_ns[1] - failed_ns[0] >= 100_000_000 && accepted_ns.unwrap() - failed_ns[1] >= 100_000_000);
    assert_eq!(ring.stats.accepts_failed, 2);
    drop(peer);
}

/// More failing sends than the completion queue has entries; none of them passes for one that took everything.
#[test]
fn results_of_sends_outlive_an_overflow_of_the_completion_queue() {
    const SENDS: usize = 40_000;
    let (mut ring, address) = engine(16, 256);
    let peer = connect(address);
    socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    let mut peer = Some(peer);
    let (mut out, mut over) = (Vec::new(), false);
    play(&mut ring, |io, event, _| {
        match event {
            Some(Event::Accepted { conn, .. }) => {
                io.read(conn, Read::Stream);
                drop(peer.take());
            }
            Some(Event::Ended { conn, error }) => {
                assert_eq!(error.and_then(|error| error.raw_os_error()), Some(libc::ECONNRESET));
                let batch: Vec<_> = (0..SENDS).map(|_| Send { conn, parts: &[b"x"] }).collect();
                io.send_batch(&batch, &mut out);
                over = true;
            }
            _ => {}
        }
        if over { Next::Stop } else { Next::Idle }
    });
    assert_eq!(out.len(), SENDS);
    let wrong = out.iter().filter(|sent| **sent != Sent::Failed(libc::EPIPE)).count();
    assert_eq!(wrong, 0, "of {SENDS} sends to a socket that was reset");
    assert!(ring.stats.overflows > 0, "the queue did not overflow: send more");
}

#[test]
fn once_upon_a_stream_loses_nothing() {
    let (mut ring, address) = engine(64, 256);
    let mut stream = true;
    takes_all(&mut ring, address, 2_000_000, |io, conn, event| {
        assert!(event.is_none(), "a Quiet that nobody asked for");
        stream = !stream;
        io.read(conn, if stream { Read::Stream } else { Read::Once });
    });
}

#[test]
fn once_upon_a_stream_reads_once() {
    let (mut ring, address) = engine(16, 100);
    let mut peer = connect(address);
    let (mut received, mut accepted, mut turns_since) = (Vec::new(), None, 0);
    play(&mut ring, |io, event, now| {
        match event {
            Some(Event::Accepted { conn, .. }) => {
                accepted = Some(conn);
                io.read(conn, Read::Stream);
            }
            Some(Event::Received { bytes, .. }) => received.extend_from_slice(bytes),
            None => {
                let Some(conn) = accepted else { return Next::Idle };
                turns_since += 1;
                match turns_since {
                    // The multishot receive is in the kernel since the last turn, and waits.
                    2 => io.read(conn, Read::Once),
                    // The cancel of that receive, too.
                    4 => peer.write_all(&pattern(0, 1_000)).unwrap(),
                    14 => return Next::Stop,
                    _ => {}
                }
                return Next::At(now.mono_ns + 10_000_000);
            }
            _ => {}
        }
        Next::Idle
    });
    assert!(received == pattern(0, 100), "{} bytes: one receive's are 100", received.len());
}

#[test]
fn a_closing_socket_is_not_given_away() {
    let (mut ring, address) = engine(16, 256);
    let mut peer = connect(address);
    let (mut closed, mut quiet) = (None, false);
    play(&mut ring, |io, event, now| {
        match event {
            Some(Event::Accepted { conn, .. }) => {
                io.read(conn, Read::Stream);
                io.read(conn, Read::Off);
                io.close(conn);
                assert!(io.detach(conn).is_none(), "a receive of it is in the kernel");
                closed = Some((conn, now.mono_ns));
            }
            Some(Event::Quiet { .. }) => quiet = true,
            _ => {}
        }
        match closed {
            Some((conn, since)) if now.mono_ns >= since + 50_000_000 => {
                assert!(io.detach(conn).is_none(), "it is gone");
                Next::Stop
            }
            Some((_, since)) => Next::At(since + 50_000_000),
            None => Next::Idle,
        }
    });
    assert!(!quiet, "nobody waits for it any more");
    assert!(ring.slots.iter().all(|slot| slot.fd == FREE));
    assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_dropped_ring_frees_its_port_and_its_descriptors() {
    if !alone("a_dropped_ring_frees_its_port_and_its_descriptors") {
        return;
    }
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    for round in 0..20 {
        let (mut ring, address) = engine(16, 256);
        let mut peers: Vec<_> = (0..8).map(|_| connect(address)).collect();
        let mut accepted = 0;
        play(&mut ring, |io, event, _| {
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
        // Accepted by the kernel, not yet reported.
        peers.push(connect(address));
        drop(ring);
        // The ring's listeners share their port; this one shares with nobody.
        let again = std::net::TcpListener::bind(address);
        assert!(again.is_ok(), "round {round}: {again:?}");
        for (number, mut peer) in peers.into_iter().enumerate() {
            let ended = std::io::copy(&mut peer, &mut std::io::sink());
            let waits = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
            assert!(!waits, "round {round}: peer {number} is still held");
        }
    }
    assert_eq!(descriptors(), before);
}
