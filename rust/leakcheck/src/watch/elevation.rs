//! Detects whether any process executed a program that gives rights: one with a set-user-ID bit or file capabilities
//! (execve(2)).
//!
//! An unprivileged user cannot see into a process that became another user's, and sees less of what that process left.
//! But opening a program to execute it is an event of its file (inotify(7), `IN_OPEN`), and every user that can read
//! the file can watch it. Without such an event, a run had no more rights than at its start.

use crate::error::in_words;
use crate::own_fd::OwnFd;
use crate::this_process::ThisProcess;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Access, StatVfsMountFlags};
use rustix::io::Errno;

/// Directories of programs that callers know by name, in addition to PATH.
const PLACES: [&str; 7] =
    ["/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/usr/libexec"];
const SET_ID: u32 = 0o6000;

/// A watch on every program that gives rights, in the usual directories.
#[derive(Debug)]
pub(crate) struct Elevation {
    events: Result<OwnFd, String>,
    /// A forked child shares the queue, and would take its parent's events.
    owner: ThisProcess,
    watched: HashMap<i32, Watched>,
    /// The first result stays.
    reported: OnceLock<String>,
}

#[derive(Debug)]
enum Watched {
    Program(PathBuf),
    /// A directory whose programs with these names are executable but not readable.
    Within(PathBuf, HashSet<Vec<u8>>),
}

impl Elevation {
    /// Starts to watch. `more` are programs elsewhere, such as those that a look at the roots showed. `gains` are the
    /// relevant capabilities.
    pub(crate) fn start(more: impl Iterator<Item = PathBuf>, gains: u64) -> Self {
        let mut this = Elevation {
            events: Err("nothing is watched".to_owned()),
            owner: ThisProcess::now(),
            watched: HashMap::new(),
            reported: OnceLock::new(),
        };
        this.events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|e| format!("inotify: {}", io::Error::from(e)))
            .and_then(|events| {
                let elsewhere: Vec<PathBuf> = more.filter(|path| is_elevating(path, gains)).collect();
                this.watch(&events, usual(gains).iter().chain(&elsewhere))?;
                OwnFd::new(events).map_err(|e| format!("inotify: {}", in_words(e)))
            });
        this
    }

    pub(crate) fn own_fd(&self) -> Option<RawFd> {
        self.events.as_ref().ok().map(OwnFd::number)
    }

    fn watch<'a>(&mut self, events: &OwnedFd, programs: impl Iterator<Item = &'a PathBuf>) -> Result<(), String> {
        let mut unreadable: BTreeMap<&Path, HashSet<Vec<u8>>> = BTreeMap::new();
        for program in programs {
            match inotify::add_watch(events, program, WatchFlags::OPEN) {
                Ok(id) => {
                    self.watched.insert(id, Watched::Program(program.clone()));
                }
                Err(Errno::NOENT) => {}
                Err(Errno::ACCESS) => {
                    if let (Some(dir), Some(name)) = (program.parent(), program.file_name()) {
                        unreadable.entry(dir).or_default().insert(name.as_bytes().to_vec());
                    }
                }
                Err(e) => return Err(format!("inotify: {}", io::Error::from(e))),
            }
        }
        for (dir, names) in unreadable {
            let id = inotify::add_watch(events, dir, WatchFlags::OPEN)
                .map_err(|e| format!("cannot watch {} with inotify: {}", dir.display(), in_words(e)))?;
            self.watched.insert(id, Watched::Within(dir.to_owned(), names));
        }
        Ok(())
    }

    /// Why the run may have had more rights than at its start; none if it had not.
    pub(crate) fn used(&self) -> Option<String> {
        if self.reported.get().is_none()
            && let Some(why) = self.read()
        {
            return Some(self.reported.get_or_init(|| why).clone());
        }
        self.reported.get().cloned()
    }

    fn read(&self) -> Option<String> {
        let unknown = |why: &str| Some(format!("cannot tell whether a set-user-ID program ran: {why}"));
        let events = match &self.events {
            Ok(_) if self.owner != ThisProcess::now() => return unknown("the guard belongs to the parent process"),
            Ok(events) if !events.is_ours() => return unknown("the program closed the descriptor that tells"),
            Ok(events) => events,
            Err(why) => return unknown(why),
        };
        let mut buffer = [0u8; 16384];
        loop {
            let read = match rustix::io::read(events, &mut buffer) {
                Err(Errno::AGAIN) => return None,
                Err(Errno::INTR) => continue,
                Err(e) => return unknown(&in_words(e)),
                Ok(read) => read,
            };
            if let Some(program) = self.first(&buffer[..read]) {
                return Some(program);
            }
        }
    }

    /// The first relevant event: `struct inotify_event`, then the name of `len` bytes.
    fn first(&self, mut rest: &[u8]) -> Option<String> {
        while let Some((head, tail)) = rest.split_first_chunk::<16>() {
            let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let (id, mask, length) = (word(0).cast_signed(), word(4), word(12) as usize);
            let name = tail.get(..length)?.split(|b| *b == 0).next().unwrap_or_default();
            rest = &tail[length..];
            if mask & libc::IN_Q_OVERFLOW != 0 {
                return Some("cannot tell whether a set-user-ID program ran: events were lost".to_owned());
            }
            match self.watched.get(&id) {
                Some(Watched::Program(path)) if mask & libc::IN_OPEN != 0 => return Some(ran(path)),
                Some(Watched::Within(dir, names)) if names.contains(name) => {
                    return Some(ran(&dir.join(OsStr::from_bytes(name))));
                }
                Some(_) | None => {}
            }
        }
        None
    }
}

fn ran(program: &Path) -> String {
    format!("a process opened {}, which gives a run more rights", program.display())
}

/// The programs of [`PLACES`] and PATH: system programs, which no unprivileged user can change, so one listing is
/// enough.
fn usual(gains: u64) -> &'static [PathBuf] {
    static USUAL: OnceLock<Vec<PathBuf>> = OnceLock::new();
    USUAL.get_or_init(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places =
            PLACES.into_iter().map(PathBuf::from).chain(std::env::split_paths(&path).filter(|p| p.is_absolute()));
        let mut seen = HashSet::new();
        let mut programs = Vec::new();
        for place in places {
            let new = fs::metadata(&place).is_ok_and(|meta| seen.insert((meta.dev(), meta.ino())));
            let may_give = |place: &Path| {
                !rustix::fs::statvfs(place).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::NOSUID))
            };
            if new && may_give(&place) {
                let entries = fs::read_dir(&place).into_iter().flatten().flatten();
                programs.extend(entries.map(|entry| entry.path()).filter(|path| is_elevating(path, gains)));
            }
        }
        programs
    })
}

/// Whether executing it may give a right that this process does not have.
fn is_elevating(path: &Path, gains: u64) -> bool {
    let Ok(meta) = fs::metadata(path) else { return false };
    if !meta.is_file() || rustix::fs::access(path, Access::EXEC_OK).is_err() {
        return false;
    }
    meta.mode() & SET_ID != 0 || file_capabilities(path) & gains != 0
}

/// The permitted set of `security.capability` (`struct vfs_cap_data`, linux/capability.h).
fn file_capabilities(path: &Path) -> u64 {
    let mut value = [0u8; 24];
    let Ok(20..) = rustix::fs::getxattr(path, c"security.capability", &mut value[..]) else { return 0 };
    let word = |at: usize| u64::from(u32::from_le_bytes([value[at], value[at + 1], value[at + 2], value[at + 3]]));
    word(4) | word(12) << 32
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_with_a_set_user_id_bit_is_reported_when_it_runs_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("true");
        fs::copy("/bin/true", &program).unwrap();
        let start = || Elevation::start([program.clone()].into_iter(), u64::MAX);
        assert!(start().watched.values().all(|w| !matches!(w, Watched::Program(path) if *path == program)));
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
        let elevation = start();
        let reported = || elevation.used().filter(|why| why.contains(&*program.display().to_string()));
        assert_eq!(reported(), None);
        std::process::Command::new(&program).status().unwrap();
        assert!(reported().is_some());
    }
}
