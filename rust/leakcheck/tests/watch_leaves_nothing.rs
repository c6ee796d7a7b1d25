//! Nothing of a watch stays.

use std::fs;
use std::time::{Duration, Instant};

use leakcheck::watch::{Options, Watch};

fn everything() -> Options {
    Options {
        files: ["/tmp", "/dev/shm", "/run", "/sys/fs/cgroup"].map(Into::into).into(),
        mounts: true,
        ..Options::default()
    }
}

fn named_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("our threads");
    tasks.flatten().filter(|t| fs::read(t.path().join("comm")).is_ok_and(|c| c == b"leakcheck-watch\n")).count()
}

/// A thread gives itself its name, and one that was dropped ends when the kernel lets go of its groups: neither is an event that can be waited for.
fn await_threads(number: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while named_threads() != number {
        assert!(Instant::now() < deadline, "{} threads, not {number}", named_threads());
        std::thread::yield_now();
    }
}

fn is_open(fd: i32) -> bool {
    fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok()
}

/// The tests below count the threads and FDs of this process, so they are one.
#[test]
fn a_watch_leaves_no_fd_and_no_thread() {
    let watch = Watch::start(&everything());
    let fds = watch.own_fds();
    assert!(fds.iter().all(|fd| is_open(*fd)), "{fds:?}");
    await_threads(1);
    drop(watch);
    let left: Vec<_> = fds.iter().filter(|fd| is_open(**fd)).collect();
    assert!(left.is_empty(), "open after drop: {left:?}");

    await_threads(0);

    let fds_before = fs::read_dir("/proc/self/fd").expect("our FDs").count();
    for _ in 0..200 {
        drop(Watch::start(&everything()));
    }
    assert_eq!(fs::read_dir("/proc/self/fd").expect("our FDs").count(), fds_before);
    await_threads(0);
}
