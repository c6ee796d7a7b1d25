//! The two clocks of the event sources: the connector stamps with `CLOCK_MONOTONIC`, `/proc/PID/stat` with `CLOCK_BOOTTIME`.

use rustix::time::{ClockId, Timespec, clock_gettime};

fn nanoseconds(time: Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub(super) fn monotonic() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// `CLOCK_BOOTTIME` in nanoseconds.
pub(super) fn boottime() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
}

/// How far `CLOCK_BOOTTIME` is ahead of `CLOCK_MONOTONIC` now: the time spent suspended since boot.
pub(super) fn boottime_ahead() -> u64 {
    // A preemption between two readings would look like a suspend: of a few tries, the one with the smallest distance
    // is right.
    let mut best = (u64::MAX, 0);
    for _ in 0..4 {
        let before = monotonic();
        let boot = boottime();
        let width = monotonic().saturating_sub(before);
        if width < best.0 {
            best = (width, boot.saturating_sub(before));
        }
    }
    best.1
}

/// The length of a tick of `/proc/PID/stat`, field `starttime`, in nanoseconds (proc_pid_stat(5)).
pub(super) fn tick() -> u64 {
    1_000_000_000 / rustix::param::clock_ticks_per_second().max(1)
}
