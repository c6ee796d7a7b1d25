//! What a watch costs, and that nothing of it stays.

use std::fs;
use std::time::{Duration, Instant};

use leakcheck::watch::{Options, Watch};
use rustix::time::{ClockId, clock_gettime};

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

/// Processor time of all threads.
fn spent() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap()
}

fn is_open(fd: i32) -> bool {
    fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok()
}

/// The tests below count the threads and FDs of this process, so they are one.
#[test]
fn a_watch_leaves_no_fd_and_no_thread_and_is_quick() {
    let watch = Watch::start(&everything());
    let fds = watch.own_fds();
    assert!(fds.iter().all(|fd| is_open(*fd)), "{fds:?}");
    await_threads(1);
    drop(watch);
    let left: Vec<_> = fds.iter().filter(|fd| is_open(**fd)).collect();
    assert!(left.is_empty(), "open after drop: {left:?}");

    await_threads(0);

    // Of processor time, which a busy machine does not lengthen.
    let mut cost: Vec<(Duration, Duration)> = Vec::new();
    for _ in 0..200 {
        let began = spent();
        let watch = Watch::start(&everything());
        let started = spent();
        drop(watch);
        cost.push((started - began, spent() - started));
    }
    let median = |of: fn(&(Duration, Duration)) -> Duration| {
        let mut all: Vec<Duration> = cost.iter().map(of).collect();
        all.sort_unstable();
        (all[all.len() / 2], all[all.len() * 95 / 100], all[all.len() - 1])
    };
    let both = median(|(start, drop)| *start + *drop);
    eprintln!("start {:?}, drop {:?}, both {both:?} (median, 95 %, worst)", median(|c| c.0), median(|c| c.1));
    let fds_now = fs::read_dir("/proc/self/fd").expect("our FDs").count();
    assert!(both.0 < Duration::from_millis(5), "{both:?}");
    assert_eq!(fs::read_dir("/proc/self/fd").expect("our FDs").count(), fds_now);
    await_threads(0);
}
