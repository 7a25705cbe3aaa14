//! `ringway log stat`, `ls` and `verify`: sums over all records.

use super::Out;
use super::directory::{Directory, Halt, Outcome, Shard, describe, ranges, unnamed};
use crate::cli::CliError;
use crate::control::escape::text as plain;
use crate::log::{
    Joined, Kind, Left, MemberState, NextEpoch, Position, Receipt, Record, Roles, ScanError, SessionState, StateError, Stays,
    Went, decode_empty, decode_presence,
};
use std::collections::{BTreeMap, BTreeSet};

/// Problems of sessions that are listed; the rest are counted.
const PROBLEMS_MAX: usize = 1_000;

/// The records of one session, summed up.
#[derive(Debug, Default)]
struct Session {
    id: Option<String>,
    generation: u32,
    shard: u16,
    /// The seqs of the session's messages, as ranges in order.
    seqs: Vec<(u64, u64)>,
    /// The oldest seq retained, by its latest Session record.
    oldest: u64,
    messages: u64,
    bytes: u64,
    members: BTreeSet<u64>,
    last_ms: u64,
    gone: bool,
}

impl Session {
    fn add(&mut self, seq: u64) {
        // The usual case: the next one.
        if let Some((_, last)) = self.seqs.last_mut()
            && last.checked_add(1) == Some(seq)
        {
            *last = seq;
            return;
        }
        let index = self.seqs.partition_point(|(first, _)| *first <= seq);
        if index > 0 && self.seqs[index - 1].1 >= seq {
            return;
        }
        self.seqs.insert(index, (seq, seq));
        if index + 1 < self.seqs.len() && self.seqs[index + 1].0 == seq.saturating_add(1) {
            self.seqs[index].1 = self.seqs.remove(index + 1).1;
        }
        if index > 0 && self.seqs[index - 1].1.saturating_add(1) == seq {
            self.seqs[index - 1].1 = self.seqs.remove(index).1;
        }
    }

    fn head(&self) -> Option<u64> {
        self.seqs.last().map(|(_, last)| *last)
    }

    fn oldest(&self) -> Option<u64> {
        self.seqs.iter().map(|(first, last)| (*first).max(self.oldest.min(*last))).find(|seq| *seq >= self.oldest)
    }

    /// First and last seq of each hole in the retained messages.
    fn holes(&self) -> impl Iterator<Item = (u64, u64)> {
        let pairs = self.seqs.iter().zip(self.seqs.iter().skip(1));
        pairs.map(|((_, last), (next, _))| ((last + 1).max(self.oldest), next - 1)).filter(|(first, last)| first <= last)
    }
}

#[derive(Debug, Default)]
struct Survey {
    sessions: BTreeMap<u64, Session>,
    /// Counts by [`Kind`]'s number less 1.
    kinds: [u64; Kind::ALL.len()],
    /// Messages of which only the header is left.
    purged: u64,
    problems: Vec<String>,
    more_problems: u64,
}

impl Survey {
    fn of(directory: &Directory) -> Result<(Self, Vec<(Shard, Outcome)>), Halt> {
        let mut survey = Self::default();
        let outcomes = directory.read(|shard, position, record| {
            survey.add(shard, position, record);
            Ok(())
        })?;
        Ok((survey, outcomes))
    }

    fn add(&mut self, shard: &Shard, position: Position, record: &Record<'_>) {
        let header = record.header;
        self.kinds[header.kind as usize - 1] += 1;
        if header.kind == Kind::Mark {
            return;
        }
        self.purged += u64::from(record.purged && header.kind == Kind::Message);
        let session = self.sessions.entry(header.session).or_default();
        (session.generation, session.shard) = (shard.generation, shard.shard);
        session.last_ms = session.last_ms.max(header.ts_ms);
        session.bytes += record.length as u64;
        session.gone = header.kind == Kind::SessionGone;
        if let Err(error) = session.take(record) {
            let (shard, position) = (shard.path.display(), position.0);
            self.problem(format!("{shard}: position {position}: a record of kind {} does not read: {error}", header.kind.name()));
        }
    }

    fn problem(&mut self, line: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(line);
        } else {
            self.more_problems += 1;
        }
    }

    fn last_good(&self, session: u64) -> Option<u64> {
        self.sessions.get(&session)?.head()
    }

    fn name(&self, session: u64) -> String {
        self.sessions.get(&session).and_then(|session| session.id.as_deref().map(plain)).unwrap_or_else(|| unnamed(session))
    }

    /// The damage, and the sessions that it affects.
    fn broken(&self, shard: &Shard, error: &ScanError) -> Vec<String> {
        let mut lines = vec![describe(shard, error)];
        if let ScanError::Damaged(damage) = error {
            lines.extend(ranges(damage, |session| self.last_good(session), |session| self.name(session)));
        }
        lines
    }
}

impl Session {
    fn take(&mut self, record: &Record<'_>) -> Result<(), StateError> {
        match record.header.kind {
            Kind::Message if record.purged => {}
            Kind::Message => {
                self.messages += 1;
                self.add(record.header.seq);
            }
            Kind::Session => {
                let state = SessionState::decode(record.body)?;
                self.id = Some(state.session_id.to_owned());
                self.oldest = state.oldest;
            }
            Kind::Member | Kind::Presence if record.purged => {}
            Kind::Member => {
                MemberState::decode(record.body)?;
                self.members.insert(record.header.sender);
            }
            Kind::MemberGone => {
                decode_empty(record.body)?;
                self.members.remove(&record.header.sender);
            }
            Kind::Receipt => drop(Receipt::decode(record.body)?),
            Kind::Joined => drop(Joined::decode(record.body)?),
            Kind::Left => drop(Left::decode(record.body)?),
            Kind::Came => decode_empty(record.body)?,
            Kind::Went => drop(Went::decode(record.body)?),
            Kind::Roles => drop(Roles::decode(record.body)?),
            Kind::Presence => drop(decode_presence(record.body)?),
            Kind::Stays => drop(Stays::decode(record.body)?),
            Kind::Epoch => drop(NextEpoch::decode(record.body)?),
            Kind::SessionGone => {
                decode_empty(record.body)?;
                self.seqs.clear();
                self.members.clear();
                (self.messages, self.bytes, self.oldest) = (0, 0, 0);
            }
            Kind::Purge => {
                decode_empty(record.body)?;
                self.seqs.clear();
                self.messages = 0;
                self.oldest = record.header.seq.saturating_add(1);
            }
            // The scan has read it.
            Kind::Mark => {}
        }
        Ok(())
    }
}

/// Prints lines with aligned columns.
fn table(rows: &[Vec<String>], out: &mut Out<'_>) -> Result<(), Halt> {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.line(cells.join("  ").trim_end())?;
    }
    Ok(())
}

fn cells(cells: &[&dyn ToString]) -> Vec<String> {
    cells.iter().map(|cell| cell.to_string()).collect()
}

/// The state of a shard's end in a few words.
fn end(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Whole(scanned) => match scanned.torn {
            None => "whole".to_owned(),
            Some(torn) => format!("torn: {} bytes", torn.bytes),
        },
        Outcome::Broken { .. } => "damaged".to_owned(),
    }
}

pub(super) fn stat(directory: &Directory, out: &mut Out<'_>) -> Result<(), Halt> {
    let (survey, outcomes) = Survey::of(directory)?;
    let mut rows = vec![cells(&[&"GENERATION", &"SHARD", &"SEGMENTS", &"BYTES", &"RECORDS", &"SYNCED_TO", &"END", &"STATE"])];
    let mut broken = Vec::new();
    for (shard, outcome) in &outcomes {
        let segments = shard.segments()?;
        let bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
        let (records, synced_to, position) = match outcome {
            Outcome::Whole(scanned) => (scanned.records.to_string(), scanned.synced_to.to_string(), scanned.end.0.to_string()),
            Outcome::Broken { error, .. } => {
                broken.extend(survey.broken(shard, error));
                ("-".to_owned(), "-".to_owned(), "-".to_owned())
            }
        };
        let state = end(outcome);
        rows.push(cells(&[&shard.generation, &shard.shard, &segments.len(), &bytes, &records, &synced_to, &position, &state]));
    }
    table(&rows, out)?;
    out.line("")?;
    let live = survey.sessions.values().filter(|session| !session.gone).count();
    let kinds: Vec<String> = Kind::ALL.iter().zip(survey.kinds).map(|(kind, count)| format!("{} {count}", kind.name())).collect();
    out.line(&format!("sessions {live}, records by kind: {}", kinds.join(", ")))?;
    refuse(broken)
}

pub(super) fn ls(directory: &Directory, out: &mut Out<'_>) -> Result<(), Halt> {
    let (survey, outcomes) = Survey::of(directory)?;
    let heads: [&dyn ToString; 9] =
        [&"SESSION", &"GENERATION", &"SHARD", &"OLDEST", &"HEAD", &"MESSAGES", &"BYTES", &"MEMBERS", &"LAST_MS"];
    let mut rows = vec![cells(&heads)];
    for (hash, session) in survey.sessions.iter().filter(|(_, session)| !session.gone) {
        let seq = |seq: Option<u64>| seq.map_or_else(|| "-".to_owned(), |seq| seq.to_string());
        rows.push(cells(&[
            &survey.name(*hash),
            &session.generation,
            &session.shard,
            &seq(session.oldest()),
            &seq(session.head()),
            &session.messages,
            &session.bytes,
            &session.members.len(),
            &session.last_ms,
        ]));
    }
    rows[1..].sort();
    table(&rows, out)?;
    refuse(survey.all_broken(&outcomes))
}

impl Survey {
    fn all_broken(&self, outcomes: &[(Shard, Outcome)]) -> Vec<String> {
        let mut lines = Vec::new();
        for (shard, outcome) in outcomes {
            if let Outcome::Broken { error, .. } = outcome {
                lines.extend(self.broken(shard, error));
            }
        }
        lines
    }
}

pub(super) fn verify(directory: &Directory, out: &mut Out<'_>) -> Result<(), Halt> {
    let (mut survey, outcomes) = Survey::of(directory)?;
    let mut problems = survey.all_broken(&outcomes);
    for (shard, outcome) in &outcomes {
        if let Outcome::Whole(scanned) = outcome
            && let Some(torn) = scanned.torn
        {
            let name = crate::log::segment_name(torn.segment);
            out.line(&format!(
                "{}/{name}: offset {}: a torn end of {} bytes, never synced; the next start cuts it ({})",
                shard.path.display(),
                torn.offset,
                torn.bytes,
                torn.reason
            ))?;
        }
    }
    for (hash, session) in std::mem::take(&mut survey.sessions) {
        if session.id.is_none() && session.messages > 0 {
            let what = format!(
                "session {}: no record names it, so its messages would not be served: an older file is missing",
                unnamed(hash)
            );
            survey.problem(what);
        }
        let name = session.id.as_deref().map_or_else(|| unnamed(hash), plain);
        for (first, last) in session.holes() {
            survey.problem(format!("session {name}: seq {first} to {last} are not in the log, though later ones are"));
        }
    }
    problems.append(&mut survey.problems);
    if survey.more_problems > 0 {
        problems.push(format!("… and {} problems more", survey.more_problems));
    }
    refuse(problems)?;
    let records: u64 = survey.kinds.iter().sum();
    let messages = survey.kinds[Kind::Message as usize - 1];
    let purged = if survey.purged > 0 { format!(", of which {} are purged", survey.purged) } else { String::new() };
    out.line(&format!("OK: {} shards, {records} records, {messages} messages{purged}", outcomes.len()))
}

/// Returns an error if there are lines.
pub(super) fn refuse(lines: Vec<String>) -> Result<(), Halt> {
    if lines.is_empty() { Ok(()) } else { Err(Halt::Failed(CliError(lines.join("\n")))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_what_is_between() {
        let mut session = Session::default();
        for seq in [5, 6, 9, 8, 2, 6, 12] {
            session.add(seq);
        }
        assert_eq!(session.seqs, [(2, 2), (5, 6), (8, 9), (12, 12)]);
        assert_eq!(session.holes().collect::<Vec<_>>(), [(3, 4), (7, 7), (10, 11)]);
        assert_eq!((session.oldest(), session.head()), (Some(2), Some(12)));
        session.oldest = 7;
        assert_eq!(session.holes().collect::<Vec<_>>(), [(7, 7), (10, 11)]);
        assert_eq!(session.oldest(), Some(8));
        session.add(7);
        assert_eq!(session.seqs, [(2, 2), (5, 9), (12, 12)]);
        assert_eq!(session.oldest(), Some(7));
    }
}
