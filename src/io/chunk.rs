//! A chunk of a log in memory: the log appends to it while the kernel reads what was appended before.
#![allow(unsafe_code)] // one side appends behind what the other side reads; the SAFETY comments carry the argument

use std::cell::{Cell, UnsafeCell};
use std::fmt;
use std::mem::MaybeUninit;
use std::rc::Rc;

/// An append-only buffer of a fixed capacity. The log holds it and appends; the engine holds it too, while a write that names its
/// bytes is in the kernel.
///
/// Invariant: the first `len` bytes are initialised and never change until [`Chunk::clear`], which needs the only hold of the chunk.
/// Of one thread: neither it nor its `Rc` can be shared with another.
pub struct Chunk {
    memory: Box<[UnsafeCell<MaybeUninit<u8>>]>,
    len: Cell<usize>,
}

impl Chunk {
    /// An empty chunk for `capacity` bytes ([`crate::limits::CHUNK_BYTES`] in a log).
    #[must_use]
    pub fn new(capacity: usize) -> Rc<Self> {
        let memory = Box::<[UnsafeCell<MaybeUninit<u8>>]>::new_uninit_slice(capacity);
        // SAFETY: a cell of bytes that may be uninitialised is valid whatever its memory holds.
        let memory = unsafe { memory.assume_init() };
        Rc::new(Self { memory, len: Cell::new(0) })
    }

    /// Bytes appended.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.get()
    }

    /// Nothing was appended yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len.get() == 0
    }

    /// Bytes it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Appends `part`. What [`Chunk::bytes`] has lent stays as it is.
    ///
    /// # Panics
    /// Where it does not fit: the caller has looked.
    pub fn append(&self, part: &[u8]) {
        let len = self.len.get();
        assert!(
            part.len() <= self.memory.len() - len,
            "{} bytes do not fit a chunk that holds {len} of {}",
            part.len(),
            self.memory.len()
        );
        // SAFETY: within the allocation by the assertion. The bytes from `len` on were lent to nobody (`bytes` lends those below, the
        // kernel is given ranges of those), so that nothing else looks at them, `part` included; each is in a cell, so that writing
        // through a shared reference is allowed; no other thread has this chunk.
        unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), self.start().add(len), part.len()) };
        self.len.set(len + part.len());
    }

    /// All that was appended.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the first `len` bytes are initialised, and nobody writes to them while `self` is borrowed: `append` writes behind
        // them, `clear` takes the chunk mutably.
        unsafe { std::slice::from_raw_parts(self.start(), self.len.get()) }
    }

    /// Empties it for another use. Through [`Rc::get_mut`]: not while the engine, or a borrow, holds it.
    pub fn clear(&mut self) {
        self.len.set(0);
    }

    fn start(&self) -> *mut u8 {
        // The pointer is that of the whole slice, so that all of it may be reached through it.
        UnsafeCell::raw_get(self.memory.as_ptr()).cast()
    }
}

impl fmt::Debug for Chunk {
    /// Its size; what it holds is payload.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk").field("len", &self.len()).field("capacity", &self.capacity()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    #[should_panic(expected = "3 bytes do not fit a chunk that holds 2 of 4")]
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
    fn it_says_its_size_and_not_its_bytes() {
        let chunk = Chunk::new(8);
        chunk.append(b"secret");
        assert_eq!(format!("{chunk:?}"), "Chunk { len: 6, capacity: 8 }");
    }
}
