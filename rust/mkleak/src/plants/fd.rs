//! File descriptors that stay open. Each plant adds exactly one to this process.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use leakcheck_sys::Mapping;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{MemfdFlags, Mode, OFlags, inotify, memfd_create, open};
use rustix::io::{DupFlags, dup3};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
use serde_json::json;

use super::Plant;
use crate::error::{Doing, Error, Result};
use crate::facts;
use crate::orphan::{receive_fd, send_fd};
use crate::stage::{self, Planting, Stage, planting, removal};

pub(super) const PLANTS: &[Plant] = &[
    Plant {
        name: "fd-file",
        needs: &[],
        what: "a regular file left open",
        prepare: |stage| {
            let path = stage.file("file")?;
            one(move || File::open(&path).doing("open", &path).map(OwnedFd::from))
        },
    },
    Plant {
        name: "fd-dir",
        needs: &[],
        what: "a directory left open",
        prepare: |stage| {
            let path = stage.dir().to_owned();
            one(move || open(&path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).doing("open", &path))
        },
    },
    Plant {
        name: "fd-same-number",
        needs: &[],
        what: "an FD which was closed and reopened under the same number on another file",
        prepare: same_number,
    },
    Plant {
        name: "fd-deleted",
        needs: &[],
        what: "a file left open after it was deleted",
        prepare: |stage| {
            let path = stage.path("deleted");
            one(move || deleted_file(&path).map(OwnedFd::from))
        },
    },
    Plant {
        name: "fd-memfd",
        needs: &[],
        what: "a memfd: a file that no directory ever held",
        prepare: |_| one(|| memfd_create(stage::name("memfd"), MemfdFlags::CLOEXEC).during("memfd_create")),
    },
    Plant {
        name: "fd-pipe",
        needs: &[],
        what: "the reading end of a pipe, the writing end closed",
        prepare: |_| one(|| pipe_with(PipeFlags::CLOEXEC).map(|(read, _write)| read).during("pipe")),
    },
    Plant {
        name: "fd-eventfd",
        needs: &[],
        what: "an eventfd left open, which shares its inode with other anonymous files",
        prepare: |_| one(|| eventfd(0, EventfdFlags::CLOEXEC).during("eventfd")),
    },
    Plant {
        name: "fd-epoll",
        needs: &[],
        what: "an epoll instance that watches nothing",
        prepare: |_| one(|| epoll::create(epoll::CreateFlags::CLOEXEC).during("epoll_create1")),
    },
    Plant {
        name: "fd-pidfd",
        needs: &[],
        what: "a pidfd of the process itself",
        prepare: |_| one(|| pidfd_open(getpid(), PidfdFlags::empty()).during("pidfd_open")),
    },
    Plant {
        name: "fd-inotify",
        needs: &[],
        what: "an inotify instance that watches the given directory",
        prepare: |stage| {
            let path = stage.dir().to_owned();
            one(move || {
                let inotify = inotify::init(inotify::CreateFlags::CLOEXEC).during("inotify_init1")?;
                inotify::add_watch(&inotify, &path, inotify::WatchFlags::DELETE_SELF)
                    .doing("inotify_add_watch", &path)?;
                Ok(inotify)
            })
        },
    },
    Plant {
        name: "fd-io_uring",
        needs: &["io_uring"],
        what: "an io_uring with its two rings",
        prepare: |_| one(|| leakcheck_sys::io_uring(4).during("io_uring_setup")),
    },
    Plant {
        name: "fd-timerfd",
        needs: &[],
        what: "a timerfd that is not armed",
        prepare: |_| one(|| timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).during("timerfd_create")),
    },
    Plant {
        name: "fd-signalfd",
        needs: &[],
        what: "a signalfd for SIGUSR1",
        prepare: |_| one(|| leakcheck_sys::open_signal_fd(&[libc::SIGUSR1]).during("signalfd")),
    },
    Plant {
        name: "fd-unix-socket",
        needs: &[],
        what: "a unix datagram socket without a name",
        prepare: |_| one(|| UnixDatagram::unbound().during("socket").map(OwnedFd::from)),
    },
    Plant {
        name: "fd-tcp-socket",
        needs: &[],
        what: "a TCP socket that is neither bound nor connected, hence not in /proc/net/tcp",
        prepare: |_| {
            one(|| socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).during("socket"))
        },
    },
    Plant {
        name: "fd-thread-table",
        needs: &[],
        what: "a file left open in the FD table of a thread which has its own, seen below /proc/PID/task only",
        prepare: thread_table,
    },
    Plant {
        name: "fd-in-flight",
        needs: &[],
        what: "an open file that was sent over a unix socket and is in no process's FD table",
        prepare: in_flight,
    },
    Plant {
        name: "mmap-deleted",
        needs: &[],
        what: "a deleted file that only a memory mapping holds, without an FD",
        prepare: mmap_deleted,
    },
];

/// A plant that opens one FD and closes it again.
fn one(open: impl FnOnce() -> Result<OwnedFd> + 'static) -> Result<Planting> {
    planting(|undo| {
        let fd = open()?;
        let facts = facts::of_fd(&fd)?;
        undo.keep(fd);
        Ok(facts)
    })
}

fn deleted_file(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).doing("create", path)?;
    removal(path)()?;
    Ok(file)
}

fn same_number(stage: &mut Stage) -> Result<Planting> {
    let (before, after) = (stage.file("before")?, stage.file("after")?);
    let fd = OwnedFd::from(File::open(&before).doing("open", &before)?);
    planting(move |undo| {
        let number = fd.as_raw_fd();
        let fd = replace(fd, &after)?;
        let mut facts = facts::of_fd(&fd)?;
        facts["was"] = json!(before);
        // Forgotten after it is put back: the number was open at the baseline and must stay open.
        undo.push(move || replace(fd, &before).map(std::mem::forget));
        debug_assert_eq!(facts["fd"], number);
        Ok(facts)
    })
}

/// Points an FD to another file under the same number.
fn replace(mut fd: OwnedFd, path: &Path) -> Result<OwnedFd> {
    let other = File::open(path).doing("open", path)?;
    dup3(&other, &mut fd, DupFlags::CLOEXEC).doing("dup3 to", path)?;
    Ok(fd)
}

/// The orders to the thread with its own table. It answers with its tid and the FD.
enum Order {
    Open,
    Close,
}

fn thread_table(stage: &mut Stage) -> Result<Planting> {
    let path = stage.file("thread-table")?;
    let opened = path.clone();
    let (orders, inbox) = mpsc::channel();
    let (outbox, answers) = mpsc::channel();
    let thread = thread::spawn(move || private_table(&opened, &inbox, &outbox));
    let ask = orders.clone();
    stage.scaffold().push(move || {
        drop(orders);
        thread.join().map_err(|_| Error::Failed("the thread with its own FD table panicked".into()))
    });
    let gone = |_| Error::Failed("the thread with its own FD table is gone".into());
    answers.recv().map_err(gone)??;
    planting(move |undo| {
        ask.send(Order::Open)
            .map_err(|_| Error::Failed("the thread with its own FD table accepts no orders".into()))?;
        let (tid, fd) = answers.recv().map_err(gone)??;
        undo.push(move || {
            ask.send(Order::Close)
                .map_err(|_| Error::Failed("the thread with its own FD table accepts no orders".into()))?;
            answers.recv().map_err(gone)?.map(drop)
        });
        let mut facts = facts::of_path(&path)?;
        facts::merge(&mut facts, json!({"pid": std::process::id(), "tid": tid, "fd": fd}));
        Ok(facts)
    })
}

fn private_table(path: &Path, inbox: &mpsc::Receiver<Order>, outbox: &mpsc::Sender<Result<(i32, i32)>>) {
    let unshared = leakcheck_sys::unshare_descriptors();
    let tid = rustix::thread::gettid().as_raw_nonzero().get();
    let mut kept = None;
    let mut answer = unshared.during("unshare CLONE_FILES").map(|()| (tid, -1));
    // The channel ends when the plant is over.
    while outbox.send(answer).is_ok() {
        answer = match inbox.recv() {
            Ok(Order::Open) => File::open(path).doing("open", path).map(|file| {
                let fd = file.as_raw_fd();
                kept = Some(file);
                (tid, fd)
            }),
            Ok(Order::Close) => {
                kept = None;
                Ok((tid, -1))
            }
            Err(mpsc::RecvError) => return,
        };
    }
}

fn in_flight(stage: &mut Stage) -> Result<Planting> {
    let path = stage.file("in-flight")?;
    let (sender, receiver) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).during("socketpair")?;
    let (sender, receiver) = (stage.share(sender), stage.share(receiver));
    planting(move |undo| {
        let file = File::open(&path).doing("open", &path)?;
        send_fd(&*sender, std::os::fd::AsFd::as_fd(&file))?;
        drop(file);
        let mut facts = facts::of_path(&path)?;
        let socket = facts::of_fd(&*receiver)?;
        facts["pid"] = json!(std::process::id());
        facts["sender_fd"] = json!(sender.as_raw_fd());
        facts["socket_fd"] = socket["fd"].clone();
        facts["socket_ino"] = socket["ino"].clone();
        undo.push(move || receive_fd(&*receiver).map(drop));
        Ok(facts)
    })
}

fn mmap_deleted(stage: &mut Stage) -> Result<Planting> {
    let path = stage.path("mapped");
    planting(move |undo| {
        let file = deleted_file(&path)?;
        file.set_len(MAPPED as u64).doing("truncate", &path)?;
        let mut facts = facts::of_fd(&file)?;
        let mapping = Mapping::of(&file, MAPPED).doing("mmap", &path)?;
        let address = mapping.address();
        undo.push(move || mapping.unmap().during("munmap"));
        if let Some(facts) = facts.as_object_mut() {
            facts.remove("fd");
        }
        facts["address"] = json!(format!("{address:x}"));
        Ok(facts)
    })
}

const MAPPED: usize = 4096;
