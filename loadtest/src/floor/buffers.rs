//! A provided-buffer ring: the kernel picks a buffer for each receive, so that an idle connection owns none.
#![allow(unsafe_code)]

use io_uring::{IoUring, types::BufRingEntry};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

pub const GROUP: u16 = 0;

/// Anonymous memory, given back on drop.
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> io::Result<Self> {
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches nothing of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap gave the null page"))?;
        Ok(Self { start, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `new`, and nobody borrows it any more: borrows go through `Buffers`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// The buffers and the ring that lends them. Outlives the io_uring it is registered with: the server drops that first.
pub struct Buffers {
    entries: Mapping,
    data: Mapping,
    count: u16,
    each_bytes: u32,
    tail: u16,
}

impl Buffers {
    /// `count` is a power of two, at most 32,768.
    pub fn register(ring: &IoUring, count: u16, each_bytes: u32) -> io::Result<Self> {
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let data = Mapping::new(usize::from(count) * each_bytes as usize)?;
        // SAFETY: both mappings live as long as `self`, which the server keeps until its ring is gone.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries.start.as_ptr() as u64, count, GROUP, 0)? };
        let mut buffers = Self { entries, data, count, each_bytes, tail: 0 };
        for id in 0..count {
            buffers.give(id);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// The first `filled` bytes of a buffer that the kernel has handed out.
    pub fn filled(&mut self, id: u16, filled: usize) -> &mut [u8] {
        assert!(id < self.count && filled <= self.each_bytes as usize, "the kernel names buffers it was given");
        // SAFETY: in bounds by the assertion; the kernel lent the buffer to us and writes no more until `give`.
        unsafe { std::slice::from_raw_parts_mut(self.address(id), filled) }
    }

    fn address(&self, id: u16) -> *mut u8 {
        // SAFETY: callers pass ids below `count`, so the offset stays inside the mapping.
        unsafe { self.data.start.as_ptr().add(usize::from(id) * self.each_bytes as usize) }
    }

    /// Puts a buffer back; the kernel sees it after [`Buffers::publish`].
    pub fn give(&mut self, id: u16) {
        let slot = self.tail & (self.count - 1);
        let address = self.address(id) as u64;
        // SAFETY: the slot is inside the mapping of `count` entries; entries past the tail are not read by the kernel.
        let entry = unsafe { &mut *self.entries.start.as_ptr().cast::<BufRingEntry>().add(usize::from(slot)) };
        entry.set_addr(address);
        entry.set_len(self.each_bytes);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel all that was given.
    pub fn publish(&mut self) {
        // SAFETY: the tail is a u16 inside the first entry, shared with the kernel and aligned; it is only used atomically.
        let tail = unsafe { &*BufRingEntry::tail(self.entries.start.as_ptr().cast()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}
