//! One supervisor per box: flock(2) on a file that is never unlinked, since otherwise two processes could lock two
//! files of the same name.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Doing, Error, Result};
use crate::identity::Identity;
use crate::store::Store;

/// How long the last process of a dead supervisor may still hold the lock. It dies because the supervisor does, but a
/// little later.
const DYING: Duration = Duration::from_secs(5);

/// Width of the text in a lock file: two numbers and a UUID.
const WIDTH: usize = 140;

/// A locked box; dropping this value unlocks it.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Locks a box; with `wait`, waits without a time limit.
    pub(crate) fn take(store: &Store, number: u16, wait: bool) -> Result<Self> {
        let path = store.lock_path(number);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = opened.doing("open", &path).map_err(Error::into_usage)?;
        let deadline = Instant::now() + DYING;
        while let Err(e) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if e != Errno::WOULDBLOCK {
                return Err(e).doing("lock", &path);
            }
            let holder = holder(&path);
            let dying = holder.as_ref().is_none_or(|holder| !holder.lives()) && Instant::now() < deadline;
            match holder {
                _ if dying => std::thread::sleep(Duration::from_millis(1)),
                _ if wait => {
                    // A signal may end the wait, as its default action is to end the program.
                    flock(&file, FlockOperation::LockExclusive).doing("lock", &path)?;
                    break;
                }
                Some(holder) => return Err(Error::InUse { number, holder: format!("pid {}", holder.pid) }),
                None => return Err(Error::InUse { number, holder: "an unknown process".to_owned() }),
            }
        }
        let own = serde_json::to_string(&Identity::own()?).expect("an identity has string keys only");
        // Always the same length, so that it overwrites its predecessor completely.
        let own = format!("{own:<WIDTH$}\n");
        file.write_all_at(own.as_bytes(), 0).doing("write", &path)?;
        Ok(Lock { _file: file })
    }
}

/// The last process that wrote into the lock file; it may not hold the lock, and the lock may be free.
pub(crate) fn holder(path: &Path) -> Option<Identity> {
    let mut text = String::new();
    File::open(path).ok()?.take(4096).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok().filter(|holder: &Identity| holder.pid > 1)
}
