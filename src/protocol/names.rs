//! The charsets and lengths of the envelope's strings (protocol.md sections 2 to 4).

use crate::ids::is_own_room;
use crate::limits::{
    CLIENT_TAIL_BYTES_MAX, MESSAGE_ID_BYTES_MAX, NAME_BYTES_MAX, SUBJECT_BYTES_MAX, TRACEPARENT_BYTES_MAX, TYPE_BYTES_MAX,
};

const TYPE: u8 = 1;
const NAME: u8 = 2;
const MESSAGE_ID: u8 = 4;
const CLIENT: u8 = 8;
const LOWER_HEX: u8 = 16;

/// The classes of each byte. One load a byte; a chain of range checks costs three times as much on a 36-byte id.
static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0_u8;
    while byte < 0x80 {
        let mut class = 0;
        if byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'.' | b'-') {
            class |= TYPE;
        }
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b':' | b'-') {
            class |= NAME;
        }
        if byte.is_ascii_graphic() {
            class |= MESSAGE_ID;
            if !matches!(byte, b'"' | b'\\') {
                class |= CLIENT;
            }
        }
        if byte.is_ascii_digit() || matches!(byte, b'a'..=b'f') {
            class |= LOWER_HEX;
        }
        table[byte as usize] = class;
        byte += 1;
    }
    table
}

fn all(text: &[u8], class: u8) -> bool {
    text.iter().fold(class, |seen, byte| seen & CLASSES[usize::from(*byte)]) != 0
}

fn within(text: &str, class: u8, bytes_max: usize) -> bool {
    !text.is_empty() && text.len() <= bytes_max && all(text.as_bytes(), class)
}

/// Returns `true` for `[a-z0-9][a-z0-9_.-]{0,63}` (section 2).
#[must_use]
pub fn is_type(text: &str) -> bool {
    within(text, TYPE, TYPE_BYTES_MAX) && text.as_bytes()[0].is_ascii_alphanumeric()
}

/// Returns `true` for 1 to 128 printable ASCII characters without spaces (section 2).
#[must_use]
pub fn is_message_id(text: &str) -> bool {
    within(text, MESSAGE_ID, MESSAGE_ID_BYTES_MAX)
}

/// Returns `true` for 1 to 128 of `[A-Za-z0-9_.:-]`: sessions, rooms, roles, intents and channels (sections 2 and 6).
#[must_use]
pub fn is_name(text: &str) -> bool {
    within(text, NAME, NAME_BYTES_MAX)
}

/// Returns `true` for a room that a client may name: none of the gateway's own, which begin with `rw:` (section 6).
#[must_use]
pub fn is_room(text: &str) -> bool {
    is_name(text) && !is_own_room(text)
}

/// Returns `true` for a token's `sub`: printable ASCII without spaces, quotes and backslashes, so that `from` never needs
/// escaping.
#[must_use]
pub fn is_subject(text: &str) -> bool {
    within(text, CLIENT, SUBJECT_BYTES_MAX)
}

/// Returns `true` for a `client_id`: `sub`, or `sub/` and a tail (section 4). The token says which of the two it is.
#[must_use]
pub fn is_client_id(text: &str) -> bool {
    within(text, CLIENT, SUBJECT_BYTES_MAX + 1 + CLIENT_TAIL_BYTES_MAX)
}

/// Returns `true` for W3C Trace Context 3.2: `version-traceid-parentid-flags` in lower-case hex. Version `00` has exactly these
/// 55 characters, a later one may continue after another dash, and `ff`, an all-zero trace id or an all-zero parent id are
/// invalid.
#[must_use]
pub fn is_traceparent(text: &str) -> bool {
    let text = text.as_bytes();
    if text.len() < 55 || text.len() > TRACEPARENT_BYTES_MAX {
        return false;
    }
    let (head, rest) = text.split_at(55);
    let (version, trace_id, parent_id, flags) = (&head[..2], &head[3..35], &head[36..52], &head[53..]);
    let dashes = head[2] == b'-' && head[35] == b'-' && head[52] == b'-';
    let hex = [version, trace_id, parent_id, flags].iter().all(|part| all(part, LOWER_HEX));
    let zero = |part: &[u8]| part.iter().all(|byte| *byte == b'0');
    let tail = rest.is_empty() || (version != b"00" && rest[0] == b'-' && all(rest, CLIENT));
    dashes && hex && version != b"ff" && !zero(trace_id) && !zero(parent_id) && tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charsets_are_those_of_the_contract() {
        for byte in 0..=255_u8 {
            let character = char::from(byte);
            let text = character.to_string();
            let lower = character.is_ascii_lowercase() || character.is_ascii_digit();
            assert_eq!(is_type(&text), lower, "{character:?}");
            assert_eq!(is_type(&format!("a{text}")), lower || "_.-".contains(character), "{character:?}");
            assert_eq!(is_name(&text), character.is_ascii_alphanumeric() || "_.:-".contains(character), "{character:?}");
            assert_eq!(is_message_id(&text), ('!'..='~').contains(&character), "{character:?}");
            assert_eq!(is_client_id(&text), ('!'..='~').contains(&character) && !"\"\\".contains(character), "{character:?}");
        }
    }

    #[test]
    fn lengths_are_those_of_the_contract() {
        for (check, bytes_max) in [
            (is_type as fn(&str) -> bool, 64),
            (is_message_id, 128),
            (is_name, 128),
            (is_subject, 128),
            (is_client_id, 128 + 1 + 64),
        ] {
            assert!(!check(""));
            assert!(check(&"a".repeat(bytes_max)));
            assert!(!check(&"a".repeat(bytes_max + 1)));
        }
    }

    #[test]
    fn traceparent_follows_the_recommendation() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(is_traceparent(good));
        assert!(is_traceparent(&good.replacen("00", "cc", 1)));
        assert!(is_traceparent(&format!("{}-later", good.replacen("00", "01", 1))));
        for bad in [
            String::new(),
            good[..54].to_owned(),
            format!("{good}-more"),
            format!("{good}0"),
            format!("{}0", good.replacen("00", "01", 1)),
            good.replacen("00", "ff", 1),
            good.to_uppercase(),
            good.replace('-', "_"),
            good.replace("4bf92f3577b34da6a3ce929d0e0e4736", "00000000000000000000000000000000"),
            good.replace("00f067aa0ba902b7", "0000000000000000"),
            good.replace("4b", "é"),
            format!("{}-{}", good.replacen("00", "01", 1), "x".repeat(200)),
        ] {
            assert!(!is_traceparent(&bad), "{bad}");
        }
    }
}
