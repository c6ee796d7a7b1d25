//! Reads one process through the descriptor of its directory.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::error::in_words;
use crate::kind::{Kind, KindSet};
use crate::observe::mount::is_kernel_internal;
use crate::observe::pass::{NsLink, Pin, Sample, Wanted};
use crate::observe::read::{ShortPath, path, read_into, read_small};
use crate::observe::sys;
use crate::observe::task::each_number;
use crate::parse;
use crate::resource::{Fd, File, encode_device};
use crate::text::Text;

/// Set by the kernel alone, in `do_exit()` (linux/sched.h).
const PF_EXITING: u32 = 0x4;
/// Never wait for a remote file system, never trigger an automount.
const QUIET: AtFlags = AtFlags::STATX_DONT_SYNC.union(AtFlags::NO_AUTOMOUNT);
/// The kinds reachable only through descriptors, and locks if they are found through open files.
const BY_DESCRIPTORS: &[Kind] = &[Kind::Fd, Kind::Mount, Kind::Lock, Kind::Ipc, Kind::Namespace, Kind::Net];

pub(super) struct Scratch {
    pub(super) text: [u8; 4096],
    fds: Vec<Fd>,
    link: [MaybeUninit<u8>; 4096],
    maps: Vec<u8>,
    /// Mounts that working and root directories were seen on.
    pinned: Vec<u64>,
    pub(super) gone: Vec<u32>,
}

impl Scratch {
    pub(super) fn new() -> Self {
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

pub(super) struct Reader<'a> {
    pub(super) dir: BorrowedFd<'a>,
    pub(super) wanted: Wanted,
    pub(super) scratch: &'a mut Scratch,
    pub(super) sample: &'a mut Sample,
    pub(super) hidden: &'a [RawFd],
    /// Whether the pids are of another pid namespace than the observer's.
    pub(super) foreign: bool,
    /// The thread that stands for the process if the first has exited: an exited thread has released everything.
    pub(super) first: Option<u32>,
    /// Whether the links in its descriptor table are unreadable.
    pub(super) closed: bool,
}

impl Reader<'_> {
    pub(super) fn refuse(&mut self, what: &str, hides: &[Kind], error: Errno, thread: Option<u32>) {
        // A process that is exiting answers ENOENT or ESRCH, and EACCES if it was reaped meanwhile
        // (`proc_ns_readlink()`, `proc_pid_readlink()` of the kernel), or to an ordinary user once it has given its memory
        // back (`task_dump_owner()`): that is not a gap.
        let is_exiting =
            matches!(error, Errno::NOENT | Errno::SRCH) || (error == Errno::ACCESS && self.is_gone(thread));
        if !is_exiting {
            let first = || (format!("{what}: {}", in_words(error)), KindSet::EMPTY);
            let (_, hidden) = self.sample.refused.get_or_insert_with(first);
            *hidden = hidden.iter().chain(hides.iter().copied()).collect();
        }
    }

    /// Whether a thread, or the process, was reaped or is exiting: what it has open is closed then.
    fn is_gone(&mut self, thread: Option<u32>) -> bool {
        let of_thread = thread.map(|tid| path(&format_args!("task/{tid}/stat")));
        let name = of_thread.as_deref().unwrap_or(c"stat");
        match read_small(self.dir, name, &mut self.scratch.text) {
            Ok(text) => parse::stat::parse(text).is_ok_and(|stat| stat.flags & PF_EXITING != 0),
            Err(e) => matches!(e, Errno::NOENT | Errno::SRCH),
        }
    }

    pub(super) fn fds(&mut self, table: &CStr, tid: u32) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(self.dir, table, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(e) => return self.refuse("fd", BY_DESCRIPTORS, e, Some(tid)),
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
                // A path longer than a page; the file itself is still known.
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
                    // A server that does not answer: only the path identifies the file.
                    Err(_) => {}
                }
            }
            fds.push(fd);
        });
        self.closed |= closed;
        if let Some(e) = result.err().or(refused) {
            self.refuse("fd", BY_DESCRIPTORS, e, Some(tid));
        }
        self.ask_fdinfo(table, tid);
        // One allocation of the right size: a helper thread's heap grows page by page.
        self.sample.fds.reserve_exact(self.scratch.fds.len());
        self.sample.fds.append(&mut self.scratch.fds);
    }

    /// What only fdinfo tells: which anonymous file it is (they all share one inode), and what a socket's queue
    /// contains.
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
            self.refuse("fdinfo", &[Kind::Fd], e, Some(tid));
        }
    }

    pub(super) fn namespaces(&mut self, thread: Option<u32>) {
        const HIDES: &[Kind] = &[Kind::Mount, Kind::Ipc, Kind::Namespace, Kind::Net];
        // The kernel checks each part of a path: for many links, once is less.
        let place = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |tid| rustix::fs::openat(self.dir, &*path(&format_args!("task/{tid}/ns")), place, Mode::empty());
        let own = match thread.filter(|_| self.wanted.namespaces.len() > 2).map(open).transpose() {
            Ok(own) => own,
            Err(Errno::NOENT | Errno::SRCH) => return,
            Err(e) => return self.refuse("ns", HIDES, e, thread),
        };
        for &name in self.wanted.namespaces {
            let link = NsLink { thread, name };
            let of_thread = thread.filter(|_| own.is_none()).map(|_| path(&format_args!("{link}")));
            let (from, at) = match &own {
                None => (self.dir, of_thread.as_deref().unwrap_or(name)),
                Some(own) => (own.as_fd(), link.file()),
            };
            match rustix::fs::readlinkat_raw(from, at, &mut self.scratch.link[..]) {
                Ok((text, _)) => {
                    let known = &mut self.sample.namespaces;
                    if let Ok((ns_type, ino)) = parse::nslink::parse(text)
                        && !known.iter().any(|(t, i, _)| (*t, *i) == (ns_type, ino))
                    {
                        known.push((ns_type, ino, link));
                    }
                }
                // A kernel without that type, or a process that is exiting.
                Err(Errno::NOENT | Errno::SRCH) => {}
                Err(e) => return self.refuse("ns", HIDES, e, thread),
            }
        }
    }

    /// A file of the process, which the thread that stands for it has too.
    fn of_process(&self, name: &str) -> ShortPath {
        of_thread(self.first, name)
    }

    /// Of the process, or of a thread that has its own directories.
    pub(super) fn pins(&mut self, thread: Option<u32>) {
        // All threads of a process run one program.
        let kept: &[&'static str] = if thread.is_none() { &["cwd", "root", "exe"] } else { &["cwd", "root"] };
        let thread = thread.or(self.first);
        for &what in kept {
            let name = of_thread(thread, what);
            let name = name.as_c_str();
            let mask = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::from_bits_retain(sys::STATX_MNT_ID_UNIQUE);
            match rustix::fs::statx(self.dir, name, QUIET, mask) {
                // One process is enough to show what keeps a mount.
                Ok(st) if sys::mount_of(&st).is_some_and(|id| self.scratch.pinned.contains(&id)) => {}
                Ok(st) => {
                    self.scratch.pinned.extend(sys::mount_of(&st));
                    let text = rustix::fs::readlinkat_raw(self.dir, name, &mut self.scratch.link[..]);
                    if what == "exe" && text.as_ref().is_ok_and(|(text, _)| is_kernel_internal(text)) {
                        continue;
                    }
                    self.sample.pins.push(Pin {
                        what,
                        mount: sys::mount_of(&st),
                        dev: encode_device(st.stx_dev_major, st.stx_dev_minor),
                        path: text.map(|(t, _)| t.to_vec()).unwrap_or_default(),
                    });
                }
                Err(e) => return self.refuse(what, &[Kind::Mount], e, thread),
            }
        }
    }

    pub(super) fn maps(&mut self) {
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
            Err(e) => self.refuse("maps", &[Kind::File], e, self.first),
        }
    }

    /// Threads that left the group's FD table, directories or namespaces: a thread is a process to the kernel.
    pub(super) fn threads(&mut self, own: bool) {
        let wanted = self.wanted;
        if !wanted.fds && !wanted.pins && wanted.namespaces.is_empty() {
            return;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut tids = Vec::new();
        let listed = rustix::fs::openat(self.dir, c"task", flags, Mode::empty())
            .and_then(|dir| each_number(dir.as_fd(), |tid, _| tids.push(tid)));
        if let Err(e) = listed {
            return self.refuse("task", BY_DESCRIPTORS, e, None);
        }
        let pid = self.sample.process.pid;
        let first = self.first.unwrap_or(pid);
        for tid in tids.into_iter().filter(|&t| t != pid && t != first) {
            // It refuses the same as the process: listing its table would take long and give nothing.
            if self.closed && self.is_closed(tid) {
                continue;
            }
            if wanted.fds && self.foreign {
                self.foreign_table(tid);
            } else if wanted.fds && (!own || wanted.own) {
                match sys::same_fd_table(first, tid) {
                    Ok(true) => {}
                    Ok(false) => self.own_table(tid, own),
                    Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                    // A seccomp filter forbids kcmp(2), or the kernel has none; a process that may not be traced refuses what follows.
                    Err(_) => self.foreign_table(tid),
                }
            }
            // Where kcmp(2) cannot tell, two links can.
            if wanted.pins && (self.foreign || !sys::same_directories(first, tid).unwrap_or(false)) {
                self.pins(Some(tid));
            }
            if !wanted.namespaces.is_empty() {
                self.namespaces(Some(tid));
            }
        }
    }

    /// What another thread of the observer's process copied of the observer's descriptors is not the observer's any more.
    fn own_table(&mut self, tid: u32, own: bool) {
        let comm = path(&format_args!("task/{tid}/comm"));
        let ours = own && read_small(self.dir, comm.as_c_str(), &mut self.scratch.text).is_ok_and(is_observer);
        let hidden = self.hidden;
        if !ours {
            self.hidden = &[];
        }
        self.fds(path(&format_args!("task/{tid}/fd")).as_c_str(), tid);
        self.hidden = hidden;
    }

    /// Whether a thread's links are unreadable: the kernel checks the same for all of them.
    fn is_closed(&mut self, tid: u32) -> bool {
        let link = path(&format_args!("task/{tid}/cwd"));
        let read = rustix::fs::readlinkat_raw(self.dir, link.as_c_str(), &mut self.scratch.link[..]);
        matches!(read, Err(Errno::ACCESS | Errno::PERM))
    }

    /// A thread of another pid namespace, which kcmp(2) cannot name, or if kcmp(2) is forbidden: the thread has its own
    /// table if it lists other files.
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

/// Whether a thread of this name is one that observes.
fn is_observer(comm: &[u8]) -> bool {
    comm.starts_with(b"leakcheck-")
}

/// A file of a thread, or of the process.
fn of_thread(thread: Option<u32>, name: &str) -> ShortPath {
    match thread {
        None => path(&format_args!("{name}")),
        Some(tid) => path(&format_args!("task/{tid}/{name}")),
    }
}

fn has_serial(target: &[u8]) -> bool {
    target.starts_with(b"anon_inode:[eventfd]") || target.starts_with(b"anon_inode:bpf")
}

/// Whether the process or our own limits are the cause, and not the target of the link.
fn is_refusal(error: Errno) -> bool {
    matches!(error, Errno::ACCESS | Errno::PERM | Errno::MFILE | Errno::NFILE | Errno::NOMEM)
}
