//! Connections without a welcome yet, by owner: an address, or the connection alone while its address is not known. If there are
//! too many, the owner with the most loses its oldest.
//!
//! May import the vocabulary. Pure. Invariant: each connection is in it once. It is exact, for one shard; the table of
//! `admission` counts for the node and may count too many.

use crate::ids::{ConnId, HashKey, Map};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// See the module's text.
#[derive(Debug)]
pub struct HalfOpen {
    /// By owner and serial number, so that an owner's oldest comes first.
    conns: BTreeMap<(u64, u64), ConnId>,
    counts: Map<u64, usize>,
    /// Owners by their number of connections; among equals, the one with the oldest connection comes last.
    ranks: BTreeSet<(usize, Reverse<u64>, u64)>,
}

impl HalfOpen {
    /// An empty set.
    #[must_use]
    pub const fn new(key: HashKey) -> Self {
        Self { conns: BTreeMap::new(), counts: Map::with_hasher(key), ranks: BTreeSet::new() }
    }

    /// The number of connections of all owners.
    #[must_use]
    pub fn len(&self) -> usize {
        self.conns.len()
    }

    /// The number of connections of an owner.
    #[must_use]
    pub fn of(&self, owner: u64) -> usize {
        self.counts.get(&owner).copied().unwrap_or(0)
    }

    fn rank(&self, owner: u64) -> Option<(usize, Reverse<u64>, u64)> {
        let ((_, oldest), _) = self.conns.range((owner, 0)..=(owner, u64::MAX)).next()?;
        Some((self.of(owner), Reverse(*oldest), owner))
    }

    fn change<T>(&mut self, owner: u64, change: impl FnOnce(&mut Self) -> T) -> T {
        if let Some(rank) = self.rank(owner) {
            self.ranks.remove(&rank);
        }
        let done = change(self);
        if let Some(rank) = self.rank(owner) {
            self.ranks.insert(rank);
        }
        done
    }

    /// Adds a connection of an owner, with a unique serial number.
    pub fn enter(&mut self, owner: u64, serial: u64, id: ConnId) {
        self.change(owner, |table| {
            if table.conns.insert((owner, serial), id).is_none() {
                *table.counts.entry(owner).or_default() += 1;
            }
        });
    }

    /// Removes a connection, if it is there.
    pub fn leave(&mut self, owner: u64, serial: u64) -> Option<ConnId> {
        self.change(owner, |table| {
            let id = table.conns.remove(&(owner, serial))?;
            let count = table.counts.entry(owner).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                table.counts.remove(&owner);
            }
            Some(id)
        })
    }

    /// Removes the connection that must give way: the oldest of the owner that has the most.
    pub fn pop(&mut self) -> Option<ConnId> {
        let (_, Reverse(oldest), owner) = self.ranks.last().copied()?;
        self.leave(owner, oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::HALF_OPEN_RESERVE_PERCENT;

    fn table(entries: &[(u64, u64)]) -> HalfOpen {
        let mut table = HalfOpen::new(HashKey([1; 16]));
        entries.iter().for_each(|(owner, serial)| table.enter(*owner, *serial, id(*serial)));
        table
    }

    fn id(serial: u64) -> ConnId {
        ConnId { index: u32::try_from(serial).unwrap(), generation: 1 }
    }

    #[test]
    fn whoever_has_the_most_gives_way_the_oldest_first() {
        let mut table = table(&[(7, 1), (8, 2), (9, 3), (8, 4), (7, 5), (8, 6)]);
        let order: Vec<u32> = std::iter::from_fn(|| table.pop()).map(|id| id.index).collect();
        assert_eq!(order, [2, 1, 4, 3, 5, 6], "8 has three, then 7 and 8 two each, then all one each");
        assert!(table.len() == 0 && table.counts.is_empty() && table.ranks.is_empty());
    }

    #[test]
    fn who_leaves_counts_no_more() {
        let mut table = table(&[(7, 1), (8, 2), (7, 3)]);
        assert_eq!((table.of(7), table.leave(7, 1), table.leave(7, 1), table.of(7)), (2, Some(id(1)), None, 1));
        assert_eq!(table.pop(), Some(id(2)), "the oldest of those that have as many");
        assert_eq!((table.len(), table.of(8), table.of(9)), (1, 0, 0));
    }

    #[test]
    fn ranks_follow_whatever_comes_and_goes() {
        let mut table = table(&[]);
        let mut random = 1_u64;
        for serial in 0..2_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let owner = random >> 60;
            match (random >> 40) % 4 {
                0 => drop(table.pop()),
                1 => drop(table.conns.keys().nth(5).copied().and_then(|(owner, serial)| table.leave(owner, serial))),
                _ => table.enter(owner, serial, id(serial)),
            }
            assert_eq!(table.ranks.len(), table.counts.len());
            assert_eq!(table.counts.values().sum::<usize>(), table.len());
            let most = table.counts.values().max().copied();
            assert_eq!(table.ranks.last().map(|(count, ..)| *count), most);
        }
        const { assert!(HALF_OPEN_RESERVE_PERCENT < 100) };
    }
}
