//! The engines, and whether each works on this host, found out by trying.

use io_uring::{IoUring, Probe, opcode};
use rustix::event::epoll;
use std::fmt;
use std::io;

/// An engine that can run a shard, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The native engine, [`crate::io::ring`].
    Ring,
    /// The portable engine, [`crate::io::portable`], on io_uring.
    MonoioUring,
    /// The portable engine on epoll.
    MonoioEpoll,
}

impl Engine {
    /// The engine's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::MonoioUring | Self::MonoioEpoll => "monoio",
        }
    }

    /// The kernel's interface that the engine waits with.
    #[must_use]
    pub const fn driver(self) -> &'static str {
        match self {
            Self::Ring | Self::MonoioUring => "io_uring",
            Self::MonoioEpoll => "epoll",
        }
    }

    /// Descriptors for one connection.
    #[must_use]
    pub const fn files_per_connection(self) -> u64 {
        match self {
            Self::Ring => 1,
            Self::MonoioUring | Self::MonoioEpoll => 2,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring => formatter.write_str(self.name()),
            Self::MonoioUring | Self::MonoioEpoll => write!(formatter, "{} on {}", self.name(), self.driver()),
        }
    }
}

/// The reason why an engine can't run here.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The system call that sets it up was refused.
    #[error("{0} is refused: {1}")]
    Refused(&'static str, io::Error),
    /// The kernel is too old: it lacks flags or operations.
    #[error("this kernel's io_uring lacks {lacks}, which came with Linux {since}")]
    TooOld { lacks: &'static str, since: &'static str },
}

fn refused(error: io::Error) -> ProbeError {
    ProbeError::Refused("io_uring", error)
}

/// Checks that an engine would run.
///
/// # Errors
/// See [`ProbeError`].
pub fn probe(engine: Engine) -> Result<(), ProbeError> {
    match engine {
        Engine::Ring => probe_ring(),
        Engine::MonoioUring => probe_monoio(),
        Engine::MonoioEpoll => {
            epoll::create(epoll::CreateFlags::CLOEXEC).map(drop).map_err(|error| ProbeError::Refused("epoll", error.into()))
        }
    }
}

/// Sets up and drops a ring with the flags of the native engine, and asks for its operations.
fn probe_ring() -> Result<(), ProbeError> {
    let ring =
        IoUring::builder().setup_single_issuer().setup_defer_taskrun().setup_submit_all().build(8).map_err(
            |error| match error.raw_os_error() {
                Some(libc::EINVAL) => ProbeError::TooOld { lacks: "SINGLE_ISSUER and DEFER_TASKRUN", since: "6.1" },
                _ => refused(error),
            },
        )?;
    let needed = [
        (opcode::Recv::CODE, "receive"),
        (opcode::SendMsg::CODE, "sendmsg"),
        (opcode::MsgRingData::CODE, "MSG_RING"),
        (opcode::AsyncCancel::CODE, "cancel"),
    ];
    has(&ring, &needed, "6.1")
}

/// Does the same for monoio, which leaves out flags that a kernel lacks.
fn probe_monoio() -> Result<(), ProbeError> {
    let ring = IoUring::new(8).map_err(refused)?;
    let needed = [
        (opcode::PollAdd::CODE, "poll"),
        (opcode::AsyncCancel::CODE, "cancel"),
        (opcode::Timeout::CODE, "timeout"),
        (opcode::Close::CODE, "close"),
    ];
    has(&ring, &needed, "5.6")
}

fn has(ring: &IoUring, needed: &[(u8, &'static str)], since: &'static str) -> Result<(), ProbeError> {
    let mut operations = Probe::new();
    ring.submitter().register_probe(&mut operations).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => ProbeError::TooOld { lacks: "a list of its operations", since },
        _ => refused(error),
    })?;
    match needed.iter().find(|(code, _)| !operations.is_supported(*code)) {
        Some((_, lacks)) => Err(ProbeError::TooOld { lacks, since }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_lets_all_engines_run_or_says_why() {
        assert!(probe(Engine::MonoioEpoll).is_ok());
        for engine in [Engine::Ring, Engine::MonoioUring] {
            if let Err(error) = probe(engine) {
                let text = error.to_string();
                assert!(text.contains("io_uring") && !text.contains('\n'), "{engine}: {text}");
            }
        }
    }

    #[test]
    fn engines_have_names() {
        let names = [Engine::Ring, Engine::MonoioUring, Engine::MonoioEpoll].map(|engine| engine.to_string());
        assert_eq!(names, ["ring", "monoio on io_uring", "monoio on epoll"]);
    }
}
