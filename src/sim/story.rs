//! A timeline of events that concern the reader with a complaint: messages sent into its sessions and those it read, records that
//! its session's home appended and showed, its cursors, disks, ends and starts, in order, with places in the log.
//!
//! Kept in a second run of a failed seed, for the readers that the first run's complaint names. Changes no trace.

use super::client::{ROLES, ROOMS, What};
use super::cover::Cover;
use super::world::World;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Lines of a timeline; what came before the last of them is left out.
const LINES_MAX: usize = 4_000;
/// Characters of a payload that are told.
const PAYLOAD_MAX: usize = 200;
/// Places before and after one that a complaint names, of which the records are told.
const RECORDS_AROUND: u64 = 2;

/// Clients, sessions and places that a complaint is about.
#[derive(Clone, Debug, Default)]
pub struct Subjects {
    /// The reader; empty where the complaint names no client: everybody is meant.
    clients: BTreeSet<String>,
    /// Empty where the complaint names no session: all are meant.
    sessions: BTreeSet<String>,
    /// Numbers in the complaint that may be places in the order.
    places: BTreeSet<u64>,
}

impl Subjects {
    /// The client and the session that a complaint names first, and the numbers in it.
    pub fn of(complaint: &str, clients: &[String]) -> Self {
        let head = complaint.split([';', '{']).next().unwrap_or(complaint);
        let words = || {
            let is_part = |letter: char| letter.is_ascii_alphanumeric() || "_./:-".contains(letter);
            head.split(move |letter: char| !is_part(letter)).map(|word| word.trim_end_matches(':'))
        };
        let client = words().find(|word| clients.iter().any(|client| client == word));
        let session = words().find(|word| word.starts_with("s.") || word.starts_with("channel:c."));
        Self {
            clients: client.map(str::to_owned).into_iter().collect(),
            sessions: session.map(str::to_owned).into_iter().collect(),
            places: words().filter_map(|word| word.parse().ok()).filter(|place| *place < 1_000_000).take(12).collect(),
        }
    }

    fn names_client(&self, client: &str) -> bool {
        self.clients.is_empty() || self.clients.contains(client)
    }

    fn names_session(&self, session: &str) -> bool {
        self.sessions.is_empty() || self.sessions.contains(session)
    }
}

#[derive(Debug)]
pub struct Story {
    about: Subjects,
    lines: Vec<String>,
    /// The last line about each thing that is looked at after every turn.
    looks: BTreeMap<String, String>,
}

impl Story {
    pub const fn new(about: Subjects) -> Self {
        Self { about, lines: Vec::new(), looks: BTreeMap::new() }
    }

    fn line(&mut self, now_ns: u64, what: &str) {
        self.lines.push(format!("{:>12.3} ms  {what}", now_ns as f64 / 1e6));
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        // A panic takes the world along; what led to it is told here.
        if std::thread::panicking() {
            let from = self.lines.len().saturating_sub(200);
            self.lines[from..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl World {
    /// Something that concerns everybody.
    pub fn tell_story(&mut self, what: impl FnOnce() -> String) {
        let now_ns = self.now_ns;
        if let Some(story) = &mut self.story {
            story.line(now_ns, &what());
        }
    }

    /// Something that a client does, or that is done to it.
    pub fn tell_of(&mut self, c: usize, what: impl FnOnce() -> String) {
        let (now_ns, client) = (self.now_ns, &self.clients[c].id);
        if let Some(story) = self.story.as_mut().filter(|story| story.about.names_client(client)) {
            story.line(now_ns, &format!("{client} {}", what()));
        }
    }

    /// A client sends something: its own sends are told, and everybody's messages into the session.
    pub fn tell_sent(&mut self, c: usize, id: &str, session: &str, what: &What) {
        let (now_ns, client) = (self.now_ns, &self.clients[c].id);
        let Some(story) = &mut self.story else { return };
        let into = match what {
            What::Message { target, .. } => target,
            _ => session,
        };
        let of_its_session = story.about.names_session(into) && matches!(what, What::Message { .. } | What::Ephemeral);
        if story.about.names_client(client) || of_its_session {
            story.line(now_ns, &format!("{client} sends {id} in {session}: {what:?}"));
        }
    }

    /// A client reads an envelope.
    pub fn tell_read(&mut self, c: usize, envelope: &Value) {
        let Some(story) = &self.story else { return };
        let session = envelope["session_id"].as_str().unwrap_or_default();
        if !story.about.names_session(session) && !session.is_empty() {
            return;
        }
        let (kind, id) = (envelope["type"].as_str().unwrap_or_default(), envelope["id"].as_str().unwrap_or_default());
        let what = match envelope["seq"].as_u64() {
            Some(seq) => format!("reads {seq} of {session}: {id} of {} to {}", envelope["from"], envelope["to"]),
            None => {
                let payload: String = envelope["payload"].to_string().chars().take(PAYLOAD_MAX).collect();
                format!("reads {kind} {id} of {session}: {payload}")
            }
        };
        self.tell_of(c, || what);
    }

    /// Looks at all that concerns the subjects, and tells what is not as it was.
    pub fn tell_looks(&mut self) {
        let Some(mut story) = self.story.take() else { return };
        let mut looks = Vec::new();
        for (shard, seat) in self.seats.iter().enumerate() {
            let mut cover = Cover::default();
            seat.count_cover(&mut cover);
            looks.extend(cover.iter().map(|((kind, name), count)| {
                (format!("{shard} {kind} {name}"), format!("shard {shard}: {kind} {name}, {count} so far"))
            }));
        }
        for session in self.oracle.sessions().iter().filter(|session| story.about.names_session(session)) {
            let (home, (first, head)) = (self.home(session), self.bounds(session));
            let appended = self.appended(session);
            looks.push((
                format!("home of {session}"),
                format!("shard {home}: {session} appended to {appended}, shown to {head}, from {first}"),
            ));
            for client in self.clients.iter().filter(|client| story.about.names_client(&client.id)) {
                for (shard, seat) in self.seats.iter().enumerate() {
                    for (what, look) in seat.core.sight(&client.id, session, (&ROOMS, &ROLES)) {
                        looks.push((
                            format!("{shard} {} {session} {what}", client.id),
                            format!("shard {shard}: {} in {session}: {what}: {look}", client.id),
                        ));
                    }
                }
            }
        }
        for (what, look) in looks {
            if story.looks.get(&what) != Some(&look) {
                story.line(self.now_ns, &look);
                story.looks.insert(what, look);
            }
        }
        self.story = Some(story);
    }

    /// The timeline, with the records around the places that the complaint names.
    pub fn end_story(&mut self) -> Vec<String> {
        let Some(mut story) = self.story.take() else { return Vec::new() };
        let mut lines = std::mem::take(&mut story.lines);
        let left_out = lines.len().saturating_sub(LINES_MAX);
        lines.drain(..left_out);
        if left_out > 0 {
            lines.insert(0, format!("({left_out} lines before these are left out)"));
        }
        let around = |place: &u64| place.saturating_sub(RECORDS_AROUND)..=place + RECORDS_AROUND;
        let places: BTreeSet<u64> = story.about.places.iter().flat_map(around).collect();
        for session in self.oracle.sessions().iter().filter(|session| story.about.names_session(session)) {
            lines.extend(
                places.iter().filter_map(|seq| Some(format!("{session}: {seq} is {}", self.oracle.describe(session, *seq)?))),
            );
        }
        lines
    }
}
