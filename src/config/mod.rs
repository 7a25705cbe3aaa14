//! Configuration: TOML text and `RINGWAY_SECTION__KEY` pairs in, validated plain structs out ("parse, don't validate").
//!
//! May import the vocabulary. Reads no file, no environment and no clock: the caller passes the text and the pairs, and loads
//! the key files that the settings name.
//!
//! Invariants: every key stands once, in `sections.rs`, with its type, default, range, unit and what it does; the structs, the
//! defaults text, the reference table and the reload report are made from that one table. A [`Settings`] that exists is
//! valid. All mistakes of a file are reported at once, each with its line.

mod parse;
mod render;
mod sections;
mod value;

pub use parse::{ConfigError, Place, Problem};
pub use render::{Change, defaults_toml, docs_markdown};
pub use sections::{
    Admin, Auth, AuthKey, Deflate, Diagnostics, Drain, Key, Limits, Log, SECTIONS, Section, Server, Session, Settings, Tls, cap,
};
pub use value::{Durability, Engine, HeaderName, HistoryView, KeyAlgorithm, LogFormat, LogLevel, Network, NodeName, Origin};
