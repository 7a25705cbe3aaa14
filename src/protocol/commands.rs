//! The payloads of the gateway's own commands (protocol.md sections 4 to 6): raw JSON to typed, bounded values.
//!
//! Unknown keys of a payload are ignored, so that a newer client can talk to this version; a known key that stands twice or is
//! ill-typed is refused. `null` is the same as absent for an optional key, since most languages' encoders write it.

use super::envelope::Envelope;
use super::errors::{ErrorCode, Fault, Refusal};
use super::names::{is_client_id, is_name, is_room};
use super::scan::{Document, Value, View};
use crate::limits::{
    FEATURES_MAX, HISTORY_PAGE_DEFAULT, HISTORY_PAGE_MAX, MEMBERS_PAGE_DEFAULT, MEMBERS_PAGE_MAX, PRESENCE_DATA_BYTES_MAX,
    ROOMS_PER_CLIENT_MAX,
};
use std::fmt;

const NAME: &str = "a name: 1 to 128 of A-Z a-z 0-9 _ . : -";
const ROOM: &str = "a room's name: 1 to 128 of A-Z a-z 0-9 _ . : - that don't begin with rw:, which are the gateway's own";

/// The largest integer that every JSON reader holds exactly (RFC 8259 section 6).
const INTEGER_MAX: u64 = (1 << 53) - 1;

/// The owner of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An application's type, passed through untouched.
    Application,
    /// A command of this version.
    Known(CommandKind),
    /// A command that the protocol has and this version does not.
    Reserved,
    /// `rw.`, but no command that the protocol knows.
    Unknown,
}

/// The commands of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommandKind {
    Hello,
    Attach,
    Detach,
    Ping,
    Refresh,
    Join,
    Leave,
    Members,
    Watch,
    PresenceSet,
    History,
    Received,
}

/// Types that protocol.md reserves for the governed plane: one of these, or one of these followed by a dot and more.
const RESERVED: [&str; 14] = [
    "agent", "approval", "context", "handoff", "plan", "policy", "queued", "route", "run", "session", "step", "stream", "task",
    "tool",
];

/// Classifies a `type`.
#[must_use]
pub fn command_kind(kind: &str) -> Kind {
    let Some(name) = kind.strip_prefix("rw.") else {
        return Kind::Application;
    };
    Kind::Known(match name {
        "hello" => CommandKind::Hello,
        "attach" => CommandKind::Attach,
        "detach" => CommandKind::Detach,
        "ping" => CommandKind::Ping,
        "refresh" => CommandKind::Refresh,
        "join" => CommandKind::Join,
        "leave" => CommandKind::Leave,
        "members" => CommandKind::Members,
        "watch" => CommandKind::Watch,
        "presence.set" => CommandKind::PresenceSet,
        "history" => CommandKind::History,
        "received" => CommandKind::Received,
        _ if RESERVED.contains(&name.split('.').next().unwrap_or("")) => return Kind::Reserved,
        _ => return Kind::Unknown,
    })
}

/// A command with its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    Hello(Hello<'a>),
    Attach(Attach<'a>),
    Detach,
    Ping,
    Refresh(Refresh<'a>),
    Join { room: &'a str },
    Leave { room: &'a str },
    Members(Members<'a>),
    Watch(Watch<'a>),
    PresenceSet { data: &'a [u8] },
    History(History<'a>),
    Received { seq: u64 },
}

/// `rw.hello` (section 4).
#[derive(Clone, PartialEq, Eq)]
pub struct Hello<'a> {
    pub client_id: &'a str,
    /// Not empty; not checked further.
    pub auth_token: &'a str,
    pub attach: Attach<'a>,
    /// `false` turns acks off, never errors. Default `true`.
    pub acks: bool,
    /// Features of the client; unknown ones are for a later version.
    pub features: Vec<&'a str>,
}

impl fmt::Debug for Hello<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Hello")
            .field("client_id", &self.client_id)
            .field("attach", &self.attach)
            .field("acks", &self.acks)
            .field("features", &self.features)
            .finish_non_exhaustive()
    }
}

/// The hello's session keys, and the whole of `rw.attach` (section 4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach<'a> {
    /// Takes precedence over `start`.
    pub resume: Option<Resume<'a>>,
    pub start: Start,
    /// At most 128, without duplicates.
    pub rooms: Vec<&'a str>,
    /// `false` refuses an unknown session. Default `true`.
    pub create: bool,
    /// `true` delivers the client's own messages too. Default `false`.
    pub echo: bool,
}

/// A position to continue after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume<'a> {
    pub epoch: &'a str,
    pub seq: u64,
}

/// The place where a client without `resume` starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// After its last receipt; for a newcomer, the head.
    #[default]
    Cursor,
    Head,
    Oldest,
    /// At the last so many messages.
    Last(u64),
}

/// `rw.refresh` (section 4).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Refresh<'a> {
    /// Not empty; not checked further.
    pub auth_token: &'a str,
}

impl fmt::Debug for Refresh<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Refresh").finish_non_exhaustive()
    }
}

/// `rw.members` (section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Members<'a> {
    pub room: Option<&'a str>,
    /// The `next` of the previous page.
    pub after: Option<&'a str>,
    /// 1 to [`MEMBERS_PAGE_MAX`].
    pub limit: usize,
}

/// `rw.watch` (section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch<'a> {
    /// `false` ends the watch.
    pub presence: bool,
    pub room: Option<&'a str>,
}

/// `rw.history` (section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History<'a> {
    pub from: HistoryFrom,
    /// 1 to [`HISTORY_PAGE_MAX`].
    pub limit: usize,
    pub room: Option<&'a str>,
}

/// The place of a page of history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistoryFrom {
    /// The last messages: neither `before` nor `after` was given.
    Newest,
    /// The last ones below this `seq`.
    Before(u64),
    /// The first ones above this `seq`.
    After(u64),
}

/// Reads commands' payloads. Each shard has one, beside the [`super::Parser`] whose envelopes it reads.
#[derive(Default)]
pub struct CommandParser {
    document: Document,
}

impl CommandParser {
    /// Reads the payload of a type that [`command_kind`] has classified. Types that are no command of this version are refused
    /// here too, so that the texts of these refusals are in one place; so is an application's type, as none of the gateway's.
    ///
    /// # Errors
    /// The refusal to send. The connection stays open, unless the caller's state says otherwise.
    pub fn parse<'a>(&'a mut self, envelope: &Envelope<'a>) -> Result<Command<'a>, Box<Refusal>> {
        let read = match command_kind(envelope.kind) {
            Kind::Known(kind) => self
                .document
                .read(envelope.payload, |view| read_command(kind, view))
                // The envelope's validation has passed the payload, and this one is the same.
                .unwrap_or_else(|_| Err(Fault::new("/payload", "the payload doesn't read"))),
            Kind::Reserved => {
                Err(Fault::new("/type", format!("{} isn't available in this version of the gateway", envelope.kind))
                    .coded(ErrorCode::EnvelopeUnknownType))
            }
            Kind::Unknown | Kind::Application => Err(Fault::new(
                "/type",
                format!("{} is no command of the gateway; types of your own don't begin with rw.", envelope.kind),
            )
            .coded(ErrorCode::EnvelopeUnknownType)),
        };
        read.map_err(|fault| fault.of(envelope.id, envelope.session_id))
    }
}

fn read_command<'a>(kind: CommandKind, view: &View<'_, 'a>) -> Result<Command<'a>, Fault> {
    let fields = Fields { view };
    Ok(match kind {
        CommandKind::Hello => Command::Hello(Hello {
            client_id: fields
                .string("client_id", is_client_id, "the token's sub, or sub/ and 1 to 64 of A-Z a-z 0-9 _ -")?
                .ok_or_else(|| absent("client_id"))?,
            auth_token: fields.token()?,
            attach: fields.attach()?,
            acks: fields.boolean("acks")?.unwrap_or(true),
            features: fields.names("features", FEATURES_MAX, is_name, NAME)?,
        }),
        CommandKind::Attach => Command::Attach(fields.attach()?),
        CommandKind::Detach => Command::Detach,
        CommandKind::Ping => Command::Ping,
        CommandKind::Refresh => Command::Refresh(Refresh { auth_token: fields.token()? }),
        CommandKind::Join => Command::Join { room: fields.room()?.ok_or_else(|| absent("room"))? },
        // Leaving is allowed too for a room that was joined before its name was reserved.
        CommandKind::Leave => Command::Leave { room: fields.string("room", is_name, NAME)?.ok_or_else(|| absent("room"))? },
        CommandKind::Members => Command::Members(Members {
            room: fields.room()?,
            after: fields.string("after", is_client_id, "a client_id: the next of the page before")?,
            limit: fields.limit(MEMBERS_PAGE_DEFAULT, MEMBERS_PAGE_MAX)?,
        }),
        CommandKind::Watch => {
            Command::Watch(Watch { presence: fields.boolean("presence")?.unwrap_or(true), room: fields.room()? })
        }
        CommandKind::PresenceSet => {
            let (_, raw) = fields.find("data")?.ok_or_else(|| absent("data"))?;
            if raw.len() > PRESENCE_DATA_BYTES_MAX {
                let message = format!("data has {} bytes; {PRESENCE_DATA_BYTES_MAX} are allowed", raw.len());
                return Err(Fault::new("/payload/data", message));
            }
            Command::PresenceSet { data: raw }
        }
        CommandKind::History => Command::History(History {
            from: match (fields.integer("before")?, fields.integer("after")?) {
                (None, None) => HistoryFrom::Newest,
                (Some(seq), None) => HistoryFrom::Before(seq),
                (None, Some(seq)) => HistoryFrom::After(seq),
                (Some(_), Some(_)) => return Err(Fault::new("/payload/after", "give before or after, not both")),
            },
            limit: fields.limit(HISTORY_PAGE_DEFAULT, HISTORY_PAGE_MAX)?,
            room: fields.room()?,
        }),
        CommandKind::Received => Command::Received { seq: fields.integer("seq")?.ok_or_else(|| absent("seq"))? },
    })
}

#[cold]
fn absent(key: &'static str) -> Fault {
    Fault::new(format!("/payload/{key}"), format!("{key} is missing from the payload"))
}

#[cold]
fn ill_typed(key: &'static str, rule: &str) -> Fault {
    Fault::new(format!("/payload/{key}"), format!("{key} is {rule}"))
}

/// The payload by key.
struct Fields<'v, 't, 'a> {
    view: &'v View<'t, 'a>,
}

impl<'t, 'a> Fields<'_, 't, 'a> {
    /// The value and its raw text. Payloads have few keys, so a walk for each is cheaper than a map.
    fn find(&self, key: &'static str) -> Result<Option<(Value<'t, 'a>, &'a [u8])>, Fault> {
        let mut found = None;
        for member in self.view.members().into_iter().flatten().filter(|member| member.key == key) {
            if found.is_some() {
                return Err(Fault::new(format!("/payload/{key}"), format!("the key {key:?} stands twice; give it once")));
            }
            found = Some((member.value, member.raw));
        }
        Ok(found)
    }

    /// The value of an optional key.
    fn optional(&self, key: &'static str) -> Result<Option<Value<'t, 'a>>, Fault> {
        Ok(self.find(key)?.map(|(value, _)| value).filter(|value| !value.is_null()))
    }

    fn string(&self, key: &'static str, is_good: fn(&str) -> bool, rule: &str) -> Result<Option<&'a str>, Fault> {
        let Some(value) = self.optional(key)? else { return Ok(None) };
        match value.string() {
            Some(text) if is_good(text) => Ok(Some(text)),
            _ => Err(ill_typed(key, rule)),
        }
    }

    fn boolean(&self, key: &'static str) -> Result<Option<bool>, Fault> {
        let Some(value) = self.optional(key)? else { return Ok(None) };
        value.boolean().map(Some).ok_or_else(|| ill_typed(key, "true or false"))
    }

    fn integer(&self, key: &'static str) -> Result<Option<u64>, Fault> {
        let Some(value) = self.optional(key)? else { return Ok(None) };
        bounded_integer(value).map(Some).ok_or_else(|| ill_typed(key, "an integer from 0 to 9007199254740991"))
    }

    fn limit(&self, default: usize, max: usize) -> Result<usize, Fault> {
        let Some(limit) = self.integer("limit")? else { return Ok(default) };
        match usize::try_from(limit) {
            Ok(limit) if (1..=max).contains(&limit) => Ok(limit),
            _ => Err(ill_typed("limit", &format!("an integer from 1 to {max}"))),
        }
    }

    fn room(&self) -> Result<Option<&'a str>, Fault> {
        self.string("room", is_room, ROOM)
    }

    fn token(&self) -> Result<&'a str, Fault> {
        let missing = || absent("auth_token").coded(ErrorCode::AuthMissing);
        let value = self.optional("auth_token")?.ok_or_else(missing)?;
        match value.string() {
            Some("") => Err(missing()),
            Some(token) => Ok(token),
            None => Err(ill_typed("auth_token", "a signed JWT, a string").coded(ErrorCode::AuthMalformed)),
        }
    }

    /// A list of names without duplicates.
    fn names(&self, key: &'static str, count_max: usize, is_good: fn(&str) -> bool, rule: &str) -> Result<Vec<&'a str>, Fault> {
        let Some(value) = self.optional(key)? else { return Ok(Vec::new()) };
        let elements = value
            .elements()
            .filter(|elements| elements.len <= count_max)
            .ok_or_else(|| ill_typed(key, &format!("an array of at most {count_max} names")))?;
        let mut names = Vec::with_capacity(elements.len);
        for (index, element) in elements.enumerate() {
            let name = element
                .string()
                .filter(|name| is_good(name))
                .ok_or_else(|| Fault::new(format!("/payload/{key}/{index}"), format!("each of {key} is {rule}")))?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn attach(&self) -> Result<Attach<'a>, Fault> {
        Ok(Attach {
            resume: self.resume()?,
            start: self.start()?,
            rooms: self.names("rooms", ROOMS_PER_CLIENT_MAX, is_room, ROOM)?,
            create: self.boolean("create")?.unwrap_or(true),
            echo: self.boolean("echo")?.unwrap_or(false),
        })
    }

    fn resume(&self) -> Result<Option<Resume<'a>>, Fault> {
        let Some(value) = self.optional("resume")? else { return Ok(None) };
        let rule = "an object of epoch (the welcome's) and seq (an integer from 0 to 9007199254740991), each once";
        let (mut epoch, mut seq) = (None, None);
        for (key, value) in value.fields().ok_or_else(|| ill_typed("resume", rule))? {
            match key {
                "epoch" if epoch.is_none() => {
                    let text = value.string().filter(|text| is_name(text));
                    epoch = Some(text.ok_or_else(|| Fault::new("/payload/resume/epoch", "epoch is the welcome's, unchanged"))?);
                }
                "seq" if seq.is_none() => {
                    let refusal = || Fault::new("/payload/resume/seq", "seq is an integer from 0 to 9007199254740991");
                    seq = Some(bounded_integer(value).ok_or_else(refusal)?);
                }
                "epoch" | "seq" => return Err(ill_typed("resume", rule)),
                _ => {}
            }
        }
        match (epoch, seq) {
            (Some(epoch), Some(seq)) => Ok(Some(Resume { epoch, seq })),
            _ => Err(ill_typed("resume", rule)),
        }
    }

    fn start(&self) -> Result<Start, Fault> {
        let Some(value) = self.optional("start")? else { return Ok(Start::Cursor) };
        let refusal = || ill_typed("start", "\"cursor\", \"head\", \"oldest\" or {\"last\":N} with N from 1 on");
        if let Some(text) = value.string() {
            return match text {
                "cursor" => Ok(Start::Cursor),
                "head" => Ok(Start::Head),
                "oldest" => Ok(Start::Oldest),
                _ => Err(refusal()),
            };
        }
        let mut fields = value.fields().ok_or_else(refusal)?;
        match (fields.next(), fields.next()) {
            (Some(("last", count)), None) => {
                bounded_integer(count).filter(|count| *count > 0).map(Start::Last).ok_or_else(refusal)
            }
            _ => Err(refusal()),
        }
    }
}

fn bounded_integer(value: Value<'_, '_>) -> Option<u64> {
    value.integer().filter(|number| *number <= INTEGER_MAX)
}

#[cfg(test)]
#[path = "commands_tests.rs"]
mod tests;
