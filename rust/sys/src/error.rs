//! What a failed call was doing: one form of message for all helper programs.

use std::fmt;
use std::io;
use std::path::Path;

/// A failed call. Its text is `unmount /tmp/x: device or resource busy`.
#[derive(Debug)]
pub struct Failure {
    operation: String,
    cause: io::Error,
}

impl Failure {
    /// A call without a path.
    pub fn during(operation: impl fmt::Display, cause: io::Error) -> Self {
        Failure { operation: operation.to_string(), cause }
    }

    /// A call on a path. Other programs choose paths, so one with control characters is quoted.
    pub fn doing(operation: impl fmt::Display, path: &Path, cause: io::Error) -> Self {
        let operation = match path.to_str() {
            Some(text) if !text.contains(char::is_control) => format!("{operation} {text}"),
            _ => format!("{operation} {path:?}"),
        };
        Failure { operation, cause }
    }

    /// What was attempted, with the path.
    pub fn operation(&self) -> &str {
        &self.operation
    }

    /// The kernel's answer.
    pub fn cause(&self) -> &io::Error {
        &self.cause
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.operation, in_words(&self.cause))
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for io::Error {
    /// Keeps the kind, which callers match on, but not the number.
    fn from(failure: Failure) -> Self {
        io::Error::new(failure.cause.kind(), failure)
    }
}

/// The kernel's answer in lower case, without its number: `permission denied`. Any other error is its own text.
pub fn in_words(error: &io::Error) -> String {
    let text = error.to_string();
    let Some((words, _)) = text.split_once(" (os error") else { return text };
    let mut letters = words.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// Defines a program's trait `Doing`, which turns the error of a failed call into the program's own error:
/// `unmount(path, flags).doing("unmount", path)?`, and `setsid().during("setsid")?` for a call without a path.
#[macro_export]
macro_rules! doing {
    ($error:ty) => {
        pub(crate) trait Doing<T> {
            fn doing(self, operation: impl std::fmt::Display, path: impl AsRef<std::path::Path>) -> Result<T, $error>;
            fn during(self, operation: impl std::fmt::Display) -> Result<T, $error>;
        }

        impl<T, E: Into<std::io::Error>> Doing<T> for std::result::Result<T, E> {
            fn doing(self, operation: impl std::fmt::Display, path: impl AsRef<std::path::Path>) -> Result<T, $error> {
                self.map_err(|cause| $crate::Failure::doing(operation, path.as_ref(), cause.into()).into())
            }

            fn during(self, operation: impl std::fmt::Display) -> Result<T, $error> {
                self.map_err(|cause| $crate::Failure::during(operation, cause.into()).into())
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_operation_path_and_reason_in_lower_case() {
        let busy = || io::Error::from_raw_os_error(libc::EBUSY);
        assert_eq!(
            Failure::doing("unmount", Path::new("/a b"), busy()).to_string(),
            "unmount /a b: device or resource busy"
        );
        assert_eq!(
            Failure::doing("unmount", Path::new("/a\nb"), busy()).to_string(),
            "unmount \"/a\\nb\": device or resource busy"
        );
        assert_eq!(Failure::during("setsid", io::Error::other("No")).to_string(), "setsid: No");
        assert_eq!(io::Error::from(Failure::during("bind", busy())).kind(), io::ErrorKind::ResourceBusy);
    }
}
