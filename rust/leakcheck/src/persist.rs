//! Snapshots and reports on disk. A file is whole or absent: written beside, synced, renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::snapshot::Snapshot;

#[derive(Deserialize)]
struct Header {
    schema: Option<String>,
}

impl Snapshot {
    /// The saved form.
    ///
    /// # Errors
    /// None that this crate's own snapshots can raise; [`Error::Usage`] if serialising fails.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::usage(format!("a snapshot cannot be written as JSON: {e}")))
    }

    /// Reads the saved form; `path` names it in errors.
    ///
    /// # Errors
    /// [`Error::Saved`] for another schema or version, a truncated or damaged text.
    pub fn from_json(text: &str, path: &Path) -> Result<Self> {
        check_schema(text, path, Snapshot::SCHEMA, "leakcheck snapshot -o FILE")?;
        let mut snapshot: Snapshot = serde_json::from_str(text).map_err(|e| Error::saved(path, damaged(&e)))?;
        snapshot.normalise();
        Ok(snapshot)
    }

    /// Writes the snapshot to `path`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] that names the path.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_whole(path, self.to_json()?.as_bytes())
    }

    /// Reads a saved snapshot.
    ///
    /// # Errors
    /// [`Error::Saved`] as in [`Snapshot::from_json`], and when the file cannot be read.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|e| Error::saved(path, format!("cannot be read: {e}")))?;
        Snapshot::from_json(&text, path)
    }
}

/// Checks the `schema` of a saved text before its content.
pub(crate) fn check_schema(text: &str, path: &Path, wanted: &str, how: &str) -> Result<()> {
    let header: Header = serde_json::from_str(text).map_err(|e| Error::saved(path, damaged(&e)))?;
    match header.schema.as_deref() {
        Some(schema) if schema == wanted => Ok(()),
        Some(other) => Err(Error::saved(
            path,
            format!("has schema {other:?}, this version reads {wanted:?}: make it again with `{how}`"),
        )),
        None => Err(Error::saved(path, format!("has no schema, {wanted:?} was expected: make it with `{how}`"))),
    }
}

/// What is wrong with a text that is no such JSON.
pub(crate) fn damaged(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "is truncated",
        serde_json::error::Category::Syntax => "is not JSON",
        serde_json::error::Category::Data => "is damaged",
        serde_json::error::Category::Io => "cannot be read",
    };
    format!("{what} ({error}): make it again")
}

/// Writes a file so that a reader sees the old one or the new one: a temporary file in the same directory, fsync, rename.
/// A symbolic link is followed. What is no regular file, such as `/dev/stdout` or a pipe, is written to and never replaced.
///
/// # Errors
/// [`Error::Io`] that names the path; the temporary file is gone then.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    if fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
        let write = || File::options().write(true).open(path)?.write_all(content);
        return write().map_err(|e| Error::io("write", path, e));
    }
    let resolved = fs::canonicalize(path);
    let path = resolved.as_deref().unwrap_or(path);
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if path.file_name().is_none() || path.is_dir() {
        return Err(Error::usage(format!("{}: is a directory: name a file", path.display())));
    }
    // In a shared directory nobody else may choose what the name leads to: it is random and must be new.
    let beside = directory.join(format!(".leakcheck-{}.tmp", crate::guard::random_token()));
    let mut file = File::create_new(&beside).map_err(|e| Error::io("write", path, e))?;
    let mut write = || -> std::io::Result<()> {
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&beside);
        Error::io("write", path, e)
    })?;
    // A directory that may be written but not read cannot be synced.
    let synced = File::open(directory).map_or(Ok(()), |d| d.sync_all());
    synced.map_err(|e| Error::io("sync directory", directory, e))
}
