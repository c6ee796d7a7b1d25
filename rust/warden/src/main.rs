//! The warden: makes arenas for one owner, and takes them away when it is asked to, or when the owner is gone.
//!
//! Started with a SOCK_SEQPACKET socket as standard input and the owner's process id as its argument. It has a session of its own
//! and all signals blocked but SIGTERM, upon which it takes everything down; it stands outside the arenas' cgroups. Should it be
//! killed, its processes die with it, and empty cgroup directories are swept by the next warden.

mod cgroups;
mod init;
mod message;
mod root;
mod spawner;
mod sys;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal};

use cgroups::{Cgroups, Hierarchy};
use message::{Answer, Options, Request, Up, receive, send};

fn main() {
    if let Err(e) = run() {
        eprintln!("warden: {e}");
        std::process::exit(1);
    }
}

fn run() -> io::Result<()> {
    let owner_pid = std::env::args().nth(1).and_then(|a| a.parse().ok()).and_then(Pid::from_raw);
    let Some(owner_pid) = owner_pid.filter(|p| Some(*p) == getppid()) else {
        return Err(io::Error::other("is started by leakcheck, with its process id and a socket as standard input"));
    };
    let owner = pidfd_open(owner_pid, PidfdFlags::empty())?;
    let socket = sys::take_stdin();
    let _ = rustix::process::setsid();
    let signals = sys::signals()?;
    sys::become_subreaper();
    // Nothing of the owner's directory is kept busy.
    rustix::process::chdir("/")?;
    let hierarchies = cgroups::hierarchies()?;
    cgroups::sweep(&hierarchies);
    Warden { socket, owner, signals, hierarchies, arenas: BTreeMap::new(), spare: None, next: 0 }.serve()
}

struct Warden {
    socket: OwnedFd,
    owner: OwnedFd,
    signals: OwnedFd,
    hierarchies: Vec<Hierarchy>,
    arenas: BTreeMap<u64, Arena>,
    /// A spawner in cgroups of its own, which waits for its options.
    spare: Option<Arena>,
    next: u64,
}

struct Arena {
    cgroups: Cgroups,
    socket: OwnedFd,
    spawner: OwnedFd,
    init: Option<OwnedFd>,
    kept: bool,
}

impl Warden {
    fn serve(mut self) -> io::Result<()> {
        let mut owned = true;
        loop {
            let mut set = vec![PollFd::new(&self.signals, PollFlags::IN)];
            if owned {
                set.extend([PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&self.owner, PollFlags::IN)]);
            }
            let _ = poll(&mut set, None);
            let ready: Vec<PollFlags> = set.iter().map(PollFd::revents).collect();
            drop(set);
            while let Some(signal) = sys::next_signal(&self.signals) {
                if signal == libc::SIGTERM {
                    return self.end();
                }
            }
            while sys::reap().is_some() {}
            let gone = |n: usize| ready.get(n).is_some_and(|r| !r.is_empty());
            if owned && gone(1) {
                owned = match receive::<Request>(&self.socket) {
                    Ok(Some((request, fds))) => self.answer(request, fds),
                    Ok(None) => false,
                    Err(e) => send(&self.socket, &Answer::Error(format!("request: {e}")), &[]).is_ok(),
                };
            } else if owned && gone(2) {
                owned = false;
            }
            if !owned {
                for (_, mut arena) in std::mem::take(&mut self.arenas) {
                    if arena.kept && arena.lives() {
                        self.arenas.insert(self.arenas.len() as u64, arena);
                    } else {
                        let _ = arena.down();
                    }
                }
                if self.arenas.is_empty() {
                    return self.end();
                }
            }
        }
    }

    fn end(mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.arenas).into_values().chain(self.spare.take());
        // All of them, whichever fails.
        let mut ended = Ok(());
        for mut arena in rest {
            let down = arena.down();
            ended = ended.and(down);
        }
        ended
    }

    fn answer(&mut self, request: Request, mut fds: Vec<OwnedFd>) -> bool {
        let outcome = match request {
            Request::Up { options } => match self.up(&options, fds.pop()) {
                Ok((up, fds)) => {
                    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                    let sent = send(&self.socket, &Answer::Up(up), &fds).is_ok();
                    self.prepare();
                    return sent;
                }
                Err(e) => Err(e),
            },
            Request::Down { id } => self.arenas.remove(&id).map_or(Ok(()), |mut arena| arena.down()),
            Request::Keep { id } => {
                self.arenas.get_mut(&id).map(|a| a.kept = true).ok_or_else(|| io::Error::other("no such arena"))
            }
        };
        let answer = outcome.map_or_else(|e| Answer::Error(e.to_string()), |()| Answer::Done);
        send(&self.socket, &answer, &[]).is_ok()
    }

    fn up(&mut self, options: &Options, owner: Option<OwnedFd>) -> io::Result<(Up, Vec<OwnedFd>)> {
        let owner = owner.ok_or_else(|| io::Error::other("no socket for commands came with the request"))?;
        let mut arena = match self.spare.take() {
            Some(spare) => spare,
            None => self.spawn()?,
        };
        let outcome = send(&arena.socket, options, &[owner.as_fd()]).and_then(|()| receive::<Answer>(&arena.socket));
        let up = match outcome {
            Ok(Some((Answer::Up(up), fds))) => Ok((up, fds)),
            Ok(Some((Answer::Error(why), _))) => Err(io::Error::other(why)),
            Ok(_) => Err(io::Error::other("the arena's spawner ended")),
            Err(e) => Err(e),
        };
        let (mut up, fds) = match up {
            Ok(up) => up,
            Err(e) => {
                arena.down()?;
                return Err(e);
            }
        };
        arena.init = fds.first().map(OwnedFd::try_clone).transpose()?;
        self.next += 1;
        up.id = self.next;
        self.arenas.insert(self.next, arena);
        Ok((up, fds))
    }

    /// The move into v1 cgroups takes some 10 ms of waiting: the next arena's spawner makes it while this one is used.
    fn prepare(&mut self) {
        if self.spare.is_none() {
            // What fails here fails again, and is told, when the arena is asked for.
            self.spare = self.spawn().ok();
        }
    }

    fn spawn(&self) -> io::Result<Arena> {
        let cgroups = Cgroups::make(&self.hierarchies, &random_name()?)?;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let parent = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        match sys::fork(0)? {
            None => {
                drop(ours);
                spawner::run(parent, theirs, cgroups)
            }
            Some(child) => Ok(Arena { cgroups, socket: ours, spawner: child.pidfd, init: None, kept: false }),
        }
    }
}

impl Arena {
    fn lives(&self) -> bool {
        self.init.as_ref().is_some_and(|init| !ended(init, 0))
    }

    /// Ends every process and removes the cgroups: with init goes all of its pid namespace (pid_namespaces(7)).
    fn down(&mut self) -> io::Result<()> {
        if let Some(init) = &self.init {
            let _ = pidfd_send_signal(init, Signal::KILL);
            ended(init, 10_000);
        }
        // The spawner reaps init and ends; one that never came so far is ended.
        if self.init.is_none() || !ended(&self.spawner, 2_000) {
            let _ = pidfd_send_signal(&self.spawner, Signal::KILL);
            ended(&self.spawner, 2_000);
        }
        while sys::reap().is_some() {}
        self.cgroups.remove()
    }
}

fn ended(pidfd: &OwnedFd, ms: i64) -> bool {
    let timeout = Timespec { tv_sec: ms / 1000, tv_nsec: ms % 1000 * 1_000_000 };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)).is_ok_and(|n| n > 0)
}

fn random_name() -> io::Result<String> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
