//! What can go wrong, and the exit code of each.

use std::ffi::NulError;
use std::io;

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

/// Of a path or an argument that is handed to the kernel.
impl From<NulError> for Error {
    fn from(_: NulError) -> Self {
        Error::Usage("an argument has a zero byte in it".to_owned())
    }
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Names the operation and the path of an input/output error.
pub(crate) trait Doing<T> {
    fn doing(self, operation: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, operation: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::Internal(format!("{}: {}", operation(), reason(&e.into()))))
    }
}

/// The kernel's words in lower case, without the number.
pub(crate) fn reason(e: &io::Error) -> String {
    let text = e.to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = words.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_operation_path_and_reason_in_lower_case() {
        let failed = std::fs::read("/nonexistent/file").doing(|| "read /nonexistent/file".to_owned());
        assert_eq!(failed.unwrap_err().to_string(), "read /nonexistent/file: no such file or directory");
    }
}
