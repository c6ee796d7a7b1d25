//! Removes cgroups, with all processes in them.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::directory::list;
use crate::error::{Doing, Error, Result};

/// How long a killed process may take to disappear. In an uninterruptible wait, for example for a dead disk, it takes longer.
const DYING: Duration = Duration::from_secs(5);
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// What to do with cgroups below a box's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Below {
    /// Our runs create none.
    Refuse,
    /// The operator requested the box back.
    Remove,
}

/// Removes `dirs`; missing ones are no error.
pub(crate) fn remove(dirs: &[PathBuf], below: Below) -> Result<()> {
    let deadline = Instant::now() + DYING;
    loop {
        let mut left = Vec::new();
        for dir in dirs {
            match fs::remove_dir(dir) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => left.push(dir.clone()),
                Err(e) => return Err(e).doing("remove cgroup", dir),
            }
        }
        let Some(first) = left.first() else { return Ok(()) };
        for dir in &left {
            let children = children(dir);
            match below {
                Below::Remove => remove(&children, below)?,
                Below::Refuse => {
                    if let Some(child) = children.first() {
                        let (dir, child) = (dir.display(), child.display());
                        return Err(Error::Internal(format!("remove cgroup {dir}: {child} is below it")));
                    }
                }
            }
        }
        if Instant::now() > deadline {
            return Err(Error::Internal(format!("remove cgroup {}: still in use", first.display())));
        }
        kill(&left)?;
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = list(dir).into_iter().flatten();
    entries.filter(|(_, class)| *class == FileType::Directory).map(|(name, _)| dir.join(name)).collect()
}

/// Kills all processes in `dirs`, and waits a little for them to disappear.
fn kill(dirs: &[PathBuf]) -> Result<()> {
    let by_kernel = dirs.iter().map(|dir| dir.join("cgroup.kill")).find(|path| path.exists());
    let freezer = dirs.iter().map(|dir| dir.join("freezer.state")).find(|path| path.exists());
    if let Some(path) = &by_kernel {
        fs::write(path, "1").doing("write", path)?;
    } else if let Some(path) = &freezer {
        // A frozen process can't fork while they are listed.
        fs::write(path, "FROZEN").doing("write", path)?;
    }
    let mut killed: Vec<OwnedFd> = Vec::new();
    let mut failed = Ok(());
    for dir in dirs {
        for pid in processes(dir) {
            match kill_one(dir, pid) {
                Ok(pidfd) => killed.extend(pidfd),
                Err(e) => failed = Err(e).doing(format_args!("kill process {pid} in"), dir),
            }
        }
    }
    if let (None, Some(path)) = (by_kernel, freezer) {
        fs::write(&path, "THAWED").doing("write", &path)?;
    }
    failed?;
    // The last process may be dead and still in its cgroup: v1 has no event for that.
    let mut ends: Vec<PollFd<'_>> = killed.iter().map(|pidfd| PollFd::new(pidfd, PollFlags::IN)).collect();
    let _ = poll(&mut ends, Some(&TICK));
    Ok(())
}

fn processes(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn kill_one(dir: &Path, number: i32) -> Result<Option<OwnedFd>, std::io::Error> {
    // 0 is a process outside this pid namespace.
    let Some(pid) = Pid::from_raw(number).filter(|_| number > 1) else {
        return Err(std::io::Error::other("it is not of this pid namespace"));
    };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        other => other?,
    };
    // Between the list and the descriptor, another process may have got the number.
    if !processes(dir).contains(&number) {
        return Ok(None);
    }
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Err(rustix::io::Errno::SRCH) => Ok(None),
        other => other.map(|()| Some(pidfd)).map_err(Into::into),
    }
}
