//! The attackers' shared stage: the target, the times, and the results.

use super::client::{Door, Hello, Link};
use crate::clock::{now_ns, sleep_ms, sleep_ns};
use crate::dialect;
use crate::token::Minter;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// A little below the gateway's default of 200 messages a second of a connection: an attacker above it is only refused.
pub const COMMANDS_PER_S: u64 = 190;

/// Counts by name.
pub type Counts = BTreeMap<String, u64>;

pub fn count(counts: &Mutex<Counts>, name: &str) {
    if let Ok(mut counts) = counts.lock() {
        match counts.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(counts.insert(name.to_owned(), 1)),
        }
    }
}

/// A run of one attack.
pub struct Stage {
    /// The address for clients: the gateway's, or the sink's.
    pub address: SocketAddr,
    /// The gateway's admin listener, or the sink.
    pub admin: SocketAddr,
    pub minter: Minter,
    /// Duration of the measurement, for preparations that depend on it.
    pub seconds: f64,
    ready: AtomicU32,
    going: AtomicBool,
    over: AtomicBool,
    window_start_ns: AtomicU64,
    window_end_ns: AtomicU64,
    /// The attack's units: commands sent, connections made.
    pub done: AtomicU64,
    /// Answers to the attackers: errors by code, ends by reason.
    pub told: Mutex<Counts>,
    /// Failures of the server to give attackers what they too are owed.
    pub owed: Mutex<Counts>,
}

impl Stage {
    pub fn new(address: SocketAddr, admin: SocketAddr, minter: Minter, seconds: f64) -> Self {
        Self {
            address,
            admin,
            minter,
            seconds,
            ready: AtomicU32::new(0),
            going: AtomicBool::new(false),
            over: AtomicBool::new(false),
            window_start_ns: AtomicU64::new(u64::MAX),
            window_end_ns: AtomicU64::new(u64::MAX),
            done: AtomicU64::new(0),
            told: Mutex::default(),
            owed: Mutex::default(),
        }
    }

    /// Reports that an attacker is ready, and waits for the beginning.
    pub fn wait_for_beginning(&self) {
        self.ready.fetch_add(1, Ordering::SeqCst);
        while !self.going.load(Ordering::SeqCst) && !self.is_over() {
            sleep_ms(1);
        }
    }

    pub fn ready(&self) -> u32 {
        self.ready.load(Ordering::SeqCst)
    }

    /// Begins the attack.
    pub fn begin(&self, window_start_ns: u64, window_end_ns: u64) {
        self.window_start_ns.store(window_start_ns, Ordering::SeqCst);
        self.window_end_ns.store(window_end_ns, Ordering::SeqCst);
        self.going.store(true, Ordering::SeqCst);
    }

    /// Ends the attack.
    pub fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// The measured window: from, to.
    pub fn window(&self) -> (u64, u64) {
        (self.window_start_ns.load(Ordering::SeqCst), self.window_end_ns.load(Ordering::SeqCst))
    }

    pub fn did(&self, count: u64) {
        // Of the window alone, so that both runs of a pair count the same time.
        let (start_ns, end_ns) = self.window();
        if (start_ns..end_ns).contains(&now_ns()) {
            self.done.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub fn told(&self, what: &str) {
        count(&self.told, what);
    }

    /// Runs `step` on a fixed schedule until the attack's end; late steps are made up for, a second's worth at most.
    pub fn beat(&self, every_us: u64, mut step: impl FnMut(u64)) {
        let mut due_ns = now_ns();
        let mut number = 0;
        while !self.is_over() {
            let now = now_ns();
            due_ns = due_ns.max(now.saturating_sub(1_000_000_000));
            if due_ns > now {
                sleep_ns((due_ns - now).min(20_000_000));
                continue;
            }
            step(number);
            number += 1;
            due_ns += every_us * 1000;
        }
    }

    /// A token that covers every session.
    pub fn token(&self, user: &str, number: usize) -> Result<String, String> {
        self.minter.mint(user, &["*"], number)
    }
}

/// Attackers' addresses, twenty connections on each at most: the gateway's limits count by address.
pub fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 1, u8::try_from(number / 20 / 200 % 256).unwrap_or(0), u8::try_from(1 + number / 20 % 200).unwrap_or(1))
}

/// Members that attack together; a member that the server disconnects is replaced.
pub struct Crew<'a, M> {
    stage: &'a Stage,
    make: M,
    links: Vec<Option<Link>>,
    /// Bytes that a member reads a beat.
    pub read_bytes: usize,
}

impl<'a, M: Fn(usize) -> Result<Link, String>> Crew<'a, M> {
    pub fn new(stage: &'a Stage, count: usize, make: M) -> Result<Self, String> {
        let links: Result<Vec<_>, String> = (0..count)
            .map(|number| make(number).map(Some).map_err(|why| format!("attacker {number} could not come in: {why}")))
            .collect();
        Ok(Self { stage, make, links: links?, read_bytes: usize::MAX })
    }

    /// A beat of all members: `act` returns a member's messages, then these are sent, and received messages are passed to `hear`.
    pub fn all(&mut self, mut act: impl FnMut(usize, &mut Link), mut hear: impl FnMut(usize, &[u8])) {
        let mut remade = 0;
        for (number, place) in self.links.iter_mut().enumerate() {
            let Some(link) = place else {
                // No faster than an address may connect, and still at the pace of the beat.
                if remade < 2 {
                    remade += 1;
                    match (self.make)(number) {
                        Ok(link) => *place = Some(link),
                        Err(why) => self.stage.told(&why),
                    }
                }
                continue;
            };
            act(number, link);
            let stage = self.stage;
            let ended = link.push().and_then(|()| {
                link.take(self.read_bytes, |message| {
                    if dialect::is_type(message, b"rw.error") {
                        stage.told(dialect::code_of(message).unwrap_or("an error without a code"));
                    }
                    hear(number, message);
                })
            });
            if let Err(why) = ended {
                self.stage.told(&why);
                *place = None;
            }
        }
    }
}

/// Opens the `number`-th client of a user; ten of one user may be connected.
pub fn open(
    stage: &Stage,
    number: usize,
    session: &str,
    rooms: &[String],
    receive_buffer_bytes: Option<usize>,
) -> Result<Link, String> {
    let user = format!("mallory-{}", number / 10);
    let token = stage.token(&user, number)?;
    let hello = Hello { client: format!("{user}/{}", number % 10), token, session: session.into(), rooms: rooms.to_vec() };
    Link::open(&Door { address: stage.address, from: address(number), receive_buffer_bytes }, &hello)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attackers_addresses_have_twenty_each_and_are_none_of_the_innocents() {
        assert_eq!((address(0), address(19), address(20)), ([127, 1, 0, 1].into(), [127, 1, 0, 1].into(), [127, 1, 0, 2].into()));
        assert_eq!(address(20 * 200), Ipv4Addr::new(127, 1, 1, 1));
        assert!((0..100_000).all(|number| address(number).octets()[3] != 0 && address(number).octets()[3] != 255));
    }

    #[test]
    fn the_attack_keeps_its_pace_from_the_beginning_to_the_end() {
        let stage = Stage::new(([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into(), Minter::random().unwrap(), 1.0);
        stage.did(1);
        assert_eq!(stage.done.load(Ordering::Relaxed), 0, "before the window nothing counts");
        stage.begin(0, u64::MAX);
        let mut steps = Vec::new();
        stage.beat(100, |number| {
            steps.push(number);
            stage.did(2);
            if number == 49 {
                stage.end();
            }
        });
        assert_eq!((steps.len(), steps[49], stage.done.load(Ordering::Relaxed)), (50, 49, 100));
    }
}
