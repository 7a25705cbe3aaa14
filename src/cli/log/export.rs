//! `ringway log cat`, `log export` and `ringway replay`: records as text.

use super::Out;
use super::directory::{Directory, Halt, Outcome, Progress, Shard, at};
use super::survey::refuse;
use crate::cli::CliError;
use crate::control::escape::{self, text as plain};
use crate::log::{
    Joined, Kind, Left, Mark, MemberState, NextEpoch, Position, Receipt, Record, Roles, SessionState, StayState, Stays, Went,
    decode_presence, read_record, segment_name,
};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// The text of a server's frame: FIN, text, unmasked (RFC 6455 section 5.2). `None` for any other frame.
fn text_of(frame: &[u8]) -> Option<&str> {
    let (payload, len) = match frame {
        [0x81, 127, a, b, c, d, e, f, g, h, payload @ ..] => (payload, u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h])),
        [0x81, 126, a, b, payload @ ..] => (payload, u16::from_be_bytes([*a, *b]).into()),
        [0x81, len @ 0..126, payload @ ..] => (payload, u64::from(*len)),
        _ => return None,
    };
    std::str::from_utf8(payload).ok().filter(|text| text.len() as u64 == len)
}

fn hex(number: u64) -> String {
    format!("{number:016x}")
}

fn hex_bytes(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn stay(stay: &StayState<'_>) -> Value {
    let lasts = |to: u64| if to == u64::MAX { Value::Null } else { to.into() };
    json!({ "room": stay.room, "hash": hex(stay.hash), "from": stay.from, "to": lasts(stay.to) })
}

/// The body of a record that is no message, or the reason why it does not read.
fn state(record: &Record<'_>) -> Value {
    let read = match record.header.kind {
        Kind::Message | Kind::MemberGone | Kind::SessionGone | Kind::Purge | Kind::Came => Ok(Value::Null),
        Kind::Mark => Mark::decode(record.body).map(|mark| json!({ "synced_to": mark.synced_to })),
        Kind::Receipt => Receipt::decode(record.body).map(|receipt| json!({ "received_seq": receipt.received_seq })),
        Kind::Session => SessionState::decode(record.body).map(|session| {
            let epochs: Vec<Value> =
                session.epochs.iter().map(|epoch| json!({ "name": hex(epoch.name), "last_seq": epoch.last_seq })).collect();
            json!({ "session_id": session.session_id, "head": session.head, "oldest": session.oldest, "epochs": epochs })
        }),
        Kind::Joined => Joined::decode(record.body).map(|joined| json!({ "room": joined.room, "from": joined.from })),
        Kind::Left => Left::decode(record.body).map(|left| json!({ "room": left.room, "to": left.to })),
        Kind::Went => Went::decode(record.body).map(|went| json!({ "told_lost": went.told_lost, "since_ms": went.since_ms })),
        Kind::Roles => Roles::decode(record.body).map(|roles| json!({ "roles": roles.roles })),
        Kind::Presence => decode_presence(record.body).map(|presence| json!({ "presence": presence })),
        Kind::Stays => Stays::decode(record.body)
            .map(|part| json!({ "left": part.left, "stays": part.stays.iter().map(stay).collect::<Vec<_>>() })),
        Kind::Epoch => NextEpoch::decode(record.body).map(|next| json!({ "name": hex(next.name), "last_seq": next.last_seq })),
        Kind::Member => MemberState::decode(record.body).map(|member| {
            json!({
                "client_id": member.client_id, "subject": member.subject(), "user": hex(member.user),
                "present": member.present, "told_lost": member.told_lost, "since_ms": member.since_ms,
                "received_seq": member.received_seq, "hidden_to": member.hidden_to, "away_since_ms": member.away_since_ms,
                "roles": member.roles, "stays": member.stays.iter().map(stay).collect::<Vec<_>>(), "presence": member.presence,
            })
        }),
    };
    read.unwrap_or_else(|error| json!({ "error": error.to_string(), "body": hex_bytes(record.body) }))
}

/// A record as a JSON object. Hashes are hexadecimal text, because a JavaScript number cannot hold them.
fn object(shard: &Shard, position: Position, record: &Record<'_>) -> String {
    let header = record.header;
    let addresses: Vec<String> =
        record.addresses.chunks_exact(8).map(|address| hex_bytes(&address.iter().rev().copied().collect::<Vec<_>>())).collect();
    let mut object = json!({
        "generation": shard.generation, "shard": shard.shard, "position": position.0, "kind": header.kind.name(),
        "session": hex(header.session), "seq": header.seq, "epoch": header.epoch, "ts": header.ts_ms, "sender": hex(header.sender),
        "id": hex(header.id), "content": format!("{:032x}", header.content), "addresses": addresses,
    });
    let text = text_of(record.body);
    match header.kind {
        // The payload as sent, byte for byte; a body that is no JSON would break the line.
        Kind::Message if record.purged => object["purged"] = true.into(),
        Kind::Message => match text.filter(|text| !text.contains('\n') && serde_json::from_str::<&RawValue>(text).is_ok()) {
            Some(text) => {
                let mut line = object.to_string();
                line.pop();
                return format!("{line},\"envelope\":{text}}}");
            }
            None => object["frame"] = hex_bytes(record.body).into(),
        },
        _ if record.purged => object["purged"] = true.into(),
        _ => object["state"] = state(record),
    }
    object.to_string()
}

fn broken(outcomes: &[(Shard, Outcome)]) -> Result<(), Halt> {
    let lines = outcomes.iter().filter_map(|(shard, outcome)| match outcome {
        Outcome::Broken { error, .. } => Some(super::directory::describe(shard, error)),
        Outcome::Whole(_) => None,
    });
    refuse(lines.collect())
}

fn none_of(session: &str) -> Halt {
    Halt::Failed(CliError(format!("session {}: the log holds no record of it; `ringway log ls` lists all", plain(session))))
}

pub(super) fn cat(directory: &Directory, session: &str, out: &mut Out<'_>) -> Result<(), Halt> {
    let hash = directory.session(session);
    let mut found = false;
    let outcomes = directory.read(|_, _, record| {
        let header = record.header;
        if header.session != hash || header.kind == Kind::Mark {
            return Ok(());
        }
        found = true;
        let what = match header.kind {
            _ if record.purged => "(purged)".to_owned(),
            // JSON, whose escapes are its own.
            Kind::Message => text_of(record.body).map_or_else(|| hex_bytes(record.body), |text| escape::json(text).into_owned()),
            Kind::MemberGone | Kind::SessionGone | Kind::Purge | Kind::Came => String::new(),
            _ => escape::json(&state(record).to_string()).into_owned(),
        };
        let name = header.kind.name();
        out.line(
            format!("{:>8} {:>3} {} {} {name:<12} {what}", header.seq, header.epoch, header.ts_ms, hex(header.sender)).trim_end(),
        )
    })?;
    broken(&outcomes)?;
    if found { Ok(()) } else { Err(none_of(session)) }
}

pub(super) fn export(directory: &Directory, session: Option<&str>, out: &mut Out<'_>) -> Result<(), Halt> {
    let hash = session.map(|session| directory.session(session));
    let mut found = false;
    let outcomes = directory.read(|shard, position, record| {
        if hash.is_some_and(|hash| hash != record.header.session || record.header.kind == Kind::Mark) {
            return Ok(());
        }
        found = true;
        out.json(&object(shard, position, record))
    })?;
    broken(&outcomes)?;
    match session {
        Some(session) if !found => Err(none_of(session)),
        _ => Ok(()),
    }
}

/// The place of a message, in the order of the replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    epoch: u32,
    seq: u64,
    /// An index among the directory's shards, and the position there.
    shard: usize,
    position: u64,
    bytes: usize,
    segment_bytes: u64,
}

/// Prints a session's messages. First they are found, then read in their order: a message that compaction copied is behind newer
/// ones, and may occur twice.
pub(super) fn replay(directory: &Directory, session: &str, speed: Option<f64>, out: &mut Out<'_>) -> Result<(), Halt> {
    let hash = directory.session(session);
    let (mut places, mut outcomes) = (Vec::new(), Vec::new());
    let mut bar = Progress::new(directory)?;
    for (index, shard) in directory.shards.iter().enumerate() {
        let first = places.len();
        let outcome = shard.read(&mut bar, |position, record| {
            let header = record.header;
            if header.session == hash && header.kind == Kind::Message && !record.purged {
                let (position, bytes) = (position.0, record.length);
                places.push(Place { epoch: header.epoch, seq: header.seq, shard: index, position, bytes, segment_bytes: 0 });
            }
            Ok(())
        })?;
        if places.len() > first {
            let vanished = || at(&shard.path, &"its segments were deleted while they were read");
            let segment_bytes = shard.segment_bytes()?.ok_or_else(vanished)?;
            places[first..].iter_mut().for_each(|place| place.segment_bytes = segment_bytes);
        }
        outcomes.push((shard.clone(), outcome));
    }
    drop(bar);
    places.sort_unstable();
    places.dedup_by_key(|place| (place.epoch, place.seq));
    if places.is_empty() {
        broken(&outcomes)?;
        return Err(none_of(session));
    }
    let (mut open, mut buffer, mut before_ms) = (None, Vec::new(), None);
    for place in &places {
        let shard = &directory.shards[place.shard];
        let (number, offset) = (place.position / place.segment_bytes, place.position % place.segment_bytes);
        let path = shard.path.join(segment_name(number));
        let file = match &open {
            Some((known, file)) if *known == path => file,
            _ => {
                let file = File::open(&path).map_err(|error| at(&path, &error))?;
                &open.insert((path.clone(), file)).1
            }
        };
        buffer.resize(place.bytes, 0);
        file.read_exact_at(&mut buffer, offset).map_err(|error| at(&path, &error))?;
        let record = read_record(&buffer, None).map_err(|error| at(&path, &format!("offset {offset}: {error}")))?;
        if let Some(speed) = speed {
            wait(before_ms.map_or(0, |before| record.header.ts_ms.saturating_sub(before)), speed);
            before_ms = Some(record.header.ts_ms);
        }
        let frame = || at(&path, &format!("offset {offset}: seq {}: the body is no text frame", place.seq));
        out.json(text_of(record.body).ok_or_else(frame)?)?;
        if speed.is_some() {
            out.flush()?;
        }
    }
    broken(&outcomes)
}

#[expect(clippy::disallowed_methods, reason = "a command of one thread, which is asked to wait")]
#[expect(clippy::cast_precision_loss, reason = "the time between two messages is far below 2^52 ms")]
fn wait(after_ms: u64, speed: f64) {
    if let Ok(pause) = Duration::try_from_secs_f64(after_ms as f64 / 1000.0 / speed) {
        std::thread::sleep(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::text_of;
    use crate::log::made::frame;

    #[test]
    fn frames_of_every_length_are_text() {
        for len in [0, 1, 125, 126, 65_535, 65_536] {
            let text = "a".repeat(len);
            assert_eq!(text_of(&frame(&text)), Some(&*text));
        }
        assert_eq!(text_of(&[0x81, 2, b'a']), None, "shorter than it says");
        assert_eq!(text_of(&[0x82, 1, b'a']), None, "binary");
        assert_eq!(text_of(&[0x81, 0x81, 1, 2, 3, 4, b'a']), None, "masked");
        assert_eq!(text_of(&[0x81, 1, 0xff]), None);
    }
}
