//! The cgroups of a box: creation, limits, entry and readings.

pub(crate) mod plan;
pub(crate) mod removal;

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use self::plan::{Place, Use, Version};
use self::removal::Below;
use crate::error::{Doing, Error, Result};
use crate::limits::Limits;
use crate::sabotage::removed;

/// The cgroups of one execution. Dropping this value does not remove them: removal can fail, and that must be reported.
pub(crate) struct Group<'a> {
    places: &'a [Place],
    /// How many of them were created.
    made: usize,
    /// The lock of the first directory: another supervisor does not touch a locked directory of that name.
    lock: Option<OwnedFd>,
}

/// How the payload enters them. On v1, a thread writes to `tasks`, since a write to `cgroup.procs` waits about 10 ms for the
/// kernel. On v2, the payload is cloned into the cgroup, for the same reason.
pub(crate) struct Entrances {
    pub(crate) tasks: Vec<OwnedFd>,
    pub(crate) clone_target: Option<OwnedFd>,
}

impl<'a> Group<'a> {
    /// Creates nothing yet.
    pub(crate) fn new(places: &'a [Place]) -> Self {
        Group { places, made: 0, lock: None }
    }

    /// Creates the directories, after removing what a crash left there.
    pub(crate) fn make(&mut self) -> Result<()> {
        for place in self.places {
            let dir = &place.dir;
            let mut made = DirBuilder::new().mode(0o755).create(dir);
            if removed("survivor") && dir.is_dir() {
                made = Ok(());
            }
            if made.as_ref().is_err_and(|e| e.kind() == ErrorKind::AlreadyExists) {
                if self.lock.is_none() && lock(dir)?.is_none() {
                    return Err(Error::Internal(format!("make cgroup {}: another supervisor has it", dir.display())));
                }
                removal::remove(std::slice::from_ref(dir), Below::Remove)?;
                made = DirBuilder::new().mode(0o755).create(dir);
            }
            made.doing("make cgroup", dir)?;
            self.made += 1;
            if self.lock.is_none() {
                self.lock = lock(dir)?;
            }
        }
        Ok(())
    }

    pub(crate) fn limit(&self, limits: &Limits) -> Result<()> {
        if let Some(place) = self.place(Use::Memory) {
            let memory = limits.memory.to_string();
            match place.version {
                Version::V1 => {
                    write(&place.dir, "memory.limit_in_bytes", &memory)?;
                    write_if_there(&place.dir, "memory.memsw.limit_in_bytes", &memory)?;
                }
                Version::V2 => {
                    write(&place.dir, "memory.max", &memory)?;
                    write_if_there(&place.dir, "memory.swap.max", "0")?;
                    write_if_there(&place.dir, "memory.oom.group", "1")?;
                }
            }
        }
        match self.place(Use::Processes) {
            Some(place) => write(&place.dir, "pids.max", &limits.processes.to_string()),
            None => Ok(()),
        }
    }

    pub(crate) fn entrances(&self) -> Result<Entrances> {
        let mut entrances = Entrances { tasks: Vec::new(), clone_target: None };
        for place in self.places {
            let (path, flags) = match place.version {
                Version::V1 => (place.dir.join("tasks"), OFlags::WRONLY),
                Version::V2 => (place.dir.clone(), OFlags::PATH | OFlags::DIRECTORY),
            };
            let fd = open(&path, flags | OFlags::CLOEXEC, Mode::empty()).doing("open", &path)?;
            match place.version {
                Version::V1 => entrances.tasks.push(fd),
                Version::V2 => entrances.clone_target = Some(fd),
            }
        }
        Ok(entrances)
    }

    /// The processor time of its processes; `None` if no cgroup counts it.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        let place = self.place(Use::Cpu)?;
        match place.version {
            Version::V1 => {
                let text = fs::read_to_string(place.dir.join("cpuacct.usage")).ok()?;
                text.trim().parse().ok().map(Duration::from_nanos)
            }
            Version::V2 => field(&place.dir.join("cpu.stat"), "usage_usec").map(Duration::from_micros),
        }
    }

    /// The peak memory use in bytes.
    pub(crate) fn peak(&self) -> Option<u64> {
        let place = self.place(Use::Memory)?;
        let file = match place.version {
            Version::V1 => "memory.max_usage_in_bytes",
            Version::V2 => "memory.peak",
        };
        fs::read_to_string(place.dir.join(file)).ok()?.trim().parse().ok()
    }

    /// How many processes the kernel killed at the memory limit.
    pub(crate) fn oom_kills(&self) -> u64 {
        let Some(place) = self.place(Use::Memory) else { return 0 };
        let file = match place.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        field(&place.dir.join(file), "oom_kill").unwrap_or(0)
    }

    /// Removes the directories that were created. What is below them is not ours, and stays.
    pub(crate) fn remove(self) -> Result<()> {
        let dirs: Vec<PathBuf> = self.places[..self.made].iter().map(|place| place.dir.clone()).collect();
        removal::remove(&dirs, Below::Refuse)
    }

    fn place(&self, what: Use) -> Option<&Place> {
        self.places.iter().find(|place| place.uses.contains(&what))
    }
}

/// Locks a directory; `None` if another process has it locked.
pub(crate) fn lock(dir: &Path) -> Result<Option<OwnedFd>> {
    let fd =
        open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).doing("lock cgroup", dir)?;
    match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(fd)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e).doing("lock cgroup", dir),
    }
}

fn write(dir: &Path, file: &str, value: &str) -> Result<()> {
    let path = dir.join(file);
    fs::write(&path, value).doing(format_args!("write {value} to"), &path)
}

fn write_if_there(dir: &Path, file: &str, value: &str) -> Result<()> {
    if dir.join(file).exists() { write(dir, file, value) } else { Ok(()) }
}

/// The number on the line that starts with a word.
fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}
