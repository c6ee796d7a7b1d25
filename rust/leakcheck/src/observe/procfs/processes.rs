//! Finds the processes in `/proc` and reads each of them.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use super::reader::{Reader, Scratch};
use crate::arena::ArenaView;
use crate::error::{Doing, Error, Result, in_words};
use crate::kind::Kind;
use crate::observe::options::Mappings;
use crate::observe::pass::{Sample, Selection, Wanted};
use crate::observe::proc_root::read_file;
use crate::observe::proc_root::{self, ProcRoot};
use crate::observe::read::{path, read_small};
use crate::observe::task::{PF_KTHREAD, each_number, living_thread, process_of};
use crate::own_fd::is_own;
use crate::parse;
use crate::resource::Process;
use crate::text::Text;

/// Reads `/proc`.
pub(crate) struct Procfs {
    proc: OwnedFd,
    root: Arc<ProcRoot>,
    pub(super) own_pid: u32,
    /// Descriptors of this process that belong to the observer.
    hidden: Vec<RawFd>,
    mappings: Mappings,
}

impl Procfs {
    /// Opens `/proc`, the arena's if there is one. `hidden` are descriptors of this process that are the observer's own,
    /// unless the program has closed them.
    pub(crate) fn open(
        hidden: &[RawFd],
        mappings: Mappings,
        root: Arc<ProcRoot>,
        arena: Option<&ArenaView>,
    ) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = arena.map_or(root.dir(), |arena| arena.proc.as_fd());
        let opened = rustix::fs::openat(place, c".", flags, Mode::empty());
        let proc = opened.doing("open directory", "/proc")?;
        // What the program has closed may be its own by now.
        let mut hidden: Vec<RawFd> =
            hidden.iter().copied().chain(proc_root::own_fds()).filter(|fd| is_own(*fd)).collect();
        hidden.push(proc.as_raw_fd());
        // No process of an arena is the observer.
        let own_pid = if arena.is_some() { 0 } else { std::process::id() };
        Ok(Procfs { proc, root, own_pid, hidden, mappings })
    }

    /// Whether the processes are those of an arena.
    pub(super) fn is_arena(&self) -> bool {
        self.own_pid == 0
    }

    /// See [`hiding`].
    pub(crate) fn hides(&self) -> Option<String> {
        hiding(self.proc.as_fd())
    }

    fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::with_capacity(512);
        each_number(self.proc.as_fd(), |pid, _| pids.push(pid)).doing("list", "/proc")?;
        Ok(pids)
    }

    fn stat_only(&self, pid: u32) -> Option<(Process, u32, u32)> {
        let mut buffer = [0u8; 1024];
        let dir =
            self.directory(&path(&format_args!("{pid}")), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC).ok()?;
        let text = read_small(dir.as_fd(), c"stat", &mut buffer).ok()?;
        let stat = parse::stat::parse(text).ok()?;
        Some((process_of(&stat), stat.flags, stat.num_threads))
    }

    /// Processes that have exited and were not waited for.
    pub(crate) fn zombies(&self) -> Result<Vec<u32>> {
        let is_zombie = |pid: &u32| self.stat_only(*pid).is_some_and(|(process, _, _)| process.state == 'Z');
        Ok(self.pids()?.into_iter().filter(is_zombie).collect())
    }

    pub(super) fn select(&self, selection: &Selection) -> Result<Vec<u32>> {
        match selection {
            Selection::All => self.pids(),
            Selection::Pids(pids) => Ok(pids.clone()),
            Selection::Tree(roots) => {
                let mut parents: Vec<(u32, u32)> = Vec::new();
                for pid in self.pids()? {
                    if let Some((p, _, _)) = self.stat_only(pid) {
                        parents.push((p.ppid, pid));
                    }
                }
                parents.sort_unstable();
                // A process that has exited is not in the tree.
                let mut tree: Vec<u32> =
                    roots.iter().copied().filter(|root| parents.iter().any(|(_, pid)| pid == root)).collect();
                let mut next = 0;
                while let Some(&parent) = tree.get(next) {
                    let from = parents.partition_point(|&(p, _)| p < parent);
                    tree.extend(parents[from..].iter().take_while(|&&(p, _)| p == parent).map(|&(_, c)| c));
                    next += 1;
                }
                tree.sort_unstable();
                tree.dedup();
                Ok(tree)
            }
        }
    }

    /// The directory of one process, not something that is mounted over it.
    fn directory(&self, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        match rustix::fs::openat2(&self.proc, name, flags, Mode::empty(), ResolveFlags::NO_XDEV) {
            Err(Errno::XDEV) if self.own_pid != 0 => {
                rustix::fs::openat(self.root.spare().ok_or(Errno::XDEV)?, name, flags, Mode::empty())
            }
            // Linux before 5.6.
            Err(Errno::NOSYS) => rustix::fs::openat(&self.proc, name, flags, Mode::empty()),
            other => other,
        }
    }

    /// Reads one process; none if it has exited or is a kernel thread.
    ///
    /// # Errors
    /// If this process cannot open more files: then no other process can be read either.
    pub(super) fn sample(&self, pid: u32, wanted: Wanted, scratch: &mut Scratch) -> Result<Option<Sample>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let name = path(&format_args!("{pid}"));
        let opened = self
            .directory(name.as_c_str(), flags)
            .and_then(|dir| Ok((read_small(dir.as_fd(), c"stat", &mut scratch.text)?.len(), dir)));
        let (length, dir) = match opened {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::SRCH) => {
                scratch.gone.push(pid);
                return Ok(None);
            }
            Err(Errno::XDEV) => return Ok(Some(Sample { covered: true, ..hidden_process(pid, Errno::XDEV) })),
            // `hidepid=1` (proc(5)): only its existence is visible.
            Err(e @ (Errno::ACCESS | Errno::PERM)) => return Ok(Some(hidden_process(pid, e))),
            Err(e) => return Err(Error::io("open", format!("/proc/{pid}/stat"), e)),
        };
        let Ok(stat) = parse::stat::parse(&scratch.text[..length]) else { return Ok(None) };
        if stat.flags & PF_KTHREAD != 0 {
            return Ok(None);
        }
        let mut sample = Sample {
            process: process_of(&stat),
            fds: Vec::new(),
            namespaces: Vec::new(),
            pins: Vec::new(),
            deleted_maps: Vec::new(),
            refused: None,
            covered: false,
        };
        let (threads, ended) = (stat.num_threads, matches!(stat.state, b'Z' | b'X' | b'x'));
        // The first thread may have exited while others run: then one of these stands for the process.
        let deputy = if ended { living_thread(dir.as_fd(), pid) } else { None };
        match deputy {
            Some((_, state)) => sample.process.state = char::from(state),
            None if ended => return Ok(Some(sample)),
            None => {}
        }
        let first = deputy.map(|(tid, _)| tid);
        let own = pid == self.own_pid;
        let foreign = self.own_pid == 0;
        let maps = wanted.maps && if own { wanted.own } else { self.mappings.include(pid, sample.process.start) };
        let (sample_of, dir_of) = (&mut sample, dir.as_fd());
        let mut reader =
            Reader { dir: dir_of, wanted, scratch, sample: sample_of, hidden: &[], foreign, first, closed: false };
        let hidden;
        if own {
            hidden = [self.hidden.as_slice(), &[dir.as_raw_fd()]].concat();
            reader.hidden = &hidden;
        }
        if wanted.fds && (!own || wanted.own) {
            match first {
                None => reader.fds(c"fd", pid),
                Some(tid) => reader.fds(path(&format_args!("task/{tid}/fd")).as_c_str(), tid),
            }
        }
        reader.namespaces(first);
        if wanted.pins {
            reader.pins(None);
        }
        if maps {
            reader.maps();
        }
        if threads > 1 {
            reader.threads(own);
        }
        Ok(Some(sample))
    }
}

/// The `hidepid` option (proc(5)) of the procfs at `proc`, if it hides other users' processes from us: even their
/// existence is unknown.
fn hiding(proc: BorrowedFd<'_>) -> Option<String> {
    let st = rustix::fs::statx(proc, c"", AtFlags::EMPTY_PATH, StatxFlags::INO).ok()?;
    let text = read_file("/proc/self/mountinfo").ok()?;
    let mounts = parse::mountinfo::parse(&text).ok()?;
    let ours =
        mounts.iter().find(|m| (m.major, m.minor) == (st.stx_dev_major, st.stx_dev_minor) && &*m.fs_type == b"proc")?;
    let options = String::from_utf8_lossy(&ours.super_options).into_owned();
    let value = |name: &str| options.split(',').find_map(|o| o.strip_prefix(name)).map(str::to_owned);
    let hides = value("hidepid=").filter(|how| !matches!(how.as_str(), "0" | "off" | "1" | "noaccess"))?;
    // `ptraceable` also hides from the members of `gid`.
    let group =
        value("gid=").and_then(|gid| gid.parse().ok()).filter(|_| !matches!(hides.as_str(), "4" | "ptraceable"));
    let member = |gid: u32| {
        rustix::process::getegid().as_raw() == gid
            || rustix::process::getgroups().is_ok_and(|all| all.iter().any(|g| g.as_raw() == gid))
    };
    (!group.is_some_and(member)).then(|| format!("hidepid={hides}"))
}

fn hidden_process(pid: u32, error: Errno) -> Sample {
    let comm = Text::from(&b""[..]);
    Sample {
        process: Process { pid, start: 0, ppid: 0, state: '?', pgrp: 0, session: 0, comm },
        fds: Vec::new(),
        namespaces: Vec::new(),
        pins: Vec::new(),
        deleted_maps: Vec::new(),
        refused: Some((format!("stat: {}", in_words(error)), Kind::ALL.into_iter().collect())),
        covered: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_links_of_a_process_that_was_reaped_meanwhile_are_no_gap_and_those_of_another_are() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let (gone, own) = (child.id(), std::process::id());
        let open = |pid| std::fs::File::open(format!("/proc/{pid}")).unwrap();
        let (dir_of_gone, dir) = (open(gone), open(own));
        child.wait().unwrap();
        let cases = [(&dir_of_gone, gone, None, false), (&dir, own, None, true), (&dir, own, Some(gone), false)];
        for (dir, pid, thread, is_gap) in cases {
            let mut sample = Sample { refused: None, ..hidden_process(pid, Errno::ACCESS) };
            let mut reader = Reader {
                dir: dir.as_fd(),
                wanted: Wanted::default(),
                scratch: &mut Scratch::new(),
                sample: &mut sample,
                hidden: &[],
                foreign: false,
                first: None,
                closed: false,
            };
            reader.refuse("ns", &[Kind::Namespace], Errno::ACCESS, thread);
            assert_eq!(sample.refused.is_some(), is_gap, "{pid} {thread:?}");
        }
    }
}
