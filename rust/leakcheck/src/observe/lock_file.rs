//! Lock files at declared paths: held, free, stale or corrupt.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, OFlags, major, minor};
use rustix::io::Errno;

use super::context::Context;
use super::lock;
use super::mount_table::Mounts;
use super::proc_root::read_file;
use super::reach::{self, Place};
use crate::arena::ArenaView;
use crate::error::{Error, in_words};
use crate::kind::Kind;
use crate::parse::{locks, stat};
use crate::resource::{Lock, LockFile, LockFileState, encode_device};
use crate::snapshot::{Level, Snapshot};
use crate::text::Text;

/// A lock file names its holder in a few bytes; no more than this is read.
const CONTENT: u64 = 4096;

/// Appends the lock files among `paths`; a directory stands for the regular files in it. A path that does not exist has
/// no lock.
pub(crate) fn collect(paths: &[PathBuf], context: Context<'_>, out: &mut Snapshot) {
    if paths.is_empty() {
        return;
    }
    let mut inside = match Inside::of(context) {
        Ok(inside) => inside,
        Err(e) => {
            return out.coverage.lower(
                Kind::Lockfile,
                Level::None,
                format!("cannot open the root of the arena: {}", in_words(e)),
            );
        }
    };
    let locked = match Locked::read(context, out) {
        Ok(locked) => locked,
        Err(e) => return out.coverage.lower(Kind::Lockfile, Level::None, e.to_string()),
    };
    for path in paths {
        let listed = match inside.list(path) {
            Ok(listed) => listed,
            Err(why) => {
                out.coverage.lower(Kind::Lockfile, Level::Partial, why);
                continue;
            }
        };
        for path in listed.unwrap_or_else(|| vec![path.clone()]) {
            match observe(&path, &mut inside, &locked) {
                Ok(Some(file)) => out.lock_files.push(file),
                Ok(None) => {}
                Err(why) => out.coverage.lower(Kind::Lockfile, Level::Partial, why),
            }
        }
    }
}

/// Files of an overlay and of btrfs have one device in `/proc/locks` and another in stat(2).
const OTHER_DEVICE: [u64; 2] = [0x794c_7630, 0x9123_683e];

/// Where the paths lead: inside the arena if there is one, and never into a file system that may hang.
struct Inside<'a> {
    context: Context<'a>,
    root: Option<OwnedFd>,
    mounts: Mounts,
}

impl<'a> Inside<'a> {
    fn of(context: Context<'a>) -> rustix::io::Result<Self> {
        let root = context.arena.map(ArenaView::root).transpose()?;
        Ok(Inside { context, root, mounts: context.mounts() })
    }

    /// None if nothing exists there.
    fn open(&mut self, path: &Path, last: bool) -> Result<Option<Place>, String> {
        match reach::open(path, self.root.as_ref(), last, &mut self.mounts) {
            Ok(place) => Ok(Some(place)),
            Err(e) if e.is_missing() => Ok(None),
            Err(e) => Err(format!("cannot open {}: {}", path.display(), in_words(e))),
        }
    }

    /// The entries of a directory; none for anything else.
    fn list(&mut self, path: &Path) -> Result<Option<Vec<PathBuf>>, String> {
        use std::os::unix::ffi::OsStrExt;
        let Some(place) = self.open(path, true)?.filter(|p| p.class() == FileType::Directory) else { return Ok(None) };
        let failed = |e: Errno| format!("cannot list {}: {}", path.display(), in_words(e));
        let dir = Dir::new(place.reopen(OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?).map_err(failed)?;
        let mut paths = Vec::new();
        for entry in dir {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                paths.push(path.join(std::ffi::OsStr::from_bytes(name)));
            }
        }
        Ok(Some(paths))
    }

    fn stat(&self, pid: u32) -> Option<Vec<u8>> {
        read_file(self.context.proc(format_args!("{pid}/stat"))).ok()
    }
}

/// Device and inode of each locked file.
struct Locked {
    all: HashSet<(u64, u64)>,
    /// Those with a write lease: any open breaks it (fcntl(2)), and the signal for that ends a holder that does not expect it.
    leased: HashSet<(u64, u64)>,
}

impl Locked {
    fn read(context: Context<'_>, observation: &Snapshot) -> Result<Self, Error> {
        let text = read_file(context.proc("locks"))?;
        let locks = locks::parse(&text).map_err(|e| Error::usage(format!("/proc/locks: {e}")))?;
        let held: Vec<_> = locks.iter().filter(|l| !l.blocked).map(lock::record).collect();
        // Locks whose taker has no pid here are found only by their descriptors.
        let held = || held.iter().chain(&observation.locks);
        let file = |l: &Lock| (l.dev, l.ino);
        let leases = held().filter(|l| l.class == "lease" && l.access != "read");
        Ok(Locked { all: held().map(file).collect(), leased: leases.map(file).collect() })
    }

    fn has(among: &HashSet<(u64, u64)>, file: impl AsFd, dev: u64, ino: u64) -> bool {
        let elsewhere = || rustix::fs::fstatfs(file).is_ok_and(|fs| OTHER_DEVICE.contains(&(fs.f_type as u64)));
        among.contains(&(dev, ino)) || among.iter().any(|(_, held)| *held == ino) && elsewhere()
    }
}

fn observe(path: &Path, inside: &mut Inside<'_>, locked: &Locked) -> Result<Option<LockFile>, String> {
    let failed = |op: &'static str| move |e: io::Error| Error::io(op, path, e).to_string();
    let Some(place) = inside.open(path, false)? else { return Ok(None) };
    match place.class() {
        FileType::RegularFile => {}
        FileType::Symlink => return Err(format!("cannot open {}: it is a symbolic link", path.display())),
        _ => return Ok(None),
    }
    let (dev, ino) = (encode_device(place.st.stx_dev_major, place.st.stx_dev_minor), place.st.stx_ino);
    let text = Text::from(path.as_os_str().as_encoded_bytes());
    if Locked::has(&locked.leased, &place.fd, dev, ino) {
        return Ok(Some(LockFile { path: text, dev, ino, state: LockFileState::Held, pid: None }));
    }
    let file = match place.reopen(OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(failed("open")(e.into())),
    };
    let meta = file.metadata().map_err(failed("stat"))?;
    let dev = encode_device(major(meta.dev()), minor(meta.dev()));
    let held = Locked::has(&locked.all, &file, dev, meta.ino());
    let mut content = Vec::new();
    file.take(CONTENT).read_to_end(&mut content).map_err(failed("read"))?;
    let owner = owner(&content);
    let state = match &owner {
        _ if held => LockFileState::Held,
        Owner::Nobody => LockFileState::Free,
        Owner::Garbage => LockFileState::Corrupt,
        Owner::Process { pid, start } if lives(inside.stat(*pid), *start) => LockFileState::Held,
        Owner::Process { .. } => LockFileState::Stale,
    };
    Ok(Some(LockFile {
        path: text,
        dev,
        ino: meta.ino(),
        state,
        pid: match owner {
            Owner::Process { pid, .. } => Some(pid),
            Owner::Nobody | Owner::Garbage => None,
        },
    }))
}

enum Owner {
    Nobody,
    Garbage,
    Process { pid: u32, start: Option<u64> },
}

/// Reads `PID`, `PID START …` (as many lock files since UUCP) or a JSON object with `pid` and perhaps a start time.
fn owner(content: &[u8]) -> Owner {
    let Ok(text) = std::str::from_utf8(content) else { return Owner::Garbage };
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    if text.is_empty() {
        return Owner::Nobody;
    }
    if text.starts_with('{') {
        let Ok(value) = serde_json::from_str::<serde_json::Value>(text) else { return Owner::Garbage };
        let number = |names: &[&str]| names.iter().find_map(|n| value.get(n)?.as_u64());
        let pid = number(&["pid", "PID", "holder", "owner_pid"]).and_then(|p| u32::try_from(p).ok());
        return match pid {
            Some(pid) => Owner::Process { pid, start: number(&["start_time", "start", "starttime", "start_ticks"]) },
            None if value.get("pid").is_some_and(serde_json::Value::is_null) => Owner::Nobody,
            None => Owner::Garbage,
        };
    }
    let mut words = text.split_whitespace();
    match words.next().and_then(|w| w.parse::<u32>().ok()).filter(|&p| p > 0) {
        Some(pid) => Owner::Process { pid, start: words.next().and_then(|w| w.parse().ok()) },
        None => Owner::Garbage,
    }
}

/// Whether the process lives, and has the start time in the file if there is one.
fn lives(stat_text: Option<Vec<u8>>, start: Option<u64>) -> bool {
    let Some(text) = stat_text else { return false };
    let Ok(stat) = stat::parse(&text) else { return false };
    stat.state != b'Z' && start.is_none_or(|s| s == stat.start_time)
}
