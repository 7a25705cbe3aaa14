//! Contains a panic in the work on one connection's bytes, so that it ends this connection only.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs code that reads one connection's bytes; a panic in it ends this connection only.
pub(in crate::shard) fn contained<T>(work: impl FnOnce() -> T) -> std::thread::Result<T> {
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

/// A bug in decoding, for tests only: a panic once the work has changed what it was lent.
#[cfg(test)]
pub mod faults {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// In place of a result type's name, while its call panics.
    const STRUCK: &str = "struck";

    thread_local! {
        static PLAN: Cell<(&str, u32)> = const { Cell::new(("", 0)) };
        /// Panics of this thread that no test planned.
        static UNPLANNED: Cell<usize> = const { Cell::new(0) };
    }
    /// Panics of all threads that no test planned.
    static UNPLANNED_ANYWHERE: AtomicUsize = AtomicUsize::new(0);

    /// Makes the `calls`-th contained call of this thread panic, counting only calls whose result type has this name.
    pub fn panic_in(result: &'static str, calls: u32) {
        PLAN.set((result, calls));
    }

    /// Returns `true` if that panic is still to come.
    pub fn pending() -> bool {
        PLAN.get().1 > 0
    }

    /// Panics of this thread that no test planned, since the last call.
    pub fn take_unplanned() -> usize {
        UNPLANNED.take()
    }

    /// Panics of all threads that no test planned.
    pub fn unplanned_anywhere() -> usize {
        UNPLANNED_ANYWHERE.load(Ordering::Relaxed)
    }

    pub(in crate::shard) fn note(panicked: bool) {
        let was_planned = matches!(PLAN.get(), (STRUCK, _));
        if was_planned {
            PLAN.set(("", 0));
        } else if panicked {
            UNPLANNED.set(UNPLANNED.get() + 1);
            UNPLANNED_ANYWHERE.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(in crate::shard) fn strike(result: &str) {
        let (wanted, left) = PLAN.get();
        if left > 0 && result.contains(wanted) {
            PLAN.set((if left > 1 { wanted } else { STRUCK }, left - 1));
            assert!(left > 1, "a decoder's bug, put here by a test");
        }
    }
}
