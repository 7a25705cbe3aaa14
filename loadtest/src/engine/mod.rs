//! The client engine: pinned worker threads, each a tokio-uring runtime, many connections a worker. It shares no I/O code with
//! the gateway.
//!
//! Receives, connects and blocked sends go through tokio-uring. A send is first tried straight on the socket, without waiting:
//! the library's write costs a slab slot, a completion and a wake-up, which made the generator and not the server the limit.

pub mod affinity;
pub mod connection;
pub mod pacer;
pub mod run;
pub mod stats;
