//! What can go wrong, and the exit code of each.

use std::ffi::NulError;

use leakcheck_sys::Failure;

use crate::sabotage::removed;

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
    /// It failed because the machine lacks something: the same, whatever the caller asked for.
    #[error("{0}")]
    Exhausted(String),
}

impl Error {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Error::Internal(_) | Error::Exhausted(_) => 1,
            Error::Usage(_) => 2,
            Error::InUse { .. } => 3,
            Error::Quarantined { .. } => 4,
        }
    }

    /// The same failure as the caller's own mistake; what the machine lacks is none.
    pub(crate) fn into_usage(self) -> Self {
        match self {
            Error::Exhausted(why) => Error::Exhausted(why),
            other => Error::Usage(other.to_string()),
        }
    }
}

/// What the machine lacks, if that is why a call failed.
pub(crate) fn lack(cause: &std::io::Error) -> Option<&'static str> {
    match cause.raw_os_error()? {
        libc::ENOSPC | libc::EDQUOT => Some("the disk is full"),
        libc::EMFILE | libc::ENFILE => Some("out of file descriptors"),
        libc::ENOMEM => Some("out of memory"),
        libc::EAGAIN => Some("out of processes"),
        _ => None,
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match lack(failure.cause()) {
            Some(what) if !removed("lack") => Error::Exhausted(format!("{failure}: {what}")),
            _ => Error::Internal(failure.to_string()),
        }
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
