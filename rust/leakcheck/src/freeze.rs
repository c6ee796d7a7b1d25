//! Freezes an arena for one look: with cgroup.freeze of v2 (Linux 5.2), else with the v1 freezer.
//!
//! A walk of `/proc` takes time, in which processes start and exit. A frozen process neither forks nor exits, so the
//! look can name every process that lives.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};

use crate::arena::ArenaView;
use crate::observe;

/// Time limit for freezing: a task freezes when it next returns to user mode.
const PATIENCE: Duration = Duration::from_millis(250);
/// A v1 freezer sends no event.
const STEP: Duration = Duration::from_millis(1);

/// A frozen arena; thawed when dropped.
pub(crate) struct Frozen {
    control: PathBuf,
    thaw: &'static str,
}

impl Frozen {
    /// Freezes the whole arena. None if it has no cgroup that supports it, if it is frozen already, or if it does not
    /// freeze in time.
    pub(crate) fn whole(arena: &ArenaView) -> Option<Frozen> {
        let find = |fits: &dyn Fn(&str) -> bool| arena.cgroups.iter().find(|(name, _)| fits(name)).map(|(_, dir)| dir);
        // A task that v2 froze can still be killed: if this process exits before it thaws the arena, the arena can be
        // taken down.
        find(&|name| name == "v2")
            .and_then(|dir| Self::by_v2(dir))
            .or_else(|| find(&is_v1).and_then(|dir| Self::by_v1(dir)))
    }

    fn by_v2(dir: &Path) -> Option<Frozen> {
        let control = dir.join("cgroup.freeze");
        if fs::read(&control).ok()?.trim_ascii() != b"0" {
            return None;
        }
        let events = open(dir.join("cgroup.events"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        fs::write(&control, "1").ok()?;
        let frozen = Frozen { control, thaw: "0" };
        let until = Instant::now() + PATIENCE;
        loop {
            let mut text = [0u8; 256];
            let length = rustix::io::pread(&events, &mut text, 0).ok()?;
            if text[..length].split(|b| *b == b'\n').any(|line| line == b"frozen 1") {
                return Some(frozen);
            }
            let left = until.saturating_duration_since(Instant::now());
            let mut set = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)];
            if left.is_zero() || poll(&mut set, Some(&timespec(left))) == Ok(0) {
                return None;
            }
        }
    }

    fn by_v1(dir: &Path) -> Option<Frozen> {
        let control = dir.join("freezer.state");
        if fs::read(&control).ok()?.trim_ascii() != b"THAWED" {
            return None;
        }
        fs::write(&control, "FROZEN").ok()?;
        let frozen = Frozen { control, thaw: "THAWED" };
        let until = Instant::now() + PATIENCE;
        while fs::read(&frozen.control).ok()?.trim_ascii() != b"FROZEN" {
            if Instant::now() >= until {
                return None;
            }
            let _ = poll(&mut [], Some(&timespec(STEP)));
        }
        Some(frozen)
    }
}

fn is_v1(hierarchy: &str) -> bool {
    hierarchy.split(',').any(|controller| controller == "freezer")
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It fails only if the cgroup is gone, and with it everything that was frozen.
        let _ = fs::write(&self.control, self.thaw);
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs().cast_signed(), tv_nsec: duration.subsec_nanos().into() }
}

/// How many processes the arena's cgroup holds, without the spawner that starts its commands; none if unknown. The
/// kernel appends new tasks to the list that it walks, so no order of process ids hides any.
pub(crate) fn population(arena: &ArenaView) -> Option<usize> {
    let find = |fits: &dyn Fn(&str) -> bool| arena.cgroups.iter().find(|(name, _)| fits(name)).map(|(_, dir)| dir);
    // The spawner is outside of those that can freeze it.
    match find(&|name| name == "v2").or_else(|| find(&is_v1)) {
        Some(dir) => count(dir),
        None => count(&arena.cgroups.first()?.1).map(|n| n.saturating_sub(1)),
    }
}

/// How often to count the processes of a v1 cgroup.
const COUNTS: usize = 4;

/// Whether more processes live in the cgroup of a `cgroup:` scope than these; false if it is gone.
pub(crate) fn holds_more(path: &Path, seen: usize) -> bool {
    observe::directories_of_cgroup(path).iter().any(|dir| {
        // A walk of a cgroup passes over a process whose first thread has ended, if its last thread ends meanwhile, and
        // over the one that this thread started (css_task_iter_advance()). The state of the cgroup misses none.
        let populated = fs::read(dir.join("cgroup.events"))
            .ok()
            .filter(|_| seen == 0)
            .map(|text| text.split(|b| *b == b'\n').any(|line| line == b"populated 1"));
        populated.unwrap_or_else(|| (0..COUNTS).any(|_| count(dir).is_some_and(|n| n > seen)))
    })
}

/// How many processes are in a cgroup and its descendants.
fn count(dir: &Path) -> Option<usize> {
    let procs = fs::read(dir.join("cgroup.procs")).ok()?;
    let mut n = procs.split(|b| *b == b'\n').filter(|line| !line.is_empty()).count();
    for child in fs::read_dir(dir).ok()?.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        // A cgroup that is removed during the walk has no process.
        n += count(&child.path()).unwrap_or(0);
    }
    Some(n)
}
