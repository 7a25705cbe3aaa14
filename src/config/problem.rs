//! Problems of a configuration: what is wrong, and where.

use std::fmt;

/// Where a mistake stands; in this order they are told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of the file, from 1.
    Line(usize),
    /// An environment variable.
    Environment(String),
    /// The file as a whole, or something that is missing from it.
    Whole,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    /// What was wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Line(line) => write!(formatter, "line {line}: {}", self.message),
            Place::Environment(name) => write!(formatter, "environment {name}: {}", self.message),
            Place::Whole => formatter.write_str(&self.message),
        }
    }
}

/// All mistakes of a configuration; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<Problem>);
