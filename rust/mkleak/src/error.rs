//! Why a plant is not there.

use std::io;

use leakcheck_sys::Failure;

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// What stopped a plant, with the operation and the path that it was about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Os(#[from] Failure),
    /// The machine lacks something that no privilege would give.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// 77, which automake and many test runners take for *skipped*, where the plant can't exist here.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Os(failure) if lacks_support(failure.cause()) => 77,
            Self::Unavailable(_) => 77,
            Self::Os(_) | Self::Failed(_) => 4,
        }
    }
}

/// errno(3) values that say *not on this kernel* or *not with these privileges*, as opposed to *it went wrong*.
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
