//! What this user can and cannot see on this machine, and how to see more: `leakcheck doctor`.
//!
//! Doctor guesses nothing from version numbers: it takes one snapshot, starts one watch, and calls every kernel
//! interface that the observer prefers once.

mod advice;
mod examination;
mod source;

use std::path::PathBuf;

use crate::error::Result;
use crate::guard;
use crate::judge::verdict::Verdict;
use crate::kind::Kind;
use crate::observe::read_file;
use crate::observe::{self, Options};
use crate::parse::nslink::NsType;
use crate::scope::Scope;
use crate::snapshot::{Coverage, CoverageMap, Level, Snapshot};
use crate::text::Text;
use crate::watch::{self, Watch};
pub use examination::{Answer, CgroupVersion, Container, Examination, Finding, Hierarchy, Refusal, Source, User};

/// Inodes of the initial namespaces (`PROC_PID_INIT_INO`, `PROC_USER_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_PID_NS: u64 = 0xEFFF_FFFC;
const INITIAL_USER_NS: u64 = 0xEFFF_FFFD;

/// Examines the machine: one snapshot with `options`, and one watch on the roots and the cgroup hierarchies.
///
/// # Errors
/// What [`observe::snapshot`] raises.
pub fn doctor(options: &Options) -> Result<Examination> {
    let hierarchies = observe::hierarchies().unwrap_or_default();
    let mut files: Vec<PathBuf> = options.effective_roots();
    files.extend(hierarchies.iter().map(|h| h.mount.clone()));
    let watch = Watch::start(&watch::Options { root: std::process::id(), files, mounts: true });
    let levels = watch.levels();
    let mut options = options.clone();
    options.hidden_fds.extend(watch.own_fds());
    let observation = observe::snapshot(&options)?;

    let user = user();
    let findings = |(kind, c): (&Kind, &Coverage)| {
        let fix = advice::of_kind(*kind, c, &user, &hierarchies);
        (*kind, Finding { level: c.level, reason: c.reason.clone(), fix })
    };
    let container = container(&observation);
    let sources = source::examine(&levels, &user, &container);
    let unreadable = observation.unreadable.iter().map(|u| Refusal {
        pid: u.pid,
        comm: comm(&observation, u.pid),
        what: u.what.clone(),
    });
    let guard = answer(&guard::coverage_of(&observation, &watch), &levels, options.scope == Scope::Host);
    Ok(Examination {
        schema: Examination::SCHEMA.to_owned(),
        kernel: kernel(),
        cgroups: version(hierarchies.iter().map(|h| h.name.as_str())),
        hierarchies: hierarchies
            .iter()
            .map(|h| Hierarchy { name: h.name.clone(), mount: Text::from(h.mount.as_path()) })
            .collect(),
        kinds: observation.coverage.0.iter().map(findings).collect(),
        unreadable: unreadable.collect(),
        user,
        container,
        sources,
        guard,
        undetected: "docs/explanation/undetected.md".to_owned(),
    })
}

/// An unreadable process from before the run does not lower a guard's coverage; a kind that is not seen in full does.
fn answer(coverage: &CoverageMap, levels: &watch::Levels, host: bool) -> Answer {
    let gaps: Vec<String> = coverage
        .0
        .iter()
        .filter(|(_, c)| c.level != Level::Full)
        .map(|(kind, c)| format!("{kind}: {}", c.reason))
        .collect();
    let verdict = Verdict::of(0, coverage);
    let blind = [&levels.descent, &levels.mounts].into_iter().chain(levels.files.iter().map(|(_, c)| c));
    let blind = blind.filter(|c| host && c.level != Level::Full).map(|c| c.reason.as_str()).next();
    let blind = blind.map(|why| format!("what others leave during the run may count as the run's: {why}"));
    let because = gaps.into_iter().chain(blind).collect::<Vec<_>>().join("; ");
    Answer { verdict, because }
}

fn kernel() -> String {
    let name = rustix::system::uname();
    name.release().to_string_lossy().into_owned()
}

fn version<'a>(names: impl Iterator<Item = &'a str>) -> CgroupVersion {
    let (mut v1, mut v2) = (false, false);
    for name in names {
        match name {
            "v2" => v2 = true,
            // A named hierarchy without controllers is systemd's, but still a v1 hierarchy.
            _ => v1 = true,
        }
    }
    match (v1, v2) {
        (true, true) => CgroupVersion::Hybrid,
        (true, false) => CgroupVersion::V1,
        (false, true) => CgroupVersion::V2,
        (false, false) => CgroupVersion::None,
    }
}

fn user() -> User {
    let text = read_file("/proc/self/status").unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mask = text.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("CapEff:")?.trim(), 16).ok()).unwrap_or(0);
    User { uid: rustix::process::geteuid().as_raw(), capabilities: capabilities(mask) }
}

/// Names by bit number, linux/capability.h.
const CAPABILITIES: &str = "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable \
    net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct \
    sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap \
    mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore";

fn capabilities(mask: u64) -> Vec<String> {
    let names: Vec<&str> = CAPABILITIES.split_whitespace().collect();
    let name = |bit: usize| names.get(bit).map_or_else(|| format!("cap_{bit}"), |name| format!("cap_{name}"));
    (0..64).filter(|bit| mask >> bit & 1 == 1).map(name).collect()
}

fn container(observation: &Snapshot) -> Container {
    let is = |ns_type, initial| observation.own_ns.get(&ns_type) == Some(&initial);
    let mut hints = Vec::new();
    for path in ["/.dockerenv", "/run/.containerenv", "/run/systemd/container"] {
        if std::fs::exists(path).unwrap_or(false) {
            hints.push(format!("{path} exists"));
        }
    }
    let environ = read_file("/proc/1/environ").unwrap_or_default();
    if let Some(entry) = environ.split(|b| *b == 0).find(|e| e.starts_with(b"container=")) {
        hints.push(format!("process 1 has {} in its environment", Text::from(entry)));
    }
    Container {
        initial_pid_namespace: is(NsType::Pid, INITIAL_PID_NS),
        initial_user_namespace: is(NsType::User, INITIAL_USER_NS),
        hints,
    }
}

fn comm(observation: &Snapshot, pid: u32) -> Text {
    match observation.process(pid) {
        Some(process) => process.comm.clone(),
        None => Text::from(read_file(format!("/proc/{pid}/comm")).unwrap_or_default().trim_ascii_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_named_by_their_bits() {
        assert_eq!(capabilities(0), Vec::<String>::new());
        assert_eq!(capabilities(1 << 21 | 1 << 12 | 1), ["cap_chown", "cap_net_admin", "cap_sys_admin"]);
        assert_eq!(capabilities(1 << 40 | 1 << 63), ["cap_checkpoint_restore", "cap_63"]);
    }

    #[test]
    fn hierarchies_of_both_versions_make_a_hybrid() {
        let of = |names: &[&str]| version(names.iter().copied());
        assert_eq!(of(&[]), CgroupVersion::None);
        assert_eq!(of(&["v2"]), CgroupVersion::V2);
        assert_eq!(of(&["cpu,cpuacct", "name=systemd"]), CgroupVersion::V1);
        assert_eq!(of(&["pids", "v2"]), CgroupVersion::Hybrid);
    }

    #[test]
    fn gaps_make_a_guard_unknown_and_are_its_reason() {
        let full = Coverage::full();
        let levels = watch::Levels { descent: full.clone(), files: Vec::new(), mounts: full };
        let mut map = CoverageMap::default();
        map.0.insert(Kind::Process, Coverage::full());
        assert_eq!(answer(&map, &levels, true), Answer { verdict: Verdict::Clean, because: String::new() });
        map.lower(Kind::Bpf, Level::None, "why");
        assert_eq!(answer(&map, &levels, true), Answer { verdict: Verdict::Unknown, because: "bpf: why".to_owned() });
    }
}
