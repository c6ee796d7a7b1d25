//! The state directory: one lock file and, while a box isn't idle, one state file a box; quarantined files; the audit log.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use serde_json::json;

use crate::directory::list;
use crate::error::{Doing, Error, Result};
use crate::sabotage::removed;
use crate::state::{self, Phase, State, fnv};

/// The audit log is renamed when it gets larger.
const AUDIT_SIZE: u64 = 1 << 20;
/// State files have a few hundred bytes.
const STATE_SIZE: u64 = 1 << 16;
const STATE_MODE: u32 = 0o600;
const O_NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
const O_NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits() as i32;
const ELOOP: i32 = rustix::io::Errno::LOOP.raw_os_error();

/// An open state directory.
pub(crate) struct Store {
    dir: PathBuf,
}

/// The content of a box's state file.
pub(crate) enum Found {
    Idle,
    State(State),
    /// It cannot be trusted, for this reason.
    Corrupt(String),
}

/// A state file of which only the phase still changes.
pub(crate) struct Written {
    file: File,
    phase_offset: u64,
}

impl Written {
    /// Overwrites the phase.
    pub(crate) fn enter(&self, phase: Phase) -> Result<()> {
        self.file.write_all_at(&phase.bytes(), self.phase_offset).during("write the phase to the state file")
    }
}

impl Store {
    /// Opens `dir`, or this user's default, and creates it if it is missing.
    pub(crate) fn open(dir: Option<&Path>) -> Result<Self> {
        let dir = dir.map_or_else(default_dir, Path::to_owned);
        Self::open_dir(&dir).map_err(Error::into_usage)
    }

    fn open_dir(dir: &Path) -> Result<Self> {
        let quarantine = dir.join("quarantine");
        if !quarantine.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&quarantine).doing("state directory", dir)?;
        }
        // The cgroups' name derives from it, so it must not depend on the caller's spelling.
        let dir = dir.canonicalize().doing("state directory", dir)?;
        let found = fs::metadata(&dir).doing("state directory", &dir)?;
        // In /tmp anybody could have created it.
        if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err(Error::Usage(format!("state directory {}: others can write to it", dir.display())));
        }
        let store = Store { dir };
        store.audit_file()?;
        Ok(store)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn lock_path(&self, number: u16) -> PathBuf {
        self.dir.join(format!("box-{number}.lock"))
    }

    /// The name of a box's cgroups. It is the same in every run, so that they are found without any state; boxes of another
    /// state directory have other names.
    pub(crate) fn cgroup_name(&self, number: u16) -> String {
        format!("refbox-{:08x}-{number}", fnv(self.dir.as_os_str().as_encoded_bytes()) as u32)
    }

    fn state_path(&self, number: u16) -> PathBuf {
        self.dir.join(format!("box-{number}.json"))
    }

    fn new_path(&self, number: u16) -> PathBuf {
        self.dir.join(format!("box-{number}.json.new"))
    }

    /// Every box that was ever used here, in order.
    pub(crate) fn boxes(&self) -> Result<Vec<u16>> {
        let mut numbers = Vec::new();
        for (name, _) in list(&self.dir).doing("read directory", &self.dir)? {
            let rest = name.to_str().and_then(|n| n.strip_prefix("box-")).and_then(|n| n.split_once('.'));
            if let Some(number) = rest.and_then(|(number, _)| number.parse().ok()).filter(|n| *n <= 9999) {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    pub(crate) fn read(&self, number: u16) -> Result<Found> {
        let path = self.state_path(number);
        match read_own(&path) {
            Ok(Ok(bytes)) => Ok(match state::decode(&bytes, number, &self.cgroup_name(number)) {
                Ok(state) => Found::State(state),
                Err(why) => Found::Corrupt(why),
            }),
            Ok(Err(why)) => Ok(Found::Corrupt(why)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Found::Idle),
            Err(e) if e.raw_os_error() == Some(ELOOP) => Ok(Found::Corrupt("is a symbolic link".to_owned())),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => Ok(Found::Corrupt("cannot be read".to_owned())),
            // An input/output error.
            Err(e) => Err(e).doing("read", &path),
        }
    }

    /// Replaces the state file: at any instant, even after a power failure, either the old or the new one exists. On a tmpfs
    /// such as /run, syncing is free; on a disk it can take longer than the whole run.
    pub(crate) fn write(&self, state: &State) -> Result<Written> {
        let (new, path) = (self.new_path(state.number), self.state_path(state.number));
        let bytes = state::encode(state);
        let written = || -> std::io::Result<File> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(STATE_MODE).open(&new)?;
            file.write_all(&bytes)?;
            if !removed("fsync") {
                file.sync_data()?;
            }
            fs::rename(&new, &path)?;
            if !removed("directory-fsync") {
                File::open(&self.dir)?.sync_all()?;
            }
            Ok(file)
        };
        let file = written().doing("write", &path)?;
        Ok(Written { file, phase_offset: state::phase_offset(&bytes) })
    }

    /// Makes the box idle.
    pub(crate) fn remove(&self, number: u16) -> Result<()> {
        for path in [self.new_path(number), self.state_path(number)] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    return Err(e).doing("remove", &path);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Keeps a corrupt state file for inspection; without it the box is idle.
    pub(crate) fn set_aside(&self, number: u16, why: &str) -> Result<()> {
        if removed("set-aside") {
            return Err(Error::Internal(format!("{}: {why}", self.state_path(number).display())));
        }
        let (from, mut to) = (self.state_path(number), self.set_aside_path(number));
        // One per box, so that their number is bounded.
        if removed("one-kept") {
            to.set_extension(std::process::id().to_string());
        } else {
            self.remove_set_aside(number)?;
        }
        fs::rename(&from, &to).during(format_args!("rename {} to {}", from.display(), to.display()))?;
        if !removed("audit") {
            self.audit(number, "state-set-aside", why);
        }
        Ok(())
    }

    pub(crate) fn remove_set_aside(&self, number: u16) -> Result<()> {
        remove_any(&self.set_aside_path(number))
    }

    /// Keeps what is in the place of a lock file and cannot be one. Who waits at this moment does not do it twice.
    pub(crate) fn set_lock_aside(&self, number: u16) -> Result<()> {
        let (from, to) = (self.lock_path(number), self.dir.join(format!("quarantine/box-{number}.lock")));
        let dir = File::open(&self.dir).doing("open", &self.dir)?;
        flock(&dir, FlockOperation::LockExclusive).doing("lock", &self.dir)?;
        let why = match fs::symlink_metadata(&from) {
            Ok(found) if !found.is_file() => format!("{} is no regular file", from.display()),
            Ok(found) if File::open(&from).is_err() => {
                format!("{} has mode {:o}", from.display(), found.mode() & 0o7777)
            }
            // Somebody else was here before.
            _ => return Ok(()),
        };
        remove_any(&to)?;
        fs::rename(&from, &to).during(format_args!("rename {} to {}", from.display(), to.display()))?;
        self.audit(number, "lock-set-aside", &why);
        Ok(())
    }

    fn set_aside_path(&self, number: u16) -> PathBuf {
        self.dir.join(format!("quarantine/box-{number}.json"))
    }

    /// Adds a line to the audit log. A failure only warns, since a full disk must not prevent a box's recovery.
    pub(crate) fn audit(&self, number: u16, event: &str, reason: &str) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64());
        let line = json!({"time": time, "box": number, "event": event, "reason": reason});
        let added = self.audit_file().and_then(|mut file| {
            file.write_all(format!("{line}\n").as_bytes()).doing("write", self.dir.join("audit.jsonl"))
        });
        if let Err(e) = added {
            eprintln!("refbox: {e}");
        }
    }

    fn audit_file(&self) -> Result<File> {
        let path = self.dir.join("audit.jsonl");
        if fs::metadata(&path).is_ok_and(|found| found.len() > AUDIT_SIZE) {
            let old = self.dir.join("audit.jsonl.old");
            fs::rename(&path, &old).doing("rename", &path)?;
        }
        let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        opened.doing("open", &path)
    }
}

/// Removes a file or a directory, if it is there; a link, not what it leads to.
fn remove_any(path: &Path) -> Result<()> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    match if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) } {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).doing("remove", path),
        _ => Ok(()),
    }
}

/// The content of a file as we write state files; or what it is instead.
fn read_own(path: &Path) -> std::io::Result<std::result::Result<Vec<u8>, String>> {
    if removed("file-type") {
        return fs::read(path).map(Ok);
    }
    // Do not wait for a writer of a FIFO.
    let mut file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)?;
    let found = file.metadata()?;
    let own = rustix::process::geteuid().as_raw();
    if !found.is_file() {
        return Ok(Err("not a regular file".to_owned()));
    }
    if !removed("owner") && (found.uid() != own || found.mode() & 0o7777 != STATE_MODE) {
        return Ok(Err(format!("of user {} with mode {:o}", found.uid(), found.mode() & 0o7777)));
    }
    if found.len() > STATE_SIZE {
        return Ok(Err(format!("{} bytes", found.len())));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Ok(bytes))
}

fn default_dir() -> PathBuf {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return "/run/refbox".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("refbox"),
        None => format!("/tmp/refbox-{}", uid.as_raw()).into(),
    }
}
