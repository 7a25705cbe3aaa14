//! Attacks by the number of things that one user creates: channels that nobody was in (A3), members of one session (A4).

use super::client::{Door, Hello, Link};
use super::stage::{COMMANDS_PER_S, Crew, Stage, address, open};

const CREW: usize = 10;
const BEAT_US: u64 = 2_000_000 / COMMANDS_PER_S;
/// New clients a second, from twenty addresses in turn; the gateway's limit for an address allows this many.
const CLIENTS_PER_S: u64 = 200;
/// The session that one user fills.
pub const FILLED: &str = "hostile.members";

/// A3.
pub fn channels(stage: &Stage) -> Result<(), String> {
    let session = "hostile.channels";
    let mut crew = Crew::new(stage, CREW, |number| open(stage, number, session, &[], None))?;
    let text = "c".repeat(126);
    stage.wait_for_beginning();
    stage.beat(BEAT_US, |step| {
        crew.all(
            |number, link| {
                for half in 0..2 {
                    link.say(&format!(
                        "{{\"type\":\"app.post\",\"id\":\"c{step}.{half}\",\"session_id\":\"{session}\",\
                         \"to\":\"channel:hostile.{number}.{step}.{half}\",\"payload\":\"{text}\"}}"
                    ));
                }
                stage.did(2);
            },
            |_, _| {},
        );
    });
    Ok(())
}

/// A4.
pub fn members(stage: &Stage) -> Result<(), String> {
    let token = stage.token("mallory", 0)?;
    stage.wait_for_beginning();
    stage.beat(1_000_000 / CLIENTS_PER_S, |step| {
        let from = address(usize::try_from(step % 20).unwrap_or(0) * 20);
        let hello = Hello { client: format!("mallory/t{step}"), token: token.clone(), session: FILLED.into(), rooms: Vec::new() };
        match Link::open(&Door::new(stage.address, from), &hello) {
            Ok(mut link) => {
                link.say_close();
                // Nobody waits for its answer, a close frame.
                let _ = link.push();
            }
            Err(why) => stage.told(&why),
        }
        stage.did(1);
    });
    Ok(())
}
