//! The result file: whole or not at all, and never an earlier run's.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
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

/// The JSON of a result; what was not measured is null.
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

/// Where a result goes.
pub(crate) struct Target {
    path: PathBuf,
    /// `/dev/stdout` and the like, which are not replaced.
    special: bool,
}

impl Target {
    /// Checks that a result can be written to `path`.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let named = || format!("--result {}", path.display());
        let found = fs::metadata(path);
        if found.as_ref().is_ok_and(|found| found.is_dir()) {
            return Err(Error::Usage(format!("{}: is a directory", named())));
        }
        let special = found.is_ok_and(|found| !found.is_file());
        if !special {
            access(directory(path), Access::WRITE_OK | Access::EXEC_OK).doing(named).map_err(Error::into_usage)?;
        }
        Ok(Target { path: path.to_owned(), special })
    }

    /// Takes an earlier result away, lest it be read as this run's.
    pub(crate) fn clear(&self) -> Result<()> {
        match fs::remove_file(&self.path) {
            _ if self.special => Ok(()),
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e).doing(|| format!("remove {}", self.path.display())),
            _ => Ok(()),
        }
    }

    pub(crate) fn write(&self, content: &[u8]) -> Result<()> {
        let named = || format!("write {}", self.path.display());
        if self.special {
            return OpenOptions::new().write(true).open(&self.path).and_then(|mut f| f.write_all(content)).doing(named);
        }
        // A file without a name leaves nothing, whenever we die.
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        match open(directory(&self.path), flags, Mode::from_raw_mode(0o644)) {
            Ok(fd) => {
                let mut file = File::from(fd);
                file.write_all(content).doing(named)?;
                let own = format!("/proc/self/fd/{}", file.as_raw_fd());
                match linkat(CWD, &own, CWD, &self.path, AtFlags::SYMLINK_FOLLOW) {
                    Ok(()) => Ok(()),
                    // Somebody made one meanwhile, or has no /proc.
                    Err(_) => self.replace(content),
                }
            }
            Err(_) => self.replace(content),
        }
    }

    fn replace(&self, content: &[u8]) -> Result<()> {
        let named = || format!("write {}", self.path.display());
        let mut name = OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(".refbox-new");
        let new = directory(&self.path).join(name);
        let mut options = OpenOptions::new();
        let file =
            options.write(true).create(true).truncate(true).mode(0o644).custom_flags(libc::O_NOFOLLOW).open(&new);
        file.and_then(|mut file| file.write_all(content)).doing(named)?;
        fs::rename(&new, &self.path).doing(named)
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
