//! UTF-8 over any split of the bytes (RFC 6455 section 8.1, RFC 3629), failing at the first byte that cannot be right.
//!
//! Used by `/v1/echo` only; `/v1/ws` leaves the check to the parser.

/// The start of a character whose rest has not come yet. Four bytes of state a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Incremental {
    carry: [u8; 3],
    carry_len: u8,
}

impl Incremental {
    #[must_use]
    pub const fn new() -> Self {
        Self { carry: [0; 3], carry_len: 0 }
    }

    /// Takes the next bytes. Returns `false` if no continuation can make the text valid.
    #[must_use]
    pub fn push(&mut self, mut bytes: &[u8]) -> bool {
        while self.carry_len > 0 {
            let Some((&byte, tail)) = bytes.split_first() else { return true };
            bytes = tail;
            let held = usize::from(self.carry_len);
            let mut sequence = [0u8; 4];
            sequence[..held].copy_from_slice(&self.carry[..held]);
            sequence[held] = byte;
            match std::str::from_utf8(&sequence[..=held]) {
                Ok(_) => self.carry_len = 0,
                // Four bytes are never an unfinished character, so the carry has room.
                Err(error) if error.error_len().is_none() => {
                    self.carry[held] = byte;
                    self.carry_len += 1;
                }
                Err(_) => return false,
            }
        }
        match std::str::from_utf8(bytes) {
            Ok(_) => true,
            Err(error) if error.error_len().is_none() => {
                let unfinished = &bytes[error.valid_up_to()..];
                for (slot, byte) in self.carry.iter_mut().zip(unfinished) {
                    *slot = *byte;
                    self.carry_len += 1;
                }
                true
            }
            Err(_) => false,
        }
    }

    /// Returns `true` if the text may end here.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.carry_len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn valid_in_pieces(bytes: &[u8], piece: usize) -> bool {
        let mut state = Incremental::default();
        bytes.chunks(piece).all(|chunk| state.push(chunk)) && state.is_complete()
    }

    #[test]
    fn bad_sequences_fail_at_the_first_impossible_byte() {
        // (bytes, how many of them may be taken before the refusal)
        let table: [(&[u8], usize); 9] = [
            (b"a\x80", 1),
            (b"\xc0\xaf", 0),
            (b"\xc1\xbf", 0),
            (b"\xed\xa0\x80", 1),
            (b"\xe0\x80\x80", 1),
            (b"\xf0\x80\x80\x80", 1),
            (b"\xf4\x90\x80\x80", 1),
            (b"\xf5\x80\x80\x80", 0),
            (b"\xe2\x82a", 2),
        ];
        for (bytes, accepted) in table {
            let mut state = Incremental::default();
            let taken = bytes.iter().take_while(|byte| state.push(&[**byte])).count();
            assert_eq!(taken, accepted, "{bytes:02x?}");
            assert!(!Incremental::default().push(bytes), "{bytes:02x?} in one piece");
        }
    }

    #[test]
    fn text_cut_inside_a_character_is_not_complete() {
        for cut in 1..4 {
            let mut state = Incremental::default();
            assert!(state.push(&"🦀".as_bytes()[..cut]));
            assert!(!state.is_complete());
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_standard_library_in_any_pieces(bytes in prop::collection::vec(any::<u8>(), 0..24), piece in 1usize..6) {
            prop_assert_eq!(valid_in_pieces(&bytes, piece), std::str::from_utf8(&bytes).is_ok());
        }

        #[test]
        fn takes_every_text(text in "\\PC{0,40}", piece in 1usize..6) {
            prop_assert!(valid_in_pieces(text.as_bytes(), piece));
        }
    }
}
