//! Whether this host lets the native engine run, found out by trying.

use io_uring::{IoUring, Probe, opcode};
use std::io;

/// Why the native engine can't run here, with the way out.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// `io_uring_setup` was refused.
    #[error(
        "io_uring is refused on this host ({0}): allow it (sysctl kernel.io_uring_disabled=0; in a container, a seccomp profile \
         that permits io_uring_setup, io_uring_enter and io_uring_register)"
    )]
    Refused(io::Error),
    /// The kernel is too old for the flags or the operations.
    #[error("this kernel's io_uring lacks {0}: Linux 6.1 or newer is needed")]
    TooOld(&'static str),
}

/// Sets up and drops a ring with the flags the engine uses, and asks for its operations.
///
/// # Errors
/// See [`ProbeError`].
pub fn probe() -> Result<(), ProbeError> {
    let ring: IoUring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().setup_submit_all().build(8).map_err(
        |error| match error.raw_os_error() {
            Some(libc::EINVAL) => ProbeError::TooOld("SINGLE_ISSUER and DEFER_TASKRUN"),
            _ => ProbeError::Refused(error),
        },
    )?;
    let mut operations = Probe::new();
    ring.submitter().register_probe(&mut operations).map_err(ProbeError::Refused)?;
    let needed = [
        (opcode::Recv::CODE, "receive"),
        (opcode::SendMsg::CODE, "sendmsg"),
        (opcode::MsgRingData::CODE, "MSG_RING"),
        (opcode::AsyncCancel::CODE, "cancel"),
    ];
    match needed.iter().find(|(code, _)| !operations.is_supported(*code)) {
        Some((_, name)) => Err(ProbeError::TooOld(name)),
        None => Ok(()),
    }
}
