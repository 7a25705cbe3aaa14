//! Writing JSON text: one object after another into a byte vector, which is the only thing that may allocate.

/// The bytes that RFC 8259 section 7 requires to be escaped.
static ESCAPED: [bool; 256] = escaped();

const fn escaped() -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = true;
        byte += 1;
    }
    table[b'"' as usize] = true;
    table[b'\\' as usize] = true;
    table
}

/// A JSON string with its quotes.
pub(super) fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    inside(out, text);
    out.push(b'"');
}

/// The inside of a JSON string.
pub(super) fn inside(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| ESCAPED[usize::from(*byte)]) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            byte => {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                let digits = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&digits);
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// A message of the gateway under construction: `{"type":..,"id":..,"session_id":..,"payload":{` is written, members follow.
pub(super) struct Payload<'o> {
    out: &'o mut Vec<u8>,
    is_first: bool,
}

impl<'o> Payload<'o> {
    /// Begins a message. `kind` is a literal of this folder that needs no escaping.
    pub(super) fn begin(out: &'o mut Vec<u8>, kind: &'static str, id: &str, session_id: &str) -> Self {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\",\"id\":");
        string(out, id);
        out.extend_from_slice(b",\"session_id\":");
        string(out, session_id);
        out.extend_from_slice(b",\"payload\":{");
        Self { out, is_first: true }
    }

    pub(super) fn end(self) {
        self.out.extend_from_slice(b"}}");
    }

    fn key(&mut self, key: &'static str) {
        if !self.is_first {
            self.out.push(b',');
        }
        self.is_first = false;
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    pub(super) fn number(&mut self, key: &'static str, value: u64) {
        self.key(key);
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// A number, or `null` for `None`.
    pub(super) fn number_or_null(&mut self, key: &'static str, value: Option<u64>) {
        match value {
            Some(value) => self.number(key, value),
            None => self.raw(key, b"null"),
        }
    }

    pub(super) fn boolean(&mut self, key: &'static str, value: bool) {
        self.raw(key, if value { b"true" } else { b"false" });
    }

    pub(super) fn string(&mut self, key: &'static str, value: &str) {
        self.key(key);
        string(self.out, value);
    }

    /// JSON text, written unchanged.
    pub(super) fn raw(&mut self, key: &'static str, json: &[u8]) {
        self.key(key);
        self.out.extend_from_slice(json);
    }

    pub(super) fn strings<S: AsRef<str>>(&mut self, key: &'static str, values: &[S]) {
        self.key(key);
        self.out.push(b'[');
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            string(self.out, value.as_ref());
        }
        self.out.push(b']');
    }

    /// A nested object, its members written by `members`.
    pub(super) fn object(&mut self, key: &'static str, members: impl FnOnce(&mut Payload<'_>)) {
        self.key(key);
        self.nested(members);
    }

    /// An array of objects, each of them written by `members`.
    pub(super) fn objects<T>(
        &mut self,
        key: &'static str,
        items: impl Iterator<Item = T>,
        members: impl Fn(&mut Payload<'_>, T),
    ) {
        self.key(key);
        self.out.push(b'[');
        for (index, item) in items.enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            self.nested(|payload| members(payload, item));
        }
        self.out.push(b']');
    }

    fn nested(&mut self, members: impl FnOnce(&mut Payload<'_>)) {
        self.out.push(b'{');
        members(&mut Payload { out: self.out, is_first: true });
        self.out.push(b'}');
    }
}
