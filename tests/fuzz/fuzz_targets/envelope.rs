//! Any bytes as an envelope, and, where they are one of the gateway's commands, as that: no panic, and what is taken is bounded and
//! stands in the original.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::limits::ADDRESSES_MAX;
use ringway::protocol::{AddedBuf, CommandParser, Failure, ParseError, Parser, added, error};

fuzz_target!(|text: &[u8]| {
    let mut parser = Parser::default();
    let mut commands = CommandParser::default();
    match parser.parse(text) {
        Ok(envelope) => {
            assert!(envelope.object.starts_with(b"{") && envelope.object.len() < text.len());
            assert!((1..=ADDRESSES_MAX).contains(&envelope.to.iter().count()));
            let mut scratch = AddedBuf::default();
            added(&mut scratch, Some(1), "ana", 2, None);
            let whole = [envelope.object, scratch.as_bytes()].concat();
            // The added keys are unknown to what a client may send; everything else of the text must still be JSON.
            assert!(matches!(Parser::default().parse(&whole), Err(ParseError::Refused(_))));
            if envelope.kind.starts_with("rw.") {
                drop(commands.parse(&envelope));
            }
        }
        Err(ParseError::Refused(refusal)) => {
            let mut out = Vec::new();
            error(&mut out, &Failure::of(&refusal, Some(1)));
            assert!(out.len() < 4096);
        }
        Err(ParseError::Fatal(_)) => {}
    }
});
