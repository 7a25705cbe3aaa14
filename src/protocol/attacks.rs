//! The attack catalogue's rows on JSON, J1 to J12, against the envelope. (J4 and J6 don't exist.)

use super::{ErrorCode, ParseError, Parser, Refusal};
use crate::close::CloseReason;

const GOOD: &str = r#"{"type":"chat.say","id":"m-1","session_id":"s-42","payload":{"text":"hi"}}"#;

/// `GOOD` with more members before its closing brace.
fn with(members: &str) -> String {
    format!("{},{members}}}", &GOOD[..GOOD.len() - 1])
}

fn minimal(payload: &str) -> String {
    format!(r#"{{"type":"a","id":"1","session_id":"s","payload":{payload}}}"#)
}

fn refusal(text: &str) -> Box<Refusal> {
    match Parser::default().parse(text.as_bytes()) {
        Err(ParseError::Refused(refusal)) => refusal,
        other => panic!("{text}: {other:?}"),
    }
}

fn fatal(text: &[u8]) -> CloseReason {
    match Parser::default().parse(text) {
        Err(ParseError::Fatal(reason)) => reason,
        other => panic!("{}: {other:?}", String::from_utf8_lossy(text)),
    }
}

#[test]
fn nesting_is_bounded_j1() {
    let nested = |depth: usize| minimal(&format!("{}{}", "[".repeat(depth - 1), "]".repeat(depth - 1)));
    assert!(Parser::default().parse(nested(64).as_bytes()).is_ok());
    assert_eq!(fatal(nested(65).as_bytes()), CloseReason::TooDeep);
    assert_eq!(fatal("[".repeat(65).as_bytes()), CloseReason::TooDeep);
    assert_eq!(fatal("[".repeat(100_000).as_bytes()), CloseReason::TooDeep);
    assert_eq!(fatal(r#"{"a":"#.repeat(20_000).as_bytes()), CloseReason::TooDeep);
    // A number that only the second validation passes doesn't hide the depth behind it.
    let behind = minimal(&format!("[1e999,{}{}]", "[".repeat(63), "]".repeat(63)));
    assert_eq!(fatal(behind.as_bytes()), CloseReason::TooDeep);
    assert!(Parser::default().parse(minimal(&format!(r#""{}""#, "[".repeat(1000))).as_bytes()).is_ok());
}

#[test]
fn what_passes_passes_untouched_j2_j7_j8_j11() {
    let digits = "9".repeat(1000);
    let mut parser = Parser::default();
    for payload in [
        r#"{"a":1,"a":2,"":0,"":1}"#,
        "1e400",
        "-1E+400",
        "18446744073709551616",
        "[-9223372036854775809,1.5e999]",
        digits.as_str(),
        "-0",
        "-0.0",
        "0.99999999999999999999999999999999",
        r#"{"__proto__":{"x":1},"t":"<script>{{7*7}}</script>","quote":"\"1e999"}"#,
    ] {
        let text = minimal(payload);
        assert_eq!(parser.parse(text.as_bytes()).unwrap().payload, payload.as_bytes());
    }
}

#[test]
fn what_is_no_json_is_fatal_j3_j5_j9() {
    for payload in [
        r#""\ud800""#,
        r#""\udc00\ud800""#,
        r#""\ud800\u0041""#,
        r#"[1e999,"\ud800"]"#,
        "\"\0\"",
        "\"\x1f\"",
        "\"\n\"",
        "NaN",
        "Infinity",
        "-Infinity",
        "1/*x*/",
        "'a'",
        "01",
        "-01",
        "+1",
        "1.",
        ".5",
        "1e",
        "-",
        "0x10",
        "1e400x",
        "1e400 1e400",
        "x1e400",
        "true1",
        "tru",
        "[1,]",
        r#"{"a":1,}"#,
        "{1:2}",
        r#"{"a"}"#,
        "[1 2]",
        "",
        r#""\x""#,
        r#""\u12g4""#,
        "]",
        "[}",
        "\u{feff}1",
    ] {
        assert_eq!(fatal(minimal(payload).as_bytes()), CloseReason::NotJson, "{payload}");
    }
    for whole in
        ["", " ", "{", "}", GOOD.trim_end_matches('}'), &format!("{GOOD}{GOOD}"), &format!("{GOOD},"), &format!("{GOOD}x")]
    {
        assert_eq!(fatal(whole.as_bytes()), CloseReason::NotJson, "{whole}");
    }
    for bytes in [
        &b"\x80"[..],
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xed\xa0\x80",
        b"\xed\xa0\xbd\xed\xb8\x80",
        b"\xf4\x90\x80\x80",
        b"\xff",
        b"\xe2\x82",
    ] {
        let text = [br#"{"type":"a","id":"1","session_id":"s","payload":""#, bytes, br#""}"#].concat();
        assert_eq!(fatal(&text), CloseReason::NotUtf8, "{bytes:?}");
        assert_eq!(fatal(bytes), CloseReason::NotUtf8, "{bytes:?}");
    }
}

#[test]
fn many_quotes_and_keys_are_taken_in_one_pass_j10() {
    assert_eq!(fatal(&[b'"'; 65_536]), CloseReason::NotJson);
    assert_eq!(fatal(&[b'\\'; 65_536]), CloseReason::NotJson);
    let escapes = minimal(&format!(r#""{}""#, r"\\".repeat(30_000)));
    assert!(Parser::default().parse(escapes.as_bytes()).is_ok());
    let keys: Vec<String> = (0..10_000).map(|key| format!(r#""k{key}":0"#)).collect();
    assert_eq!(refusal(&format!("{{{}}}", keys.join(","))).pointer, "/k0");
    let inside = minimal(&format!("{{{}}}", keys.join(",")));
    assert!(Parser::default().parse(inside.as_bytes()).is_ok());
}

#[test]
fn names_hold_nothing_to_escape_j11_j12() {
    for text in [
        with(r#""to":"room:<b>""#),
        with(r#""to":"room:a/../b""#),
        with(r#""to":"room:*""#),
        with(r#""__proto__":{}"#),
        GOOD.replace("s-42", "<b>"),
        GOOD.replace(r#""id":"m-1","#, ""),
    ] {
        assert_eq!(refusal(&text).code, ErrorCode::EnvelopeInvalid);
    }
}
