//! The mark every message bears: who sent it, its number, and when it was meant to be sent. 36 hexadecimal digits, as long as a
//! UUID, so that it also serves as the envelope's `id`.

use crate::wire;

/// Digits of a mark.
pub const BYTES: usize = 36;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub sender: u32,
    /// From 0, one more each message of the sender. Below 2^48.
    pub number: u64,
    pub intended_ns: u64,
}

fn put(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

fn get(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

impl Stamp {
    pub fn write(self) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        put(&mut out[..8], u64::from(self.sender));
        put(&mut out[8..20], self.number);
        put(&mut out[20..], self.intended_ns);
        out
    }

    /// Reads a mark from the first [`BYTES`] bytes.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..BYTES)?;
        Some(Self {
            sender: u32::try_from(get(&bytes[..8])?).ok()?,
            number: get(&bytes[8..20])?,
            intended_ns: get(&bytes[20..])?,
        })
    }
}

/// A masked frame made once; each send changes only its mark.
#[derive(Clone)]
pub struct Template {
    frame: Vec<u8>,
    payload_at: usize,
    stamp_at: usize,
    mask: [u8; 4],
}

impl Template {
    /// `stamp_at` is where in the payload the mark goes.
    pub fn new(opcode: u8, payload: &[u8], stamp_at: usize, mask: [u8; 4]) -> Self {
        assert!(stamp_at + BYTES <= payload.len(), "the mark lies inside the payload");
        let mut frame = Vec::new();
        let payload_at = wire::push_masked(&mut frame, opcode, payload, mask);
        Self { frame, payload_at, stamp_at, mask }
    }

    /// The frame with this mark.
    pub fn stamped(&mut self, stamp: Stamp) -> &[u8] {
        let start = self.payload_at + self.stamp_at;
        for (offset, (byte, digit)) in self.frame[start..start + BYTES].iter_mut().zip(stamp.write()).enumerate() {
            *byte = digit ^ self.mask[(self.stamp_at + offset) & 3];
        }
        &self.frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_writing_and_refuses_what_is_none() {
        let stamp = Stamp { sender: u32::MAX, number: (1 << 48) - 1, intended_ns: u64::MAX };
        assert_eq!(Stamp::read(&stamp.write()), Some(stamp));
        assert_eq!(Stamp::read(&stamp.write()[..35]), None);
        assert_eq!(Stamp::read(&[b'G'; 36]), None);
    }

    #[test]
    fn a_template_changes_its_mark_and_nothing_else() {
        let payload = format!("{{\"id\":\"{}\",\"x\":\"yyyy\"}}", "0".repeat(BYTES));
        let mut template = Template::new(wire::TEXT, payload.as_bytes(), 7, [1, 2, 3, 4]);
        for number in [0, 1, 77] {
            let stamp = Stamp { sender: 9, number, intended_ns: 123_456 };
            let mut frame = template.stamped(stamp).to_vec();
            let head = wire::parse_head(&frame).unwrap().unwrap();
            wire::apply_mask(&mut frame[head.head_bytes..], head.mask.unwrap());
            let text = &frame[head.head_bytes..];
            assert_eq!(Stamp::read(&text[7..]), Some(stamp));
            assert_eq!((&text[..7], &text[7 + BYTES..]), (&payload.as_bytes()[..7], &payload.as_bytes()[7 + BYTES..]));
        }
    }
}
