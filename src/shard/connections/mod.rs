//! Connections, from accept to close: who is let in, the handshake, the state of each, its deadlines, its end.
//!
//! `accept` judges a connection as soon as its address is known, by the counts of `admission` and `half_open`; `handshake` goes from
//! the request to the welcome; `conn` is the state; `deadlines` and `leaving` end it.

pub(in crate::shard) mod accept;
pub mod admission;
pub mod conn;
pub(in crate::shard) mod deadlines;
pub(in crate::shard) mod half_open;
pub(in crate::shard) mod handshake;
pub(in crate::shard) mod leaving;
pub mod rate;
pub(in crate::shard) mod table;
