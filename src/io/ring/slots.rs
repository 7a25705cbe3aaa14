//! The socket table: each socket's operations in the kernel, and when its descriptor may be closed or given away.
#![allow(unsafe_code)] // a slot owns its descriptor by number; the SAFETY comments carry the argument

use super::{GENERATION_MASK, Ring};
use crate::io::{ConnId, Read};
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// A socket's place in the table.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub(super) fd: RawFd,
    pub(super) generation: u32,
    pub(super) mode: Read,
    /// `true` while a receive is in the kernel.
    pub(super) receiving: bool,
    /// `true` while that receive is being cancelled.
    pub(super) cancelling: bool,
    /// `true` if that receive is multishot.
    pub(super) multishot: bool,
    /// `true` while a poll for POLLOUT is in the kernel.
    pub(super) polling: bool,
    /// The shard has closed it; the socket is closed when the kernel has no operation on it.
    pub(super) closing: bool,
    /// `true` while the shard waits for Quiet.
    pub(super) quiet_owed: bool,
    /// The connection flooded: read it one receive at a time until one comes short.
    pub(super) single: bool,
    /// Buffers filled since the last turn.
    pub(super) buffers: u8,
}

pub(super) const FREE: RawFd = -1;

impl Slot {
    /// A socket with no operation in the kernel.
    const fn holding(fd: RawFd, generation: u32, buffers: u8) -> Self {
        Self {
            fd,
            generation,
            mode: Read::Off,
            receiving: false,
            cancelling: false,
            multishot: false,
            polling: false,
            closing: false,
            quiet_owed: false,
            single: false,
            buffers,
        }
    }
}

impl Ring {
    #[inline]
    pub(super) fn slot(&self, conn: ConnId) -> Option<&Slot> {
        self.slots
            .get(conn.index as usize)
            .filter(|slot| slot.fd != FREE && (slot.generation ^ conn.generation) & GENERATION_MASK == 0)
    }

    #[inline]
    pub(super) fn slot_mut(&mut self, conn: ConnId) -> Option<&mut Slot> {
        self.slots
            .get_mut(conn.index as usize)
            .filter(|slot| slot.fd != FREE && (slot.generation ^ conn.generation) & GENERATION_MASK == 0)
    }

    /// Has the close reset the connection. The peer goes on sending to a socket that is given up; without a reset it could stay
    /// behind a closed window, probing for as long as the kernel keeps the half-closed socket.
    pub(super) fn reset_on_close(&mut self, conn: ConnId) {
        let Some(slot) = self.slot(conn) else { return };
        // SAFETY: the slot owns the descriptor, which is open.
        let fd = unsafe { BorrowedFd::borrow_raw(slot.fd) };
        // A socket that no longer takes options is reset already.
        let _ = rustix::net::sockopt::set_socket_linger(fd, Some(Duration::ZERO));
    }

    /// Closes the socket if the kernel has no operation on it any more.
    pub(super) fn finish_close(&mut self, conn: ConnId) {
        let Some(slot) = self.slot_mut(conn) else { return };
        if slot.receiving || slot.polling {
            return;
        }
        let fd = slot.fd;
        slot.fd = FREE;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(conn.index);
        // SAFETY: the slot owned this descriptor and has just given it up; no operation on it is in the kernel.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }

    pub(super) fn add_socket(&mut self, fd: OwnedFd) -> Result<ConnId, OwnedFd> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.options.connections_max => {
                let Ok(index) = u32::try_from(self.slots.len()) else { return Err(fd) };
                self.slots.push(Slot::holding(FREE, 1, 0));
                index
            }
            None => return Err(fd),
        };
        let slot = &mut self.slots[index as usize];
        *slot = Slot::holding(fd.into_raw_fd(), slot.generation, slot.buffers);
        Ok(ConnId { index, generation: slot.generation })
    }

    pub(super) fn give_up(&mut self, conn: ConnId) -> Option<OwnedFd> {
        let slot = self.slot_mut(conn).filter(|slot| !slot.closing)?;
        assert!(!slot.receiving && !slot.polling, "detach of a socket that the kernel still works on");
        let fd = slot.fd;
        slot.fd = FREE;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(conn.index);
        // SAFETY: the slot owned this descriptor and has just given it up.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    pub(super) fn finish_sending(&mut self, conn: ConnId) {
        if let Some(slot) = self.slot(conn) {
            // SAFETY: the slot owns the descriptor, which is open.
            let fd = unsafe { BorrowedFd::borrow_raw(slot.fd) };
            // A socket the peer has reset is shut down already.
            let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Write);
        }
    }

    pub(super) fn close_socket(&mut self, conn: ConnId) {
        let Some(slot) = self.slot_mut(conn) else { return };
        if slot.closing {
            return;
        }
        slot.closing = true;
        slot.mode = Read::Off;
        if slot.receiving || slot.polling {
            // SAFETY: the slot owns the descriptor, which is open.
            let fd = unsafe { BorrowedFd::borrow_raw(slot.fd) };
            // Ends what is in the kernel: a receive completes with 0, a poll with POLLHUP.
            let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
        } else {
            self.finish_close(conn);
        }
    }
}
