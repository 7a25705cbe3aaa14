//! Work on one connection's bytes, whose panic is that connection's end and no other's.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs what reads one connection's bytes; a panic in it is that connection's end and no other's.
pub(super) fn contained<T>(work: impl FnOnce() -> T) -> std::thread::Result<T> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let done = work();
        #[cfg(test)]
        faults::strike(std::any::type_name::<T>());
        done
    }));
    #[cfg(test)]
    faults::note(outcome.is_err());
    outcome
}

/// A bug in decoding, for tests only: a panic once the work has left its traces in what it was lent.
#[cfg(test)]
pub mod faults {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// In place of a result's type: its call is panicking.
    const STRUCK: &str = "struck";

    thread_local! {
        static PLAN: Cell<(&str, u32)> = const { Cell::new(("", 0)) };
        /// Panics of this thread that no test has put there.
        static UNPLANNED: Cell<usize> = const { Cell::new(0) };
    }
    /// The same of all threads.
    static UNPLANNED_ANYWHERE: AtomicUsize = AtomicUsize::new(0);

    /// The so many-th contained call of this thread from now on panics, of those whose result's type bears this name.
    pub fn panic_in(result: &'static str, calls: u32) {
        PLAN.set((result, calls));
    }

    /// Whether that panic is still to come.
    pub fn pending() -> bool {
        PLAN.get().1 > 0
    }

    /// Panics of this thread that no test has put there, since this was asked last.
    pub fn take_unplanned() -> usize {
        UNPLANNED.take()
    }

    /// Panics of all threads that no test has put there.
    pub fn unplanned_anywhere() -> usize {
        UNPLANNED_ANYWHERE.load(Ordering::Relaxed)
    }

    pub(super) fn note(panicked: bool) {
        let was_planned = matches!(PLAN.get(), (STRUCK, _));
        if was_planned {
            PLAN.set(("", 0));
        } else if panicked {
            UNPLANNED.set(UNPLANNED.get() + 1);
            UNPLANNED_ANYWHERE.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn strike(result: &str) {
        let (wanted, left) = PLAN.get();
        if left > 0 && result.contains(wanted) {
            PLAN.set((if left > 1 { wanted } else { STRUCK }, left - 1));
            assert!(left > 1, "a decoder's bug, put here by a test");
        }
    }
}
