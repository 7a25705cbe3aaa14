//! A fixed rate. Every message has a time at which it is due, whatever the server does; a late message still counts from then. A
//! timerfd read through the ring keeps the schedule to microseconds; the runtime's own timer has milliseconds.
#![allow(unsafe_code)]

use crate::clock::now_ns;
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::rc::Rc;

/// Sends in one go, before received messages get their turn.
const AT_ONCE: u64 = 128;

/// The schedule of one worker.
pub struct Pacer {
    start_ns: u64,
    end_ns: u64,
    interval_ns: f64,
    next: Cell<u64>,
}

impl Pacer {
    /// `per_second` messages from `start_ns` until `end_ns`.
    pub fn new(start_ns: u64, end_ns: u64, per_second: f64) -> Self {
        Self { start_ns, end_ns, interval_ns: 1e9 / per_second, next: Cell::new(0) }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "times of a run, far below 2^52 ns"
    )]
    fn due_ns(&self, message: u64) -> u64 {
        self.start_ns + (message as f64 * self.interval_ns) as u64
    }

    /// Passes every message that is due to `send`, with its number and the time it was due. Returns when the next one is due, or
    /// `None` after the last.
    pub fn pump(&self, now_ns: u64, mut send: impl FnMut(u64, u64)) -> Option<u64> {
        for _ in 0..AT_ONCE {
            let message = self.next.get();
            let due_ns = self.due_ns(message);
            if due_ns >= self.end_ns {
                return None;
            }
            if due_ns > now_ns {
                return Some(due_ns);
            }
            self.next.set(message + 1);
            send(message, due_ns);
        }
        Some(self.due_ns(self.next.get()))
    }

    /// Keeps the schedule until its end. `quantum_ns` is the least sleep: messages that become due meanwhile are sent together.
    pub async fn keep(self: Rc<Self>, quantum_ns: u64, mut send: impl FnMut(u64, u64)) -> io::Result<()> {
        let timer = Timer::new()?;
        let mut buffer = vec![0_u8; 8];
        loop {
            let now = now_ns();
            let Some(due_ns) = self.pump(now, &mut send) else { return Ok(()) };
            timer.arm(due_ns.saturating_sub(now).max(quantum_ns))?;
            let (result, returned) = timer.file.read_at(buffer, 0).await;
            result?;
            buffer = returned;
        }
    }
}

struct Timer {
    file: tokio_uring::fs::File,
    fd: RawFd,
}

impl Timer {
    fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers; the result is checked.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        let file = tokio_uring::fs::File::from_std(unsafe { File::from_raw_fd(fd) });
        Ok(Self { fd: file.as_raw_fd(), file })
    }

    fn arm(&self, after_ns: u64) -> io::Result<()> {
        let after_ns = after_ns.max(1);
        let value = libc::timespec {
            tv_sec: libc::time_t::try_from(after_ns / 1_000_000_000).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::try_from(after_ns % 1_000_000_000).unwrap_or(0),
        };
        let spec = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // SAFETY: the descriptor is open as long as `file`, and the spec is valid.
        if unsafe { libc::timerfd_settime(self.fd, 0, &raw const spec, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_is_sent_once_with_the_time_it_was_due() {
        let pacer = Pacer::new(1_000, 11_000, 1e6);
        let mut sent = Vec::new();
        assert_eq!(pacer.pump(3_500, |message, due_ns| sent.push((message, due_ns))), Some(4_000));
        assert_eq!(sent, [(0, 1_000), (1, 2_000), (2, 3_000)]);
        // Very late: all remaining messages are due, at their own times, and none after the end.
        sent.clear();
        assert_eq!(pacer.pump(1_000_000, |message, due_ns| sent.push((message, due_ns))), None);
        assert_eq!((sent.len(), sent[0], sent[6]), (7, (3, 4_000), (9, 10_000)));
    }
}
