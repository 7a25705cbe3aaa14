//! Sends: a turn's batch leaves in one enter and is done on return.
#![allow(unsafe_code)] // entries name the senders' memory by pointer; the SAFETY comments carry the argument

use super::{Completion, Op, Ring, plain, untag};
use crate::io::{Send, Sent};
use io_uring::{opcode, squeue, types};

impl Ring {
    pub(super) fn send_all(&mut self, batch: &[Send<'_>], out: &mut Vec<Sent>) {
        out.clear();
        out.resize(batch.len(), Sent::Failed(libc::EBADF));
        self.slices.clear();
        self.messages.clear();
        for send in batch.iter().filter(|send| send.parts.len() > 1) {
            self.slices.extend(
                send.parts.iter().map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() }),
            );
            // SAFETY: all-zero is a valid msghdr (null pointers, zero lengths).
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iovlen = send.parts.len();
            self.messages.push(message);
        }
        // Only now do the vectors stay in place.
        let mut first = 0;
        for message in &mut self.messages {
            let len = message.msg_iovlen;
            message.msg_iov = self.slices[first..first + len].as_mut_ptr();
            first += len;
        }
        // DONTWAIT ends each send while it is submitted. With WAITALL a short one counts as failed, so that successes need no
        // completion: the kernel posts, and this code reads, only sends that fell short or failed.
        let flags = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let mut scattered = 0;
        for (index, send) in batch.iter().enumerate() {
            let fd = self.slot(send.conn).filter(|slot| !slot.closing).map(|slot| types::Fd(slot.fd));
            let many = send.parts.len() > 1;
            let message = scattered;
            scattered += usize::from(many);
            let (Some(fd), Ok(number)) = (fd, u32::try_from(index)) else { continue };
            let entry = if many {
                opcode::SendMsg::new(fd, &raw const self.messages[message]).flags(flags.cast_unsigned()).build()
            } else {
                let part = send.parts.first().copied().unwrap_or_default();
                let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
                opcode::Send::new(fd, part.as_ptr(), len).flags(flags).build()
            };
            out[index] = Sent::Bytes(send.parts.iter().map(|part| part.len()).sum());
            self.push(&entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(plain(Op::Send, number)));
        }
        self.collect_sends(out);
    }

    /// Submits the queued sends and fetches the results of those that did not take everything. MSG_DONTWAIT completes each while
    /// it is submitted, so that the kernel is done with the callers' memory on return.
    fn collect_sends(&mut self, out: &mut [Sent]) {
        if let Err(error) = self.enter(0) {
            panic!("io_uring_enter failed for good: {error}");
        }
        // Sends that a full queue pushed out early may have been reaped with other completions.
        self.backlog.retain(|completion| !settle(completion, out));
        loop {
            for entry in self.ring.completion() {
                let completion = Completion { user_data: entry.user_data(), result: entry.result(), flags: entry.flags() };
                if !settle(&completion, out) {
                    self.backlog.push_back(completion);
                }
            }
            // A result that found the queue full is kept aside by the kernel; unread, it would pass for a send that took
            // everything.
            if !self.ring.submission().cq_overflow() {
                return;
            }
            self.stats.overflows += 1;
            if let Err(error) = self.enter(0) {
                panic!("io_uring_enter failed for good: {error}");
            }
            self.backlog.retain(|completion| !settle(completion, out));
        }
    }
}

/// Writes a send's result to its place. Returns `false` if the completion is no send's.
fn settle(completion: &Completion, out: &mut [Sent]) -> bool {
    let (op, conn) = untag(completion.user_data);
    if op != Some(Op::Send) {
        return false;
    }
    if let Some(place) = out.get_mut(conn.index as usize) {
        *place = match usize::try_from(completion.result) {
            Ok(bytes) => Sent::Bytes(bytes),
            Err(_) if completion.result == -libc::EAGAIN => Sent::Bytes(0),
            Err(_) => Sent::Failed(-completion.result),
        };
    }
    true
}
