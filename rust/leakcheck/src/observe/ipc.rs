//! System V IPC, POSIX message queues (ipc_namespaces(7)) and POSIX shared memory (shm_overview(7)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, SeekFrom, Statx, StatxFlags, openat, statx};
use rustix::io::Errno;

use super::context::Context;
use super::enter::{NsView, note_refused};
use super::reach::Refusal;
use super::read::read_all;
use super::remote::Inside;
use super::sys;
use crate::coverage::QUEUES;
use crate::error::in_words;
use crate::kind::Kind;
use crate::parse::sysvipc;
use crate::resource::{Ipc, IpcClass};
use crate::snapshot::{Gap, Level, Snapshot, Unseen};
use crate::text::Text;

/// The file system that glibc's shm_open(3) and sem_open(3) use.
const SHM_DIR: &str = "/dev/shm";

/// Where the queues of the observer's own IPC namespace are mounted according to mq_overview(7).
const MQUEUE_DIR: &str = "/dev/mqueue";

/// The contents of one IPC namespace, and what could not be seen.
#[derive(Default)]
pub(super) struct Contents {
    objects: Vec<Ipc>,
    gaps: Vec<String>,
    /// Why the queues of the observer's own namespace were not listed, and how many bytes those of its user use.
    queues: Option<(String, u64)>,
}

impl Contents {
    pub(super) fn is_whole(&self) -> bool {
        self.gaps.is_empty()
    }
}

/// Appends the contents of the IPC namespaces, each read through a [`NsHandle`], and the files of `/dev/shm`, the
/// arena's if there is one.
pub(super) fn collect(results: Vec<crate::error::Result<Contents>>, context: Context<'_>, out: &mut Snapshot) {
    note_refused(Kind::Ipc, results.iter().filter_map(|result| result.as_ref().err()), out);
    for mut seen in results.into_iter().flatten() {
        out.ipc.append(&mut seen.objects);
        seen.gaps.into_iter().for_each(|gap| out.coverage.lower(Kind::Ipc, Level::Partial, gap));
        if let Some((reason, bytes)) = seen.queues {
            out.gaps.push(Gap { kind: Kind::Ipc, level: Level::Partial, reason, place: Unseen::Queues });
            out.gauges.insert(QUEUES.to_owned(), i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }
    if context.arena.is_some() {
        // The tables show pids of the observer's namespace (`sysvipc_proc_open()`), which are other processes in an
        // arena.
        out.ipc.iter_mut().for_each(|object| object.creator = 0);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fresh = context.arena.and_then(|arena| arena.roots.iter().find(|(path, _)| path == Path::new(SHM_DIR)));
    let shm = match fresh {
        Some((_, root)) => openat(root, ".", flags, Mode::empty()).map_err(Refusal::from),
        None => context.open(Path::new(SHM_DIR)).and_then(|place| Ok(place.reopen(flags)?)),
    };
    match shm {
        Ok(dir) => {
            if let Err(e) = files(dir.as_fd(), 0, IpcClass::PosixShm, &mut out.ipc) {
                out.coverage.lower(Kind::Ipc, Level::Partial, format!("cannot list {SHM_DIR}: {}", in_words(e)));
            }
        }
        // Without the directory, shm_open(3) cannot create anything.
        Err(e) if e.is_missing() => {}
        Err(e) => out.coverage.lower(Kind::Ipc, Level::Partial, format!("cannot open {SHM_DIR}: {}", in_words(e))),
    }
}

/// Handles to read an IPC namespace: opened by a thread inside, usable by every thread afterwards. None stands for a
/// feature that the kernel was built without, so that no object can exist.
pub(super) struct NsHandle {
    tables: [(IpcClass, Result<Option<OwnedFd>, String>); 3],
    queues: Result<Option<OwnedFd>, String>,
}

impl NsHandle {
    /// `/proc/sysvipc` shows the IPC namespace of the thread that opened the file, whichever thread reads it.
    pub(super) fn open(view: &NsView, inside: Inside<'_>) -> Self {
        let table = |class| {
            let opened = match inside.file(place(class)) {
                Ok(table) => Ok(Some(table)),
                // A kernel without CONFIG_SYSVIPC has none of them; a procfs may be mounted without (`subset=pid`).
                Err(Errno::NOENT) if !sys::has_system_v() => Ok(None),
                Err(Errno::XDEV) => Err(format!("a mount covers {}", place(class))),
                Err(e) => Err(format!("cannot read {}: {}", place(class), in_words(e))),
            };
            (class, opened)
        };
        NsHandle { tables: [IpcClass::Shm, IpcClass::Sem, IpcClass::Msg].map(table), queues: queues(view, inside) }
    }

    /// Lists the current contents of the namespace.
    pub(super) fn observe(&self, view: &NsView) -> Contents {
        let mut seen = Contents::default();
        for (class, table) in &self.tables {
            match table {
                Ok(Some(table)) => {
                    if let Err(e) = system_v(table, *class, view.ino, &mut seen.objects) {
                        seen.gaps.push(format!("cannot read {}: {}", place(*class), in_words(e)));
                    }
                }
                Ok(None) => {}
                Err(why) => seen.gaps.push(why.clone()),
            }
        }
        match &self.queues {
            Ok(Some(dir)) => {
                if let Err(e) = files(dir.as_fd(), view.ino, IpcClass::Mqueue, &mut seen.objects) {
                    seen.gaps.push(format!("cannot list message queues: {}", in_words(e)));
                }
            }
            Ok(None) => {}
            Err(why) if view.own => match sys::queue_bytes() {
                Ok(bytes) => seen.queues = Some((why.clone(), bytes)),
                Err(e) => seen.gaps.push(format!("{why}; mq_open: {}", in_words(e))),
            },
            Err(why) => seen.gaps.push(why.clone()),
        }
        seen
    }
}

/// One table of proc_sysvipc(5).
fn system_v(table: &OwnedFd, class: IpcClass, ns: u64, objects: &mut Vec<Ipc>) -> io::Result<()> {
    rustix::fs::seek(table, SeekFrom::Start(0))?;
    let text = read_all(table.as_fd())?;
    let malformed = |e| io::Error::new(io::ErrorKind::InvalidData, e);
    let record = |id: i32, key: i32, uid, size, creator: i32, attached| Ipc {
        ns,
        class,
        id: id.cast_unsigned().into(),
        birth: None,
        name: Text::from(format!("key {:#010x}", key.cast_unsigned()).into_bytes()),
        uid,
        size,
        creator: creator.try_into().unwrap_or(0),
        attached,
    };
    match class {
        IpcClass::Shm => {
            let table = sysvipc::parse_shm(&text).map_err(malformed)?;
            objects.extend(table.iter().map(|r| record(r.id, r.key, r.uid, r.size, r.cpid, r.nattch)));
        }
        IpcClass::Sem => {
            let table = sysvipc::parse_sem(&text).map_err(malformed)?;
            objects.extend(table.iter().map(|r| record(r.id, r.key, r.uid, r.nsems, 0, 0)));
        }
        IpcClass::Msg => {
            let table = sysvipc::parse_msg(&text).map_err(malformed)?;
            objects.extend(table.iter().map(|r| record(r.id, r.key, r.uid, r.qnum, r.lspid, 0)));
        }
        IpcClass::PosixShm | IpcClass::Mqueue => {}
    }
    Ok(())
}

/// Where objects of a class are listed.
fn place(class: IpcClass) -> &'static str {
    match class {
        IpcClass::Shm => "/proc/sysvipc/shm",
        IpcClass::Sem => "/proc/sysvipc/sem",
        IpcClass::Msg => "/proc/sysvipc/msg",
        IpcClass::PosixShm => SHM_DIR,
        IpcClass::Mqueue => MQUEUE_DIR,
    }
}

/// The POSIX message queues, by a detached mount of `mqueue` that goes with its descriptor (fsmount(2), Linux 5.2). It
/// always belongs to the current IPC namespace, unlike `/dev/mqueue`.
fn queues(view: &NsView, inside: Inside<'_>) -> Result<Option<OwnedFd>, String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = match inside {
        Inside::Here => sys::detached("mqueue", &[]).and_then(|mount| openat(&mount, ".", flags, Mode::empty())),
        Inside::Remote(remote) => remote.queues(),
    };
    match opened {
        Ok(root) => Ok(Some(root)),
        // No CONFIG_POSIX_MQUEUE: nothing can exist.
        Err(Errno::NODEV) => Ok(None),
        Err(e) if view.own => mounted_queues().map(Some).map_err(|f| {
            format!(
                "cannot list message queues: fsmount: {} (needs CAP_SYS_ADMIN and Linux 5.2); {MQUEUE_DIR}: {f}",
                in_words(e)
            )
        }),
        Err(e) => {
            Err(format!("cannot list message queues: fsmount: {} (needs CAP_SYS_ADMIN and Linux 5.2)", in_words(e)))
        }
    }
}

/// The queues as an unprivileged observer sees them: by the machine's own mount, if it is an mqueue mount.
fn mounted_queues() -> Result<OwnedFd, String> {
    const MQUEUE_MAGIC: u64 = 0x1980_0202;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(CWD, MQUEUE_DIR, flags, Mode::empty()).map_err(in_words)?;
    let file_system = rustix::fs::fstatfs(&dir).map_err(in_words)?;
    if file_system.f_type as u64 != MQUEUE_MAGIC {
        return Err("not mounted".into());
    }
    let own = sys::one_queue().map_err(|e| format!("mq_open: {}", in_words(e)))?;
    if rustix::fs::fstat(&dir).map_err(in_words)?.st_dev != own {
        return Err("shows another IPC namespace".into());
    }
    Ok(dir)
}

/// The regular files directly in `dir`, each an object of `class`. A file that is removed meanwhile is not listed.
fn files(dir: BorrowedFd<'_>, ns: u64, class: IpcClass, objects: &mut Vec<Ipc>) -> Result<(), Errno> {
    rustix::fs::seek(dir, SeekFrom::Start(0))?;
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown) {
            continue;
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let stat = match statx(dir, entry.file_name(), flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e),
        };
        if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile {
            let mut name = place(class).as_bytes().to_vec();
            name.push(b'/');
            name.extend_from_slice(entry.file_name().to_bytes());
            objects.push(Ipc {
                ns,
                class,
                id: stat.stx_ino,
                birth: birth(&stat),
                name: Text::from(name),
                uid: stat.stx_uid,
                // The size of a queue's file is the size of its status line, which cannot be read without changing its
                // times.
                size: if class == IpcClass::Mqueue { 0 } else { stat.stx_size },
                creator: 0,
                attached: 0,
            });
        }
    }
    Ok(())
}

/// Birth time in nanoseconds since the epoch, if the file system has one (`STATX_BTIME`; mqueue does not).
fn birth(stat: &Statx) -> Option<i64> {
    let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    known.then(|| stat.stx_btime.tv_sec * 1_000_000_000 + i64::from(stat.stx_btime.tv_nsec))
}
