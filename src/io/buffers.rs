//! The provided-buffer ring: receive buffers that the kernel picks from, so that an idle connection owns none
//! (`io_uring_register_buf_ring(3)`).
#![allow(unsafe_code)] // the kernel reads and writes this memory; the SAFETY comments carry the argument

use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// The group all receives name.
pub(super) const GROUP: u16 = 1;

/// `count` buffers of `buffer_bytes`, and the ring that hands them to the kernel.
///
/// Invariant: a buffer id is either in the ring (the kernel's), or was taken by a completion and not yet put back (ours).
pub(super) struct BufferRing {
    entries: NonNull<BufRingEntry>,
    entries_layout: Layout,
    memory: NonNull<u8>,
    memory_layout: Layout,
    count: u16,
    buffer_bytes: u32,
    tail: u16,
}

impl BufferRing {
    /// Allocates the buffers and hands all of them to the kernel. `count` is a power of two up to 32,768.
    pub(super) fn register(submitter: &Submitter<'_>, count: u16, buffer_bytes: u32) -> io::Result<Self> {
        assert!(count.is_power_of_two() && count <= 32_768 && buffer_bytes > 0);
        let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let entries_layout =
            Layout::array::<BufRingEntry>(usize::from(count)).map_err(invalid)?.align_to(4096).map_err(invalid)?;
        let memory_layout = Layout::from_size_align(usize::from(count) * buffer_bytes as usize, 4096).map_err(invalid)?;
        // SAFETY: both layouts have a size above zero (asserted above).
        let (entries, memory) = unsafe { (alloc_zeroed(entries_layout), alloc_zeroed(memory_layout)) };
        let entries = NonNull::new(entries.cast()).unwrap_or_else(|| handle_alloc_error(entries_layout));
        let memory = NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(memory_layout));
        for page in (0..memory_layout.size()).step_by(4096) {
            // SAFETY: within the allocation. A volatile write makes the page resident now instead of in the first receive that gets it.
            unsafe { memory.as_ptr().add(page).write_volatile(0) };
        }
        let mut ring = Self { entries, entries_layout, memory, memory_layout, count, buffer_bytes, tail: 0 };
        // SAFETY: the ring's memory is page-aligned, holds `count` entries and lives until `release` has unregistered it.
        unsafe { submitter.register_buf_ring_with_flags(entries.as_ptr() as u64, count, GROUP, 0)? };
        for id in 0..count {
            ring.put_back(id);
        }
        Ok(ring)
    }

    /// The first `len` bytes of a buffer that a completion has just handed to us.
    ///
    /// # Safety
    /// The caller holds `id` from a completion and has not put it back; it does so only after the slice is dead, and makes one
    /// slice of it at a time.
    pub(super) unsafe fn bytes<'a>(&mut self, id: u16, len: usize) -> &'a mut [u8] {
        assert!(id < self.count && len <= self.buffer_bytes as usize);
        // SAFETY: in bounds by the assertion; the kernel does not touch a buffer between its completion and its return, and by the
        // contract above nobody else does. All of it was zeroed at the start, so it is initialised.
        unsafe {
            let start = self.memory.as_ptr().add(usize::from(id) * self.buffer_bytes as usize);
            std::slice::from_raw_parts_mut(start, len)
        }
    }

    /// Hands a buffer (back) to the kernel.
    pub(super) fn put_back(&mut self, id: u16) {
        assert!(id < self.count);
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: the index is masked to the ring. The kernel reads an entry only below the tail, which is published after it
        // is written. The tail overlays the first entry's reserved field, which none of the setters touches.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(index);
            entry.set_addr(self.memory.as_ptr().add(usize::from(id) * self.buffer_bytes as usize) as u64);
            entry.set_len(self.buffer_bytes);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    /// Unregisters the ring. Receives that still name it end with ENOBUFS.
    pub(super) fn release(&mut self, submitter: &Submitter<'_>) {
        // The ring's own end unregisters it too, so a failure here leaves nothing behind.
        let _ = submitter.unregister_buf_ring(GROUP);
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // SAFETY: allocated in `register` with these layouts. The owner drops the io_uring first; with DEFER_TASKRUN the kernel fills
        // buffers only while the owner's thread is in an enter, so that none is being filled now or later.
        unsafe {
            dealloc(self.entries.as_ptr().cast(), self.entries_layout);
            dealloc(self.memory.as_ptr(), self.memory_layout);
        }
    }
}
