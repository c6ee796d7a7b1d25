//! What procfs tells of a thread (proc_pid_status(5), proc_pid_stat(5)).

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

/// When a process began, in hundredths of a second since boot, as `now`.
pub(super) fn began(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 22; the name, which may contain anything, is field 2.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The time since boot in hundredths of a second, the unit of proc_pid_stat(5) on x86-64 (proc_uptime(5)).
pub(super) fn now() -> Option<u64> {
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let (seconds, hundredths) = uptime.split_ascii_whitespace().next()?.split_once('.')?;
    Some(100 * seconds.parse::<u64>().ok()? + hundredths.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_began_between_the_times_before_and_after() {
        let before = now().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (began, after) = (began(child.id().cast_signed()).unwrap(), now().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!((before..=after).contains(&began), "{before} {began} {after}");
    }
}
