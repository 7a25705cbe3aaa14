//! Attacks by rooms and presence: a storm of joins and leaves (A1), presence data (A2), presence data for watchers that hardly
//! read (A5).

use super::stage::{COMMANDS_PER_S, Crew, Stage, open};

/// Commands of a member a beat, and the beat that makes them its rate.
const AT_ONCE: u64 = 2;
const BEAT_US: u64 = AT_ONCE * 1_000_000 / COMMANDS_PER_S;
/// Clients of one user; the gateway allows ten connections.
const CREW: usize = 10;
/// The longest name.
const NAME_BYTES: usize = 128;
const ROOMS: usize = 128;
/// With its quotes and the rest around it, below the 1 KiB that presence data may have.
const DATA_BYTES: usize = 990;
const WATCHERS: usize = 250;

/// A1.
pub fn storm(stage: &Stage) -> Result<(), String> {
    let session = "hostile.storm";
    let mut crew = Crew::new(stage, CREW, |number| open(stage, number, session, &[], None))?;
    stage.wait_for_beginning();
    stage.beat(BEAT_US, |step| {
        crew.all(
            |_, link| {
                // Now and then a message to the room: the gateway must then remember who was in it when, for as long as the
                // message is retained.
                let (kind, payload, to) = match step % 16 {
                    15 => ("app.note", "1", "\"to\":\"room:storm\","),
                    _ => ("rw.leave", "{\"room\":\"storm\"}", ""),
                };
                link.say(&format!(
                    "{{\"type\":\"rw.join\",\"id\":\"j{step}\",\"session_id\":\"{session}\",\"payload\":{{\"room\":\"storm\"}}}}"
                ));
                link.say(&format!(
                    "{{\"type\":\"{kind}\",\"id\":\"l{step}\",\"session_id\":\"{session}\",{to}\"payload\":{payload}}}"
                ));
                stage.did(AT_ONCE);
            },
            |_, _| {},
        );
    });
    Ok(())
}

fn presence(session: &str, step: u64) -> String {
    let data = "p".repeat(DATA_BYTES);
    format!(
        "{{\"type\":\"rw.presence.set\",\"id\":\"p{step}\",\"session_id\":\"{session}\",\"payload\":{{\"data\":\"{step:08}{data}\"}}}}"
    )
}

fn long_rooms() -> Vec<String> {
    (0..ROOMS).map(|room| format!("{room:03}{}", "r".repeat(NAME_BYTES - 3))).collect()
}

fn set_presence(stage: &Stage, session: &str, rooms: &[String], first: usize) -> Result<(), String> {
    let mut crew = Crew::new(stage, CREW, |number| open(stage, first + number, session, rooms, None))?;
    stage.wait_for_beginning();
    stage.beat(BEAT_US, |step| {
        let commands: Vec<String> = (0..AT_ONCE).map(|at| presence(session, step * AT_ONCE + at)).collect();
        crew.all(
            |_, link| {
                commands.iter().for_each(|command| link.say(command));
                stage.did(AT_ONCE);
            },
            |_, _| {},
        );
    });
    Ok(())
}

/// A2.
pub fn flood(stage: &Stage) -> Result<(), String> {
    set_presence(stage, "hostile.flood", &long_rooms(), 0)
}

/// A5: the members whose data it is.
pub fn tellers(stage: &Stage) -> Result<(), String> {
    set_presence(stage, "hostile.watched", &[], 1000)
}

/// A5: the watchers, which read at twice the rate below which a connection counts as slow.
pub fn watchers(stage: &Stage) -> Result<(), String> {
    let session = "hostile.watched";
    let watch = format!("{{\"type\":\"rw.watch\",\"id\":\"w\",\"session_id\":\"{session}\",\"payload\":{{\"presence\":true}}}}");
    let make = |number| {
        let mut link = open(stage, number, session, &[], Some(4096))?;
        link.say(&watch);
        link.push()?;
        Ok(link)
    };
    let mut crew = Crew::new(stage, WATCHERS, make)?;
    crew.read_bytes = 256;
    stage.wait_for_beginning();
    stage.beat(125_000, |_| crew.all(|_, _| {}, |_, _| {}));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_within_what_the_contract_allows() {
        let command: serde_json::Value = serde_json::from_str(&presence("s", 7)).unwrap();
        let data = command["payload"]["data"].to_string();
        assert!((1000..=1024).contains(&data.len()), "{}", data.len());
        let rooms = long_rooms();
        assert!(rooms.len() == 128 && rooms.iter().all(|room| room.len() == 128) && rooms[0] != rooms[127]);
        const { assert!(AT_ONCE * 1_000_000 / BEAT_US <= 200, "a connection's messages a second, by default") };
    }
}
