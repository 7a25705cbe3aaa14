//! The floor: a bare WebSocket echo server, a bare relay and a bare fan-out server on raw io_uring, with the gateway's framing
//! and nothing else: no JSON, no sessions, no limits, no timers. What they cost is what the machine costs; every figure of the
//! gateway is read against them. One thread, one ring, one `io_uring_enter` a turn.
//!
//! They may hold no more than a bare server would, but what they do is correct: short sends are finished, frames cut by a
//! receive are put together, a peer that goes is let go.
//!
//! `disk` is the floor of another kind: what the disk costs a log that waits for it.

mod buffers;
pub mod disk;
mod frames;
mod pairs;
mod ring;

use std::net::SocketAddr;

/// The kinds of floor server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Every data frame goes back to its sender.
    Echo,
    /// Every data frame goes to the other connection that asked for the same path `/pair/NAME`, an ack to its sender.
    Relay,
    /// Every data frame goes to all others.
    Fanout,
}

impl Kind {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Relay => "relay",
            Self::Fanout => "fanout",
        }
    }
}

/// Serves until the process is ended. Returns only if it fails, with the reason.
pub fn serve(kind: Kind, listen: SocketAddr, buffer_bytes: u32, on_ready: impl FnOnce(SocketAddr)) -> std::io::Error {
    match ring::Server::new(kind, listen, buffer_bytes) {
        Ok((mut server, bound)) => {
            on_ready(bound);
            server.run()
        }
        Err(error) => error,
    }
}
