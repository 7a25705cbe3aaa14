//! The lanes under every interleaving that loom can produce: loom's atomics are in the door; crossbeam's queues are trusted.

use super::*;
use crate::auth::{Grant, GrantParts};
use crate::ids::ConnId;
use loom::sync::atomic::AtomicUsize as LoomUsize;
use loom::sync::{Arc as LoomArc, Condvar, Mutex};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;

/// In every interleaving, a message pushed before the owner sleeps is either seen by it or rings.
#[test]
fn no_message_sleeps_in_a_lane() {
    loom::model(|| {
        let door = LoomArc::new(Door::default());
        let lane = LoomArc::new(LoomUsize::new(0));
        let speaker = {
            let (door, lane) = (LoomArc::clone(&door), LoomArc::clone(&lane));
            loom::thread::spawn(move || {
                lane.store(1, Ordering::Release);
                door.knock(0)
            })
        };
        let slept = door.sleep();
        let mut spoken = Spoken::default();
        door.take(&mut spoken.0);
        let seen = !spoken.is_empty() && lane.load(Ordering::Acquire) == 1;
        let rang = speaker.join().unwrap();
        assert!(!slept || seen || rang, "asleep with a message in the lane and no bell");
    });
}

/// A connection that changes shards, and the other end of its socket.
fn handover(serial: u64, from: u16) -> (LaneMessage, UnixStream) {
    let (socket, peer) = UnixStream::pair().unwrap();
    let grant = Grant::new(&GrantParts { subject: "ana", sessions: &["*"], expires_at_s: 1, ..GrantParts::default() }).unwrap();
    let request = AttachRequest {
        place: Place { shard: from, attachment: 0, ticket: 1, conn: ConnId { index: 0, generation: 1 } },
        command_id: "1".into(),
        session_id: "s".into(),
        session: 1,
        client_id: "ana".into(),
        subject_bytes: 3,
        roles: Box::default(),
        resume: None,
        wanted: crate::session::Wanted::Head,
        rooms: Vec::new(),
        create: true,
        echo: false,
        hello: true,
    };
    let handover = Handover {
        fd: Some(socket.into()),
        serial,
        peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
        accepted_ms: 1,
        deflate: false,
        acks: true,
        user_counted: true,
        admitted: true,
        messages_in: 1,
        tls: None,
        grant: Box::new(grant),
        request,
        rest: Vec::new(),
        unsent: Vec::new(),
        node_shard: from,
        window_bits: 15,
        ended: false,
    };
    (LaneMessage::Handover(Box::new(handover)), peer)
}

/// The engine's bell: once rung it stays so until its shard has woken.
struct Bell {
    rung: Mutex<bool>,
    waits: Condvar,
}

impl Bell {
    fn new() -> Self {
        Self { rung: Mutex::new(false), waits: Condvar::new() }
    }

    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.waits.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.waits.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// Sends as a shard does: a message that a full lane refuses waits, and is sent again.
fn hand_over(mesh: &Mesh, bell: &Bell, from: usize, to: usize, mut message: LaneMessage) {
    loop {
        match mesh.push(from, to, Class::Control, message) {
            Ok(true) => return bell.ring(),
            Ok(false) => return,
            Err(back) => {
                message = back;
                loom::thread::yield_now();
            }
        }
    }
}

/// A shard that sends these connections to another, one after the other.
fn sender(
    mesh: &Arc<Mesh>,
    bell: &LoomArc<Bell>,
    (from, to): (usize, usize),
    messages: Vec<LaneMessage>,
) -> loom::thread::JoinHandle<()> {
    let (mesh, bell) = (Arc::clone(mesh), LoomArc::clone(bell));
    loom::thread::spawn(move || messages.into_iter().for_each(|message| hand_over(&mesh, &bell, from, to, message)))
}

/// Takes connections over as a shard does, until it has `count`: turn, sleep unless something was sent, wake. Each socket is sent
/// its serial, and closed.
fn take_over(mesh: &Mesh, bell: &Bell, here: usize, count: usize) -> Vec<u64> {
    let mut taken = Vec::new();
    loop {
        let mut spoken = Spoken::default();
        mesh.door(here).take(&mut spoken.0);
        while let Some(from) = spoken.pop() {
            while let Some(message) = mesh.pop(from, here, Class::Control) {
                let LaneMessage::Handover(mut handover) = message else { panic!("{message:?}") };
                assert_eq!(usize::from(handover.node_shard), from);
                let mut socket = UnixStream::from(handover.fd.take().expect("taken for the first time"));
                socket.write_all(&[u8::try_from(handover.serial).unwrap()]).unwrap();
                taken.push(handover.serial);
            }
        }
        if taken.len() >= count {
            return taken;
        }
        if mesh.door(here).sleep() {
            bell.wait();
        }
        mesh.door(here).wake();
    }
}

/// The bytes that the other end of a socket received before its end.
fn got(mut peer: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    peer.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    peer.read_to_end(&mut bytes).expect("the socket is closed by now: nobody holds it any more");
    bytes
}

/// Two connections are handed from one shard to another through a lane that has room for one of them: each is taken over once, in
/// order, and its socket closed; a home that sleeps is woken for each. A lost bell would be a deadlock, which loom reports.
#[test]
fn a_handover_arrives_once_and_wakes_its_home() {
    loom::model(|| {
        let (mesh, bell) = (Mesh::with_depth(2, 1), LoomArc::new(Bell::new()));
        let ((first, first_peer), (second, second_peer)) = (handover(1, 0), handover(2, 0));
        let sender = sender(&mesh, &bell, (0, 1), vec![first, second]);
        assert_eq!(take_over(&mesh, &bell, 1, 2), [1, 2]);
        sender.join().unwrap();
        assert!(mesh.pop(0, 1, Class::Control).is_none(), "nothing is taken twice");
        assert_eq!((got(first_peer), got(second_peer)), (vec![1], vec![2]));
    });
}

/// Two shards hand over to a third at once.
#[test]
fn handovers_of_two_shards_both_arrive() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let (mesh, bell) = (Mesh::with_depth(3, 1), LoomArc::new(Bell::new()));
        let mut peers = Vec::new();
        let senders: Vec<_> = (0..2)
            .map(|from| {
                let (message, peer) = handover(from as u64, from as u16);
                peers.push(peer);
                sender(&mesh, &bell, (from, 2), vec![message])
            })
            .collect();
        let mut taken = take_over(&mesh, &bell, 2, 2);
        taken.sort_unstable();
        assert_eq!(taken, [0, 1]);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        assert_eq!(peers.into_iter().map(got).collect::<Vec<_>>(), [[0], [1]]);
    });
}

/// A home that ends with a connection still in the lane: its socket is closed with the lanes, by nobody else, and its peer sees the end.
#[test]
fn a_handover_that_nobody_takes_is_closed_with_the_lanes() {
    loom::model(|| {
        let (mesh, bell) = (Mesh::with_depth(2, 2), LoomArc::new(Bell::new()));
        let ((first, first_peer), (second, second_peer)) = (handover(1, 0), handover(2, 0));
        let sender = sender(&mesh, &bell, (0, 1), vec![first, second]);
        let taken = take_over(&mesh, &bell, 1, 1);
        sender.join().unwrap();
        drop(mesh);
        let second_got = got(second_peer);
        assert_eq!((got(first_peer), taken[0]), (vec![1], 1));
        assert_eq!(second_got.len() + 1, taken.len(), "taken or closed: {taken:?}");
    });
}
