//! One supervisor per box: flock(2) on a file that is never unlinked, since otherwise two processes could lock two
//! files of the same name. Somebody else may have replaced it all the same: so the state file's supervisor counts too.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Doing, Error, Result};
use crate::identity::Identity;
use crate::sabotage::removed;
use crate::store::{Found, Store};

/// How long the last process of a dead supervisor may still hold the lock. It dies because the supervisor does, but a
/// little later.
const DYING: Duration = Duration::from_secs(5);

/// Width of the text in a lock file: two numbers and a UUID.
const WIDTH: usize = 140;

/// How often a lock file is replaced in vain: by then, somebody is at work there.
const TRIES: u32 = 16;

/// A locked box; dropping this value unlocks it.
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Locks a box; with `wait`, waits without a time limit.
    pub(crate) fn take(store: &Store, number: u16, wait: bool) -> Result<Self> {
        let path = store.lock_path(number);
        let mut tries = 0;
        while tries < TRIES {
            let Some(file) = open(&path)? else {
                tries += 1;
                store.set_lock_aside(number)?;
                continue;
            };
            if !removed("flock") {
                lock(&file, store, number, wait)?;
            }
            let trusts_lock = removed("flock") || removed("unlink");
            // What has no name any more, nobody else would find locked.
            if !(trusts_lock || is_at(&file, &path)) {
                tries += 1;
                continue;
            }
            match supervisor(store, number)?.filter(|_| !trusts_lock) {
                None => return Lock { file }.sign(&path),
                Some(holder) if wait => await_end(&holder)?,
                Some(holder) => return Err(Error::InUse { number, holder: format!("pid {}", holder.pid) }),
            }
        }
        Err(Error::Internal(format!("lock {}: it was replaced {TRIES} times", path.display())))
    }

    /// Writes who has the lock.
    fn sign(self, path: &Path) -> Result<Self> {
        let own = serde_json::to_string(&Identity::own()?).expect("an identity has string keys only");
        // Always the same length, so that it overwrites its predecessor completely.
        let own = format!("{own:<WIDTH$}\n");
        self.file.write_all_at(own.as_bytes(), 0).doing("write", path)?;
        let length = own.len() as u64;
        if self.file.metadata().doing("look at", path)?.len() != length {
            self.file.set_len(length).doing("truncate", path)?;
        }
        Ok(self)
    }

    /// Locks nothing: only for a recovery that lacks its protection.
    pub(crate) fn none() -> Result<Self> {
        Ok(Lock { file: File::open("/dev/null").doing("open", "/dev/null")? })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if removed("unlink") {
            let _ = fs::read_link(format!("/proc/self/fd/{}", self.file.as_raw_fd())).map(fs::remove_file);
        }
    }
}

/// The regular file at `path`, which is created if it is missing; none if something else is there.
fn open(path: &Path) -> Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    if !removed("lock-type") {
        // A link would lead to a file that others lock, or none; a FIFO would wait for a reader.
        options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    }
    match options.open(path) {
        Ok(file) if removed("lock-type") || file.metadata().doing("look at", path)?.is_file() => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(e) if !removed("lock-type") && fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) => {
            drop(e);
            Ok(None)
        }
        // Only an ordinary user meets rights, and may replace what is in the own directory.
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied && path.exists() => Ok(None),
        Err(e) => Err(e).doing("open", path).map_err(Error::into_usage),
    }
}

/// Locks the file; with `wait`, waits without a time limit.
fn lock(file: &File, store: &Store, number: u16, wait: bool) -> Result<()> {
    let path = store.lock_path(number);
    let deadline = Instant::now() + DYING;
    while let Err(e) = flock(file, FlockOperation::NonBlockingLockExclusive) {
        if e != Errno::WOULDBLOCK {
            return Err(e).doing("lock", &path);
        }
        let holder = match holder(&path) {
            // Its words may be damaged.
            None => supervisor(store, number)?,
            known => known,
        };
        let dying = holder.as_ref().is_none_or(|holder| !holder.lives()) && Instant::now() < deadline;
        match holder {
            _ if dying => std::thread::sleep(Duration::from_millis(1)),
            _ if wait => {
                // A signal may end the wait, as its default action is to end the program.
                return flock(file, FlockOperation::LockExclusive).doing("lock", &path);
            }
            Some(holder) => return Err(Error::InUse { number, holder: format!("pid {}", holder.pid) }),
            None => return Err(Error::InUse { number, holder: "an unknown process".to_owned() }),
        }
    }
    Ok(())
}

/// Whether this is the file at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    let (own, there) = (file.metadata(), fs::symlink_metadata(path));
    matches!((own, there), (Ok(own), Ok(there)) if (own.dev(), own.ino()) == (there.dev(), there.ino()))
}

/// The living supervisor of the state file, if it is another process: it has the box, whichever file it has locked.
fn supervisor(store: &Store, number: u16) -> Result<Option<Identity>> {
    Ok(match store.read(number)? {
        Found::State(state) if state.quarantined.is_none() => Some(state.supervisor).filter(Identity::lives),
        _ => None,
    })
}

/// Waits until a process has ended.
fn await_end(process: &Identity) -> Result<()> {
    let Some(pid) = Pid::from_raw(process.pid) else { return Ok(()) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        // Only now is it known whose descriptor it is.
        Ok(pidfd) if process.lives() => {
            let mut one = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
            while poll(&mut one, None) == Err(Errno::INTR) {}
            Ok(())
        }
        Ok(_) | Err(Errno::SRCH) => Ok(()),
        Err(e) => Err(e).doing("wait for", format!("pid {}", process.pid)),
    }
}

/// The last process that wrote into the lock file; it may not hold the lock, and the lock may be free.
pub(crate) fn holder(path: &Path) -> Option<Identity> {
    let mut text = String::new();
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    file.take(4096).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok().filter(|holder: &Identity| holder.pid > 1)
}
