//! Receiving: arming, taking completions, keeping a flooding connection from the others' buffers.
#![allow(unsafe_code)] // a completion lends a buffer by its number; the SAFETY comments carry the argument

use super::{Completion, Op, Ring, plain, tag};
use crate::io::buffers;
use crate::io::{ConnId, Event, Read, Shard};
use crate::time::Tick;
use io_uring::{opcode, squeue, types};
use std::io;

/// Buffers that one connection may fill between two turns before it is read one receive at a time.
const BUFFERS_PER_TURN_MAX: u8 = 33;

impl Ring {
    pub(super) fn on_received<S: Shard>(&mut self, shard: &mut S, conn: ConnId, completion: Completion, now: Tick) {
        let buffer = io_uring::cqueue::buffer_select(completion.flags);
        let more = io_uring::cqueue::more(completion.flags);
        let Some(slot) = self.slot_mut(conn) else {
            // Unreachable while slots outlive their operations; a buffer is never lost all the same.
            if let Some(id) = buffer {
                self.buffers.put_back(id);
            }
            return;
        };
        if !more {
            slot.receiving = false;
            slot.cancelling = false;
        }
        let conn = ConnId { index: conn.index, generation: slot.generation };
        let (closing, mode) = (slot.closing, slot.mode);
        if let Some(id) = buffer {
            let len = usize::try_from(completion.result).unwrap_or(0);
            if !closing && len > 0 {
                self.charge(conn, len);
                if mode == Read::Once {
                    self.slots[conn.index as usize].mode = Read::Off;
                    if more {
                        // A stream's receive that was still in the kernel when Once was asked for.
                        self.cancel_receive(conn);
                    }
                }
                // SAFETY: the completion has just given us this id; it is put back below, after the slice's last use.
                let bytes = unsafe { self.buffers.bytes(id, len) };
                shard.event(self, Event::Received { conn, bytes }, now);
            } else if len > 0 {
                self.reset_on_close(conn);
            }
            self.buffers.put_back(id);
        }
        let Some(slot) = self.slot(conn) else { return };
        if slot.closing {
            self.finish_close(conn);
            return;
        }
        let ended = match completion.result {
            0 => Some(None),
            result if result < 0 && !matches!(-result, libc::ECANCELED | libc::ENOBUFS | libc::EINTR | libc::EAGAIN) => {
                Some(Some(io::Error::from_raw_os_error(-result)))
            }
            _ => None,
        };
        if completion.result == -libc::ENOBUFS {
            self.stats.buffers_exhausted += 1;
        }
        if let Some(error) = ended {
            self.slots[conn.index as usize].mode = Read::Off;
            shard.event(self, Event::Ended { conn, error }, now);
        }
        if !more {
            self.after_receive(conn);
        }
    }

    /// No receive of this connection is in the kernel now: arm the next, or say that it is quiet.
    pub(super) fn after_receive(&mut self, conn: ConnId) {
        let Some(slot) = self.slot(conn) else { return };
        if slot.closing {
            self.finish_close(conn);
        } else if slot.mode != Read::Off && !slot.receiving {
            self.rearm.push(conn);
        } else if slot.quiet_owed {
            self.quiet.push_back(conn);
        }
    }

    /// Counts a filled buffer. A connection that fills too many between two turns is read one receive at a time until a receive
    /// comes short.
    pub(super) fn charge(&mut self, conn: ConnId, len: usize) {
        let slot = &mut self.slots[conn.index as usize];
        slot.buffers = slot.buffers.saturating_add(1);
        if slot.buffers == 1 {
            self.flooded.push(conn.index);
        }
        if slot.single && len < self.options.buffer_bytes as usize {
            slot.single = false;
        } else if !slot.single && slot.buffers > BUFFERS_PER_TURN_MAX {
            slot.single = true;
            self.stats.flooding += 1;
            self.cancel_receive(conn);
        }
    }

    pub(super) fn arm_receive(&mut self, conn: ConnId) {
        let Some(slot) = self.slot_mut(conn) else { return };
        slot.receiving = true;
        slot.multishot = slot.mode != Read::Once && !slot.single;
        let fd = types::Fd(slot.fd);
        let entry = if !slot.multishot {
            opcode::Recv::new(fd, std::ptr::null_mut(), 0).buf_group(buffers::GROUP).build().flags(squeue::Flags::BUFFER_SELECT)
        } else {
            opcode::RecvMulti::new(fd, buffers::GROUP).build()
        };
        self.push(&entry.user_data(tag(Op::Receive, conn)));
    }

    pub(super) fn cancel_receive(&mut self, conn: ConnId) {
        let Some(slot) = self.slot_mut(conn) else { return };
        if slot.receiving && !slot.cancelling {
            slot.cancelling = true;
            let entry = opcode::AsyncCancel::new(tag(Op::Receive, conn)).build().user_data(plain(Op::Cancel, 0));
            self.push(&entry);
        }
    }

    pub(super) fn set_read(&mut self, conn: ConnId, mode: Read) {
        let Some(slot) = self.slot_mut(conn) else { return };
        if slot.closing {
            return;
        }
        slot.mode = mode;
        let receiving = slot.receiving;
        match mode {
            Read::Off => {
                slot.quiet_owed = true;
                if receiving {
                    self.cancel_receive(conn);
                } else {
                    self.quiet.push_back(conn);
                }
            }
            Read::Once | Read::Stream => {
                slot.quiet_owed = false;
                let multishot = slot.multishot;
                if !receiving {
                    self.arm_receive(conn);
                } else if mode == Read::Once && multishot {
                    self.cancel_receive(conn);
                }
            }
        }
    }
}
