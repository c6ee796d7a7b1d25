//! What to do about a kind that is not seen in full, by kind, capabilities, and the observer's reason.

use super::examination::{Container, User};
use crate::kind::Kind;
use crate::observe::{Hierarchy, detail::quote};
use crate::snapshot::{Coverage, Level};

/// How the observer can see more of a kind.
pub(super) fn of_kind(kind: Kind, coverage: &Coverage, user: &User, hierarchies: &[Hierarchy]) -> String {
    if coverage.level == Level::Full {
        return String::new();
    }
    let reason = coverage.reason.as_str();
    let needs: &[&str] = match kind {
        Kind::Process | Kind::Fd | Kind::Mount | Kind::Namespace => {
            &["cap_sys_ptrace", "cap_sys_admin", "cap_dac_read_search"]
        }
        Kind::Ipc => &["cap_sys_admin", "cap_sys_ptrace"],
        Kind::Net => &["cap_net_admin", "cap_sys_admin", "cap_sys_ptrace"],
        Kind::Key => &["cap_setuid"],
        Kind::Bpf => &["cap_sys_admin"],
        Kind::Sysctl => &[],
        Kind::File | Kind::Lock | Kind::Lockfile | Kind::Cgroup | Kind::Loop => &["cap_dac_read_search"],
    };
    let missing: Vec<&str> = needs.iter().copied().filter(|c| !user.may(c)).collect();
    let as_root = match missing.as_slice() {
        [] => None,
        names => Some(format!("run as root, or with {}", names.join(", ").to_uppercase())),
    };
    match kind {
        Kind::Cgroup if reason.contains("mounted") => mount_hierarchies(reason, hierarchies),
        Kind::File if reason.contains("network or FUSE") => "use --roots to name directories on local file systems".to_owned(),
        Kind::File if reason.contains("levels") => "use --roots to name a directory below it as a root of its own".to_owned(),
        Kind::File => as_root.unwrap_or_else(|| "use --roots to name directories that this user can read".to_owned()),
        Kind::Process | Kind::Fd | Kind::Mount | Kind::Namespace => as_root.unwrap_or_else(|| {
            "even root cannot read it: a security module protects the process, or it belongs to another user namespace; a guard \
             ignores processes that existed before its run"
                .to_owned()
        }),
        Kind::Cgroup | Kind::Lock | Kind::Lockfile | Kind::Ipc | Kind::Net | Kind::Loop | Kind::Key | Kind::Bpf | Kind::Sysctl => as_root.unwrap_or_else(|| {
            format!("leave {kind} out: use --kinds to name the other kinds")
        }),
    }
}

/// The commands that mount the missing hierarchies.
fn mount_hierarchies(reason: &str, hierarchies: &[Hierarchy]) -> String {
    if hierarchies.is_empty() {
        return "mount the v2 hierarchy: mount -t cgroup2 cgroup2 /sys/fs/cgroup".to_owned();
    }
    let Some(names) = reason.strip_prefix("hierarchy ").and_then(|r| r.split(" is not mounted").next()) else {
        return "mount what is missing below /sys/fs/cgroup".to_owned();
    };
    let command = |name: &str| match name {
        "v2" => "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified".to_owned(),
        v1 => {
            let dir = quote(format!("/sys/fs/cgroup/{}", v1.trim_start_matches("name=")).as_bytes());
            let none = if v1.starts_with("name=") { "none," } else { "" };
            format!("mkdir -p {dir} && mount -t cgroup -o {none}{} cgroup {dir}", quote(v1.as_bytes()))
        }
    };
    let commands: Vec<String> = names.split(" and ").map(command).collect();
    format!("mount it: {}", commands.join("; "))
}

/// How the watch can see more.
pub(super) fn of_watch(coverage: &Coverage, user: &User, container: &Container) -> String {
    if coverage.level == Level::Full {
        return String::new();
    }
    let reason = coverage.reason.as_str();
    if let Some(at) = reason.find("Linux ").filter(|_| reason.contains("needs Linux")) {
        let version: Vec<&str> = reason[at..].split_whitespace().take(2).collect();
        return format!("needs {}; without it, only a comparison finds what the run made there", version.join(" "));
    }
    if container.initial_user_namespace && reason.contains("perf events: CAP_PERFMON") {
        return "run on the host, or as root with CAP_PERFMON (docker run --cap-add PERFMON)".to_owned();
    }
    if !container.initial_pid_namespace || !container.initial_user_namespace {
        return "run on the host, outside the container".to_owned();
    }
    if !user.may("cap_sys_admin") || !user.may("cap_net_admin") {
        return "run as root, or with CAP_SYS_ADMIN, CAP_NET_ADMIN".to_owned();
    }
    if reason.starts_with("process connector: socket") {
        return "run in the initial network namespace, on a kernel with CONFIG_PROC_EVENTS".to_owned();
    }
    if reason.contains("fsid") || reason.contains("file handles") {
        return "none: the kernel cannot watch this type of file system; only a comparison finds what the run made there"
            .to_owned();
    }
    if reason.contains("did not come") || reason.contains("overflow") || reason.contains("lost") {
        return "run doctor again when the machine is less busy: events were lost during this run".to_owned();
    }
    "none known: only a comparison finds what the run made there".to_owned()
}
