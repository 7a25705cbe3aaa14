//! A shard whose lane to another is full waits for room; nothing that waits with it is lost.

#[path = "../benches/support/mod.rs"]
mod support;

use support::{Message, Stage, at_home};

/// More bursts than a lane between two shards has room for acks; each burst is below what a sender may put in at once.
const BURSTS: u64 = 6;
const BURST: u64 = 1_000;

#[test]
fn a_shard_with_a_full_lane_does_not_turn_at_once() {
    let [mut here, mut there] = Stage::pair(|_| {});
    let session = at_home("s-", 1);
    let sender = here.join("sender", &at_home("local-", 0), &[]);
    here.attach(std::slice::from_mut(&mut there), sender, &session);
    let before = here.counters.messages_out.get();
    let mut message = Message::new(&session, r#""session""#, 10);
    for _ in 0..BURSTS {
        here.publish(sender, &mut message, usize::try_from(BURST).expect("few"));
        // Would not end if it asked for another turn again and again: only the receiver makes room.
        there.settle();
    }
    assert!(there.counters.lane_full.get() > 0, "the lane was full");
    here.settle_with(std::slice::from_mut(&mut there));
    assert_eq!(there.counters.acknowledged.get(), BURSTS * BURST);
    assert_eq!((here.counters.refused.get(), here.closed()), (0, 0));
    assert_eq!(here.counters.messages_out.get() - before, BURSTS * BURST, "every ack came");
}
