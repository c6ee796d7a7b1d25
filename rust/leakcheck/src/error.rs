//! The one error family. Every message names the operation and the path, lower case, no full stop.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong while observing, judging or reading saved data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller asked for something that does not exist or is malformed. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A system call on a path failed.
    #[error("cannot {op} {}: {}", path.display(), in_words(source))]
    Io {
        /// What was attempted, as an infinitive ("read", "open directory").
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A saved file cannot be used. Exit code 2.
    #[error("{}: {why}", path.display())]
    Saved {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        why: String,
    },
}

impl Error {
    pub(crate) fn io(op: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Error::Io { op, path: path.as_ref().to_owned(), source: source.into() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Error::Usage(message.into())
    }

    pub(crate) fn saved(path: impl AsRef<Path>, why: impl Into<String>) -> Self {
        Error::Saved { path: path.as_ref().to_owned(), why: why.into() }
    }

    /// Whether the input is wrong (exit code 2), not the machine.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Usage(_) | Error::Saved { .. } => true,
            Error::Io { .. } => false,
        }
    }
}

/// The kernel's answer without its number: `permission denied`.
pub(crate) fn in_words(error: impl std::fmt::Display) -> String {
    let text = error.to_string();
    let Some((words, _)) = text.split_once(" (os error") else { return text };
    let mut letters = words.chars();
    letters.next().map_or(String::new(), |first| first.to_lowercase().chain(letters).collect())
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Says what was attempted, and on what: `open(path).doing("open", path)?`.
pub(crate) trait Doing<T> {
    /// # Errors
    /// [`Error::Io`] instead of the kernel's answer.
    fn doing(self, op: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, op: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::io(op, path, e))
    }
}

impl Error {
    /// Whether the object disappeared while it was read.
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Error::Io { source, .. } => {
                matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EINVAL))
            }
            Error::Usage(_) | Error::Saved { .. } => false,
        }
    }
}
