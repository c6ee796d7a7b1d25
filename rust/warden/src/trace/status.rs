//! What procfs tells of a thread (proc_pid_status(5)).

/// State and number of context switches of a thread; none if it is gone.
pub(super) fn activity(pid: i32) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let state = field("State:")?.get(..1)?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    Some(format!("{state} {} {}", field("voluntary_ctxt_switches:")?, field("nonvoluntary_ctxt_switches:")?))
}

/// The number of seccomp filters of a process (Linux 5.9).
pub(super) fn filters(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"))?.trim().parse().ok()
}
