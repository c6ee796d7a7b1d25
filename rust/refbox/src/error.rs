//! What can go wrong, and the exit code of each.

use std::ffi::NulError;

use leakcheck_sys::Failure;

/// A failure that ends the command; its text is one line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The caller asked for something that cannot be: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Another supervisor has the box: exit code 3.
    #[error("box {number} is in use by {holder}")]
    InUse { number: u16, holder: String },
    /// The box is out of service: exit code 4.
    #[error("box {number} is quarantined: {reason}; refbox recover --box {number} returns it to service")]
    Quarantined { number: u16, reason: String },
    /// The sandbox itself failed: exit code 1, status IE.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Error::Internal(_) => 1,
            Error::Usage(_) => 2,
            Error::InUse { .. } => 3,
            Error::Quarantined { .. } => 4,
        }
    }

    /// The same failure as the caller's own mistake.
    pub(crate) fn into_usage(self) -> Self {
        Error::Usage(self.to_string())
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Error::Internal(failure.to_string())
    }
}

/// Of a path or an argument that is handed to the kernel.
impl From<NulError> for Error {
    fn from(_: NulError) -> Self {
        Error::Usage("an argument has a zero byte in it".to_owned())
    }
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

leakcheck_sys::doing!(Error);
