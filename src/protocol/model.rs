//! The envelope against a model: the contract's rules written a second time over `serde_json`, slowly and plainly, and the two
//! compared on generated and on damaged texts.

use super::{Envelope, ParseError, Parser};
use crate::close::CloseReason;
use proptest::prelude::*;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// An object's members in order, duplicates kept.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = access.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(All).map(Self)
    }
}

/// The model's verdict on a text.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Taken(Box<Fields>),
    /// JSON, but no envelope.
    Refused,
    /// Invalid JSON.
    Fatal,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Fields {
    kind: String,
    id: String,
    session_id: String,
    payload: String,
    to: Option<Vec<String>>,
    reply_to: Option<String>,
    traceparent: Option<String>,
    ephemeral: bool,
    meta: Option<String>,
}

/// `None` if `serde_json` can't tell either: a number is out of its range, and the rest of the text is not examined.
fn is_json(text: &[u8]) -> Option<bool> {
    // `Value` checks surrogates but reads numbers; `RawValue` reads no numbers but lets lone surrogates pass.
    match (serde_json::from_slice::<serde_json::Value>(text), serde_json::from_slice::<&RawValue>(text)) {
        (Ok(_), _) => Some(true),
        (Err(_), Err(_)) => Some(false),
        (Err(error), Ok(_)) if error.to_string().starts_with("number out of range") => None,
        (Err(_), Ok(_)) => Some(false),
    }
}

fn model(text: &[u8]) -> Option<Verdict> {
    if !is_json(text)? {
        return Some(Verdict::Fatal);
    }
    let Ok(Members(members)) = serde_json::from_slice::<Members<'_>>(text) else { return Some(Verdict::Refused) };
    Some(read(&members).map_or(Verdict::Refused, |fields| Verdict::Taken(Box::new(fields))))
}

fn read(members: &[(String, &RawValue)]) -> Option<Fields> {
    let known = ["type", "id", "session_id", "payload", "to", "reply_to", "traceparent", "ephemeral", "meta"];
    for (index, (key, _)) in members.iter().enumerate() {
        if !known.contains(&key.as_str()) || members[..index].iter().any(|(other, _)| other == key) {
            return None;
        }
    }
    let raw = |key: &str| members.iter().find(|(other, _)| other == key).map(|(_, value)| value.get());
    let string = |key: &str, is_good: &dyn Fn(&str) -> bool| match raw(key) {
        None => Some(None),
        Some(raw) => serde_json::from_str::<String>(raw).ok().filter(|text| is_good(text)).map(Some),
    };
    let id = |text: &str| (1..=128).contains(&text.len()) && text.chars().all(|c| ('!'..='~').contains(&c));
    let name =
        |text: &str| (1..=128).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.:-".contains(c));
    let kind = |text: &str| {
        let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        text.len() <= 64 && text.starts_with(lower) && text.chars().all(|c| lower(c) || "_.-".contains(c))
    };
    let fields = Fields {
        kind: string("type", &kind)??,
        id: string("id", &id)??,
        session_id: string("session_id", &name)??,
        payload: raw("payload")?.to_owned(),
        to: read_to(raw("to"))?,
        reply_to: string("reply_to", &id)?,
        traceparent: string("traceparent", &super::is_traceparent)?,
        ephemeral: raw("ephemeral").map_or(Some(false), |raw| raw.parse().ok())?,
        meta: raw("meta").map(ToOwned::to_owned),
    };
    if fields.meta.as_ref().is_some_and(|meta| meta.len() > 2048 || !meta.starts_with('{')) {
        return None;
    }
    if fields.kind.starts_with("rw.") && !fields.payload.starts_with('{') {
        return None;
    }
    Some(fields)
}

/// Reads `to`. The outer `None` refuses.
fn read_to(raw: Option<&str>) -> Option<Option<Vec<String>>> {
    let Some(raw) = raw else { return Some(None) };
    let addresses = match serde_json::from_str::<String>(raw) {
        Ok(one) => vec![one],
        Err(_) => serde_json::from_str::<Vec<String>>(raw).ok()?,
    };
    let alone = |address: &String| address.starts_with("channel:") || address.starts_with("intent:");
    let in_bounds = (1..=32).contains(&addresses.len()) && (addresses.len() == 1 || !addresses.iter().any(alone));
    let is_good = |address: &String| {
        let Some((kind, name)) = address.split_once(':') else { return address == "session" };
        let name_max = match kind {
            "channel" => 120,
            "client" => 193,
            _ => 128,
        };
        let charset = |c: char| match kind {
            "client" | "user" => ('!'..='~').contains(&c) && !"\"\\".contains(c),
            "room" | "role" | "intent" | "channel" => c.is_ascii_alphanumeric() || "_.:-".contains(c),
            _ => false,
        };
        let is_own = kind == "room" && name.starts_with("rw:");
        (1..=name_max).contains(&name.len()) && name.chars().all(charset) && !is_own
    };
    (in_bounds && addresses.iter().all(is_good)).then_some(Some(addresses))
}

fn owned(envelope: &Envelope<'_>) -> Fields {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let address = |address: super::Address<'_>| match address.parts() {
        (kind, "") => kind.to_owned(),
        (kind, name) => format!("{kind}:{name}"),
    };
    Fields {
        kind: envelope.kind.to_owned(),
        id: envelope.id.to_owned(),
        session_id: envelope.session_id.to_owned(),
        payload: text(envelope.payload),
        to: (envelope.to != super::To::Default).then(|| envelope.to.iter().map(address).collect()),
        reply_to: envelope.reply_to.map(ToOwned::to_owned),
        traceparent: envelope.traceparent.map(ToOwned::to_owned),
        ephemeral: envelope.ephemeral,
        meta: envelope.meta.map(text),
    }
}

fn verdict(parser: &mut Parser, text: &[u8]) -> Verdict {
    match parser.parse(text) {
        Ok(envelope) => {
            let whole = [envelope.object, b"}"].concat();
            assert!(text.trim_ascii() == whole, "the object is the sender's own bytes");
            Verdict::Taken(Box::new(owned(&envelope)))
        }
        Err(ParseError::Refused(_)) => Verdict::Refused,
        Err(ParseError::Fatal(reason)) => {
            assert_eq!(reason == CloseReason::NotUtf8, std::str::from_utf8(text).is_err(), "{reason:?}");
            Verdict::Fatal
        }
    }
}

/// A JSON value as text, with spellings that differ between writers.
fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i64>().prop_map(|value| value.to_string()),
        any::<f64>().prop_filter("JSON has no NaN", |value| value.is_finite()).prop_map(|value| format!("{value:e}")),
        "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
        any::<String>().prop_flat_map(|text| spelled(&text)),
        "[\\[\\]{},: ]{0,6}".prop_map(|text| format!("\"{text}\"")),
    ];
    leaf.prop_recursive(5, 48, 5, |inner| {
        prop_oneof![
            (prop::collection::vec(inner.clone(), 0..5), space())
                .prop_map(|(values, space)| { format!("[{space}{}{space}]", values.join(&format!("{space},"))) }),
            (prop::collection::vec((any::<String>().prop_flat_map(|key| spelled(&key)), inner), 0..5), space()).prop_map(
                |(members, space)| {
                    let members: Vec<_> = members.iter().map(|(key, value)| format!("{key}{space}:{value}{space}")).collect();
                    format!("{{{space}{}}}", members.join(","))
                }
            ),
        ]
    })
}

fn space() -> impl Strategy<Value = String> {
    prop_oneof![3 => Just(String::new()), 1 => "[ \t\r\n]{0,4}"]
}

/// A JSON string for `text`: each character plain, as `\u`, or by its short escape.
fn spelled(text: &str) -> impl Strategy<Value = String> + use<> {
    let text = text.to_owned();
    prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(0_u8..3, text.chars().count())].prop_map(move |choices| {
        let mut out = String::from("\"");
        for (index, character) in text.chars().enumerate() {
            let choice = choices.get(index).copied().unwrap_or(0);
            match character {
                '"' | '\\' => out.extend(['\\', character]),
                '/' if choice == 1 => out.push_str("\\/"),
                _ if choice == 2 || character < ' ' => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => out.push(character),
            }
        }
        out.push('"');
        out
    })
}

fn quoted(pattern: &'static str) -> BoxedStrategy<String> {
    pattern.prop_flat_map(|text| spelled(&text)).boxed()
}

fn address() -> BoxedStrategy<String> {
    prop_oneof![
        8 => quoted("session|client:[!#-\\[\\]-~]{1,20}|user:[a-z@./]{1,9}|(room|role):[A-Za-z0-9_.:-]{1,128}"),
        1 => quoted("channel:[a-z]{1,121}|intent:[a-z]{1,9}"),
        1 => quoted("[a-z]{0,7}:?.{0,3}"),
    ]
    .boxed()
}

/// The members of an envelope, mostly good, in any order.
fn envelope() -> impl Strategy<Value = String> {
    let wrong = || json().boxed();
    let addresses = prop::collection::vec(address(), 0..5).prop_map(|list| format!("[{}]", list.join(" ,"))).boxed();
    let flags = "(00|01|ff)-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0[0-9a-f](-x)?";
    let member = |key: &'static str, value: BoxedStrategy<String>, presence: f64, wrong: BoxedStrategy<String>| {
        let value = prop_oneof![40 => value, 1 => wrong];
        prop::option::weighted(presence, (spelled(key), value))
    };
    let members = (
        member("type", quoted("[a-z0-9][a-z0-9_.-]{0,63}|rw\\.[a-z]{1,9}"), 0.99, wrong()),
        member("id", quoted("[!-~]{1,128}"), 0.99, quoted(".{0,140}")),
        member("session_id", quoted("[A-Za-z0-9_.:-]{1,128}"), 0.99, wrong()),
        member("payload", json().boxed(), 0.99, wrong()),
        member("to", prop_oneof![address(), addresses].boxed(), 0.5, wrong()),
        member("reply_to", quoted("[!-~]{1,128}"), 0.3, wrong()),
        member("traceparent", quoted(flags), 0.3, quoted("[0-9a-f-]{50,60}")),
        member("ephemeral", any::<bool>().prop_map(|value| value.to_string()).boxed(), 0.3, wrong()),
        member("meta", json().prop_map(|value| format!("{{\"a\":{value}}}")).boxed(), 0.3, wrong()),
        member("other", json().boxed(), 0.02, wrong()),
        member("type", quoted("[a-z]{1,3}"), 0.02, wrong()),
    );
    let list = members.prop_map(|(a, b, c, d, e, f, g, h, i, j, k)| {
        [a, b, c, d, e, f, g, h, i, j, k].into_iter().flatten().collect::<Vec<_>>()
    });
    (list.prop_shuffle(), space(), space()).prop_map(|(members, before, after)| {
        let members: Vec<_> = members.iter().map(|(key, value)| format!("{before}{key}{after}:{before}{value}{after}")).collect();
        format!("{before}{{{}}}{after}", members.join(","))
    })
}

fn damage() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    let byte = prop_oneof![prop::sample::select(br#"{}[]":,\/u0123-+.eE tfn"#.to_vec()), any::<u8>()];
    prop::collection::vec((any::<prop::sample::Index>(), 0_u8..3, byte), 1..4)
}

fn damaged(text: &str, damage: &[(prop::sample::Index, u8, u8)]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for (index, operation, byte) in damage {
        let at = index.index(bytes.len().max(1));
        match operation {
            0 if at < bytes.len() => bytes[at] = *byte,
            1 if at < bytes.len() => drop(bytes.remove(at)),
            _ => bytes.insert(at.min(bytes.len()), *byte),
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn envelopes_read_as_the_model_does(texts in prop::collection::vec(envelope(), 1..4)) {
        let mut parser = Parser::default();
        for text in &texts {
            if let Some(expected) = model(text.as_bytes()) {
                prop_assert_eq!(verdict(&mut parser, text.as_bytes()), expected, "{}", text);
            }
        }
    }

    #[test]
    fn damaged_envelopes_read_as_the_model_does(text in envelope(), damage in damage()) {
        let bytes = damaged(&text, &damage);
        let read = verdict(&mut Parser::default(), &bytes);
        if let Some(expected) = model(&bytes) {
            prop_assert_eq!(read, expected, "{}", String::from_utf8_lossy(&bytes));
        }
    }

    /// If `serde_json` refuses a number's range, only the range is forgiven: the text with that number made small is judged
    /// alike.
    #[test]
    fn numbers_out_of_range_are_forgiven_and_nothing_else(
        number in "-?[1-9][0-9]{0,25}(\\.[0-9]{1,5})?[eE][1-9][0-9]{3}|-?[1-9][0-9]{20,400}",
        rest in json(),
        damage in prop::option::of(damage()),
    ) {
        let whole = |number: &str| {
            let rest = damage.as_ref().map_or_else(|| rest.clone().into_bytes(), |damage| damaged(&rest, damage));
            [br#"{"type":"a","id":"1","session_id":"s","payload":["#, number.as_bytes(), b",", &rest, b"]}"].concat()
        };
        if let Some(Verdict::Refused | Verdict::Fatal) | None = model(&whole("1")) {
            let same = matches!(verdict(&mut Parser::default(), &whole(&number)), Verdict::Taken(_))
                == matches!(verdict(&mut Parser::default(), &whole("1")), Verdict::Taken(_));
            prop_assert!(same);
        } else {
            let read = verdict(&mut Parser::default(), &whole(&number));
            prop_assert!(matches!(read, Verdict::Taken(_)), "{:?}", read);
        }
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let read = verdict(&mut Parser::default(), &bytes);
        if let Some(expected) = model(&bytes) {
            prop_assert_eq!(read, expected);
        }
    }
}
