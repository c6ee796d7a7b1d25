//! Why a plant could not be made.

use std::io;

use leakcheck_sys::Failure;

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// The error that stopped a plant, with its operation and path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Os(#[from] Failure),
    /// The machine lacks something that no privilege provides.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// 77, which automake and many test runners read as *skipped*, if the plant can't exist here.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Os(failure) if lacks_support(failure.cause()) => 77,
            Self::Unavailable(_) => 77,
            Self::Os(_) | Self::Failed(_) => 4,
        }
    }
}

/// errno(3) values that mean *not on this kernel* or *not with these privileges*, and not *it failed*.
fn lacks_support(cause: &io::Error) -> bool {
    matches!(
        cause.raw_os_error(),
        Some(
            libc::EPERM
                | libc::EACCES
                | libc::ENOSYS
                | libc::EOPNOTSUPP
                | libc::EPROTONOSUPPORT
                | libc::EAFNOSUPPORT
                | libc::ENODEV
                | libc::EROFS
        )
    )
}

leakcheck_sys::doing!(Error);
