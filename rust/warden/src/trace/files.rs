//! The files of some directories, whenever a call of a traced run has changed them, and what was written to the disk by then.
//!
//! What a call did is not derived from its arguments: the files are looked at once it has returned. So a write through any
//! call, at any offset, is what it is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use leakcheck_sys::trace::{self, Call};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, StatxFlags, fstat, openat, openat2, readlinkat,
    statx,
};
use serde_json::{Value, json};

use super::Run;
use super::object::is_slow;
use super::points::{Point, TOP};

/// Files of all directories that are looked at, how deep below these, and how much of each.
const MOST: usize = 512;
const DEPTH: usize = 6;
const BYTES: u64 = 1 << 18;
/// `O_DSYNC`, which `O_SYNC` has, too.
const SYNCED: u64 = 0o10_000;
/// Operations that may change a file or directory.
const CHANGES: &[&str] = &[
    "open",
    "write",
    "truncate",
    "fallocate",
    "rename",
    "unlink",
    "rmdir",
    "link",
    "symlink",
    "mkdir",
    "mknod",
    "chmod",
    "chown",
    "ioctl",
    "io_submit",
];

/// The watched files by path, as they were last seen.
#[derive(Default)]
pub(super) struct Files {
    known: BTreeMap<Vec<u8>, Entry>,
    changes: u32,
}

#[derive(Clone, PartialEq)]
struct Entry {
    inode: String,
    kind: &'static str,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    /// Of a file its bytes, of a link where it leads to; nothing of a larger file.
    content: Option<Vec<u8>>,
}

/// What is looked at once a call has returned.
#[derive(Debug)]
pub(super) struct Look {
    operation: &'static str,
    /// What it writes to the disk: an inode, or all.
    synced: Option<String>,
}

/// Records the files as they are before the run.
pub(super) fn begin(run: &mut Run) {
    if run.request.files.is_empty() {
        return;
    }
    run.files.known = read_all(run);
    let all: Vec<Value> = run.files.known.iter().map(|(path, entry)| entry.line(path)).collect();
    run.note(&json!({"files": 0, "now": all}));
}

/// Returns what is to be looked at once the call of a point has returned, if anything.
pub(super) fn expect(run: &Run, pid: i32, call: &Call, point: &Point) -> Option<Look> {
    if run.request.files.is_empty() || run.listener.is_some() {
        return None;
    }
    let synced = match point.operation {
        // sync(2), msync(2): of which file is not told, so that nothing counts as lost.
        "sync" if point.class.is_empty() => Some("all".to_owned()),
        "sync" if is_whole(call) => Some("all".to_owned()),
        "sync" => inode(pid, call.arguments[0]),
        "write" => inode(pid, call.arguments[0]).filter(|_| writes_through(pid, call.arguments[0])),
        one if CHANGES.contains(&one) => None,
        _ => return None,
    };
    Some(Look { operation: point.operation, synced })
}

/// Records what a call that has returned has changed; returns whether the run's fault is due.
pub(super) fn look(run: &mut Run, pid: i32, role: &str, look: &Look) -> bool {
    let init = TOP.get().map_or(pid, |(_, init)| *init);
    if is_slow(pid) || is_slow(init) {
        run.note(&json!({"note": "state files are not looked at: the run mounts a file system that may wait for it"}));
        return false;
    }
    let now = read_all(run);
    let before = std::mem::replace(&mut run.files.known, now);
    let mut due = false;
    if before != run.files.known {
        run.files.changes += 1;
        let now = &run.files.known;
        let gone: Vec<String> = before.keys().filter(|path| !now.contains_key(*path)).map(|path| hex(path)).collect();
        let came = now.iter().filter(|(path, entry)| before.get(*path) != Some(entry));
        let line = json!({
            "files": run.files.changes, "role": role, "operation": look.operation, "phase": run.phase.name(),
            "gone": gone, "now": came.map(|(path, entry)| entry.line(path)).collect::<Vec<_>>(),
        });
        run.note(&json!({"changed": line}));
        let fault = run.request.fault.as_ref().filter(|_| !run.fired);
        due = fault.is_some_and(|fault| fault.is_after_change(run.files.changes));
    }
    if let Some(synced) = &look.synced
        && trace::result(pid).is_ok_and(|value| value >= 0)
    {
        run.note(&json!({"synced": synced}));
    }
    due
}

impl Entry {
    fn line(&self, path: &[u8]) -> Value {
        json!({
            "path": hex(path), "inode": self.inode, "kind": self.kind, "mode": self.mode, "uid": self.uid,
            "gid": self.gid, "size": self.size, "content": self.content.as_deref().map(hex),
        })
    }
}

/// syncfs(2).
fn is_whole(call: &Call) -> bool {
    matches!(call.number & 0xffff, 306 | 344)
}

fn inode(pid: i32, fd: u64) -> Option<String> {
    #[allow(clippy::cast_possible_truncation, reason = "descriptors are ints")]
    let link = format!("/proc/{pid}/fd/{}", fd as u32);
    let found = statx(CWD, &*link, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
    Some(found.stx_ino.to_string())
}

fn writes_through(pid: i32, fd: u64) -> bool {
    #[allow(clippy::cast_possible_truncation, reason = "descriptors are ints")]
    let text = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", fd as u32)).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.and_then(|flags| u64::from_str_radix(flags.trim(), 8).ok()).is_some_and(|flags| flags & SYNCED != 0)
}

fn read_all(run: &mut Run) -> BTreeMap<Vec<u8>, Entry> {
    let mut found = BTreeMap::new();
    let Some((top, _)) = TOP.get() else { return found };
    for name in &run.request.files {
        let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Ok(dir) = openat2(top.as_fd(), name.as_str(), how, Mode::empty(), ResolveFlags::IN_ROOT) {
            read(dir, name.trim_end_matches('/').as_bytes(), 0, &mut found);
        }
    }
    if found.len() >= MOST {
        run.note(&json!({"note": format!("of the directories of state files, only {MOST} files are looked at")}));
    }
    found
}

fn read(dir: OwnedFd, path: &[u8], depth: usize, found: &mut BTreeMap<Vec<u8>, Entry>) {
    if let Ok(about) = fstat(&dir) {
        found.insert(path.to_vec(), entry(&about, "directory", None));
    }
    let Ok(names) = Dir::read_from(&dir) else { return };
    for name in names.flatten() {
        let name = name.file_name().to_owned();
        if found.len() >= MOST || matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let here = [path, b"/", name.to_bytes()].concat();
        let how = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(one) = openat(&dir, &name, how, Mode::empty()) else { continue };
        let Ok(about) = fstat(&one) else { continue };
        match FileType::from_raw_mode(about.st_mode) {
            FileType::Directory if depth < DEPTH => {
                let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                if let Ok(below) = openat(&dir, &name, how, Mode::empty()) {
                    read(below, &here, depth + 1, found);
                }
            }
            FileType::Directory => {}
            FileType::RegularFile => {
                let content = content(one.as_fd(), &about);
                found.insert(here, entry(&about, "file", content));
            }
            FileType::Symlink => {
                let to = readlinkat(&one, c"", Vec::new()).ok().map(|to| to.to_bytes().to_vec());
                found.insert(here, entry(&about, "link", to));
            }
            _ => drop(found.insert(here, entry(&about, "other", None))),
        }
    }
}

fn entry(about: &Stat, kind: &'static str, content: Option<Vec<u8>>) -> Entry {
    let size = if kind == "file" { about.st_size.unsigned_abs() } else { 0 };
    let (mode, uid, gid) = (about.st_mode & 0o7777, about.st_uid, about.st_gid);
    Entry { inode: about.st_ino.to_string(), kind, mode, uid, gid, size, content }
}

fn content(file: BorrowedFd<'_>, about: &Stat) -> Option<Vec<u8>> {
    if about.st_size.unsigned_abs() > BYTES {
        return None;
    }
    let opened = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    let mut bytes = Vec::new();
    opened.take(BYTES + 1).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
