//! TOML text and environment pairs to values with their places. Their meaning is judged by the next stage (`validate`).

use super::problem::{Place, Problem};
use super::value::Raw;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The configuration file's size.
const TEXT_BYTES_MAX: usize = 1024 * 1024;
const ENVIRONMENT_PREFIX: &str = "RINGWAY_";

/// Something with a name.
pub(super) struct Given {
    pub(super) name: String,
    pub(super) item: Item,
}

/// A value, and where it (a table's: its name) stands.
pub(super) struct Item {
    pub(super) place: Place,
    pub(super) value: Value,
}

pub(super) enum Value {
    One(Raw),
    List(Vec<Item>),
    Table(Vec<Given>),
}

/// The content of a text.
#[derive(Default)]
pub(super) struct Parsed {
    pub(super) given: Vec<Given>,
    pub(super) problems: Vec<Problem>,
    /// `false` if the syntax is too broken to know what was meant: then no conclusion is drawn from values that are missing.
    pub(super) readable: bool,
}

/// The file's text.
pub(super) fn text(text: &str) -> Parsed {
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("the file has {} bytes; at most {TEXT_BYTES_MAX} are read", text.len());
        return Parsed { problems: vec![Problem { place: Place::Whole, message }], ..Parsed::default() };
    }
    let lines = Lines::of(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut parsed = Parsed { readable: true, ..Parsed::default() };
    for error in errors {
        let place = error.span().map_or(Place::Whole, |span| lines.place(span.start));
        let mut message = format!("not TOML: {}", error.message().replace('\n', "; "));
        if error.message() == DUPLICATE {
            let key = error.span().and_then(|span| text.get(span)).unwrap_or_default();
            message
                .push_str(&format!(" {}: it stands above already", Raw::Text(key.trim_matches(['"', '\'']).to_owned()).shown()));
        } else if std::mem::replace(&mut parsed.readable, false) {
            // Later errors may be consequences of the first one.
        } else {
            continue;
        }
        parsed.problems.push(Problem { place, message });
    }
    if parsed.readable {
        parsed.given = entries(table.get_ref(), &lines);
    }
    parsed
}

/// The parser's message for a key that occurs twice. The first occurrence counts, so that the rest can still be judged.
const DUPLICATE: &str = "duplicate key";

/// The environment's pairs, those that begin with `RINGWAY_` and hold `__`, in the order of their names.
pub(super) fn environment(pairs: impl IntoIterator<Item = (String, String)>) -> Vec<Given> {
    let mut pairs: Vec<(String, String)> = pairs.into_iter().collect();
    pairs.sort();
    let given = |(name, value): (String, String)| {
        let (section, key) = name.strip_prefix(ENVIRONMENT_PREFIX)?.split_once("__")?;
        let (section, key) = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
        let item = |value| Item { place: Place::Environment(name.clone()), value };
        let key = Given { name: key, item: item(Value::One(Raw::Environment(value))) };
        Some(Given { name: section, item: item(Value::Table(vec![key])) })
    };
    pairs.into_iter().filter_map(given).collect()
}

/// Where the lines of a text begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1).collect())
    }

    fn place(&self, at: usize) -> Place {
        Place::Line(1 + self.0.partition_point(|begin| *begin <= at))
    }
}

fn entries(table: &DeTable<'_>, lines: &Lines) -> Vec<Given> {
    let entry = |(name, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let text: &std::borrow::Cow<'_, str> = name.get_ref();
        let item = Item { place: lines.place(name.span().start), value: self::value(value.get_ref(), lines) };
        Given { name: text.to_string(), item }
    };
    table.iter().map(entry).collect()
}

fn value(value: &DeValue<'_>, lines: &Lines) -> Value {
    Value::One(match value {
        DeValue::Boolean(value) => Raw::Bool(*value),
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(integer) => {
            i64::from_str_radix(integer.as_str(), integer.radix()).map_or_else(|_| Raw::Other(integer.to_string()), Raw::Integer)
        }
        DeValue::Float(float) => Raw::Other(float.to_string()),
        DeValue::Datetime(datetime) => Raw::Other(datetime.to_string()),
        DeValue::Array(items) => {
            let item =
                |item: &Spanned<_>| Item { place: lines.place(item.span().start), value: self::value(item.get_ref(), lines) };
            return Value::List(items.iter().map(item).collect());
        }
        DeValue::Table(keys) => return Value::Table(entries(keys, lines)),
    })
}

impl Value {
    /// The value as a setting's; a type that no setting takes is kept as text, for the message.
    pub(super) fn raw(&self) -> Raw {
        match self {
            Self::One(raw) => raw.clone(),
            Self::Table(_) => Raw::Other("a table".to_owned()),
            Self::List(items) => {
                let text = |item: &Item| match &item.value {
                    Self::One(Raw::Text(text)) => Some(text.clone()),
                    _ => None,
                };
                items.iter().map(text).collect::<Option<_>>().map_or_else(|| Raw::Other("a list".to_owned()), Raw::List)
            }
        }
    }

    /// The value as a message shows it.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::One(raw) => raw.shown(),
            Self::List(_) => "a list".to_owned(),
            Self::Table(_) => "a table".to_owned(),
        }
    }
}
