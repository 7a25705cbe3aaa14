//! Foreign text for a terminal or a log line: characters that could control the terminal or break the line are escaped.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Returns `true` if the character could begin a line, control a terminal, or turn the direction of text: C0, DEL and C1; the
/// separators of lines and paragraphs; the marks, embeddings, overrides and isolates of UAX #9, and the deprecated formatting
/// characters beside them.
#[must_use]
pub const fn steers(character: char) -> bool {
    matches!(
        character,
        '\u{0}'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{206f}'
    )
}

/// Writes a character, as `\xNN` or `\u{NN}` if [`steers`] is true.
pub(super) fn push_text(out: &mut String, character: char) {
    match character {
        '\u{0}'..='\u{1f}' | '\u{7f}' => drop(write!(out, "\\x{:02x}", character as u32)),
        _ if steers(character) => drop(write!(out, "\\u{{{:x}}}", character as u32)),
        plain => out.push(plain),
    }
}

/// Writes a character of a JSON text, as `\uNNNN` if [`steers`] is true. White space between tokens becomes a blank.
pub(super) fn push_json(out: &mut String, character: char) {
    match character {
        '\t' | '\n' | '\r' => out.push(' '),
        _ if steers(character) => drop(write!(out, "\\u{:04x}", character as u32)),
        plain => out.push(plain),
    }
}

/// A text on one line, for people.
#[must_use]
pub fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|character| push_text(&mut out, character));
    out
}

/// An equal JSON text, on one line.
#[must_use]
pub fn json(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    text.chars().for_each(|character| push_json(&mut out, character));
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_is_left_and_nothing_else_is_touched() {
        let steering: String = (0..0x3000).filter_map(char::from_u32).filter(|character| steers(*character)).collect();
        assert_eq!(steering.chars().count(), 32 + 33 + 1 + 2 + 7 + 10);
        for character in
            "\0\t\n\r\u{1b}\u{7f}\u{80}\u{85}\u{9b}\u{9f}\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}"
                .chars()
        {
            assert!(steers(character), "{character:?}");
        }
        assert!(text(&steering).bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{}", text(&steering));
        let plain = " ~\u{a0}äé—“”日本語\u{200d}🙂\u{2027}\u{202f}\u{2065}\u{2070}";
        assert_eq!((&*text(plain), &*json(plain)), (plain, plain));
        assert_eq!(text("a\u{1b}[2Jb\u{9b}1mc\u{202e}d\r\n"), "a\\x1b[2Jb\\u{9b}1mc\\u{202e}d\\x0d\\x0a");
    }

    #[test]
    fn escaped_json_is_equal_json() {
        let sent = "{\r\n\t\"a\u{7f}\u{85}\":\"x\u{202e}y\u{2028}\\u001b\\n\u{2069}\" ,\"n\":[1 ,2]}";
        let shown = json(sent);
        assert!(!shown.contains(steers), "{shown}");
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(&shown), value(sent));
    }
}
