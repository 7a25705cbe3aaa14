//! A stretch of the log in memory: the log appends to it, sends to sockets read it, and the kernel reads it while it is written
//! to disk.
#![allow(unsafe_code)] // memory that is shared while it grows; the SAFETY comments carry the argument

use std::cell::Cell;
use std::ptr::NonNull;
use std::rc::Rc;

/// An append-only buffer of fixed capacity. Appended bytes never move and never change, so they may be lent out, and read by the
/// kernel, while more is appended behind them.
pub struct Chunk {
    memory: NonNull<u8>,
    capacity: usize,
    len: Cell<usize>,
    /// `true` while [`Chunk::extend_with`] writes the end; stays set after a panic there, so that nobody appends behind it.
    filling: Cell<bool>,
    /// Bytes whose pages have been touched.
    warm: Cell<usize>,
}

/// Smallest unit of memory that the kernel provides at a first touch.
const PAGE_BYTES: usize = 4096;

impl Chunk {
    /// An empty chunk of `capacity` bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Rc<Self> {
        // Zeroed pages come from the kernel untouched: an empty chunk takes no memory yet.
        let memory = Box::into_raw(vec![0_u8; capacity].into_boxed_slice());
        // SAFETY: a box is never null.
        let memory = unsafe { NonNull::new_unchecked(memory.cast::<u8>()) };
        Rc::new(Self { memory, capacity, len: Cell::new(0), filling: Cell::new(false), warm: Cell::new(0) })
    }

    /// Makes the kernel provide the memory of the next `bytes`, so that appending does not wait for it: the first touch of a page
    /// costs up to 20 us in a virtual machine, 5 ms for a chunk of 1 MiB.
    pub fn warm(&self, bytes: usize) {
        let (from, len) = (self.warm.get(), self.len.get());
        let to = from.saturating_add(bytes).min(self.capacity);
        self.warm.set(to);
        let first = from.max(len).next_multiple_of(PAGE_BYTES);
        for page in (first..to).step_by(PAGE_BYTES) {
            // SAFETY: within the allocation, behind `len`, where only zeros lie and nobody reads: writing one changes nothing. Volatile,
            // because the touch is the purpose.
            unsafe { self.memory.as_ptr().add(page).write_volatile(0) };
        }
    }

    /// Bytes appended.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len.get()
    }

    /// Returns `true` if nothing was appended.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len.get() == 0
    }

    /// Bytes that fit in all.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// The appended bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8] {
        // SAFETY: within the allocation, initialised (zeroed, then written), and not written again while `self` is shared: appending
        // writes behind `len` only, and `clear` needs the chunk for itself alone.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len.get()) }
    }

    /// The whole memory, used or not.
    #[cfg(test)]
    pub(crate) const fn memory(&self) -> &[u8] {
        // SAFETY: within the allocation and initialised; for tests, which append to nothing meanwhile.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.capacity) }
    }

    /// Appends a copy of `part`.
    ///
    /// # Panics
    /// If it does not fit; the caller checks before.
    pub fn append(&self, part: &[u8]) {
        self.extend_with(part.len(), |room| room.copy_from_slice(part));
    }

    /// Appends `len` bytes that `fill` writes.
    ///
    /// # Panics
    /// If they do not fit, or `fill` appends to the chunk itself.
    pub fn extend_with<R>(&self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let start = self.len.get();
        assert!(len <= self.capacity - start, "{len} bytes do not fit in a chunk of {} that holds {start}", self.capacity);
        assert!(!self.filling.replace(true), "a chunk was appended to while it was being appended to");
        // SAFETY: within the allocation by the first assertion. Nobody else holds these bytes: `bytes` lends out what lies before `len`
        // only, the kernel is given parts of that, and by the second assertion no other call is filling the room behind it.
        let filled = fill(unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr().add(start), len) });
        self.filling.set(false);
        self.len.set(start + len);
        filled
    }

    /// The appended bytes, to be changed; only the sole owner can.
    pub const fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: within the allocation and initialised, as in `bytes`; nobody else reads it, since `self` is borrowed alone, and what the
        // kernel reads is held by an `Rc` of its own.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len.get()) }
    }

    /// Zeros the bytes behind the appended ones, which an earlier use of the chunk may have left.
    pub fn wipe_rest(&self) {
        let len = self.len.get();
        self.extend_with(self.capacity - len, |rest| rest.fill(0));
        self.len.set(len);
    }

    /// Zeros all bytes that were ever appended.
    pub fn wipe(&mut self) {
        self.len.set(self.capacity);
        self.bytes_mut().fill(0);
        self.len.set(0);
    }

    /// Empties the chunk for another use; only the sole owner can.
    pub fn clear(&mut self) {
        self.len.set(0);
    }
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Chunk").field("len", &self.len.get()).field("capacity", &self.capacity).finish()
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: made from a box of this length in `new`, and given back once.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.memory.as_ptr(), self.capacity)) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warming_changes_nothing_that_was_or_will_be_appended() {
        let chunk = Chunk::new(3 * PAGE_BYTES);
        chunk.append(&[7; PAGE_BYTES + 10]);
        (0..200).for_each(|_| chunk.warm(100));
        assert_eq!(chunk.bytes(), [7; PAGE_BYTES + 10]);
        assert_eq!(chunk.warm.get(), chunk.capacity());
        chunk.append(&[8; PAGE_BYTES]);
        chunk.warm(usize::MAX);
        assert_eq!(chunk.bytes()[PAGE_BYTES + 10..], [8; PAGE_BYTES]);
    }

    #[test]
    fn what_was_lent_stays_while_more_is_appended() {
        let chunk = Chunk::new(16);
        assert!(chunk.is_empty() && chunk.bytes().is_empty());
        chunk.append(b"abc");
        let lent = chunk.bytes();
        chunk.append(b"defg");
        chunk.append(lent);
        assert_eq!(lent, b"abc");
        assert_eq!(chunk.bytes(), b"abcdefgabc");
        assert_eq!((chunk.len(), chunk.capacity(), chunk.is_empty()), (10, 16, false));
    }

    #[test]
    fn it_fills_to_its_last_byte() {
        let chunk = Chunk::new(4);
        chunk.append(b"ab");
        chunk.append(b"cd");
        chunk.append(b"");
        assert_eq!(chunk.bytes(), b"abcd");
    }

    #[test]
    #[should_panic(expected = "3 bytes do not fit in a chunk of 4 that holds 2")]
    fn what_does_not_fit_is_not_appended() {
        let chunk = Chunk::new(4);
        chunk.append(b"ab");
        chunk.append(b"cde");
    }

    #[test]
    fn it_is_cleared_only_where_nobody_else_holds_it() {
        let mut chunk = Chunk::new(8);
        chunk.append(b"abcd");
        let pinned = Rc::clone(&chunk);
        assert!(Rc::get_mut(&mut chunk).is_none());
        drop(pinned);
        Rc::get_mut(&mut chunk).unwrap().clear();
        chunk.append(b"xy");
        assert_eq!(chunk.bytes(), b"xy");
    }

    #[test]
    fn it_is_changed_and_wiped_only_where_nobody_else_holds_it() {
        let mut chunk = Chunk::new(8);
        chunk.append(b"abcdefgh");
        let pinned = Rc::clone(&chunk);
        assert!(Rc::get_mut(&mut chunk).is_none());
        drop(pinned);
        let alone = Rc::get_mut(&mut chunk).unwrap();
        alone.bytes_mut()[1..3].fill(b'-');
        assert_eq!(alone.bytes(), b"a--defgh");
        alone.clear();
        alone.wipe();
        assert!(alone.is_empty());
        alone.extend_with(8, |room| assert_eq!(room, [0; 8]));
    }

    #[test]
    fn it_says_its_size_and_not_its_bytes() {
        let chunk = Chunk::new(8);
        chunk.append(b"secret");
        assert_eq!(format!("{chunk:?}"), "Chunk { len: 6, capacity: 8 }");
    }
}
