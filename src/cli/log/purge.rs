//! `ringway log purge`: removes every byte of a session's messages from the log's files. If a gateway has the directory, that
//! gateway is asked to do it.

use super::Out;
use super::directory::{Directory, Halt, Outcome, describe};
use super::repair::lock;
use crate::cli::admin_client::{decode, good, request};
use crate::cli::{CliError, now_s};
use crate::control::PurgeRequest;
use crate::control::escape::text as plain;
use crate::log::{Kind, MemberState, Record};
use crate::shard::port::Purged;
use crate::shard::recovery::purge_files::{finish_purges, purge_files};
use std::collections::BTreeMap;

/// Asks the gateway at `admin`.
pub(super) fn ask(admin: &str, session: &str, out: &mut Out<'_>) -> Result<(), Halt> {
    let body = serde_json::to_string(&PurgeRequest { session_id: session.to_owned() });
    let body = body.map_err(|error| CliError(error.to_string()))?;
    let purged: Purged = decode(&good(request(admin, "POST", "/v1/purge", Some(&body))?)?)?;
    told(session, purged.messages, out)
}

/// Purges a session in a directory that no gateway has.
pub(super) fn purge(directory: &Directory, session: &str, out: &mut Out<'_>) -> Result<(), Halt> {
    let _lock = lock(directory, false)?;
    let hash = directory.session(session);
    let mut messages = 0;
    for shard in &directory.shards {
        messages += finish_purges(&shard.path, shard.shard.into(), shard.generation).map_err(CliError)?;
    }
    // For each shard that has messages of the session: the last seq.
    let (mut found, mut last_seqs) = (false, BTreeMap::new());
    let outcomes = directory.read(|shard, _, record| {
        if record.header.session == hash && record.header.kind != Kind::Mark {
            found = true;
            let seq: &mut (u64, bool) = last_seqs.entry((shard.generation, shard.shard)).or_default();
            seq.0 = seq.0.max(record.header.seq);
            seq.1 |= !record.purged && says_something(record);
        }
        Ok(())
    })?;
    if let Some((shard, Outcome::Broken { error, .. })) =
        outcomes.iter().find(|(_, outcome)| !matches!(outcome, Outcome::Whole(_)))
    {
        return Err(CliError(format!("{}; `ringway log repair` comes first", describe(shard, error))).into());
    }
    if !found {
        return Err(CliError(format!("session {}: the log holds no record of it", plain(session))).into());
    }
    for (shard, outcome) in &outcomes {
        if let Outcome::Whole(scanned) = outcome
            && let Some((last_seq, true)) = last_seqs.get(&(shard.generation, shard.shard))
        {
            let place = (shard.shard, shard.generation);
            let purged = purge_files(&shard.path, place, scanned, (hash, *last_seq), now_s() * 1000);
            messages += purged.map_err(CliError)?;
        }
    }
    told(session, messages, out)?;
    let quarantine = directory.path.join("quarantine");
    if quarantine.exists() {
        let quarantine = quarantine.display();
        out.line(&format!("{quarantine}: files that a repair has moved there may still hold messages of the session: check them, and delete them"))?;
    }
    Ok(())
}

/// Returns `true` if the record has data that a purge removes.
fn says_something(record: &Record<'_>) -> bool {
    match record.header.kind {
        Kind::Message | Kind::Presence => true,
        Kind::Member => MemberState::decode(record.body).is_ok_and(|member| member.presence.is_some()),
        _ => false,
    }
}

fn told(session: &str, messages: u64, out: &mut Out<'_>) -> Result<(), Halt> {
    out.line(&format!("session {}: {messages} messages were purged", plain(session)))
}
