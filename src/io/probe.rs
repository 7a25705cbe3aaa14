//! Whether this kernel lets the process have the ring that the native engine needs.
//!
//! May import the standard library and io-uring only.

use io_uring::IoUring;

/// What a trial ring said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    /// Entries of the trial's submission queue.
    pub entries: u32,
}

/// The trial ring was refused.
#[derive(Debug, thiserror::Error)]
#[error("io_uring is refused: {0}")]
pub struct ProbeError(#[from] pub std::io::Error);

/// Sets up a small ring with the flags of the native engine and gives it back.
///
/// # Errors
/// What the kernel answered: EPERM (forbidden), ENOSYS (unknown), EINVAL (a kernel too old for the flags), ENOMEM.
pub fn probe() -> Result<ProbeReport, ProbeError> {
    let ring: IoUring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8)?;
    Ok(ProbeReport { entries: ring.params().sq_entries() })
}
