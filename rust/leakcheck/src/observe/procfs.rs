//! The `/proc` source: proc(5).
//!
//! Each process is read through one descriptor of its directory, so that a reused pid cannot mix two processes, and
//! nothing here waits for a file system: links are read as text, `statx` is told not to synchronise.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use super::door::{self, Door};
use super::read::{ShortPath, path, read_file, read_into, read_small};
use super::source::{NsLink, Pin, ProcessSource, Sample, Selection, Wanted};
use super::sys;
use crate::arena::{ArenaView, proc_path};
use crate::error::{Error, Result};
use crate::kind::{Kind, KindSet};
use crate::parse;
use crate::parse::nslink::NsType;
use crate::resource::{Fd, File, Process, encode_device};
use crate::text::Text;

/// Kernel threads carry this flag (`PF_KTHREAD`, include/linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;
/// Never wait for a remote file system, never trigger an automount.
const QUIET: AtFlags = AtFlags::STATX_DONT_SYNC.union(AtFlags::NO_AUTOMOUNT);
/// How many processes pay for one more thread.
const WORTH_A_THREAD: usize = 4;
/// What only descriptors lead to; a lock where it is found by the files that are open.
const BY_DESCRIPTORS: &[Kind] = &[Kind::Fd, Kind::Mount, Kind::Lock, Kind::Ipc, Kind::Namespace, Kind::Net];
/// How many processes a thread takes at a time: few, so that all end together.
const CHUNK: usize = 4;

/// Reads `/proc`.
pub(crate) struct Procfs {
    proc: OwnedFd,
    door: Arc<Door>,
    own_pid: u32,
    /// Descriptors of this process that belong to the observer.
    hidden: Vec<RawFd>,
}

impl Procfs {
    /// Opens `/proc`, the arena's if there is one. `hidden` are descriptors of this process that are the observer's own.
    pub(crate) fn open(hidden: &[RawFd], door: Arc<Door>, arena: Option<&ArenaView>) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = arena.map_or(door.dir(), |arena| arena.proc.as_fd());
        let opened = rustix::fs::openat(place, c".", flags, Mode::empty());
        let proc = opened.map_err(|e| Error::io("open directory", "/proc", e))?;
        let mut hidden = hidden.to_vec();
        hidden.push(proc.as_raw_fd());
        hidden.extend(door::own_fds());
        // No process of an arena is the observer.
        let own_pid = if arena.is_some() { 0 } else { std::process::id() };
        Ok(Procfs { proc, door, own_pid, hidden })
    }

    /// See [`hiding`].
    pub(super) fn hides(&self) -> Option<String> {
        hiding(self.proc.as_fd())
    }

    fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::with_capacity(512);
        each_number(self.proc.as_fd(), |pid, _| pids.push(pid)).map_err(|e| Error::io("list", "/proc", e))?;
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

    fn select(&self, selection: &Selection) -> Result<Vec<u32>> {
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
                // One that has ended is not in the tree.
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

    /// The directory of one process, and nothing that is mounted over it.
    fn directory(&self, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        match rustix::fs::openat2(&self.proc, name, flags, Mode::empty(), ResolveFlags::NO_XDEV) {
            Err(Errno::XDEV) if self.own_pid != 0 => {
                rustix::fs::openat(self.door.spare().ok_or(Errno::XDEV)?, name, flags, Mode::empty())
            }
            // Linux before 5.6.
            Err(Errno::NOSYS) => rustix::fs::openat(&self.proc, name, flags, Mode::empty()),
            other => other,
        }
    }

    /// Reads one process; none when it has ended, or is a kernel thread.
    ///
    /// # Errors
    /// When this process may open no more files: then nothing can be said of any other.
    fn sample(&self, pid: u32, wanted: Wanted, scratch: &mut Scratch) -> Result<Option<Sample>> {
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
            // `hidepid=1` (proc(5)): that it is there is all that can be seen.
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
        // The first thread may have ended and others go on: then the process is what one of these is.
        let deputy = if ended { living_thread(dir.as_fd(), pid) } else { None };
        match deputy {
            Some((_, state)) => sample.process.state = char::from(state),
            None if ended => return Ok(Some(sample)),
            None => {}
        }
        let first = deputy.map(|(tid, _)| tid);
        let own = pid == self.own_pid;
        let foreign = self.own_pid == 0;
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
            reader.pins();
        }
        if wanted.maps && (!own || wanted.own) {
            reader.maps();
        }
        if threads > 1 {
            reader.threads(own);
        }
        Ok(Some(sample))
    }
}

impl ProcessSource for Procfs {
    fn begin(&self, selection: &Selection, wanted: Wanted) -> Result<Pass<'_>> {
        let mut pids = self.select(selection)?;
        let mut first = Vec::new();
        // This process first, while the only descriptors of the observer are those that it can name.
        if pids.contains(&self.own_pid) {
            first.extend(self.sample(self.own_pid, wanted, &mut Scratch::new())?);
            pids.retain(|&pid| pid != self.own_pid);
        }
        Ok(Pass {
            procfs: self,
            pids,
            wanted,
            next: AtomicUsize::new(0),
            readers: AtomicUsize::new(0),
            parts: Mutex::new(vec![Ok(first)]),
            gone: Mutex::default(),
        })
    }
}

/// The processes to read, which any number of threads share.
pub(crate) struct Pass<'a> {
    procfs: &'a Procfs,
    pids: Vec<u32>,
    wanted: Wanted,
    /// The first that nobody has taken yet.
    next: AtomicUsize,
    /// How many threads are in [`read`](Self::read).
    readers: AtomicUsize,
    parts: Mutex<Vec<Result<Vec<Sample>>>>,
    /// What was found and had ended before it was read.
    gone: Mutex<Vec<u32>>,
}

impl Pass<'_> {
    /// How many of so many threads pay for themselves; `least` do by what else they have to do.
    pub(crate) fn worth(&self, threads: usize, least: usize) -> usize {
        threads.min(least.max(self.pids.len() / WORTH_A_THREAD))
    }

    /// Takes processes until none is left, and waits for those that others have taken; to be called by each of the `threads`.
    pub(crate) fn read(&self, threads: usize) {
        let reading = Reading::of(&self.readers);
        let part = self.part(threads);
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).push(part);
        drop(reading);
        // Who has not begun yet finds nothing to take. The others are at their last few: to sleep would take longer.
        while self.readers.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
    }

    fn part(&self, threads: usize) -> Result<Vec<Sample>> {
        let pids = &self.pids;
        let at_a_time = CHUNK.min(pids.len() / threads / WORTH_A_THREAD).max(1);
        let mut scratch = Scratch::new();
        let mut part = Vec::with_capacity(pids.len() / threads + CHUNK);
        loop {
            let from = self.next.fetch_add(at_a_time, Ordering::SeqCst);
            let Some(chunk) = pids.get(from..pids.len().min(from + at_a_time)).filter(|c| !c.is_empty()) else {
                self.gone.lock().unwrap_or_else(PoisonError::into_inner).append(&mut scratch.gone);
                return Ok(part);
            };
            for &pid in chunk {
                part.extend(self.procfs.sample(pid, self.wanted, &mut scratch)?);
            }
        }
    }

    /// The ids of processes that were found and had ended before they could be read.
    pub(crate) fn gone(&self) -> Vec<u32> {
        std::mem::take(&mut *self.gone.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What was read. A process that ended meanwhile is left out.
    ///
    /// # Errors
    /// When the source as a whole could not be read any more.
    pub(crate) fn samples(&self) -> Result<Vec<Sample>> {
        let parts = std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        let mut samples = Vec::with_capacity(self.pids.len() + 1);
        for part in parts {
            samples.extend(part?);
        }
        // A thousand processes are sorted faster than all their descriptors, which come in order.
        samples.sort_unstable_by_key(|s| s.process.pid);
        Ok(samples)
    }
}

/// Counts as a reader until it is dropped, by a panic as well: others wait.
struct Reading<'a>(&'a AtomicUsize);

impl<'a> Reading<'a> {
    fn of(readers: &'a AtomicUsize) -> Self {
        readers.fetch_add(1, Ordering::SeqCst);
        Reading(readers)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Scratch {
    text: [u8; 4096],
    fds: Vec<Fd>,
    link: [MaybeUninit<u8>; 4096],
    maps: Vec<u8>,
    /// Mounts that working and root directories were seen on.
    pinned: Vec<u64>,
    gone: Vec<u32>,
}

impl Scratch {
    fn new() -> Self {
        Scratch {
            text: [0; 4096],
            fds: Vec::with_capacity(64),
            link: [MaybeUninit::uninit(); 4096],
            maps: Vec::new(),
            pinned: Vec::new(),
            gone: Vec::new(),
        }
    }
}

struct Reader<'a> {
    dir: BorrowedFd<'a>,
    wanted: Wanted,
    scratch: &'a mut Scratch,
    sample: &'a mut Sample,
    hidden: &'a [RawFd],
    /// Whether the pids are of another pid namespace than the observer's.
    foreign: bool,
    /// The thread that stands for the process where the first has ended: that one has let go of all that it had.
    first: Option<u32>,
    /// Whether the links in its descriptor table may not be read.
    closed: bool,
}

impl Reader<'_> {
    fn refuse(&mut self, what: &str, hides: &[Kind], error: Errno) {
        // A process that is ending answers ENOENT or ESRCH: it is no gap.
        if !matches!(error, Errno::NOENT | Errno::SRCH) {
            let first = || (format!("{what}: {}", std::io::Error::from(error)), KindSet::EMPTY);
            let (_, hidden) = self.sample.refused.get_or_insert_with(first);
            *hidden = hidden.iter().chain(hides.iter().copied()).collect();
        }
    }

    fn fds(&mut self, table: &CStr, tid: u32) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(self.dir, table, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(e) => return self.refuse("fd", BY_DESCRIPTORS, e),
        };
        let own = dir.as_raw_fd();
        let (pid, start) = (self.sample.process.pid, self.sample.process.start);
        let hidden = self.hidden;
        let Scratch { fds, link, .. } = &mut *self.scratch;
        let (mut refused, mut closed) = (None, false);
        let result = each_number(dir.as_fd(), |number, name| {
            if closed {
                return;
            }
            if !hidden.is_empty() && (number == own as u32 || hidden.contains(&(number as RawFd))) {
                return;
            }
            let target: &[u8] = match rustix::fs::readlinkat_raw(&dir, name, &mut link[..]) {
                Ok((target, _)) => target,
                // A path longer than a page; the file itself is known all the same.
                Err(Errno::NAMETOOLONG) => b"/(a path longer than 4096 bytes)",
                Err(e) => {
                    refused = refused.or(Some(e).filter(|e| !matches!(*e, Errno::NOENT | Errno::SRCH)));
                    // The kernel asks what the reader may do to the process (`proc_fd_access_allowed()`): the next link is refused too.
                    closed = matches!(e, Errno::ACCESS | Errno::PERM);
                    return;
                }
            };
            let mut fd = Fd {
                pid,
                start,
                table: tid,
                fd: number,
                dev: 0,
                ino: 0,
                serial: None,
                target: Text::from(target),
                mount: None,
                in_flight: 0,
            };
            if target.first() == Some(&b'/') {
                let mask = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::from_bits_retain(sys::STATX_MNT_ID_UNIQUE);
                match rustix::fs::statx(&dir, name, QUIET, mask) {
                    Ok(st) => {
                        fd.dev = encode_device(st.stx_dev_major, st.stx_dev_minor);
                        fd.ino = st.stx_ino;
                        fd.mount = sys::mount_of(&st);
                    }
                    Err(e) if is_refusal(e) => refused = refused.or(Some(e)),
                    // A server that does not answer: the path is all that tells the file.
                    Err(_) => {}
                }
            }
            fds.push(fd);
        });
        self.closed |= closed;
        if let Some(e) = result.err().or(refused) {
            self.refuse("fd", BY_DESCRIPTORS, e);
        }
        self.ask_fdinfo(table, tid);
        // One allocation of the right size: a helper thread's heap grows page by page.
        self.sample.fds.reserve_exact(self.scratch.fds.len());
        self.sample.fds.append(&mut self.scratch.fds);
    }

    /// What only fdinfo tells: which of the anonymous inodes, that all share one inode, and what a socket's queue holds.
    fn ask_fdinfo(&mut self, table: &CStr, tid: u32) {
        let info_dir: &CStr = if table == c"fd" { c"fdinfo" } else { c"" };
        let Scratch { fds, text, .. } = &mut *self.scratch;
        let queues = self.wanted.queues;
        let asked = |target: &[u8]| has_serial(target) || queues && target.starts_with(b"socket:");
        let mut refused = None;
        for fd in fds.iter_mut().filter(|fd| asked(fd.target.as_ref())) {
            let name = if info_dir.is_empty() {
                path(&format_args!("task/{tid}/fdinfo/{}", fd.fd))
            } else {
                path(&format_args!("fdinfo/{}", fd.fd))
            };
            match read_small(self.dir, name.as_c_str(), text) {
                Ok(text) => {
                    let info = parse::fdinfo::parse(text);
                    if has_serial(fd.target.as_ref()) {
                        let bpf = info.map_id.or(info.prog_id).or(info.link_id);
                        fd.serial = info.eventfd_id.or(bpf.map(u64::from));
                    } else {
                        fd.in_flight = info.scm_fds.unwrap_or(0);
                    }
                }
                Err(e) => refused = Some(e),
            }
        }
        if let Some(e) = refused {
            self.refuse("fdinfo", &[Kind::Fd], e);
        }
    }

    fn namespaces(&mut self, thread: Option<u32>) {
        for &name in self.wanted.namespaces {
            let link = NsLink { thread, name };
            let of_thread = thread.map(|_| path(&format_args!("{link}")));
            let at = of_thread.as_deref().unwrap_or(name);
            match rustix::fs::readlinkat_raw(self.dir, at, &mut self.scratch.link[..]) {
                Ok((text, _)) => {
                    let known = &mut self.sample.namespaces;
                    if let Ok((ns_type, ino)) = parse::nslink::parse(text)
                        && !known.iter().any(|(t, i, _)| (*t, *i) == (ns_type, ino))
                    {
                        known.push((ns_type, ino, link));
                    }
                }
                // A kernel without that type, or a process that is ending.
                Err(Errno::NOENT | Errno::SRCH) => {}
                Err(e) => return self.refuse("ns", &[Kind::Mount, Kind::Ipc, Kind::Namespace, Kind::Net], e),
            }
        }
    }

    /// A file of the process, which the thread that stands for it has too.
    fn of_process(&self, name: &str) -> ShortPath {
        match self.first {
            None => path(&format_args!("{name}")),
            Some(tid) => path(&format_args!("task/{tid}/{name}")),
        }
    }

    fn pins(&mut self) {
        for what in ["cwd", "root"] {
            let name = self.of_process(what);
            let name = name.as_c_str();
            let mask = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::from_bits_retain(sys::STATX_MNT_ID_UNIQUE);
            match rustix::fs::statx(self.dir, name, QUIET, mask) {
                // One process is enough to tell what keeps a mount.
                Ok(st) if sys::mount_of(&st).is_some_and(|id| self.scratch.pinned.contains(&id)) => {}
                Ok(st) => {
                    self.scratch.pinned.extend(sys::mount_of(&st));
                    let text = rustix::fs::readlinkat_raw(self.dir, name, &mut self.scratch.link[..]);
                    self.sample.pins.push(Pin {
                        what,
                        mount: sys::mount_of(&st),
                        dev: encode_device(st.stx_dev_major, st.stx_dev_minor),
                        path: text.map(|(t, _)| t.to_vec()).unwrap_or_default(),
                    });
                }
                Err(e) => return self.refuse(what, &[Kind::Mount], e),
            }
        }
    }

    fn maps(&mut self) {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let name = self.of_process("maps");
        let text = &mut self.scratch.maps;
        let read = rustix::fs::openat(self.dir, name.as_c_str(), flags, Mode::empty())
            .and_then(|fd| read_into(fd.as_fd(), text));
        match read {
            Ok(()) => {
                let (pid, start) = (self.sample.process.pid, self.sample.process.start);
                for map in parse::maps::deleted(text).flatten() {
                    // Shared memory and memfds have no directory entry to begin with: they are IPC objects or FDs.
                    if map.is_shared_anonymous() || map.path.starts_with(b"/memfd:") || map.path.starts_with(b"/SYSV") {
                        continue;
                    }
                    self.sample.deleted_maps.push(File {
                        dev: encode_device(map.dev.major, map.dev.minor),
                        ino: map.inode,
                        birth: None,
                        link: 0,
                        mapped_by: Some((pid, start)),
                        path: Text::from(map.path),
                        class: "file".to_owned(),
                        mode: 0,
                        uid: 0,
                        size: 0,
                        state: None,
                        version: None,
                    });
                }
                self.sample.deleted_maps.sort_by_key(|f| (f.dev, f.ino));
                self.sample.deleted_maps.dedup_by_key(|f| (f.dev, f.ino));
            }
            Err(e) => self.refuse("maps", &[Kind::File], e),
        }
    }

    /// Threads that left the group's FD table or namespaces: a thread is a process to the kernel.
    fn threads(&mut self, own: bool) {
        let wanted = self.wanted;
        if !wanted.fds && wanted.namespaces.is_empty() {
            return;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut tids = Vec::new();
        let listed = rustix::fs::openat(self.dir, c"task", flags, Mode::empty())
            .and_then(|dir| each_number(dir.as_fd(), |tid, _| tids.push(tid)));
        if let Err(e) = listed {
            return self.refuse("task", BY_DESCRIPTORS, e);
        }
        let pid = self.sample.process.pid;
        let first = self.first.unwrap_or(pid);
        for tid in tids.into_iter().filter(|&t| t != pid && t != first) {
            // It refuses what the process has refused: to list its table would take long, and give nothing.
            if self.closed && self.is_closed(tid) {
                continue;
            }
            if wanted.fds && self.foreign {
                self.foreign_table(tid);
            } else if wanted.fds && (!own || wanted.own) {
                match sys::same_fd_table(first, tid) {
                    Ok(true) => {}
                    Ok(false) => self.fds(path(&format_args!("task/{tid}/fd")).as_c_str(), tid),
                    Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                    // A seccomp filter forbids kcmp(2), or the kernel has none; a process that may not be traced refuses what follows.
                    Err(_) => self.foreign_table(tid),
                }
            }
            if !wanted.namespaces.is_empty() {
                self.namespaces(Some(tid));
            }
        }
    }
}

impl Reader<'_> {
    /// Whether a thread's links may not be read: of all the same is asked.
    fn is_closed(&mut self, tid: u32) -> bool {
        let link = path(&format_args!("task/{tid}/cwd"));
        let read = rustix::fs::readlinkat_raw(self.dir, link.as_c_str(), &mut self.scratch.link[..]);
        matches!(read, Err(Errno::ACCESS | Errno::PERM))
    }

    /// A thread of another pid namespace, which kcmp(2) cannot name, or where it is forbidden: its table is one of its own when it lists other files.
    fn foreign_table(&mut self, tid: u32) {
        let pid = self.sample.process.pid;
        let from = self.sample.fds.len();
        self.fds(path(&format_args!("task/{tid}/fd")).as_c_str(), tid);
        let (known, listed) = self.sample.fds.split_at(from);
        let first = self.first.unwrap_or(pid);
        let group = known.iter().filter(|fd| fd.table == first);
        let same = |(a, b): (&Fd, &Fd)| (a.fd, &a.target, a.ino, a.serial) == (b.fd, &b.target, b.ino, b.serial);
        if group.clone().count() == listed.len() && group.zip(listed).all(same) {
            self.sample.fds.truncate(from);
        }
    }
}

/// A thread that has not ended, with its state: below the `/proc/PID` whose first thread has.
fn living_thread(dir: BorrowedFd<'_>, pid: u32) -> Option<(u32, u8)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let task = rustix::fs::openat(dir, c"task", flags, Mode::empty()).ok()?;
    let mut tids = Vec::new();
    each_number(task.as_fd(), |tid, _| tids.push(tid)).ok()?;
    tids.into_iter().filter(|tid| *tid != pid).find_map(|tid| {
        let mut buffer = [0u8; 1024];
        let text = read_small(task.as_fd(), &path(&format_args!("{tid}/stat")), &mut buffer).ok()?;
        let state = parse::stat::parse(text).ok()?.state;
        (!matches!(state, b'Z' | b'X' | b'x')).then_some((tid, state))
    })
}

fn has_serial(target: &[u8]) -> bool {
    target.starts_with(b"anon_inode:[eventfd]") || target.starts_with(b"anon_inode:bpf")
}

fn hidden_process(pid: u32, error: Errno) -> Sample {
    let comm = Text::from(&b""[..]);
    Sample {
        process: Process { pid, start: 0, ppid: 0, state: '?', pgrp: 0, session: 0, comm },
        fds: Vec::new(),
        namespaces: Vec::new(),
        pins: Vec::new(),
        deleted_maps: Vec::new(),
        refused: Some((format!("stat: {}", std::io::Error::from(error)), Kind::ALL.into_iter().collect())),
        covered: false,
    }
}

/// Where below `/proc` a process shows what it has: at its first thread, or where that has ended at one that lives; and whether the first
/// lives.
pub(crate) fn task_of(pid: u32, arena: Option<&ArenaView>) -> (String, bool) {
    let text = read_file(proc_path(arena, format_args!("{pid}/stat"))).unwrap_or_default();
    if parse::stat::parse(&text).is_ok_and(|s| matches!(s.state, b'Z' | b'X' | b'x') && s.num_threads > 1) {
        let dir = door::open(&proc_path(arena, pid), OFlags::PATH | OFlags::DIRECTORY);
        if let Some((tid, _)) = dir.ok().and_then(|dir| living_thread(dir.as_fd(), pid)) {
            return (format!("{pid}/task/{tid}"), false);
        }
    }
    (pid.to_string(), true)
}

/// The process of a `/proc/PID/stat`; none for a kernel thread.
pub(super) fn process(stat: &[u8]) -> Option<Process> {
    let stat = parse::stat::parse(stat).ok()?;
    (stat.flags & PF_KTHREAD == 0).then(|| process_of(&stat))
}

/// The `hidepid` option (proc(5)) of the procfs at `proc`, where it keeps processes of others from us: those of which it says
/// nothing at all are not even known to be there.
pub(super) fn hiding(proc: BorrowedFd<'_>) -> Option<String> {
    let st = rustix::fs::statx(proc, c"", AtFlags::EMPTY_PATH, StatxFlags::INO).ok()?;
    let text = super::read::read_file("/proc/self/mountinfo").ok()?;
    let mounts = parse::mountinfo::parse(&text).ok()?;
    let ours =
        mounts.iter().find(|m| (m.major, m.minor) == (st.stx_dev_major, st.stx_dev_minor) && &*m.fs_type == b"proc")?;
    let options = String::from_utf8_lossy(&ours.super_options).into_owned();
    let value = |name: &str| options.split(',').find_map(|o| o.strip_prefix(name)).map(str::to_owned);
    let hides = value("hidepid=").filter(|how| !matches!(how.as_str(), "0" | "off" | "1" | "noaccess"))?;
    // `ptraceable` hides from the members of `gid` as well.
    let group =
        value("gid=").and_then(|gid| gid.parse().ok()).filter(|_| !matches!(hides.as_str(), "4" | "ptraceable"));
    let member = |gid: u32| {
        rustix::process::getegid().as_raw() == gid
            || rustix::process::getgroups().is_ok_and(|all| all.iter().any(|g| g.as_raw() == gid))
    };
    (!group.is_some_and(member)).then(|| format!("hidepid={hides}"))
}

/// Whether the process or our own limits are in the way, and not what the link leads to.
fn is_refusal(error: Errno) -> bool {
    matches!(error, Errno::ACCESS | Errno::PERM | Errno::MFILE | Errno::NFILE | Errno::NOMEM)
}

fn process_of(stat: &parse::stat::Stat<'_>) -> Process {
    Process {
        pid: stat.pid.unsigned_abs(),
        start: stat.start_time,
        ppid: stat.ppid.unsigned_abs(),
        state: stat.state as char,
        pgrp: stat.pgrp,
        session: stat.session,
        comm: Text::from(stat.comm),
    }
}

/// Calls `f` with each entry of `dir` whose name is a number.
pub(super) fn each_number(dir: BorrowedFd<'_>, mut f: impl FnMut(u32, &CStr)) -> rustix::io::Result<()> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 16384];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(number) = number(name.to_bytes()) {
            f(number, name);
        }
    }
    Ok(())
}

fn number(name: &[u8]) -> Option<u32> {
    if name.is_empty() || name.len() > 10 {
        return None;
    }
    name.iter().try_fold(0u32, |n, b| {
        let digit = b.wrapping_sub(b'0');
        (digit < 10).then(|| n.checked_mul(10)?.checked_add(u32::from(digit))).flatten()
    })
}

/// The namespaces of the observer itself.
pub(super) fn own_namespaces() -> std::collections::BTreeMap<NsType, u64> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(dir) = door::open(Path::new("/proc/thread-self/ns"), flags) else { return Default::default() };
    let links = ["mnt", "net", "ipc", "pid", "user", "uts", "cgroup", "time"].into_iter().filter_map(|name| {
        let link = rustix::fs::readlinkat(&dir, name, Vec::with_capacity(32)).ok()?;
        parse::nslink::parse(link.as_bytes()).ok()
    });
    links.collect()
}
