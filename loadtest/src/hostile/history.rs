//! Attacks by history: pages that are requested and not waited for, and pages of a room with no message (A6); a page of a session
//! that the token which follows the request does not cover any more (C9).

use super::stage::{COMMANDS_PER_S, Crew, Stage, count, open};
use crate::clock::{now_ns, sleep_ms};
use crate::dialect;
use std::collections::VecDeque;

const LONG: &str = "hostile.long";
/// Abandoned requests a second, of twenty users on ten connections each.
const ABANDONED_PER_S: u64 = 190;
const SEARCHERS: usize = 4;
/// The first member's number among the attackers, for each kind: addresses and users are derived from it.
const WRITERS: usize = 2000;
const LOSERS: usize = 3000;
/// Messages that a connection may send at once.
const BURST: usize = 400;

fn history(id: u64, session: &str, more: &str) -> String {
    format!("{{\"type\":\"rw.history\",\"id\":\"h{id}\",\"session_id\":\"{session}\",\"payload\":{{\"limit\":1000{more}}}}}")
}

/// Ten members fill the session with this many messages of 1 KiB, as fast as they may.
fn fill(stage: &Stage, messages: usize) -> Result<(), String> {
    let text = "m".repeat(1022);
    let mut links = (0..10).map(|number| open(stage, WRITERS + number, LONG, &[], None)).collect::<Result<Vec<_>, _>>()?;
    let (mut said, mut answered, mut failed) = (0, 0, None);
    let began_ns = now_ns();
    while answered < messages {
        let seconds = (now_ns() - began_ns) / 1_000_000;
        let allowed =
            usize::try_from(seconds * COMMANDS_PER_S / 1000).unwrap_or(usize::MAX).saturating_add(BURST - 10) * links.len();
        while said < messages.min(allowed) {
            let at = said % links.len();
            links[at]
                .say(&format!("{{\"type\":\"app.line\",\"id\":\"{said}\",\"session_id\":\"{LONG}\",\"payload\":\"{text}\"}}"));
            links[at].push()?;
            if links[at].is_backed_up() {
                break;
            }
            said += 1;
        }
        for link in &mut links {
            link.push()?;
            link.take(usize::MAX, |message| {
                answered += usize::from(dialect::is_type(message, b"rw.ack"));
                if dialect::is_type(message, b"rw.error") {
                    failed = Some(format!("the long session takes no message: {:?}", dialect::code_of(message)));
                }
            })?;
        }
        if let Some(why) = failed {
            return Err(why);
        }
        if now_ns() - began_ns > 30_000_000_000 {
            return Err(format!("{answered} of {messages} messages of the long session were acknowledged in 30 s"));
        }
        sleep_ms(1);
    }
    Ok(())
}

/// A6: requests a page and disconnects. The set-up makes the session long.
pub fn abandoned(stage: &Stage) -> Result<(), String> {
    fill(stage, if stage.seconds < 3.0 { 4000 } else { 10_000 })?;
    stage.wait_for_beginning();
    // Some connections stay for a while, so that many pages are on their way to clients that leave.
    let mut there = VecDeque::new();
    stage.beat(1_000_000 / ABANDONED_PER_S, |step| {
        let number = usize::try_from(step).unwrap_or(0);
        match open(stage, number % 200, LONG, &[], None) {
            Ok(mut link) => {
                link.say(&history(step, LONG, ""));
                if let Err(why) = link.push() {
                    stage.told(&why);
                }
                there.push_back(link);
                if there.len() > 4 {
                    there.pop_front();
                }
            }
            Err(why) => stage.told(&why),
        }
        stage.did(1);
    });
    Ok(())
}

/// A6: searches for what does not exist.
pub fn searchers(stage: &Stage) -> Result<(), String> {
    let mut crew = Crew::new(stage, SEARCHERS, |number| open(stage, LOSERS + 10 * number, LONG, &[], None))?;
    let mut waiting = [false; SEARCHERS];
    stage.wait_for_beginning();
    stage.beat(1_000_000 / COMMANDS_PER_S, |step| {
        let asked = std::cell::RefCell::new(waiting);
        crew.all(
            |number, link| {
                if !asked.borrow()[number] || step % 256 == 0 {
                    link.say(&history(step, LONG, ",\"room\":\"nobody\""));
                    asked.borrow_mut()[number] = true;
                    stage.did(1);
                }
            },
            |number, message| {
                if dialect::is_type(message, b"rw.history_end") || dialect::is_type(message, b"rw.error") {
                    asked.borrow_mut()[number] = false;
                }
            },
        );
        waiting = asked.into_inner();
    });
    Ok(())
}

/// C9: over and over, in one write, a page of B and a token without B; a ping behind it must be answered.
pub fn refreshers(stage: &Stage) -> Result<(), String> {
    const A: &str = "hostile.a";
    const B: &str = "hostile.b";
    let user = "mallory-0";
    let both = stage.token(user, 1)?;
    let only_a = stage.minter.mint(user, &[A], 2)?;
    let refresh = |id: &str, token: &str| {
        format!("{{\"type\":\"rw.refresh\",\"id\":\"{id}\",\"session_id\":\"{A}\",\"payload\":{{\"auth_token\":\"{token}\"}}}}")
    };
    let attach = format!("{{\"type\":\"rw.attach\",\"id\":\"a\",\"session_id\":\"{B}\",\"payload\":{{\"start\":\"head\"}}}}");
    let ping = format!("{{\"type\":\"rw.ping\",\"id\":\"p\",\"session_id\":\"{A}\",\"payload\":{{}}}}");
    let make = |number| open(stage, number, A, &[], None);
    let mut links = (0..8).map(make).collect::<Result<Vec<_>, _>>()?;
    let line = "b".repeat(500);
    for link in &mut links {
        link.say(&attach);
        link.push()?;
        link.wait_for(&[b"rw.attached"])?;
    }
    // Something for the page to hold.
    for number in 0..200 {
        links[0].say(&format!("{{\"type\":\"app.line\",\"id\":\"{number}\",\"session_id\":\"{B}\",\"payload\":\"{line}\"}}"));
    }
    links[0].push()?;
    stage.wait_for_beginning();
    stage.beat(1_000_000 / 25 / 8, |step| {
        let number = usize::try_from(step).unwrap_or(0) % links.len();
        let link = &mut links[number];
        link.say(&history(step, B, ""));
        link.say(&refresh("r", &only_a));
        let cycle = link.push().and_then(|()| {
            link.say(&ping);
            link.wait_for(&[b"rw.pong", b"rw.error"]).map_err(|why| format!("rw.ping behind a refresh: {why}"))
        });
        let again = cycle.and_then(|()| {
            link.say(&refresh("r", &both));
            link.say(&attach);
            link.wait_for(&[b"rw.attached", b"rw.error"]).map_err(|why| format!("rw.attach behind a refresh: {why}"))
        });
        stage.did(1);
        if let Err(why) = again {
            count(&stage.owed, &why);
            match make(number) {
                Ok(fresh) => *link = fresh,
                Err(why) => stage.told(&why),
            }
        }
    });
    Ok(())
}
