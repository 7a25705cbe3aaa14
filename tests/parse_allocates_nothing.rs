//! Reading, extending and answering a message allocates nothing once the buffers have grown.

#[path = "support/counting.rs"]
mod counting;

use counting::allocations;
use ringway::protocol::{AddedBuf, Command, CommandParser, Head, Parser, ack, added, make_traceparent, pong};
use std::hint::black_box;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

fn message(kind: &str, to: &str, payload: &str) -> Vec<u8> {
    format!(
        r#"{{"type":"{kind}","id":"0192f3c1-7b2a-7c3d-9e4f-5a6b7c8d9e0f","session_id":"s-42","to":{to},"payload":{payload}}}"#
    )
    .into_bytes()
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(black_box(Box::new(7)))), 1);
    assert_eq!(allocations(|| drop(black_box(vec![0_u8; 100]))), 1);
    assert_eq!(allocations(|| ()), 0);
}

#[test]
fn steady_state_allocates_nothing() {
    let text = "x".repeat(60_000);
    let nested = format!("[{}1]", r#"{"a":[1,2.5,"\u00e9\/",null]},"#.repeat(1_500));
    let messages = [
        message("chat.say", r#""session""#, r#"{"text":"hi"}"#),
        message("chat.say", r#"["client:ana\/tab-7","room:ops","role:agent"]"#, &format!(r#""{text}""#)),
        message("chat.say", r#""user:ana""#, &nested),
        message("chat.say", r#""room:ops""#, "1e400"),
    ];
    let commands = [message("rw.received", r#""session""#, r#"{"seq":1041}"#), message("rw.ping", r#""session""#, "{}")];
    let (mut parser, mut command_parser) = (Parser::default(), CommandParser::default());
    let mut scratch = AddedBuf::default();
    let mut out = Vec::with_capacity(64 * 1024);
    let mut turn = || {
        out.clear();
        for text in &messages {
            let envelope = parser.parse(text).expect("a good envelope");
            black_box(envelope.to.iter().count());
            let traceparent = make_traceparent([7; 16], [7; 8]);
            added(&mut scratch, Some(1041), "ana/tab-7", 1_790_000_000_000, Some(traceparent.as_str()));
            black_box(scratch.as_bytes());
            ack(&mut out, Head { id: envelope.id, session_id: envelope.session_id }, 1041, false);
        }
        for text in &commands {
            let envelope = parser.parse(text).expect("a good envelope");
            let head = Head { id: envelope.id, session_id: envelope.session_id };
            match command_parser.parse(&envelope).expect("a good command") {
                Command::Received { seq } => drop(black_box(seq)),
                _ => pong(&mut out, head, 1041, 1040),
            }
        }
    };
    turn();
    assert_eq!(allocations(|| (0..100).for_each(|_| turn())), 0);
}
