//! PID 1 of an arena. It builds the arena from inside, notifies the spawner, and then only reaps: orphans keep running
//! and are observed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use leakcheck_sys as sys;
use rustix::event::{PollFd, PollFlags, poll};

use crate::message::{Answer, Options, Steps, Up, send};
use crate::{process, root};

/// Never returns. `spawner` is a socket: its other end closes when the spawner is gone, and then this process exits, which
/// ends everything in the arena. `entered`: whether this process could enter all cgroups.
pub(crate) fn run(spawner: OwnedFd, entered: io::Result<()>, options: &Options, steps: &mut Steps) -> ! {
    process::die_with_parent(0);
    let _ = rustix::thread::set_name(c"arena-init");
    let children = match sys::block_signals().and_then(|()| sys::signal_fd(&[libc::SIGCHLD])) {
        Ok(children) => children,
        Err(e) => fail(&spawner, &e.to_string()),
    };
    let built = entered.and_then(|()| build(options, steps));
    let sent = match &built {
        Ok(root) => {
            let paths = |parts: &[(String, OwnedFd)]| parts.iter().map(|(path, _)| path.clone()).collect();
            let up = Up {
                layers: paths(&root.layers),
                roots: paths(&root.fresh),
                bare: paths(&root.bare),
                covered: root.covered.clone(),
                not_covered: root.not_covered.clone(),
                steps: steps.begun.clone(),
                ..Up::default()
            };
            let parts = root.layers.iter().chain(&root.fresh).chain(&root.bare);
            let fds: Vec<BorrowedFd<'_>> = std::iter::once(&root.proc)
                .chain(parts.map(|(_, fd)| fd))
                .chain([&root.top, &root.null])
                .map(AsFd::as_fd)
                .collect();
            send(&spawner, &Answer::Up(up), &fds)
        }
        Err(e) => fail(&spawner, &steps.at(e)),
    };
    drop(built);
    // Only now, nothing of the bring-up remains that would disappear after a first snapshot.
    if sent.and_then(|()| send(&spawner, &Answer::Done, &[])).is_err() {
        sys::exit(1);
    }
    loop {
        let mut set = [PollFd::new(&children, PollFlags::IN), PollFd::new(&spawner, PollFlags::empty())];
        let _ = poll(&mut set, None);
        if set[1].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            sys::exit(0);
        }
        sys::drain(&children);
        while sys::reap().is_some() {}
    }
}

fn fail(spawner: &OwnedFd, why: &str) -> ! {
    let _ = send(spawner, &Answer::Error(why.to_owned()), &[]);
    sys::exit(1)
}

fn build(options: &Options, steps: &mut Steps) -> io::Result<root::Root> {
    steps.begin("host name")?;
    rustix::system::sethostname(if options.hostname.is_empty() { b"arena" } else { options.hostname.as_bytes() })?;
    steps.begin("loopback")?;
    if !options.host_network {
        sys::loopback_up()?;
    }
    let root = root::make(options, steps)?;
    if options.last_pid > 0 {
        steps.begin("process ids")?;
        std::fs::write("/proc/sys/kernel/ns_last_pid", options.last_pid.to_string())?;
    }
    steps.begin("ready")?;
    Ok(root)
}
