//! PID 1 of an arena. It builds the arena from inside, tells the spawner, and from then on only reaps: orphans live on and are seen.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};

use crate::message::{Answer, Options, Up, send};
use crate::{root, sys};

/// Never returns. `spawner` is a socket whose other end closes when the spawner is gone, and with it everything here ends.
/// `lock` is held on to, so that nobody takes the arena for abandoned while this process lives; all else that was inherited is
/// closed.
pub(crate) fn run(spawner: OwnedFd, lock: Option<BorrowedFd<'_>>, options: &Options) -> ! {
    let kept: Vec<BorrowedFd<'_>> = lock.into_iter().chain([spawner.as_fd()]).collect();
    sys::keep_only(&kept);
    sys::die_with_parent(0);
    sys::set_name(c"arena-init");
    let signals = match sys::signals() {
        Ok(signals) => signals,
        Err(e) => fail(&spawner, &e.to_string()),
    };
    let mut up = Up::default();
    let built = build(options, &mut up);
    let told = match &built {
        Ok(root) => {
            let fds: Vec<BorrowedFd<'_>> = [&root.proc, &root.upper]
                .into_iter()
                .chain(root.fresh.iter().map(|(_, fd)| fd))
                .map(AsFd::as_fd)
                .collect();
            send(&spawner, &Answer::Up(up), &fds)
        }
        Err(e) => fail(&spawner, &format!("{e}; at step {:?}", up.steps.last().map_or("start", |s| s))),
    };
    drop(built);
    // Only now is there nothing of the bring-up left that a first look would see go.
    if told.and_then(|()| send(&spawner, &Answer::Done, &[])).is_err() {
        sys::exit(1);
    }
    loop {
        let mut set = [PollFd::new(&signals, PollFlags::IN), PollFd::new(&spawner, PollFlags::empty())];
        let _ = poll(&mut set, None);
        if set[1].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            sys::exit(0);
        }
        while sys::next_signal(&signals).is_some() {}
        while sys::reap().is_some() {}
    }
}

fn fail(spawner: &OwnedFd, why: &str) -> ! {
    let _ = send(spawner, &Answer::Error(why.to_owned()), &[]);
    sys::exit(1)
}

fn build(options: &Options, up: &mut Up) -> io::Result<root::Root> {
    let mut step = |name: &str| {
        up.steps.push(name.to_owned());
        if options.fail.as_deref() == Some(name) {
            return Err(io::Error::other("failed as asked"));
        }
        Ok(())
    };
    step("host name")?;
    rustix::system::sethostname(if options.hostname.is_empty() { b"arena" } else { options.hostname.as_bytes() })?;
    step("loopback")?;
    if !options.host_network {
        sys::loopback_up()?;
    }
    let root = root::make(options, &mut step)?;
    step("ready")?;
    up.roots = root.fresh.iter().map(|(path, _)| path.clone()).collect();
    up.not_covered.clone_from(&root.not_covered);
    Ok(root)
}
