//! Removes file names through their directory, which is reached without following links, after comparing device, inode
//! and birth time.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::action::{Outcome, Status, Verb};
use super::now::Now;
use crate::observe::class_name;
use crate::resource::{File, Ipc, LockFile, LockFileState, encode_device};
use crate::text::Text;

/// `STATX_ATTR_MOUNT_ROOT` (Linux 5.8).
pub(super) const MOUNT_ROOT: u64 = 0x2000;

/// A name in a directory that is held open.
pub(super) struct Place {
    pub(super) dir: OwnedFd,
    pub(super) name: CString,
}

impl Place {
    /// Walks to the directory one name at a time: no link is followed, and a path may be longer than `PATH_MAX`.
    pub(super) fn of(path: &Path, verb: Verb) -> Result<Place, Outcome> {
        let odd = || Outcome::new(verb, Status::Failed, "its path in the report is not absolute or has no name");
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(odd()) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut components = parent.components();
        if components.next() != Some(Component::RootDir) {
            return Err(odd());
        }
        let opened = |result: rustix::io::Result<OwnedFd>| {
            result.map_err(|e| match e {
                Errno::NOENT => Outcome::gone(verb),
                Errno::NOTDIR | Errno::LOOP => Outcome::replaced(verb),
                other => Outcome::failed(verb, "open its directory", other),
            })
        };
        let mut dir = opened(rustix::fs::open("/", flags, Mode::empty()))?;
        for component in components {
            let Component::Normal(name) = component else { return Err(odd()) };
            dir = opened(rustix::fs::openat(&dir, name, flags, Mode::empty()))?;
        }
        let name = CString::new(name.as_bytes()).map_err(|_| odd())?;
        Ok(Place { dir, name })
    }

    /// The file that has the name now, without waiting for a server or an automounter.
    pub(super) fn stat(&self, verb: Verb) -> Result<Statx, Outcome> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        rustix::fs::statx(&self.dir, &self.name, flags, mask).map_err(|e| match e {
            Errno::NOENT => Outcome::gone(verb),
            other => Outcome::failed(verb, "stat", other),
        })
    }

    /// The file itself, not opened.
    pub(super) fn hold(&self, verb: Verb) -> Result<OwnedFd, Outcome> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir, &self.name, flags, Mode::empty()).map_err(|e| match e {
            Errno::NOENT => Outcome::gone(verb),
            other => Outcome::failed(verb, "open", other),
        })
    }

    pub(super) fn unlink(&self, directory: bool) -> rustix::io::Result<()> {
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(&self.dir, &self.name, flags)
    }
}

fn birth(st: &Statx) -> Option<i64> {
    let known = st.stx_mask & StatxFlags::BTIME.bits() != 0;
    known.then(|| st.stx_btime.tv_sec * 1_000_000_000 + i64::from(st.stx_btime.tv_nsec))
}

fn kind_of(st: &Statx) -> FileType {
    FileType::from_raw_mode(st.stx_mode.into())
}

/// The files of a report.
pub(super) struct Files {
    apply: bool,
    /// Start of the baseline.
    baseline_ns: i64,
    /// Paths that are free, or would be.
    free: HashSet<Vec<u8>>,
}

impl Files {
    pub(super) fn new(apply: bool, baseline_ns: i64) -> Self {
        Files { apply, baseline_ns, free: HashSet::new() }
    }

    fn note(&mut self, path: &Text, outcome: Result<Outcome, Outcome>) -> Outcome {
        let outcome = outcome.unwrap_or_else(|outcome| outcome);
        if outcome.leaves_nothing() {
            self.free.insert(path.as_bytes().to_vec());
        }
        outcome
    }

    /// A file of any type.
    pub(super) fn remove(&mut self, file: &File) -> Outcome {
        let outcome = self.try_remove(file);
        self.note(&file.path, outcome)
    }

    fn try_remove(&self, file: &File) -> Result<Outcome, Outcome> {
        let place = Place::of(file.path.as_path(), Verb::Unlink)?;
        let st = place.stat(Verb::Unlink)?;
        if st.stx_attributes.bits() & MOUNT_ROOT != 0 {
            return Ok(Outcome::new(Verb::Unlink, Status::Failed, "a mount lies over it"));
        }
        let same = (encode_device(st.stx_dev_major, st.stx_dev_minor), st.stx_ino) == (file.dev, file.ino)
            && birth(&st) == file.birth
            // Without a birth time, the inode may be reused: then the type and the owner must match too.
            && (file.birth.is_some() || st.stx_uid == file.uid && class_name(kind_of(&st)) == file.class);
        if !same {
            return Err(Outcome::replaced(Verb::Unlink));
        }
        self.younger(&st)?;
        let directory = kind_of(&st) == FileType::Directory;
        if directory {
            self.empty(&place, file)?;
        }
        self.unlink(&place, &st)
    }

    /// Whether the run made the file. An older file may have been moved to its name and be the only copy. If an older
    /// file still has another name, the run made only this name, which can be removed.
    fn younger(&self, st: &Statx) -> Result<(), Outcome> {
        let skipped = |why: &str| Err(Outcome::skipped(Verb::Unlink, why));
        match birth(st) {
            _ if self.baseline_ns == 0 => skipped("the report does not say when its run began: make a new report"),
            None => {
                skipped("its file system has no birth times, so nothing proves that it did not exist before the run")
            }
            Some(born) if born >= self.baseline_ns => Ok(()),
            Some(_) if kind_of(st) != FileType::Directory && st.stx_nlink > 1 => Ok(()),
            Some(_) => skipped("it existed before the run"),
        }
    }

    /// Removes a name right after comparing again what it leads to. A process that could put another file there in
    /// between can rename that file, and so could remove it itself.
    fn unlink(&self, place: &Place, compared: &Statx) -> Result<Outcome, Outcome> {
        let held = place.hold(Verb::Unlink)?;
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let st = rustix::fs::statx(&held, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, mask)
            .map_err(|e| Outcome::failed(Verb::Unlink, "stat", e))?;
        let identity = |st: &Statx| (st.stx_dev_major, st.stx_dev_minor, st.stx_ino, birth(st));
        if identity(&st) != identity(compared) {
            return Err(Outcome::replaced(Verb::Unlink));
        }
        let directory = kind_of(&st) == FileType::Directory;
        Ok(Outcome::act(Verb::Unlink, self.apply, "unlinkat", || place.unlink(directory)))
    }

    /// Whether a directory contains nothing but what is removed.
    fn empty(&self, place: &Place, file: &File) -> Result<(), Outcome> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let failed = |e| Outcome::failed(Verb::Unlink, "list the directory", e);
        let dir = rustix::fs::openat(&place.dir, &place.name, flags, Mode::empty()).map_err(failed)?;
        for entry in Dir::read_from(dir.as_fd()).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let path = [file.path.as_ref(), b"/", name].concat();
            if self.apply || !self.free.contains(&path) {
                let why = format!("is not empty: it holds {}, which stays", Text::from(name));
                return Err(Outcome::new(Verb::Unlink, Status::Failed, why));
            }
        }
        Ok(())
    }

    /// POSIX shared memory: a regular file of `/dev/shm` (shm_overview(7)). Its record has no device: the directory's
    /// is used.
    pub(super) fn remove_shm(&mut self, object: &Ipc) -> Outcome {
        let outcome = self.try_remove_shm(object);
        self.note(&object.name, outcome)
    }

    fn try_remove_shm(&self, object: &Ipc) -> Result<Outcome, Outcome> {
        if object.name.as_path().parent() != Some(Path::new("/dev/shm")) {
            return Err(Outcome::new(
                Verb::Unlink,
                Status::Failed,
                "its path in the report is not a shared memory path",
            ));
        }
        let place = place_of_declared(&object.name)?;
        let st = place.stat(Verb::Unlink)?;
        let same = kind_of(&st) == FileType::RegularFile
            && (st.stx_ino, birth(&st), st.stx_uid) == (object.id, object.birth, object.uid);
        if !same {
            return Err(Outcome::replaced(Verb::Unlink));
        }
        self.younger(&st)?;
        self.unlink(&place, &st)
    }

    /// A lock file. Its record has no birth time, so its content must still show residue: a file that a process holds,
    /// or that is free as expected between runs, stays. It is locked during the removal.
    pub(super) fn remove_lock_file(&mut self, file: &LockFile, now: Option<&Now>) -> Outcome {
        let outcome = self.try_remove_lock_file(file, now);
        self.note(&file.path, outcome)
    }

    fn try_remove_lock_file(&self, file: &LockFile, now: Option<&Now>) -> Result<Outcome, Outcome> {
        let place = place_of_declared(&file.path)?;
        let st = place.stat(Verb::Unlink)?;
        let identity = (encode_device(st.stx_dev_major, st.stx_dev_minor), st.stx_ino);
        if kind_of(&st) != FileType::RegularFile || identity != (file.dev, file.ino) {
            return Err(Outcome::replaced(Verb::Unlink));
        }
        self.younger(&st)?;
        let Some(seen) = now.and_then(|n| n.snapshot.lock_files.iter().find(|l| l.path == file.path)) else {
            return Err(Outcome::skipped(Verb::Unlink, "cannot read its content"));
        };
        match seen.state {
            LockFileState::Held => {
                let who = seen.pid.map_or("another process".to_owned(), |pid| format!("process {pid}"));
                return Err(Outcome::skipped(Verb::Unlink, format!("{who} holds it")));
            }
            LockFileState::Free if file.state != LockFileState::Free => {
                return Err(Outcome::new(Verb::Unlink, Status::Gone, "it is free now, as expected between runs"));
            }
            LockFileState::Free | LockFileState::Stale | LockFileState::Corrupt => {}
        }
        if seen.pid != file.pid {
            return Err(Outcome::replaced(Verb::Unlink));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = rustix::fs::openat(&place.dir, &place.name, flags, Mode::empty())
            .map_err(|e| Outcome::failed(Verb::Unlink, "open", e))?;
        match rustix::fs::flock(&open, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Outcome::skipped(Verb::Unlink, "a process holds it")),
            Err(e) => return Err(Outcome::failed(Verb::Unlink, "flock", e)),
        }
        self.unlink(&place, &st)
    }
}

/// A path that the user or the system declared may contain links; only its last component must not be a link.
fn place_of_declared(path: &Text) -> Result<Place, Outcome> {
    let path = path.as_path();
    match (path.parent().map(std::fs::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => Place::of(&parent.join(name), Verb::Unlink),
        (Some(Err(e)), _) if e.kind() == std::io::ErrorKind::NotFound => Err(Outcome::gone(Verb::Unlink)),
        (Some(Err(e)), _) => Err(Outcome::failed(Verb::Unlink, "resolve its directory", e)),
        (None, _) | (_, None) => Place::of(path, Verb::Unlink),
    }
}
