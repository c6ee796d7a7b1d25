//! The result file: it is empty or complete, and never an earlier run's.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, access, linkat, open};
use serde::Serialize;

use crate::cgroup::plan::LimitsBy;
use crate::error::{Doing, Error, Result};
use crate::verdict::{Execution, Status, Verdict, signal_name};

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    #[serde(rename = "box")]
    number: u16,
    status: Status,
    reason: &'a str,
    exit_code: Option<i32>,
    signal: Option<i32>,
    signal_name: Option<String>,
    wall_ms: Option<f64>,
    cpu_ms: Option<f64>,
    memory_peak_bytes: Option<u64>,
    output_bytes: Option<u64>,
    limits_by: Option<LimitsBy>,
}

/// The JSON of a result; a value that was not measured is null.
pub(crate) fn json(number: u16, verdict: &Verdict, seen: Option<&Execution>, by: Option<LimitsBy>) -> Vec<u8> {
    let ms = |time: std::time::Duration| time.as_micros() as f64 / 1000.0;
    let report = Report {
        version: 1,
        number,
        status: verdict.status,
        reason: &verdict.reason,
        exit_code: verdict.exit_code,
        signal: verdict.signal,
        signal_name: verdict.signal.map(signal_name),
        wall_ms: seen.map(|seen| ms(seen.wall)),
        cpu_ms: seen.map(|seen| ms(seen.cpu)),
        memory_peak_bytes: seen.and_then(|seen| seen.peak),
        output_bytes: seen.map(|seen| seen.output),
        limits_by: by,
    };
    let mut text = serde_json::to_vec(&report).expect("a report has string keys only");
    text.push(b'\n');
    text
}

/// The file for a result.
pub(crate) struct Target {
    path: PathBuf,
    exists: bool,
}

impl Target {
    /// Checks that a result can be written to `path`.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let exists = path.exists();
        // Before the run, so that a file that is not writable costs no run.
        let opened = if exists {
            OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).map(drop)
        } else {
            access(directory(path), Access::WRITE_OK | Access::EXEC_OK).map_err(Into::into)
        };
        opened.doing("--result", path).map_err(Error::into_usage)?;
        Ok(Target { path: path.to_owned(), exists })
    }

    /// Empties an existing file, so that nobody mistakes an earlier result for this run's. The file keeps its owner, its mode
    /// and its other names.
    pub(crate) fn clear(&self) -> Result<()> {
        let emptied = if self.exists { File::create(&self.path).map(drop) } else { Ok(()) };
        emptied.doing("empty", &self.path)
    }

    /// Writes all of it at once.
    pub(crate) fn write(&self, content: &[u8]) -> Result<()> {
        if !self.exists && self.make(content).is_ok() {
            return Ok(());
        }
        // One call: after a crash, and for a reader, the file is empty or complete.
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&self.path);
        opened.and_then(|mut file| file.write_all(content)).doing("write", &self.path)
    }

    /// Creates a file that has no name until its content is complete, so that it leaves nothing if we die before (open(2),
    /// O_TMPFILE).
    fn make(&self, content: &[u8]) -> std::io::Result<()> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let mut file = File::from(open(directory(&self.path), flags, Mode::from_raw_mode(0o644))?);
        file.write_all(content)?;
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(linkat(CWD, &unnamed, CWD, &self.path, AtFlags::SYMLINK_FOLLOW)?)
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
