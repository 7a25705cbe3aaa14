//! A session with more readers than a turn sends to, and a message in each turn: everyone is served all the same.
#![allow(dead_code, reason = "the support file serves several test binaries")]

#[path = "../benches/support/mod.rs"]
mod support;

use support::{Message, Stage};

const READERS: usize = 3_000;
const TURNS: usize = 60;

#[test]
fn readers_at_the_end_of_the_list_are_served_while_messages_keep_coming() {
    let mut stage = Stage::new(|_| {});
    stage.step_ns = 1_000_000;
    let sender = stage.join("sender", "s-42", &[]);
    let readers: Vec<_> = (0..READERS).map(|number| stage.join(&format!("reader-{number}"), "s-42", &[])).collect();
    let mut message = Message::new("s-42", r#""session""#, 100);
    let before: Vec<u64> = readers.iter().map(|reader| stage.sent_bytes(*reader)).collect();
    for _ in 0..TURNS {
        stage.publish(sender, &mut message, 1);
        stage.turn();
    }
    let behind = readers.iter().zip(&before).filter(|(reader, before)| stage.sent_bytes(**reader) == **before).count();
    assert_eq!(behind, 0, "so many of {READERS} readers had nothing of {TURNS} messages");
    stage.settle();
    assert_eq!(stage.counters.delivered.get(), (READERS * TURNS) as u64);
}
