//! The spawner is in those of an arena's cgroups that cannot freeze it, and not in its namespaces: it clones init, starts
//! commands inside, and reports how they ended. The warden creates it in advance.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use leakcheck_sys::trace::{Change, next_change, next_stop};
use leakcheck_sys::{self as sys, Ended};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;
use rustix::thread::{CpuSet, ThreadNameSpaceType, sched_setaffinity};

use crate::cgroups::Cgroups;
use crate::error::Doing;
use crate::message::{Answer, Options, Run, Steps, Up, receive, send};
use crate::process;
use crate::start::{Command, Entrance, Gate, Parent, Started};
use crate::trace::{self, Tracer};

const NAMESPACES: i32 =
    libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNET;

/// Never returns. `warden` sends the options first, and the owner's socket when the arena is requested.
pub(crate) fn run(parent: i32, warden: OwnedFd, cgroups: Cgroups) -> ! {
    let entered = cgroups.enter().and_then(|()| {
        process::become_root_of_namespace().during("make a user namespace (may ordinary users? see user_namespaces(7))")
    });
    // Only now, since a change of credentials clears it.
    process::die_with_parent(parent);
    let _ = rustix::thread::set_name(c"arena-spawner");
    let Ok(Some((options, _))) = receive::<Options>(&warden) else { sys::exit(0) };
    let mut steps = Steps::new(&options);
    let outcome = (|| {
        steps.begin("cgroups")?;
        entered?;
        steps.begin("limits")?;
        cgroups.limited()?;
        bring_up(&warden, &options, &cgroups, &mut steps)
    })();
    match outcome {
        Ok(arena) => arena.serve(&warden),
        Err(e) => {
            let why = e.to_string();
            // A message from init contains its step already.
            let why = if why.contains("; at step ") { why } else { steps.at(&e) };
            let _ = send(&warden, &Answer::Error(why), &[]);
            sys::exit(1)
        }
    }
}

struct Arena {
    entrance: Entrance,
    init_pid: i32,
    // It closes when this process ends; init then exits, and with it everything in the arena.
    _alive: OwnedFd,
    owner: Option<OwnedFd>,
    children: Children,
}

/// Changes that are handled before something else gets its turn.
const AT_ONCE: usize = 256;

/// The changes of this process's children, and of what it traces.
struct Children {
    changed: OwnedFd,
    tracer: Tracer,
    /// Whether some changes were not handled yet.
    more: bool,
    /// Those that have ended and are not handled yet.
    ended: Vec<Ended>,
    /// How the command that starts is to be traced, and where to report it.
    request: Option<(trace::Request, File, Option<OwnedFd>)>,
}

impl Children {
    /// Handles the changes so far; some may remain, since a fork bomb never ends.
    fn handle(&mut self) {
        sys::drain(&self.changed);
        let mut handled = 0;
        while handled < AT_ONCE
            && let Some(change) = next_change()
        {
            self.ended.extend(self.tracer.change(change));
            handled += 1;
        }
        self.more = handled == AT_ONCE;
        self.tracer.answer_reports();
        self.tracer.tick();
    }

    /// How long a wait for something else may be; none if it need not end.
    fn patience(&self) -> Option<Duration> {
        if self.more { Some(Duration::ZERO) } else { self.tracer.patience() }
    }
}

impl Parent for Children {
    fn seize(&mut self, pid: i32, listener: Option<OwnedFd>) -> io::Result<()> {
        let Some((request, log, release)) = self.request.take() else { return Ok(()) };
        if let Some(cpu) = request.cpu {
            pin(&[pid, 0], cpu)?;
        }
        self.tracer.seize(pid, listener, request, log, release)
    }

    fn wait_for(&mut self, usher: BorrowedFd<'_>, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        loop {
            sys::drain(&self.changed);
            // Only stops: a command that has ended keeps its process id until its pidfd is open.
            for (pid, stop) in std::iter::from_fn(next_stop).take(AT_ONCE) {
                self.tracer.change(Change::Stopped(pid, stop));
            }
            self.more = true;
            self.tracer.answer_reports();
            self.tracer.tick();
            let left = deadline.saturating_duration_since(Instant::now());
            let time = self.tracer.patience().map_or(left, |patience| patience.min(left));
            let either: Vec<_> = [usher, self.changed.as_fd()].into_iter().chain(self.tracer.listeners()).collect();
            let _ = sys::wait_until(&either, time);
            if sys::wait_until(&[usher], Duration::ZERO).unwrap_or(false) {
                return true;
            }
            if left.is_zero() {
                return false;
            }
        }
    }
}

/// Restricts processes, 0 for this one, to one CPU: a wake-up of another CPU takes five times as long.
fn pin(pids: &[i32], cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    pids.iter().try_for_each(|pid| Ok(sched_setaffinity(Pid::from_raw(*pid), &cpus)?))
}

fn bring_up(warden: &OwnedFd, options: &Options, cgroups: &Cgroups, steps: &mut Steps) -> io::Result<Arena> {
    steps.begin("namespaces")?;
    sys::block_signals()?;
    let children = sys::signal_fd(&[libc::SIGCHLD])?;
    let (ours, inits) = pair()?;
    let flags = if options.host_network { NAMESPACES & !libc::CLONE_NEWNET } else { NAMESPACES };
    let mut freezers = cgroups.freezers();
    let (child, cloned_into) = freezers.fork(flags)?;
    let Some(child) = child else {
        let _ = sys::close_all_but(&[inits.as_fd()]);
        // The namespace's root is the cgroup of the process that makes it.
        let entered = freezers.enter(cloned_into).and_then(|()| sys::unshare(libc::CLONE_NEWCGROUP));
        crate::init::run(inits, entered, options, steps)
    };
    drop(inits);
    let (answer, mut fds) = receive::<Answer>(&ours)?.ok_or_else(|| io::Error::other("init ended before it was up"))?;
    let up = match answer {
        Answer::Up(up) => up,
        Answer::Error(why) => {
            let _ = poll(&mut [PollFd::new(&child.pidfd, PollFlags::IN)], None);
            while sys::reap().is_some() {}
            return Err(io::Error::other(why));
        }
        Answer::Pid(..) | Answer::Done => return Err(io::Error::other("init sent an unexpected answer")),
    };
    if receive::<Answer>(&ours)?.is_none() {
        return Err(io::Error::other("init ended when it was up"));
    }
    let (Some(null), Some(top)) = (fds.pop(), fds.pop()) else {
        return Err(io::Error::other("init sent no root"));
    };
    trace::set_root(top.as_fd(), child.pid);
    freezers.enable_controllers(child.pid)?;
    let dirs = cgroups.dirs.iter().map(|(name, dir)| (name.clone(), dir.display().to_string())).collect();
    let up = Up { init: child.pid, cgroups: dirs, ..up };
    let sent: Vec<BorrowedFd<'_>> = std::iter::once(&child.pidfd).chain(&fds).map(AsFd::as_fd).collect();
    send(warden, &Answer::Up(up), &sent)?;
    let entrance = Entrance {
        init: child.pidfd,
        namespaces: ThreadNameSpaceType::from_bits_retain((flags | libc::CLONE_NEWCGROUP).cast_unsigned()),
        freezers,
        top,
        null,
    };
    let children =
        Children { changed: children, tracer: Tracer::default(), more: false, ended: Vec::new(), request: None };
    Ok(Arena { entrance, init_pid: child.pid, _alive: ours, owner: None, children })
}

impl Arena {
    fn serve(mut self, warden: &OwnedFd) -> ! {
        let mut running: HashMap<i32, OwnedFd> = HashMap::new();
        loop {
            let mut set = vec![PollFd::new(&self.children.changed, PollFlags::IN), PollFd::new(warden, PollFlags::IN)];
            if let Some(owner) = &self.owner {
                set.push(PollFd::new(owner, PollFlags::IN));
            }
            let watched = set.len();
            set.extend(self.children.tracer.listeners().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            let patience = self.children.patience().and_then(|time| Timespec::try_from(time).ok());
            let _ = poll(&mut set, patience.as_ref());
            let ready = |n: usize| set[..watched].get(n).map_or(PollFlags::empty(), PollFd::revents);
            let (claimed, requested) = (ready(1), ready(2));
            drop(set);
            self.children.handle();
            {
                for ended in self.children.ended.drain(..) {
                    if let Some(pipe) = running.remove(&ended.pid) {
                        let cpu = i64::try_from(ended.cpu.as_micros()).unwrap_or(i64::MAX);
                        let report = [&ended.status.to_ne_bytes()[..], &cpu.to_ne_bytes()[..]].concat();
                        let _ = rustix::io::write(&pipe, &report);
                    }
                    if ended.pid == self.init_pid {
                        sys::exit(0);
                    }
                }
            }
            if !claimed.is_empty() {
                match receive::<String>(warden) {
                    Ok(Some((_, mut fds))) => self.owner = fds.pop(),
                    _ => sys::exit(0),
                }
            }
            // Without an owner, no more commands start. The warden decides whether the arena stays.
            if !requested.is_empty() && !self.answer(&mut running) {
                self.owner = None;
            }
        }
    }

    fn answer(&mut self, running: &mut HashMap<i32, OwnedFd>) -> bool {
        let Arena { entrance, children, owner: Some(owner), .. } = self else { return false };
        let answer = match receive::<Run>(&*owner) {
            Ok(None) => return false,
            Ok(Some((run, fds))) => match start(entrance, children, run, fds) {
                Ok((started, pipe)) => {
                    running.insert(started.pid, pipe);
                    let answer = Answer::Pid(started.pid, started.inside);
                    return send(owner, &answer, &[started.pidfd.as_fd()]).is_ok();
                }
                Err(e) => Answer::Error(e.to_string()),
            },
            Err(e) => Answer::Error(e.to_string()),
        };
        send(owner, &answer, &[]).is_ok()
    }
}

/// Starts a command, and returns it and the pipe for its wait status.
fn start(
    entrance: &Entrance,
    children: &mut Children,
    run: Run,
    mut fds: Vec<OwnedFd>,
) -> io::Result<(Started, OwnedFd)> {
    let release = run.trace.as_ref().filter(|request| request.holds()).and_then(|_| fds.pop());
    let log = if run.trace.is_some() { fds.pop() } else { None };
    let [stdin, stdout, stderr, pipe, strings] =
        <[OwnedFd; 5]>::try_from(fds).map_err(|_| io::Error::other("a start needs five descriptors"))?;
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut File::from(strings), &mut text)?;
    let mut strings = text
        .split_inclusive(|byte| *byte == 0)
        .map(|s| CString::from_vec_with_nul(s.to_vec()).map_err(io::Error::other))
        .collect::<io::Result<Vec<_>>>()?
        .into_iter();
    let cwd = strings.next().ok_or_else(|| io::Error::other("a start needs a working directory"))?;
    let argv: Vec<CString> = strings.by_ref().take(run.argc).collect();
    let env: Vec<CString> = strings.collect();
    let Some(program) = argv.first().map(|s| s.to_string_lossy().into_owned()) else {
        return Err(io::Error::other("start nothing: no command"));
    };
    children.request = run.trace.zip(log).map(|(request, log)| (request, log.into(), release));
    let gate = children.request.as_ref().map(|(request, ..)| Gate::new(request)).transpose()?;
    let command = Command { argv, env, cwd, streams: [stdin, stdout, stderr], gate };
    // The loop in `serve` also reaps a command that failed to start.
    Ok((entrance.start(&command, children).doing("start", program)?, pipe))
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}
