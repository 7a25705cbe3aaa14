//! The inbound envelope (protocol.md sections 2 and 3): text to borrowed, checked fields.

use super::errors::{Fault, Refusal, pointer_to, shortened};
use super::names::{is_client_id, is_message_id, is_name, is_room, is_subject, is_traceparent, is_type};
use super::scan::{Document, Member, Value, View};
use crate::close::CloseReason;
use crate::limits::{ADDRESSES_MAX, META_BYTES_MAX, NAME_BYTES_MAX};

/// Reads one envelope after another. Each shard has one: its buffers are reused, so that in steady state a message allocates
/// nothing.
#[derive(Default)]
pub struct Parser {
    document: Document,
    /// The addresses of a list, each ended by a newline, which no address contains.
    addresses: String,
}

/// The reason why a message is no envelope.
#[derive(Debug, PartialEq, Eq)]
pub enum ParseError {
    /// Invalid JSON, nesting too deep, or no UTF-8: the connection closes.
    Fatal(CloseReason),
    /// JSON, but no valid envelope: `rw.error`, and the connection stays open.
    Refused(Box<Refusal>),
}

/// A checked envelope. Strings are unescaped; `payload`, `meta` and `object` are the sender's own bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The `type`. See [`super::command_kind`].
    pub kind: &'a str,
    pub id: &'a str,
    pub session_id: &'a str,
    /// A JSON value without whitespace around it; an object if `kind` begins with `rw.`.
    pub payload: &'a [u8],
    pub to: To<'a>,
    pub reply_to: Option<&'a str>,
    pub traceparent: Option<&'a str>,
    /// `"ephemeral":false` is the same as absent.
    pub ephemeral: bool,
    /// A JSON object.
    pub meta: Option<&'a [u8]>,
    /// From the message's `{` up to but excluding its final `}`: the text to which [`super::added`] is appended.
    pub object: &'a [u8],
}

/// The addressees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To<'a> {
    /// `to` is absent, which means `session`.
    Default,
    /// A single address, in an array or not.
    One(Address<'a>),
    /// 2 to 32 addresses, none of them an intent or a channel.
    Many(Addresses<'a>),
}

/// An address (section 3). The name is checked for charset and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address<'a> {
    Session,
    Client(&'a str),
    User(&'a str),
    Room(&'a str),
    Role(&'a str),
    Intent(&'a str),
    /// The name after `channel:`; the id of the channel's session is the whole text, `channel:NAME`.
    Channel(&'a str),
}

/// The addresses of a list, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses<'a> {
    rest: &'a str,
}

impl<'a> To<'a> {
    /// The addresses; `session` if `to` is absent.
    pub fn iter(self) -> impl Iterator<Item = Address<'a>> {
        let (one, many) = match self {
            Self::Default => (Some(Address::Session), None),
            Self::One(address) => (Some(address), None),
            Self::Many(addresses) => (None, Some(addresses)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

impl<'a> Iterator for Addresses<'a> {
    type Item = Address<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (address, rest) = self.rest.split_once('\n')?;
        self.rest = rest;
        Address::parse(address)
    }
}

impl<'a> Address<'a> {
    /// Reads `session`, `client:ID` and so on; `None` if the kind is unknown or the name is out of its charset or length.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let Some((kind, name)) = text.split_once(':') else {
            return (text == "session").then_some(Self::Session);
        };
        match kind {
            "client" if is_client_id(name) => Some(Self::Client(name)),
            "user" if is_subject(name) => Some(Self::User(name)),
            "room" if is_room(name) => Some(Self::Room(name)),
            "role" if is_name(name) => Some(Self::Role(name)),
            "intent" if is_name(name) => Some(Self::Intent(name)),
            // The id of the channel's session is the whole text.
            "channel" if is_name(name) && text.len() <= NAME_BYTES_MAX => Some(Self::Channel(name)),
            _ => None,
        }
    }

    /// The kind as on the wire, and the name; "" for the session.
    #[must_use]
    pub const fn parts(self) -> (&'static str, &'a str) {
        match self {
            Self::Session => ("session", ""),
            Self::Client(name) => ("client", name),
            Self::User(name) => ("user", name),
            Self::Room(name) => ("room", name),
            Self::Role(name) => ("role", name),
            Self::Intent(name) => ("intent", name),
            Self::Channel(name) => ("channel", name),
        }
    }

    const fn stands_alone(self) -> bool {
        matches!(self, Self::Intent(_) | Self::Channel(_))
    }
}

impl Parser {
    /// Reads a whole message.
    ///
    /// # Errors
    /// See [`ParseError`].
    pub fn parse<'a>(&'a mut self, text: &'a [u8]) -> Result<Envelope<'a>, ParseError> {
        let Self { document, addresses } = self;
        let read = document.read(text, |view| {
            read_envelope(view, addresses).map_err(|fault| {
                let (id, session_id) = offender(view);
                fault.of(id, session_id)
            })
        });
        match read {
            Ok(outcome) => outcome.map_err(ParseError::Refused),
            Err(reason) => Err(ParseError::Fatal(reason)),
        }
    }
}

/// The id and session of a refused envelope, as far as they can be read.
#[cold]
fn offender<'a>(view: &View<'_, 'a>) -> (&'a str, &'a str) {
    let find = |key: &str, is_good: fn(&str) -> bool| {
        let mut values = view.members().into_iter().flatten().filter(|member| member.key == key);
        let text = values.next()?.value.string()?;
        is_good(text).then_some(text)
    };
    (find("id", is_message_id).unwrap_or(""), find("session_id", is_name).unwrap_or(""))
}

/// The keys seen so far.
#[derive(Default)]
struct Seen(u16);

impl Seen {
    fn first(&mut self, bit: u16, pointer: &'static str) -> Result<(), Fault> {
        if self.0 & bit != 0 {
            return Err(Fault::new(pointer, format!("the key {:?} stands twice; give it once", &pointer[1..])));
        }
        self.0 |= bit;
        Ok(())
    }
}

const ID_RULE: &str = "1 to 128 printable ASCII characters without spaces";

fn read_envelope<'a>(view: &View<'_, 'a>, list: &'a mut String) -> Result<Envelope<'a>, Fault> {
    let Some(members) = view.members() else {
        return Err(Fault::new("", "an envelope is a JSON object with type, id, session_id and payload"));
    };
    let mut seen = Seen::default();
    let (mut kind, mut id, mut session_id) = (None, None, None);
    let (mut payload, mut to, mut reply_to, mut traceparent) = (None, None, None, None);
    let (mut ephemeral, mut meta) = (false, None);
    for member in members {
        match member.key {
            "type" => {
                seen.first(1, "/type")?;
                kind = Some(text(&member, is_type, "/type", "1 to 64 of a-z 0-9 _ . -, a letter or digit first")?);
            }
            "id" => {
                seen.first(2, "/id")?;
                id = Some(text(&member, is_message_id, "/id", ID_RULE)?);
            }
            "session_id" => {
                seen.first(4, "/session_id")?;
                session_id = Some(text(&member, is_name, "/session_id", "1 to 128 of A-Z a-z 0-9 _ . : -")?);
            }
            "payload" => {
                seen.first(8, "/payload")?;
                payload = Some(member);
            }
            "to" => {
                seen.first(16, "/to")?;
                to = Some(member.value);
            }
            "reply_to" => {
                seen.first(32, "/reply_to")?;
                reply_to = Some(text(&member, is_message_id, "/reply_to", ID_RULE)?);
            }
            "traceparent" => {
                seen.first(64, "/traceparent")?;
                let rule = "a W3C traceparent, such as 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
                traceparent = Some(text(&member, is_traceparent, "/traceparent", rule)?);
            }
            "ephemeral" => {
                seen.first(128, "/ephemeral")?;
                ephemeral = member.value.boolean().ok_or_else(|| Fault::new("/ephemeral", "ephemeral is true or false"))?;
            }
            "meta" => {
                seen.first(256, "/meta")?;
                if !member.value.is_object() || member.raw.len() > META_BYTES_MAX {
                    return Err(Fault::new("/meta", format!("meta is an object of at most {META_BYTES_MAX} bytes")));
                }
                meta = Some(member.raw);
            }
            unknown => return Err(unknown_key(unknown)),
        }
    }
    let kind = kind.ok_or_else(|| missing("/type"))?;
    let id = id.ok_or_else(|| missing("/id"))?;
    let session_id = session_id.ok_or_else(|| missing("/session_id"))?;
    let payload = payload.ok_or_else(|| missing("/payload"))?;
    if kind.starts_with("rw.") && !payload.value.is_object() {
        return Err(Fault::new("/payload", "the payload of an rw. type is an object, {} where there is nothing to say"));
    }
    let to = to.map_or(Ok(To::Default), |value| read_to(value, list))?;
    Ok(Envelope { kind, id, session_id, payload: payload.raw, to, reply_to, traceparent, ephemeral, meta, object: view.object() })
}

#[inline]
fn text<'a>(
    member: &Member<'_, 'a>,
    is_good: fn(&str) -> bool,
    pointer: &'static str,
    rule: &'static str,
) -> Result<&'a str, Fault> {
    match member.value.string() {
        Some(text) if is_good(text) => Ok(text),
        Some(_) => Err(Fault::new(pointer, format!("{} is {rule}", &pointer[1..]))),
        None => Err(Fault::new(pointer, format!("{} is a string: {rule}", &pointer[1..]))),
    }
}

#[cold]
fn missing(pointer: &'static str) -> Fault {
    Fault::new(pointer, format!("{} is missing; an envelope has type, id, session_id and payload", &pointer[1..]))
}

#[cold]
fn unknown_key(key: &str) -> Fault {
    Fault::new(
        pointer_to(key),
        format!(
            "the key {:?} is unknown; an envelope has type, id, session_id, payload, to, reply_to, traceparent, ephemeral and \
             meta, and meta and payload take what is yours",
            shortened(key)
        ),
    )
}

fn read_to<'a>(value: Value<'_, 'a>, list: &'a mut String) -> Result<To<'a>, Fault> {
    if let Some(text) = value.string() {
        return read_address(text, None).map(To::One);
    }
    let Some(elements) = value.elements() else {
        return Err(Fault::new("/to", "to is an address, or an array of addresses"));
    };
    if elements.len == 0 || elements.len > ADDRESSES_MAX {
        return Err(Fault::new("/to", format!("to has {} addresses; 1 to {ADDRESSES_MAX} are allowed", elements.len)));
    }
    list.clear();
    for (index, element) in elements.enumerate() {
        let text = element.string().ok_or_else(|| Fault::new(format!("/to/{index}"), "an address is a string"))?;
        let address = read_address(text, Some(index))?;
        if elements.len == 1 {
            return Ok(To::One(address));
        }
        if address.stands_alone() {
            return Err(Fault::new(
                format!("/to/{index}"),
                "an intent or a channel stands alone: send it in a message of its own",
            ));
        }
        list.push_str(text);
        list.push('\n');
    }
    Ok(To::Many(Addresses { rest: list }))
}

fn read_address<'a>(text: &'a str, index: Option<usize>) -> Result<Address<'a>, Fault> {
    Address::parse(text).ok_or_else(|| {
        let pointer = index.map_or_else(|| "/to".to_owned(), |index| format!("/to/{index}"));
        Fault::new(
            pointer,
            "an address is session, client:ID, user:SUB, room:NAME, role:NAME, intent:NAME or channel:NAME; a NAME is 1 to 128 \
             of A-Z a-z 0-9 _ . : - (a channel's 120); a room's does not begin with rw:",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ErrorCode;

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

    #[test]
    fn every_key_is_read() {
        let text = r#" { "meta" : {"k":[1, {"a":"}"}]} , "ephemeral":true,
            "traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01","reply_to":"m-0","to":"room:ops",
            "payload" : [1, "]", {"x":null}]	,"session_id":"s:4.2_-","id":"!~\"","type":"a.b_c-9" }  "#;
        let mut parser = Parser::default();
        let envelope = parser.parse(text.as_bytes()).unwrap();
        assert_eq!(
            envelope,
            Envelope {
                kind: "a.b_c-9",
                id: "!~\"",
                session_id: "s:4.2_-",
                payload: br#"[1, "]", {"x":null}]"#,
                to: To::One(Address::Room("ops")),
                reply_to: Some("m-0"),
                traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
                ephemeral: true,
                meta: Some(br#"{"k":[1, {"a":"}"}]}"#),
                object: text.trim().strip_suffix('}').unwrap().as_bytes(),
            }
        );
    }

    #[test]
    fn optional_keys_default() {
        let mut parser = Parser::default();
        let envelope = parser.parse(GOOD.as_bytes()).unwrap();
        assert_eq!((envelope.to, envelope.reply_to, envelope.traceparent), (To::Default, None, None));
        assert_eq!((envelope.ephemeral, envelope.meta), (false, None));
        let explicit = with(r#""ephemeral":false"#);
        assert!(!parser.parse(explicit.as_bytes()).unwrap().ephemeral);
    }

    #[test]
    fn any_json_value_is_a_payload() {
        let mut parser = Parser::default();
        for payload in ["null", "true", "-0", "1e3", r#""x""#, r#""\"}""#, "[]", "{}", r#"{"a":[{}]}"#, r#""é\u00e9""#] {
            for padded in [payload.to_owned(), format!(" \n{payload}\t ")] {
                let text = minimal(&padded);
                let envelope = parser.parse(text.as_bytes()).unwrap();
                assert_eq!(envelope.payload, payload.as_bytes());
                assert_eq!(envelope.object, &text.as_bytes()[..text.len() - 1]);
            }
        }
    }

    #[test]
    fn refusals_name_the_place() {
        let long_meta = format!(r#""meta":{{"a":"{}"}}"#, "x".repeat(META_BYTES_MAX));
        let addresses = vec![r#""room:a""#; ADDRESSES_MAX + 1].join(",");
        for (text, pointer) in [
            ("[]".to_owned(), ""),
            ("5".to_owned(), ""),
            ("null".to_owned(), ""),
            (r#""text""#.to_owned(), ""),
            ("{}".to_owned(), "/type"),
            (GOOD.replace(r#""id":"m-1","#, ""), "/id"),
            (GOOD.replace(r#""session_id":"s-42","#, ""), "/session_id"),
            (GOOD.replace(r#","payload":{"text":"hi"}"#, ""), "/payload"),
            (GOOD.replace("chat.say", "Chat"), "/type"),
            (GOOD.replace("chat.say", ".chat"), "/type"),
            (GOOD.replace("chat.say", ""), "/type"),
            (GOOD.replace("chat.say", &"a".repeat(65)), "/type"),
            (GOOD.replace(r#""chat.say""#, "7"), "/type"),
            (GOOD.replace("m-1", "m 1"), "/id"),
            (GOOD.replace("m-1", "é"), "/id"),
            (GOOD.replace("m-1", r"a\nb"), "/id"),
            (GOOD.replace("m-1", &"a".repeat(129)), "/id"),
            (GOOD.replace(r#""m-1""#, "null"), "/id"),
            (GOOD.replace("s-42", "s/42"), "/session_id"),
            (GOOD.replace("s-42", ""), "/session_id"),
            (with(r#""seq":1"#), "/seq"),
            (with(r#""from":"rw""#), "/from"),
            (with(r#""a/b~":1"#), "/a~1b~0"),
            (with(r#""id":"m-1""#), "/id"),
            (with(r#""i\u0064":"m-1""#), "/id"),
            (with(r#""payload":1"#), "/payload"),
            (with(r#""reply_to":"""#), "/reply_to"),
            (with(r#""reply_to":null"#), "/reply_to"),
            (with(r#""traceparent":"00-x""#), "/traceparent"),
            (with(r#""traceparent":1"#), "/traceparent"),
            (with(r#""ephemeral":1"#), "/ephemeral"),
            (with(r#""ephemeral":"true""#), "/ephemeral"),
            (with(r#""meta":[]"#), "/meta"),
            (with(&long_meta), "/meta"),
            (with(r#""to":null"#), "/to"),
            (with(r#""to":{}"#), "/to"),
            (with(r#""to":[]"#), "/to"),
            (with(r#""to":"nobody""#), "/to"),
            (with(r#""to":"room:""#), "/to"),
            (with(r#""to":"room:a b""#), "/to"),
            (with(r#""to":"room:rw:a""#), "/to"),
            (with(r#""to":["room:a","room:rw:"]"#), "/to/1"),
            (with(r#""to":"session:x""#), "/to"),
            (with(r#""to":"Room:x""#), "/to"),
            (with(r#""to":"client:a\"b""#), "/to"),
            (with(&format!(r#""to":"channel:{}""#, "a".repeat(121))), "/to"),
            (with(r#""to":["room:a",7]"#), "/to/1"),
            (with(r#""to":["room:a","x:y"]"#), "/to/1"),
            (with(r#""to":["session",["room:a"]]"#), "/to/1"),
            (with(r#""to":["room:a","channel:news"]"#), "/to/1"),
            (with(r#""to":["intent:refund","room:a"]"#), "/to/0"),
            (with(&format!(r#""to":[{addresses}]"#)), "/to"),
            (GOOD.replace("chat.say", "rw.join").replace(r#"{"text":"hi"}"#, "[]"), "/payload"),
        ] {
            let refusal = refusal(&text);
            assert_eq!(refusal.pointer, pointer, "{text}: {}", refusal.message);
            assert_eq!(refusal.code, ErrorCode::EnvelopeInvalid);
            assert!(!refusal.retryable() && !refusal.message.is_empty() && refusal.message.len() < 400, "{}", refusal.message);
        }
    }

    #[test]
    fn a_refusal_bears_what_could_be_read() {
        for (text, id, session_id) in [
            (with(r#""x":1"#), "m-1", "s-42"),
            (r#"{"x":1,"session_id":"s","id":"late"}"#.to_owned(), "late", "s"),
            (r#"{"id":"a b","session_id":"a b"}"#.to_owned(), "", ""),
            (r#"{"id":7}"#.to_owned(), "", ""),
            ("[1]".to_owned(), "", ""),
            (r#"{"x":{"id":"inner"}}"#.to_owned(), "", ""),
            (r#"{"\u0069d":"escaped"}"#.to_owned(), "escaped", ""),
        ] {
            let refusal = refusal(&text);
            assert_eq!((&*refusal.id, &*refusal.session_id), (id, session_id), "{text}");
        }
    }

    #[test]
    fn escapes_mean_what_they_stand_for() {
        let text = r#"{"t\u0079pe":"ch\u0061t","id":"a\/b","session_id":"\u0073","pay\u006coad":"\/","to":["client:ana\/tab","role:\u0061"]}"#;
        let mut parser = Parser::default();
        let envelope = parser.parse(text.as_bytes()).unwrap();
        assert_eq!((envelope.kind, envelope.id, envelope.session_id), ("chat", "a/b", "s"));
        assert_eq!(envelope.payload, br#""\/""#);
        assert_eq!(envelope.object, &text.as_bytes()[..text.len() - 1]);
        let addresses: Vec<_> = envelope.to.iter().collect();
        assert_eq!(addresses, [Address::Client("ana/tab"), Address::Role("a")]);
    }

    #[test]
    fn addresses_are_read_in_order() {
        let name = "n".repeat(128);
        let list = format!(r#""to":["session","client:ana/tab-7","user:ana@x.org","room:a:b","role:{name}"]"#);
        let text = with(&list);
        let mut parser = Parser::default();
        let To::Many(addresses) = parser.parse(text.as_bytes()).unwrap().to else { panic!("a list") };
        let expected = [
            Address::Session,
            Address::Client("ana/tab-7"),
            Address::User("ana@x.org"),
            Address::Room("a:b"),
            Address::Role(&name),
        ];
        assert_eq!(addresses.collect::<Vec<_>>(), expected);
        assert_eq!(addresses.count(), 5, "iterating a copy leaves the list whole");
        for (member, address) in [
            (r#""to":["channel:news"]"#, Address::Channel("news")),
            (r#""to":"intent:refund""#, Address::Intent("refund")),
            (r#""to":"session""#, Address::Session),
        ] {
            assert_eq!(parser.parse(with(member).as_bytes()).unwrap().to, To::One(address));
        }
        let most = format!(r#""to":[{}]"#, vec![r#""room:a""#; ADDRESSES_MAX].join(","));
        assert_eq!(parser.parse(with(&most).as_bytes()).unwrap().to.iter().count(), ADDRESSES_MAX);
        for address in expected {
            let (kind, name) = address.parts();
            let text = if name.is_empty() { kind.to_owned() } else { format!("{kind}:{name}") };
            assert_eq!(Address::parse(&text), Some(address));
        }
    }

    #[test]
    fn a_parser_serves_one_message_after_another() {
        let mut parser = Parser::default();
        let long = minimal(&format!(r#""{}""#, "x".repeat(60_000)));
        for _ in 0..3 {
            assert!(parser.parse(long.as_bytes()).is_ok());
            assert!(parser.parse(b"{").is_err());
            assert!(parser.parse(b"").is_err());
            assert!(parser.parse(minimal("1e999").as_bytes()).is_ok());
            assert_eq!(parser.parse(GOOD.as_bytes()).unwrap().payload, br#"{"text":"hi"}"#);
        }
    }
}
