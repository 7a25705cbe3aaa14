//! Counts that all shards share before a connection is let in: connections, half-open ones and handshakes by address, connections
//! by user. Fixed tables of atomic cells, two rows by two hashes; the smaller cell counts (a count-min sketch, Cormode and
//! Muthukrishnan 2005): never too few, too many only if both rows collide.
//!
//! May import the vocabulary. No lock, no allocation after the start.

use super::rate::{Bucket, Rate};
use crate::ids::HashKey;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

const CELLS: usize = 1 << 15;

/// Counts by key.
#[derive(Debug)]
struct Counts {
    rows: [Box<[AtomicU32]>; 2],
}

fn zeroed<T: Default>() -> Box<[T]> {
    (0..CELLS).map(|_| T::default()).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "an index is what is left of the hash")]
const fn places(hash: u64) -> [usize; 2] {
    [hash as usize % CELLS, (hash >> 32) as usize % CELLS]
}

impl Counts {
    fn new() -> Self {
        Self { rows: [zeroed(), zeroed()] }
    }

    /// Adds one, unless the count is `limit` (0: no limit) already.
    fn enter(&self, hash: u64, limit: usize) -> bool {
        let [first, second] = places(hash);
        let cells = [&self.rows[0][first], &self.rows[1][second]];
        let before = cells.map(|cell| cell.fetch_add(1, Ordering::Relaxed));
        let count = before[0].min(before[1]) as usize;
        if limit > 0 && count >= limit {
            self.leave(hash);
            return false;
        }
        true
    }

    fn leave(&self, hash: u64) {
        let [first, second] = places(hash);
        self.rows[0][first].fetch_sub(1, Ordering::Relaxed);
        self.rows[1][second].fetch_sub(1, Ordering::Relaxed);
    }
}

/// The tables. Each process has one set, shared by the shards.
#[derive(Debug)]
pub struct Admission {
    key: HashKey,
    by_address: Counts,
    half_open: Counts,
    by_user: Counts,
    handshakes: Box<[AtomicU64]>,
    connections: AtomicUsize,
}

impl Admission {
    /// Empty tables.
    #[must_use]
    pub fn new(key: HashKey) -> Self {
        Self {
            key,
            by_address: Counts::new(),
            half_open: Counts::new(),
            by_user: Counts::new(),
            handshakes: zeroed(),
            connections: AtomicUsize::new(0),
        }
    }

    /// The key by which an address is counted.
    #[must_use]
    pub fn address(&self, address: IpAddr) -> u64 {
        match address.to_canonical() {
            IpAddr::V4(address) => self.key.hash64(&[b"v4", &address.octets()]),
            // Every customer has at least a /64 (RFC 6177).
            IpAddr::V6(address) => self.key.hash64(&[b"v6", &address.octets()[..8]]),
        }
    }

    /// The key of a connection whose address is not known yet: from its shard's number for it, so that it is counted alone.
    #[must_use]
    pub fn stranger(&self, serial: u64) -> u64 {
        self.key.hash64(&[b"stranger", &serial.to_le_bytes()])
    }

    /// Counts a connection of the node. Returns `false` if there are `limit` already. It is counted either way, until it leaves.
    #[must_use]
    pub fn enter_node(&self, limit: usize) -> bool {
        self.connections.fetch_add(1, Ordering::Relaxed) < limit
    }

    /// Uncounts a connection of the node.
    pub fn leave_node(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a connection of an address. Returns `false` if the address has `limit` already.
    #[must_use]
    pub fn enter_address(&self, address: IpAddr, limit: usize) -> bool {
        self.by_address.enter(self.address(address), limit)
    }

    /// Uncounts a connection that entered.
    pub fn leave_address(&self, address: IpAddr) {
        self.by_address.leave(self.address(address));
    }

    /// Counts a connection without a welcome yet. Returns `false` if the address has `limit` already.
    #[must_use]
    pub fn enter_half_open(&self, address: IpAddr, limit: usize) -> bool {
        self.half_open.enter(self.address(address), limit)
    }

    /// Uncounts a half-open connection. Call when it is welcomed or closed.
    pub fn leave_half_open(&self, address: IpAddr) {
        self.half_open.leave(self.address(address));
    }

    /// Counts a connection of a user. Returns `false` if the user has `limit` already.
    #[must_use]
    pub fn enter_user(&self, subject: &str, limit: usize) -> bool {
        self.by_user.enter(self.key.hash64(&[b"user", subject.as_bytes()]), limit)
    }

    /// Uncounts a connection of a user.
    pub fn leave_user(&self, subject: &str) {
        self.by_user.leave(self.key.hash64(&[b"user", subject.as_bytes()]));
    }

    /// Connections of the node.
    #[cfg(test)]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The remaining counts: connections, and cells of addresses, half-open connections and users.
    #[cfg(test)]
    pub fn still_counted(&self) -> [usize; 4] {
        let taken = |row: &[AtomicU32]| row.iter().filter(|cell| cell.load(Ordering::Relaxed) > 0).count();
        let counted = |counts: &Counts| counts.rows.iter().map(|row| taken(row)).sum();
        let connections = self.connections.load(Ordering::Relaxed);
        [connections, counted(&self.by_address), counted(&self.half_open), counted(&self.by_user)]
    }

    /// Counts a handshake of an address.
    ///
    /// # Errors
    /// The milliseconds that the address must wait.
    pub fn handshake(&self, address: IpAddr, rate: Rate, now_ns: u64) -> Result<(), u64> {
        let cell = &self.handshakes[places(self.address(address))[0]];
        let mut old = cell.load(Ordering::Relaxed);
        // Two shards at once are rare; after a few lost races the handshake passes uncounted.
        for _ in 0..8 {
            let mut bucket = Bucket(old);
            bucket.take(rate, 1, now_ns)?;
            match cell.compare_exchange_weak(old, bucket.0, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => old = now,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_let_in_up_to_its_limit_and_again_after_it_left() {
        let admission = Admission::new(HashKey([1; 16]));
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert!(admission.enter_address(one, 2) && admission.enter_address(mapped, 2));
        assert!(!admission.enter_address(one, 2), "the mapped form is the same address");
        admission.leave_address(one);
        assert!(admission.enter_address(one, 2));
        assert!(admission.enter_address("192.0.2.2".parse().unwrap(), 2), "another address is not concerned");
        assert!((0..100).all(|_| admission.enter_user("ana", 0)), "0 is no limit");
    }

    #[test]
    fn neighbours_in_a_v6_network_are_one() {
        let admission = Admission::new(HashKey([1; 16]));
        assert!(admission.enter_half_open("2001:db8::1".parse().unwrap(), 1));
        assert!(!admission.enter_half_open("2001:db8::2".parse().unwrap(), 1));
        assert!(admission.enter_half_open("2001:db8:0:1::1".parse().unwrap(), 1));
    }

    #[test]
    fn handshakes_have_a_rate() {
        let admission = Admission::new(HashKey([1; 16]));
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let rate = Rate { per_second: 1, burst: 2 };
        assert!(admission.handshake(one, rate, 0).is_ok() && admission.handshake(one, rate, 0).is_ok());
        assert_eq!(admission.handshake(one, rate, 0), Err(1000));
    }
}
