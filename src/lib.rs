//! Ringway: the real-time gateway for AI agents, one loop a core on io_uring.
//!
//! The data path on one page:
//!
//! ```text
//! io (events) ─► net ─► ws ─► protocol ─► session ─► log ─► cursors ─► io (one send a connection and turn)
//!                                            └► lanes ─► other shards
//! ```
//!
//! The engine (`io`) owns the loop and calls the shard: `event` for what happened, then `turn`, once. The shard composes the
//! pure stages and answers through the small [`io::Io`] interface. `control` is a thread of its own (tokio) that sees shards
//! only through `shard::port`. `docs/ARCHITECTURE.md` is the map.

pub mod auth;
pub mod buffers;
pub mod cli;
pub mod close;
pub mod config;
pub mod control;
pub mod few;
pub mod ids;
pub mod io;
pub mod limits;
pub mod log;
pub mod net;
pub mod protocol;
pub mod session;
pub mod shard;
#[cfg(test)]
mod sim;
pub mod slots;
#[cfg(test)]
mod states;
pub mod time;
pub mod ws;

// Tests allocate as the binary does.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
