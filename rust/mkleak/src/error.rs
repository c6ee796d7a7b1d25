//! Why a plant is not there.

use std::fmt::Display;
use std::io;
use std::path::Path;

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// What stopped a plant, with the operation and the path that it was about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{operation}: {cause}")]
    Os { operation: String, cause: io::Error },
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
            Self::Os { cause, .. } if lacks_support(cause) => 77,
            Self::Unavailable(_) => 77,
            Self::Os { .. } | Self::Failed(_) => 4,
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

/// Gives a failed call its operation and its object.
pub(crate) trait During<T> {
    fn during(self, operation: impl Display) -> Result<T>;
    fn on(self, operation: &str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, operation: impl Display) -> Result<T> {
        self.map_err(|cause| Error::Os { operation: operation.to_string(), cause: cause.into() })
    }

    fn on(self, operation: &str, path: &Path) -> Result<T> {
        // Debug, since the path of a hostile plant would otherwise break the line.
        self.map_err(|cause| Error::Os { operation: format!("{operation} {path:?}"), cause: cause.into() })
    }
}
