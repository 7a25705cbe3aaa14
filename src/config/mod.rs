//! Configuration: TOML text and `RINGWAY_SECTION__KEY` pairs in, validated plain structs out ("parse, don't validate").
//!
//! Two stages: `parse` knows TOML and gives values with their places, `validate` judges those and knows no TOML.
//!
//! May import the vocabulary. Reads no file, no environment and no clock: the caller passes the text and the pairs, and looks at what
//! the settings name outside the text (`cli/check.rs`).
//!
//! Invariants: every key stands once, in `sections.rs`, with its type, default, range, unit and what it does; the structs, the
//! defaults text, the reference table and the reload report are made from that one table. A [`Settings`] that exists is
//! valid. All mistakes of a file are reported at once, each with its line.

mod parse;
mod problem;
mod render;
mod sections;
mod validate;
mod value;

pub use problem::{ConfigError, Place, Problem};
pub use render::{Change, defaults_toml, docs_markdown};
pub use sections::{
    Admin, Auth, AuthKey, Deflate, Diagnostics, Drain, Key, Limits, Log, SECTIONS, Section, Server, Session, Settings, Tls, cap,
};
pub use validate::Reading;
pub use value::{Durability, Engine, HeaderName, HistoryView, KeyAlgorithm, LogFormat, LogLevel, Network, NodeName, Origin};
