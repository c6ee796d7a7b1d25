//! Records which process did what during one run, on a noisy host, without changing anything.
//!
//! A [`Watch`] listens to the kernel's events for the whole machine and keeps what concerns one run:
//!
//! - **descent**: the process connector reports every fork and exit, so the parents of an orphan are known even if it
//!   changed its name and environment. In a container, perf events report the same. Without the right to use them,
//!   `/proc` is the fallback, which makes an orphan [`Membership::Unknown`].
//! - **files**: fanotify reports every new name on a filesystem with the process that made it, even if that process
//!   exited long ago.
//! - **mounts**: fanotify also reports every attached mount (Linux 6.14), for the mount namespace of the caller.
//!
//! [`Watch::levels`] tells which of these are available; nothing here fails.

mod adrift;
mod ancestry;
mod answer;
mod clock;
mod connector;
mod descent;
mod elevation;
mod fanotify;
mod makers;
mod options;
mod perf;
mod state;
mod sys;
#[cfg(test)]
mod test_events;

use std::collections::HashSet;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

pub(crate) use elevation::Elevation;

pub use crate::membership::Membership;
use crate::own_fd::{OwnFd, Token};
use crate::this_process::ThisProcess;
pub use adrift::Adrift;
pub use answer::{Levels, Maker};
pub use options::Options;
use state::State;

struct Shared {
    state: Mutex<State>,
    bell: Option<Bell>,
    stop: AtomicBool,
    /// Every descriptor.
    own: Vec<Token>,
    /// Whether the program was seen to have closed one.
    closed: AtomicBool,
}

impl Shared {
    /// Whether the program has closed no descriptor so far. Ask before each read: what has the number by now is the program's.
    fn is_whole(&self) -> bool {
        if !self.own.iter().all(|token| token.is_ours()) {
            self.closed.store(true, Ordering::Relaxed);
        }
        !self.closed.load(Ordering::Relaxed)
    }
}

/// What the thread waits on: the sources, and an eventfd that stops it.
struct Bell {
    epoll: OwnFd,
    wake: OwnFd,
}

impl Bell {
    fn over(state: &State) -> rustix::io::Result<Bell> {
        let wake = OwnFd::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)?;
        let epoll = OwnFd::new(epoll::create(CreateFlags::CLOEXEC)?)?;
        for fd in state.sources().chain([&wake]) {
            epoll::add(&epoll, fd, EventData::new_u64(0), EventFlags::IN)?;
        }
        Ok(Bell { epoll, wake })
    }

    /// Wakes the thread. What is returned stays open until it has woken up.
    fn ring(&self) -> rustix::io::Result<Option<OwnedFd>> {
        if self.wake.is_ours() {
            return rustix::io::write(&self.wake, &1u64.to_ne_bytes()).map(|_| None);
        }
        if !self.epoll.is_ours() {
            return Err(Errno::BADF);
        }
        let wake = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&self.epoll, &wake, EventData::new_u64(0), EventFlags::IN)?;
        Ok(Some(wake))
    }

    /// Waits for an event, or [`CHECK`].
    fn wait(&self) -> rustix::io::Result<()> {
        let mut events = Vec::with_capacity(4);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&CHECK)) {
                Err(Errno::INTR) => {}
                other => return other.map(|_| ()),
            }
        }
    }
}

/// How long the thread waits at most: no event comes once the program has closed every descriptor, and nothing else wakes it.
const CHECK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The thread, and how to stop it.
struct Listener {
    handle: JoinHandle<()>,
    /// The thread holds its own copies of the descriptors that are slow to close, and nothing else.
    has_left: Receiver<()>,
    /// Dropped when our FDs are closed.
    closing: SyncSender<()>,
}

/// A running watch. It belongs to the process that started it: in a forked child it knows nothing.
///
/// Dropping it takes about 100 µs; then its FDs are closed and its thread has stopped. The kernel waits 8–30 ms when it
/// releases a fanotify group. It does so in the exit of that thread, which stays listed in `/proc/self/task` until
/// then.
pub struct Watch {
    shared: Option<Arc<Shared>>,
    thread: Option<Listener>,
    owner: ThisProcess,
}

impl Watch {
    /// Starts watching. [`Watch::levels`] reports what is not available on this machine or to this user.
    pub fn start(options: &Options) -> Watch {
        let state = State::open(options);
        let bell = Bell::over(&state).ok();
        let waiting = bell.iter().flat_map(|b| [&b.epoll, &b.wake]);
        let own = state.sources().chain(waiting).map(OwnFd::token).collect();
        let (stop, closed) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { state: Mutex::new(state), bell, stop, own, closed });
        let (left, has_left) = sync_channel(1);
        let (closing, closed) = sync_channel(0);
        let thread = {
            // The thread must not handle signals of the program that hosts it.
            let _blocked = sys::BlockedSignals::all();
            let shared = Arc::clone(&shared);
            // Without the thread, events wait in the kernel until they are read; a buffer overflow is reported.
            thread::Builder::new().name("leakcheck-watch".into()).spawn(move || listen(shared, &left, &closed)).ok()
        };
        let watch = Watch {
            shared: Some(shared),
            thread: thread.map(|handle| Listener { handle, has_left, closing }),
            owner: ThisProcess::now(),
        };
        if let Some(mut state) = watch.state() {
            state.take_in();
            if watch.thread.is_some() {
                state.expect_own_thread();
            }
        }
        watch
    }

    /// Begins again, as if it had just been started, but with the descriptors and the thread that there are. None if that is
    /// not possible: in a forked child, if events were lost, or if the program closed a descriptor.
    pub(crate) fn restart(self) -> Option<Watch> {
        let begins = !self.is_closed() && self.thread.is_some();
        let begins = begins && self.state().is_some_and(|mut state| state.restart());
        // Nobody tells a connector that has become deaf. As at the start, a thread of our own must be heard.
        let begins = begins && {
            let _blocked = sys::BlockedSignals::all();
            let heard = thread::Builder::new().name("leakcheck-watch".into()).spawn(|| ());
            heard.is_ok_and(|heard| heard.join().is_ok())
        };
        let mut state = if begins { self.state()? } else { return None };
        state.take_in();
        state.expect_own_thread();
        let is_as_at_start = state.is_as_at_start();
        drop(state);
        is_as_at_start.then_some(self)
    }

    /// Whether the program has closed one of its descriptors, as one does that closes all. Their numbers may be other files'
    /// by now: nothing is read from them any more, and nobody tells who made what. A forked child has closed nothing.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared().is_some_and(|shared| !shared.is_whole())
    }

    /// Not in a forked child.
    fn shared(&self) -> Option<&Arc<Shared>> {
        self.shared.as_ref().filter(|_| ThisProcess::now() == self.owner)
    }

    /// The state, but not in a forked child: the thread does not exist there, may have held the lock at the fork, and
    /// reading would steal the parent's events. Nor once a descriptor was closed.
    fn state(&self) -> Option<MutexGuard<'_, State>> {
        let shared = self.shared().filter(|shared| !shared.closed.load(Ordering::Relaxed))?;
        Some(shared.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds processes from before the start to the run, with every process that they fork from now on.
    pub fn adopt(&self, pids: &[u32]) {
        if let Some(mut state) = self.state() {
            state.adopt(pids);
        }
    }

    /// Reads all events from before this call. The methods below use the events that were read.
    pub fn sync(&self) {
        if let Some(mut state) = self.state()
            && !self.is_closed()
        {
            state.take_in();
            state.forget_mounts();
        }
    }

    /// From now on, lets paths lead only into these mounts, given by the numbers of statx(2).
    pub(crate) fn limit_to(&self, mounts: Arc<HashSet<u64>>) {
        if let Some(mut state) = self.state() {
            state.limit_to(mounts);
        }
    }

    /// Watches the mounts of other namespaces too, each given by its inode and a path that opens it.
    pub fn watch_namespaces(&self, namespaces: &[(u64, PathBuf)]) {
        if let Some(mut state) = self.state() {
            state.watch_namespaces(namespaces);
        }
    }

    /// Whether every mount in this namespace, given by its inode, has had its event since the watch of it started.
    pub fn watches_namespace(&self, ino: u64) -> bool {
        self.state().is_some_and(|state| state.watches_namespace(ino))
    }

    /// How much each source saw so far.
    pub fn levels(&self) -> Levels {
        match self.state() {
            Some(state) => state.levels(),
            None => {
                let none = crate::snapshot::Coverage {
                    level: crate::snapshot::Level::None,
                    reason: match self.shared().is_some() {
                        true => "this process has closed the descriptors of the watch".to_owned(),
                        false => "the watch belongs to the parent process".to_owned(),
                    },
                };
                Levels { descent: none.clone(), files: Vec::new(), mounts: none }
            }
        }
    }

    /// Whether a process belongs to the run. It is named by its id and its start time in ticks after boot
    /// (`/proc/PID/stat`, field 22), and may be alive, a zombie, or gone.
    pub fn descends(&self, pid: u32, start_ticks: u64) -> Membership {
        self.state().map_or(Membership::Unknown, |mut state| state.descends(pid, start_ticks))
    }

    /// Whether a process of this id was in the run at any time: for an id that something recorded, such as the creator
    /// of a SysV object. Unknown if a stranger had the id too.
    pub fn was_run_pid(&self, pid: u32) -> Membership {
        self.state().map_or(Membership::Unknown, |mut state| state.ever(pid))
    }

    /// The process that made the file at `path` or gave it that name. A symbolic link at the end is not followed.
    /// `None`: no process since the start, or the filesystem is not watched.
    pub fn creator(&self, path: &Path) -> Option<Maker> {
        self.state()?.maker_of_file(path)
    }

    /// The process that attached the mount with this unique id (statx(2), `STATX_MNT_ID_UNIQUE`). `None`: no process
    /// since the start, or not in this mount namespace.
    pub fn mount_creator(&self, unique_mnt_id: u64) -> Option<Maker> {
        self.state()?.maker_of_mount(unique_mnt_id)
    }

    /// The parent of the process outside the run that last had this id: only a hint, since ids are reused. `None`: not
    /// remembered.
    pub fn parent_of_stranger(&self, pid: u32) -> Option<u32> {
        self.state()?.parent(pid)
    }

    /// The run's processes whose exit was not seen, without the root, sorted.
    pub fn live_run_pids(&self) -> Vec<u32> {
        self.state().map_or_else(Vec::new, |mut state| state.live())
    }

    /// The living processes of the run that descend neither from `held` nor from a child of the root. None if not every
    /// fork and exit was seen.
    pub fn adrift(&self, held: &HashSet<u32>) -> Option<Adrift> {
        self.state()?.adrift(held)
    }

    /// The length of the chain of orphans that led to a process, each of which started the next and exited: none, one,
    /// or two and more. The process is named as for [`Watch::descends`], with the parent that was seen, and may have
    /// exited since.
    pub fn successions(&self, pid: u32, start_ticks: u64, ppid: u32) -> u32 {
        self.state().map_or(0, |state| state.successions(pid, start_ticks, ppid))
    }

    /// The numbers of the watch's own FDs, also of those that the program has closed.
    pub fn own_fds(&self) -> Vec<RawFd> {
        self.shared.iter().flat_map(|shared| &shared.own).map(|token| token.number()).collect()
    }

    fn stop(&mut self) {
        let is_owner = ThisProcess::now() == self.owner;
        let Some(shared) = self.shared.take() else { return };
        if !is_owner {
            // Removing the marks would blind the parent, which owns these groups.
            std::mem::forget((shared, self.thread.take()));
            return;
        }
        let Some(Listener { handle, has_left, closing }) = self.thread.take() else { return };
        shared.stop.store(true, Ordering::Release);
        let rung = shared.bell.as_ref().map(Bell::ring);
        if !matches!(rung, Some(Ok(_))) {
            // The program has closed the bell, and the thread, which holds the rest, wakes up later.
            shared.state.lock().unwrap_or_else(PoisonError::into_inner).close();
            return;
        }
        // The time limit is for a thread that cannot stop; then this closes the FDs itself, and waits for the kernel.
        let left = has_left.recv_timeout(Duration::from_millis(200)) != Err(RecvTimeoutError::Timeout);
        drop(shared);
        drop(closing);
        if left {
            let _ = handle.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The thread: reads events as they arrive, so that no buffer overflows and every pid is looked up while it is fresh.
fn listen(shared: Arc<Shared>, left: &SyncSender<()>, closed: &Receiver<()>) {
    while let Some(bell) = &shared.bell {
        // A forked child may keep the sources awake after the program has closed them.
        if !shared.is_whole() || bell.wait().is_err() || shared.stop.load(Ordering::Acquire) {
            break;
        }
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.is_whole() {
            state.take_in();
        }
    }
    if !shared.stop.load(Ordering::Acquire) {
        // A copy of the table would hold what the program opens.
        return;
    }
    let mut slow = shared.state.lock().unwrap_or_else(PoisonError::into_inner).slow_to_close();
    // From here on, the other thread closes the FDs. Because of the copies its close is not the last one and therefore
    // fast: the last one is the exit of this thread.
    drop(shared);
    let _ = sys::unshare_files_keeping(&mut slow);
    let _ = left.send(());
    let _ = closed.recv();
}
