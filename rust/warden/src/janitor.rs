//! Answers the owner's requests for arenas, keeps some prepared, and takes all of them down at the end.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use leakcheck_sys as sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::arena::{Arena, Ending, all_down};
use crate::cgroups::{Cgroups, Hierarchy};
use crate::message::{Answer, CLAIM, Options, Request, Up, receive, send};
use crate::{mounts, spawner};

/// How many arenas are prepared.
const POOL: usize = 4;

/// How often creating cgroups is retried when another process has removed them.
const TRIES: usize = 20;

pub(crate) struct Janitor {
    socket: OwnedFd,
    owner: OwnedFd,
    children: OwnedFd,
    term: OwnedFd,
    hierarchies: Vec<Hierarchy>,
    arenas: BTreeMap<u64, Arena>,
    /// Arenas that were not requested yet, the oldest first.
    pool: VecDeque<Arena>,
    /// Arenas that end, each with the socket for the answer; none: the owner's.
    ending: Vec<(Ending, Option<OwnedFd>)>,
    /// What the arenas of the pool are made from: the last arena's options, and the host's mounts (proc(5), mountinfo).
    template: (Options, Vec<u8>),
    next: u64,
}

impl Janitor {
    /// Has no arena yet. `children` and `term` are readable when a child has exited and when SIGTERM has arrived.
    pub(crate) fn new(
        socket: OwnedFd,
        owner: OwnedFd,
        children: OwnedFd,
        term: OwnedFd,
        hierarchies: Vec<Hierarchy>,
    ) -> Self {
        let (arenas, pool, ending) = Default::default();
        Janitor {
            socket,
            owner,
            children,
            term,
            hierarchies,
            arenas,
            pool,
            ending,
            template: Default::default(),
            next: 0,
        }
    }

    /// Returns when the owner is gone and no arena is left to keep, or on SIGTERM.
    pub(crate) fn serve(mut self) -> io::Result<()> {
        let mut owned = true;
        loop {
            let mut set = vec![PollFd::new(&self.children, PollFlags::IN), PollFd::new(&self.term, PollFlags::IN)];
            if owned {
                set.extend([PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&self.owner, PollFlags::IN)]);
            }
            let watched = set.len();
            set.extend(
                self.ending.iter().flat_map(|(arena, _)| arena.processes()).map(|fd| PollFd::new(fd, PollFlags::IN)),
            );
            let patience = self.ending.iter().map(|(arena, _)| arena.patience()).min();
            let _ = poll(&mut set, patience.and_then(|time| Timespec::try_from(time).ok()).as_ref());
            let ready: Vec<PollFlags> = set[..watched].iter().map(PollFd::revents).collect();
            drop(set);
            if !ready[1].is_empty() {
                return self.end();
            }
            sys::drain(&self.children);
            while sys::reap().is_some() {}
            self.answer_ended();
            let gone = |n: usize| ready.get(n).is_some_and(|r| !r.is_empty());
            if owned && gone(2) {
                owned = match receive::<Request>(&self.socket) {
                    Ok(Some((request, fds))) => self.answer(request, fds),
                    Ok(None) => false,
                    Err(e) => send(&self.socket, &Answer::Error(format!("request: {e}")), &[]).is_ok(),
                };
            } else if owned && gone(3) {
                owned = false;
            }
            if !owned {
                let (kept, others): (Vec<Arena>, Vec<Arena>) =
                    std::mem::take(&mut self.arenas).into_values().partition(|arena| arena.kept && arena.lives());
                let _ = self.all_down(others);
                if kept.is_empty() {
                    return Ok(());
                }
                self.arenas = (0..).zip(kept).collect();
            }
        }
    }

    fn end(mut self) -> io::Result<()> {
        let arenas = std::mem::take(&mut self.arenas);
        self.all_down(arenas.into_values())
    }

    /// Takes down these, those of the pool, and those that end already.
    fn all_down(&mut self, arenas: impl IntoIterator<Item = Arena>) -> io::Result<()> {
        let all = arenas.into_iter().chain(self.pool.drain(..)).map(Arena::end);
        all_down(all.chain(self.ending.drain(..).map(|(arena, _)| arena)).collect(), &self.children)
    }

    /// Tells of the arenas that have ended meanwhile: the owner need not wait for one before it requests another.
    fn answer_ended(&mut self) {
        let Janitor { ending, socket, .. } = self;
        let before = ending.len();
        ending.retain_mut(|(arena, asker)| {
            let Some(outcome) = arena.outcome() else { return true };
            let _ = send(asker.as_ref().unwrap_or(socket), &answer_of(outcome), &[]);
            false
        });
        if ending.len() < before {
            self.prepare();
        }
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
            Request::Down { id } => {
                let asker = fds.pop();
                match self.arenas.remove(&id) {
                    Some(arena) => self.ending.push((arena.end(), asker)),
                    None => drop(send(asker.as_ref().unwrap_or(&self.socket), &Answer::Done, &[])),
                }
                return true;
            }
            Request::Keep { id } => {
                self.arenas.get_mut(&id).map(|a| a.kept = true).ok_or_else(|| io::Error::other("no such arena"))
            }
        };
        send(&self.socket, &answer_of(outcome), &[]).is_ok()
    }

    fn up(&mut self, options: &Options, owner: Option<OwnedFd>) -> io::Result<(Up, Vec<OwnedFd>)> {
        let owner = owner.ok_or_else(|| io::Error::other("no socket for commands came with the request"))?;
        let template = (options.clone(), mounts::text()?);
        if self.template != template {
            self.template = template;
            all_down(self.pool.drain(..).map(Arena::end).collect(), &self.children)?;
        }
        let mut arena = match self.pool.pop_front() {
            Some(prepared) => prepared,
            None => self.begin()?,
        };
        let ended = || io::Error::other("the arena's spawner has ended; was it killed?");
        let outcome = receive::<Answer>(&arena.socket).and_then(|answer| match answer {
            Some((Answer::Up(up), fds)) => Ok((up, fds)),
            Some((Answer::Error(why), _)) => Err(io::Error::other(why)),
            _ => Err(ended()),
        });
        let claim = |up| send(&arena.socket, &CLAIM, &[owner.as_fd()]).map_err(|_| ended()).map(|()| up);
        let (mut up, fds) = match outcome.and_then(claim) {
            Ok(up) => up,
            Err(e) => {
                all_down(vec![arena.end()], &self.children)?;
                return Err(e);
            }
        };
        arena.init = fds.first().map(OwnedFd::try_clone).transpose()?;
        arena.pids.push(up.init);
        self.next += 1;
        up.id = self.next;
        self.arenas.insert(self.next, arena);
        Ok((up, fds))
    }

    /// An owner that requested two arenas will want more like the last one: they are brought up in advance. Not those with
    /// bind mounts, since their sources may change until then.
    fn prepare(&mut self) {
        let (options, _) = &self.template;
        if self.next < 2 || self.pool.len() >= POOL || !options.binds.is_empty() || options.fail.is_some() {
            return;
        }
        // What fails here fails again, and is reported, when the arena is requested.
        self.pool.extend(self.begin());
    }

    /// Brings one up; the answer is sent when it is up.
    fn begin(&self) -> io::Result<Arena> {
        let arena = self.spawn()?;
        send(&arena.socket, &self.template.0, &[])?;
        Ok(arena)
    }

    /// Another warden's sweep may remove a directory between its creation and its locking: then another name is used.
    fn make_cgroups(&self) -> io::Result<Cgroups> {
        for _ in 0..TRIES {
            match Cgroups::make(&self.hierarchies, &random_name()?, &self.template.0.limits) {
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::WouldBlock) => {}
                other => return other,
            }
        }
        Cgroups::make(&self.hierarchies, &random_name()?, &self.template.0.limits)
    }

    fn spawn(&self) -> io::Result<Arena> {
        let mut cgroups = self.make_cgroups()?;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let parent = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        match sys::fork(0, None)? {
            None => {
                // It must hold no descriptor of ours or of other arenas.
                cgroups.disown();
                std::mem::forget(ours);
                let _ = sys::close_all_but(&[theirs.as_fd()]);
                spawner::run(parent, theirs, cgroups)
            }
            Some(child) => Ok(Arena {
                cgroups,
                socket: ours,
                spawner: child.pidfd,
                init: None,
                pids: vec![child.pid],
                kept: false,
            }),
        }
    }
}

fn answer_of(outcome: io::Result<()>) -> Answer {
    outcome.map_or_else(|e| Answer::Error(e.to_string()), |()| Answer::Done)
}

fn random_name() -> io::Result<String> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
