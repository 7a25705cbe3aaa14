//! Coverage of reasons: how often each one for a close, a drop or a refusal was reached, in how many worlds. A reason that no seed
//! reaches is no tested reason.

use super::world::{Seat, World};
use crate::close::CloseReason;
use crate::protocol::ErrorCode;
use crate::shard::counters::{DropReason, LimitReached};
use std::collections::BTreeMap;

/// Kind and name of a reason, with how often it was reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cover(BTreeMap<(&'static str, String), u64>);

/// Outcomes of epochs, as clients are told of them.
pub const EPOCHS: [&str; 6] =
    ["resumed_in_it", "resumed_over_a_start", "rewound", "not_known_any_more", "kept_by_a_start", "begun_by_a_start"];

impl Cover {
    pub fn add(&mut self, kind: &'static str, name: &str, count: u64) {
        if count > 0 {
            *self.0.entry((kind, name.to_owned())).or_default() += count;
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&(&'static str, String), &u64)> {
        self.0.iter()
    }

    fn all_names() -> Vec<(&'static str, &'static str)> {
        let closes = CloseReason::ALL.iter().map(|reason| ("close", reason.label()));
        let drops = DropReason::ALL.iter().map(|reason| ("drop", reason.label()));
        let limits = LimitReached::ALL.iter().map(|limit| ("limit", limit.label()));
        let errors = ErrorCode::ALL.iter().map(|code| ("error", code.as_str()));
        let epochs = EPOCHS.iter().map(|epoch| ("epoch", *epoch));
        closes.chain(drops).chain(limits).chain(errors).chain(epochs).collect()
    }
}

/// The sum over many worlds: in how many of them, and how often in all.
#[derive(Debug, Default)]
pub struct Sum(BTreeMap<(&'static str, String), (u64, u64)>);

impl Sum {
    pub fn add(&mut self, cover: &Cover) {
        for (name, count) in &cover.0 {
            let (worlds, total) = self.0.entry(name.clone()).or_default();
            (*worlds, *total) = (*worlds + 1, *total + count);
        }
    }

    /// Names that no world reached.
    pub fn never(&self) -> Vec<String> {
        let reached = |(kind, name): &(&'static str, &'static str)| self.0.contains_key(&(*kind, (*name).to_owned()));
        Cover::all_names().iter().filter(|name| !reached(name)).map(|(kind, name)| format!("{kind} {name}")).collect()
    }

    /// The table, as Markdown.
    pub fn table(&self) -> String {
        let mut text = String::from("| | reason | worlds | times |\n| --- | --- | --- | --- |\n");
        for (kind, name) in Cover::all_names() {
            let (worlds, total) = self.0.get(&(kind, name.to_owned())).copied().unwrap_or_default();
            text.push_str(&format!("| {kind} | `{name}` | {worlds} | {total} |\n"));
        }
        text
    }
}

impl Seat {
    /// Adds the reasons that this process's shard reached.
    pub fn count_cover(&self, cover: &mut Cover) {
        let counters = &self.counters;
        CloseReason::ALL.iter().for_each(|reason| cover.add("close", reason.label(), counters.closed_count(*reason)));
        DropReason::ALL.iter().for_each(|reason| cover.add("drop", reason.label(), counters.dropped_count(*reason)));
        LimitReached::ALL.iter().for_each(|limit| cover.add("limit", limit.label(), counters.limit_count(*limit)));
    }
}

impl World {
    /// Adds the reasons that its last process reached, and the codes that its clients were told.
    pub fn count_cover(&mut self) {
        let Self { seats, clients, cover, .. } = self;
        seats.iter().for_each(|seat| seat.count_cover(cover));
        for (answer, count) in clients.iter().flat_map(|client| &client.answers) {
            if answer.contains('.') && !answer.starts_with("rw.") {
                cover.add("error", answer, *count);
            }
        }
    }
}
