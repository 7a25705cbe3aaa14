//! JSON as this folder reads it: simd-json validates the whole text and unescapes its strings; its index of structural bytes gives
//! the spans of the original.
//!
//! The one pass serves both ends: where a value begins and ends follows from the index that validation made anyway, so no second
//! reading of the bytes is needed, and a span can't disagree with what was validated.

use crate::close::CloseReason;
use crate::limits::JSON_DEPTH_MAX;
use simd_json::{Buffers, ErrorType, INPUT_PADDING, Node, Tape, fill_tape_padded};

/// Buffers for reading one JSON text after another. They grow to the largest text seen and stay.
pub(super) struct Document {
    scratch: Vec<u8>,
    /// The copy for a second attempt, see [`neutralise_numbers`]. Empty until a message needs it.
    neutral: Vec<u8>,
    buffers: Buffers,
    tape: Tape<'static>,
}

impl Default for Document {
    fn default() -> Self {
        Self {
            scratch: Vec::new(),
            neutral: Vec::new(),
            buffers: Buffers::with_max_depth(1024, JSON_DEPTH_MAX as usize),
            tape: Tape(Vec::new()),
        }
    }
}

impl Document {
    /// Validates `text` and shows it to `reader`. The reader's result may live as long as the text and this document's borrow;
    /// the tape itself is reused for the next text. A number that simd-json can't hold (`1e400`, integers beyond 64 bits) passes
    /// with its text, and reads as no integer.
    pub(super) fn read<'a, T>(&'a mut self, text: &'a [u8], reader: impl FnOnce(&View<'_, 'a>) -> T) -> Result<T, CloseReason> {
        let Self { scratch, neutral, buffers, tape: kept } = self;
        let mut tape: Tape<'a> = std::mem::replace(kept, Tape(Vec::new())).reset();
        load(scratch, text);
        let mut result = fill_tape_padded(scratch, text.len(), buffers, &mut tape);
        if result.as_ref().is_err_and(|error| !is_too_deep(error)) {
            load(neutral, text);
            if neutralise_numbers(&mut neutral[..text.len()]) {
                result = fill_tape_padded(neutral, text.len(), buffers, &mut tape);
            }
        }
        let outcome = match result {
            Ok(()) => Ok(reader(&View { nodes: &tape.0, structurals: buffers.structural_indexes(), text })),
            Err(error) if is_too_deep(&error) => Err(CloseReason::TooDeep),
            Err(_) if std::str::from_utf8(text).is_err() => Err(CloseReason::NotUtf8),
            Err(_) => Err(CloseReason::NotJson),
        };
        *kept = tape.reset();
        outcome
    }
}

fn is_too_deep(error: &simd_json::Error) -> bool {
    matches!(error.error(), ErrorType::DepthLimitExceeded)
}

fn load(scratch: &mut Vec<u8>, text: &[u8]) {
    scratch.clear();
    scratch.reserve(text.len() + INPUT_PADDING);
    scratch.extend_from_slice(text);
    scratch.resize(text.len() + INPUT_PADDING, b' ');
}

/// Digits of an integer that surely fits 64 bits.
const SHORT_INTEGER_DIGITS: usize = 18;

/// Overwrites the numbers of the JSON grammar (RFC 8259 section 6) outside strings that may be out of range, so that a second
/// validation judges all but their range: RFC 8259 sets none, simd-json that of `u64` and `f64`. These are all but short
/// integers, and become `0.5`, which no reader takes for an integer; lengths stay, so spans do too. Returns `false` if there is
/// nothing to overwrite. Runs only on texts that failed the first validation.
fn neutralise_numbers(text: &mut [u8]) -> bool {
    let mut found = false;
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'"' => {
                at += 1;
                while at < text.len() && text[at] != b'"' {
                    at += if text[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let length = text[at..].iter().take_while(|byte| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9'));
                let token = at..at + length.count();
                at = token.end;
                if is_number(&text[token.clone()]) && !is_short_integer(&text[token.clone()]) {
                    found = true;
                    // The shortest are `0.5` and `1e9`.
                    let (number, rest) = text[token].split_at_mut(3);
                    number.copy_from_slice(b"0.5");
                    rest.fill(b' ');
                }
            }
            // A letter before a number (`x1`) is no JSON either way, and stays.
            _ => at += 1,
        }
    }
    found
}

fn is_short_integer(token: &[u8]) -> bool {
    let digits = token.strip_prefix(b"-").unwrap_or(token);
    digits.len() <= SHORT_INTEGER_DIGITS && digits.iter().all(u8::is_ascii_digit)
}

fn is_number(token: &[u8]) -> bool {
    let digits = |from: usize| token[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut at = usize::from(token.first() == Some(&b'-'));
    let integer = digits(at);
    if integer == 0 || (integer > 1 && token[at] == b'0') {
        return false;
    }
    at += integer;
    if token.get(at) == Some(&b'.') {
        let fraction = digits(at + 1);
        if fraction == 0 {
            return false;
        }
        at += 1 + fraction;
    }
    if matches!(token.get(at), Some(b'e' | b'E')) {
        at += 1 + usize::from(matches!(token.get(at + 1), Some(b'+' | b'-')));
        let exponent = digits(at);
        if exponent == 0 {
            return false;
        }
        at += exponent;
    }
    at == token.len()
}

/// A validated text: the values with strings unescaped, and the original bytes they stand in.
pub(super) struct View<'t, 'a> {
    nodes: &'t [Node<'a>],
    structurals: &'t [u32],
    text: &'a [u8],
}

/// A member of the top-level object.
pub(super) struct Member<'t, 'a> {
    /// The key, unescaped.
    pub(super) key: &'a str,
    /// The value's nodes: the value, then what it contains.
    pub(super) value: Value<'t, 'a>,
    /// The value as the sender wrote it, without the whitespace around it.
    pub(super) raw: &'a [u8],
}

impl<'t, 'a> View<'t, 'a> {
    /// The members in the order of the text, duplicates included; `None` if the text is no object.
    pub(super) fn members(&self) -> Option<MemberIter<'t, 'a>> {
        let (Node::Object { .. }, nodes) = self.nodes.split_first()? else { return None };
        Some(MemberIter { nodes, structurals: self.structurals.get(1..)?, text: self.text })
    }

    /// From the first `{` up to but excluding the last `}`. Only for an object.
    pub(super) fn object(&self) -> &'a [u8] {
        match (self.structurals.first(), self.structurals.last()) {
            (Some(first), Some(last)) if first < last => &self.text[*first as usize..*last as usize],
            _ => &[],
        }
    }
}

pub(super) struct MemberIter<'t, 'a> {
    nodes: &'t [Node<'a>],
    /// The structural index, from the next key's quote on.
    structurals: &'t [u32],
    text: &'a [u8],
}

impl<'t, 'a> Iterator for MemberIter<'t, 'a> {
    type Item = Member<'t, 'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (Node::String(key), after_key) = self.nodes.split_first()? else { return None };
        let (value, nodes) = after_key.split_at_checked(node_count(after_key.first()?))?;
        self.nodes = nodes;
        // The index holds the key's opening quote, the colon and the value's first byte; then, unless the value is a
        // container, the comma or brace that ends it.
        let start = *self.structurals.get(2)? as usize;
        let mut next = 3;
        let raw = if matches!(value[0], Node::Object { .. } | Node::Array { .. }) {
            let mut depth = 1_u32;
            while depth > 0 {
                match self.text[*self.structurals.get(next)? as usize] {
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                next += 1;
            }
            &self.text[start..=self.structurals[next - 1] as usize]
        } else {
            let padded = &self.text[start..*self.structurals.get(next)? as usize];
            padded.trim_ascii_end()
        };
        self.structurals = self.structurals.get(next + 1..)?;
        Some(Member { key, value: Value(value), raw })
    }
}

fn node_count(node: &Node<'_>) -> usize {
    match node {
        Node::Object { count, .. } | Node::Array { count, .. } => 1 + count,
        Node::String(_) | Node::Static(_) => 1,
    }
}

/// A value, strings unescaped.
#[derive(Clone, Copy)]
pub(super) struct Value<'t, 'a>(&'t [Node<'a>]);

impl<'t, 'a> Value<'t, 'a> {
    pub(super) fn string(self) -> Option<&'a str> {
        if let [Node::String(text)] = self.0 { Some(text) } else { None }
    }

    pub(super) fn boolean(self) -> Option<bool> {
        if let [Node::Static(simd_json::StaticNode::Bool(value))] = self.0 { Some(*value) } else { None }
    }

    /// An integer of at least 0. `5.0` counts as none.
    pub(super) fn integer(self) -> Option<u64> {
        match self.0 {
            [Node::Static(simd_json::StaticNode::U64(value))] => Some(*value),
            [Node::Static(simd_json::StaticNode::I64(value))] => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    pub(super) fn is_null(self) -> bool {
        matches!(self.0, [Node::Static(simd_json::StaticNode::Null)])
    }

    pub(super) fn is_object(self) -> bool {
        matches!(self.0.first(), Some(Node::Object { .. }))
    }

    /// The elements of an array.
    pub(super) fn elements(self) -> Option<Elements<'t, 'a>> {
        let (Node::Array { len, .. }, rest) = self.0.split_first()? else { return None };
        Some(Elements { len: *len, rest })
    }

    /// The members of an object, without their spans.
    pub(super) fn fields(self) -> Option<impl Iterator<Item = (&'a str, Value<'t, 'a>)>> {
        let (Node::Object { .. }, rest) = self.0.split_first()? else { return None };
        let mut rest = Elements { len: 0, rest };
        Some(std::iter::from_fn(move || Some((rest.next()?.string()?, rest.next()?))))
    }
}

#[derive(Clone, Copy)]
pub(super) struct Elements<'t, 'a> {
    /// The length of the whole array, however far the iteration is.
    pub(super) len: usize,
    rest: &'t [Node<'a>],
}

impl<'t, 'a> Iterator for Elements<'t, 'a> {
    type Item = Value<'t, 'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (value, rest) = self.rest.split_at_checked(node_count(self.rest.first()?))?;
        self.rest = rest;
        Some(Value(value))
    }
}
