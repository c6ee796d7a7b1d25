//! Removes cgroup directories, the deepest first. The kernel refuses one that is not empty.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::action::{Outcome, Status, Verb};
use super::file::Place;
use super::process::Processes;
use crate::observe::read::read_all;
use crate::resource::{Cgroup, Resource};
use crate::text::Text;

/// `CGROUP_SUPER_MAGIC` and `CGROUP2_SUPER_MAGIC`, linux/magic.h.
const MAGIC: [u64; 2] = [0x0027_e0eb, 0x6367_7270];
/// How long a cgroup without processes may take to become removable.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// Removes one if it is the one in the record and contains nothing that stays.
pub(super) fn remove(cgroup: &Cgroup, all: &[Resource], processes: &Processes, apply: bool) -> Outcome {
    try_remove(cgroup, all, processes, apply).unwrap_or_else(|outcome| outcome)
}

fn try_remove(cgroup: &Cgroup, all: &[Resource], processes: &Processes, apply: bool) -> Result<Outcome, Outcome> {
    let place = Place::of(cgroup.dir.as_path(), Verb::Rmdir)?;
    if place.stat(Verb::Rmdir)?.stx_ino != cgroup.ino {
        return Err(Outcome::replaced(Verb::Rmdir));
    }
    let failed = |operation: &'static str| move |e| Outcome::failed(Verb::Rmdir, operation, e);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(&place.dir, &place.name, flags, Mode::empty()).map_err(failed("open"))?;
    let fs = rustix::fs::fstatfs(&dir).map_err(failed("statfs"))?;
    if !MAGIC.contains(&(fs.f_type as u64)) {
        return Err(Outcome::replaced(Verb::Rmdir));
    }
    for entry in Dir::read_from(dir.as_fd()).map_err(failed("list"))? {
        let entry = entry.map_err(failed("list"))?;
        let name = entry.file_name().to_bytes();
        if entry.file_type() != FileType::Directory || matches!(name, b"." | b"..") {
            continue;
        }
        let path = [cgroup.dir.as_ref(), b"/", name].concat();
        let in_report = |r: &Resource| matches!(r, Resource::Cgroup(c) if c.dir.as_bytes() == path);
        if apply || !all.iter().any(in_report) {
            return Err(Outcome::skipped(Verb::Rmdir, format!("still holds cgroup {}", Text::from(name))));
        }
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let strangers: Vec<u32> = members(&dir).into_iter().filter(|pid| !processes.ends(*pid)).collect();
        match strangers.as_slice() {
            [] => {}
            [pid] => return Err(Outcome::skipped(Verb::Rmdir, format!("still holds process {pid}"))),
            [pid, rest @ ..] => {
                let why = format!("still holds process {pid} and {} others", rest.len());
                return Err(Outcome::skipped(Verb::Rmdir, why));
            }
        }
        if !apply {
            return Ok(Outcome::new(Verb::Rmdir, Status::Would, ""));
        }
        match place.unlink(true) {
            Ok(()) => return Ok(Outcome::new(Verb::Rmdir, Status::Done, "")),
            // A process leaves its cgroup a little after its exit.
            Err(Errno::BUSY) if Instant::now() < deadline => wait(&dir),
            Err(Errno::NOENT) => return Err(Outcome::gone(Verb::Rmdir)),
            Err(e) => return Err(Outcome::failed(Verb::Rmdir, "rmdir", e)),
        }
    }
}

/// Its processes. In a threaded cgroup the file cannot be read, and rmdir(2) decides.
fn members(dir: &OwnedFd) -> Vec<u32> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let text = rustix::fs::openat(dir, c"cgroup.procs", flags, Mode::empty()).and_then(|file| read_all(file.as_fd()));
    let text = text.unwrap_or_default();
    text.split(|b| *b == b'\n').filter_map(|line| std::str::from_utf8(line).ok()?.parse().ok()).collect()
}

/// Waits briefly for a change of `cgroup.events` (v2).
fn wait(dir: &OwnedFd) {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    // A kernfs file is ready until it has been read once (kernfs_generic_poll).
    let events = rustix::fs::openat(dir, c"cgroup.events", flags, Mode::empty())
        .and_then(|fd| rustix::io::read(&fd, &mut [0u8; 256]).map(|_| fd));
    let mut set: Vec<_> = events.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::PRI)).collect();
    let timeout = Timespec { tv_sec: 0, tv_nsec: PAUSE.subsec_nanos().into() };
    let _ = poll(&mut set, Some(&timeout));
}
