//! The messages that one receiver has had of one sender: nothing lost, nothing twice, all in order.

use std::collections::BTreeSet;

/// Numbers kept as missing; more than these count as lost without being told apart.
const MISSING_MAX: usize = 1 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    next: u64,
    missing: BTreeSet<u64>,
    pub received: u64,
    pub duplicates: u64,
    /// Arrived after a message with a higher number.
    pub out_of_order: u64,
}

impl Ledger {
    /// The ledger of a receiver whose first message will have this number.
    pub fn starting_at(number: u64) -> Self {
        Self { next: number, ..Self::default() }
    }

    /// Messages that never came although a later one did.
    pub fn holes(&self) -> u64 {
        self.missing.len() as u64
    }

    /// Books a message of the sender.
    pub fn receive(&mut self, number: u64) {
        if number == self.next {
            self.next += 1;
        } else if number > self.next {
            for gap in self.next..number {
                if self.missing.len() == MISSING_MAX {
                    break;
                }
                self.missing.insert(gap);
            }
            self.next = number + 1;
        } else if self.missing.remove(&number) {
            self.out_of_order += 1;
        } else {
            self.duplicates += 1;
            return;
        }
        self.received += 1;
    }

    /// Returns `true` if this number has not arrived.
    pub fn is_missing(&self, number: u64) -> bool {
        number >= self.next || self.missing.contains(&number)
    }

    /// Takes back the last `count`, the first of which was `number`: the receiver was told to discard them.
    pub fn rewind(&mut self, number: u64, count: u64) {
        self.next = self.next.min(number);
        self.missing.split_off(&number);
        self.received -= count;
    }

    /// Messages of the first `sent` that never came.
    pub fn lost(&self, sent: u64) -> u64 {
        self.missing.range(..sent).count() as u64 + sent.saturating_sub(self.next)
    }
}

/// All broken promises of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Loss {
    pub sent: u64,
    /// Sent and never answered.
    pub unanswered: u64,
    pub delivered: u64,
    /// Acknowledged and not delivered.
    pub lost: u64,
    pub duplicates: u64,
    pub out_of_order: u64,
    /// Errors, refusals, connections that ended by themselves, wrong bytes.
    pub errors: u64,
}

impl Loss {
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.unanswered += other.unanswered;
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.duplicates += other.duplicates;
        self.out_of_order += other.out_of_order;
        self.errors += other.errors;
    }

    /// Books a receiver who was to have the first `sent` messages.
    pub fn book(&mut self, ledger: &Ledger, sent: u64) {
        self.delivered += ledger.received;
        self.lost += ledger.lost(sent);
        self.duplicates += ledger.duplicates;
        self.out_of_order += ledger.out_of_order;
    }

    /// Returns `true` if every promise was kept.
    pub fn clean(&self) -> bool {
        self.unanswered == 0 && self.lost == 0 && self.duplicates == 0 && self.out_of_order == 0 && self.errors == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(numbers: &[u64]) -> Ledger {
        let mut ledger = Ledger::default();
        for number in numbers {
            ledger.receive(*number);
        }
        ledger
    }

    #[test]
    fn in_order_is_clean() {
        let ledger = ledger(&[0, 1, 2]);
        assert_eq!((ledger.received, ledger.lost(3), ledger.duplicates, ledger.out_of_order), (3, 0, 0, 0));
        assert_eq!(ledger.lost(5), 2, "a tail that never came is lost");
    }

    #[test]
    fn holes_repeats_and_swaps_are_told_apart() {
        let ledger = ledger(&[0, 3, 1, 3, 0, 4]);
        assert_eq!((ledger.received, ledger.lost(5), ledger.duplicates, ledger.out_of_order), (4, 1, 2, 1));
        let mut loss = Loss { sent: 5, ..Loss::default() };
        loss.book(&ledger, 5);
        assert!(!loss.clean());
        assert_eq!((loss.lost, loss.duplicates), (1, 2));
    }

    #[test]
    fn who_starts_in_the_middle_misses_only_what_comes_after() {
        let mut ledger = Ledger::starting_at(5);
        ledger.receive(5);
        ledger.receive(7);
        assert_eq!((ledger.received, ledger.holes(), ledger.lost(8), ledger.lost(10)), (2, 1, 1, 3));
        ledger.receive(4);
        assert_eq!(ledger.duplicates, 1, "what it had is not for it");
    }

    #[test]
    fn what_was_discarded_may_come_again() {
        let mut ledger = ledger(&[0, 1, 2, 4]);
        ledger.rewind(2, 2);
        assert_eq!((ledger.received, ledger.lost(5)), (2, 3));
        assert_eq!([1, 2, 4].map(|number| ledger.is_missing(number)), [false, true, true]);
        (2..5).for_each(|number| ledger.receive(number));
        assert_eq!((ledger.received, ledger.lost(5), ledger.duplicates, ledger.out_of_order), (5, 0, 0, 0));
    }

    #[test]
    fn what_was_never_sent_is_no_loss() {
        let ledger = ledger(&[2]);
        assert_eq!((ledger.lost(0), ledger.lost(2), ledger.lost(3)), (0, 2, 2));
        assert!(Loss::default().clean());
    }
}
