//! The inbound envelope (protocol.md sections 2 and 3): text to borrowed, checked fields.

use super::errors::{Fault, Refusal, pointer_to, shortened};
use super::names::{is_client_id, is_message_id, is_name, is_subject, is_traceparent, is_type};
use super::scan::{Document, Member, Numbers, Value, View};
use crate::close::CloseReason;
use crate::limits::{ADDRESSES_MAX, META_BYTES_MAX, NAME_BYTES_MAX};

/// Reads one envelope after another. One a shard: its buffers are reused, so that in steady state a message allocates nothing.
#[derive(Default)]
pub struct Parser {
    document: Document,
    /// The addresses of a list, each ended by a newline, which none may hold.
    addresses: String,
}

/// Why a message is no envelope.
#[derive(Debug, PartialEq, Eq)]
pub enum ParseError {
    /// No JSON, nested too deep, no UTF-8: the connection closes.
    Fatal(CloseReason),
    /// JSON, but no good envelope: `rw.error`, and the connection stays open.
    Refused(Box<Refusal>),
}

/// A checked envelope. Strings are unescaped; `payload`, `meta` and `object` are the sender's own bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The `type`. See [`super::command_kind`].
    pub kind: &'a str,
    pub id: &'a str,
    pub session_id: &'a str,
    /// A JSON value without whitespace around it; an object where `kind` begins with `rw.`.
    pub payload: &'a [u8],
    pub to: To<'a>,
    pub reply_to: Option<&'a str>,
    pub traceparent: Option<&'a str>,
    /// `"ephemeral":false` is the same as absent.
    pub ephemeral: bool,
    /// A JSON object.
    pub meta: Option<&'a [u8]>,
    /// From the message's `{` up to but excluding its final `}`: what [`super::added`] is appended to.
    pub object: &'a [u8],
}

/// To whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To<'a> {
    /// `to` is absent, which means `session`.
    Default,
    /// One address, in an array or not.
    One(Address<'a>),
    /// 2 to 32 addresses, none of them an intent or a channel.
    Many(Addresses<'a>),
}

/// One address (section 3). The name is checked for charset and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address<'a> {
    Session,
    Client(&'a str),
    User(&'a str),
    Room(&'a str),
    Role(&'a str),
    Intent(&'a str),
    /// The name after `channel:`; the session behind it bears the whole text, `channel:NAME`, as its id.
    Channel(&'a str),
}

/// The addresses of a list, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses<'a> {
    rest: &'a str,
}

impl<'a> To<'a> {
    /// The addresses, `session` where `to` is absent.
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
    /// Reads `session`, `client:ID` and so on; `None` where the kind is unknown or the name is out of its charset or length.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let Some((kind, name)) = text.split_once(':') else {
            return (text == "session").then_some(Self::Session);
        };
        match kind {
            "client" if is_client_id(name) => Some(Self::Client(name)),
            "user" if is_subject(name) => Some(Self::User(name)),
            "room" if is_name(name) => Some(Self::Room(name)),
            "role" if is_name(name) => Some(Self::Role(name)),
            "intent" if is_name(name) => Some(Self::Intent(name)),
            // The channel's session bears the whole text as its id.
            "channel" if is_name(name) && text.len() <= NAME_BYTES_MAX => Some(Self::Channel(name)),
            _ => None,
        }
    }

    /// The kind as the wire has it, and the name, "" for the session.
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
        let read = document.read(text, Numbers::Opaque, |view| {
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
             of A-Z a-z 0-9 _ . : - (a channel's 120)",
        )
    })
}
