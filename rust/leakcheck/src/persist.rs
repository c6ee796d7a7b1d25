//! Snapshots and reports on disk. A file is complete or absent: written to a temporary file, synced, renamed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use serde::Deserialize;

use crate::error::{Doing, Error, Result, in_words};
use crate::snapshot::Snapshot;
use crate::token::random_token;

/// Maximum size of a saved snapshot or report in bytes; the snapshot of a machine with a million files has half of
/// that.
pub const LARGEST: u64 = 512 << 20;
/// Time limit for a FIFO to get a writer.
const WRITER: Duration = Duration::from_secs(2);
/// Time limit for a pipe to deliver the whole input.
const PATIENCE: Duration = Duration::from_secs(30);

/// Reads a text that a user names: a regular file or a pipe, at most `most` bytes, with a time limit. With `own`, only
/// root and the caller may have been able to write it.
///
/// # Errors
/// Why it cannot be used, in words.
pub fn read_input(path: &Path, most: u64, own: bool) -> std::result::Result<String, String> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut file = File::options().read(true).custom_flags(flags).open(path).map_err(in_words)?;
    let meta = file.metadata().map_err(in_words)?;
    let kind = meta.file_type();
    if kind.is_dir() {
        return Err("is a directory".to_owned());
    }
    if !kind.is_file() && !kind.is_fifo() {
        return Err("it is a device or a socket, not a file".to_owned());
    }
    if let Some(why) = stranger(&meta).filter(|_| own) {
        return Err(why);
    }
    let too_large = || format!("is larger than {} MiB", most >> 20);
    if meta.len() > most {
        return Err(too_large());
    }
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let mut awaited = false;
    loop {
        match file.read(&mut buffer) {
            // A FIFO without a writer so far looks like one whose writer closed it, but only the latter reports a
            // hangup (pipe(7)).
            Ok(0) if kind.is_fifo() && bytes.is_empty() && !awaited => {
                awaited = true;
                if !wait_for(&file, Instant::now() + WRITER)? {
                    return Err(format!("no process opened it for writing within {} s", WRITER.as_secs()));
                }
            }
            Ok(0) => break,
            Ok(read) if bytes.len() as u64 + read as u64 > most => return Err(too_large()),
            Ok(read) => {
                bytes.try_reserve(read).map_err(|_| "does not fit into memory".to_owned())?;
                bytes.extend_from_slice(&buffer[..read]);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                wait_for(&file, deadline)?;
            }
            Err(e) => return Err(in_words(e)),
        }
        if Instant::now() >= deadline {
            return Err(format!("did not end within {} s", PATIENCE.as_secs()));
        }
    }
    String::from_utf8(bytes).map_err(|e| format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to()))
}

/// Who else could have written the file, in words.
fn stranger(meta: &fs::Metadata) -> Option<String> {
    if ![0, rustix::process::geteuid().as_raw()].contains(&meta.uid()) {
        return Some(format!("belongs to uid {}, which could choose what is removed", meta.uid()));
    }
    let open = meta.is_file() && meta.mode() & 0o002 != 0;
    open.then(|| "is writable by everyone, so anyone could choose what is removed".to_owned())
}

/// Whether data or the end of the input arrives before the deadline.
fn wait_for(file: &File, deadline: Instant) -> std::result::Result<bool, String> {
    let rest = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: rest.as_secs().cast_signed(), tv_nsec: rest.subsec_nanos().into() };
    match poll(&mut [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN)], Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(e) => Err(in_words(e)),
    }
}

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
        serde_json::to_string(self).map_err(|e| Error::usage(format!("cannot write the snapshot as JSON: {e}")))
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

    /// Writes the snapshot to `path`, completely or not at all.
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
        let text =
            read_input(path, LARGEST, false).map_err(|why| Error::saved(path, format!("cannot be read: {why}")))?;
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
            format!("has schema {other:?}, but this version reads {wanted:?}: make it again with `{how}`"),
        )),
        None => Err(Error::saved(path, format!("has no schema, expected {wanted:?}: make it with `{how}`"))),
    }
}

/// What is wrong with invalid JSON.
pub(crate) fn damaged(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "is truncated",
        serde_json::error::Category::Syntax => "is not JSON",
        serde_json::error::Category::Data => "is damaged",
        serde_json::error::Category::Io => "cannot be read",
    };
    format!("{what} ({error}): make it again")
}

/// Writes a file so that a reader sees the old one or the new one: a temporary file in the same directory, fsync,
/// rename. A symbolic link is followed. Anything but a regular file, such as `/dev/stdout` or a pipe, is written to and
/// never replaced.
///
/// # Errors
/// [`Error::Io`] that names the path; the temporary file is gone then.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    if fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
        let write = || File::options().write(true).open(path)?.write_all(content);
        return write().doing("write", path);
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
    // In a shared directory nobody else may control where the name leads: it is random and must be new.
    let beside = directory.join(format!(".leakcheck-{}.tmp", random_token()));
    let mut file = File::create_new(&beside).doing("write", path)?;
    let mut write = || -> std::io::Result<()> {
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&beside);
        Error::io("write", path, e)
    })?;
    // A directory that is writable but not readable cannot be synced.
    let synced = File::open(directory).map_or(Ok(()), |d| d.sync_all());
    synced.doing("sync directory", directory)
}
