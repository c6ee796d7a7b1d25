//! Which files are settings, and which are read.

use std::ffi::CStr;

/// Files that change by themselves, or trigger an action when read. With a `/` at the end: everything below.
const NO_SETTINGS: &[&str] = &[
    "kernel/hung_task_warnings",         // counted down with each warning
    "kernel/ns_last_pid",                // of each fork
    "kernel/perf_event_max_sample_rate", // lowered by the kernel when interrupts take long
    "kernel/random/",                    // counters, and random numbers
    "kernel/sched_domain/",              // the scheduler's own measurements
    "kernel/tainted",                    // by any warning or module
    "vm/stat_refresh",                   // runs something on each CPU
    // Read separately.
    "fs/binfmt_misc/",
    "net/",
];
/// Settings of the network namespace that container runtimes, network plugins and judges change.
pub(super) const NET: &[&CStr] = &[
    c"net/bridge/bridge-nf-call-arptables",
    c"net/bridge/bridge-nf-call-ip6tables",
    c"net/bridge/bridge-nf-call-iptables",
    c"net/core/somaxconn",
    c"net/ipv4/conf/all/forwarding",
    c"net/ipv4/conf/all/route_localnet",
    c"net/ipv4/conf/all/rp_filter",
    c"net/ipv4/conf/default/forwarding",
    c"net/ipv4/ip_forward",
    c"net/ipv4/ip_local_port_range",
    c"net/ipv4/ip_unprivileged_port_start",
    c"net/ipv4/ping_group_range",
    c"net/ipv6/conf/all/disable_ipv6",
    c"net/ipv6/conf/all/forwarding",
    c"net/ipv6/conf/default/forwarding",
];
/// Prefixes of the settings that an arena has of its own (uts_namespaces(7), ipc_namespaces(7)).
const OF_AN_ARENA: &[&str] = &[
    "fs/mqueue/",
    "kernel/auto_msgmni",
    "kernel/domainname",
    "kernel/hostname",
    "kernel/msg",
    "kernel/sem",
    "kernel/shm",
];

/// Directories of `/sys` with settings that sandboxes and judges change.
pub(super) const KNOBS: &[&CStr] = &[c"/sys/kernel/mm/transparent_hugepage", c"/sys/kernel/mm/ksm"];
pub(super) const CPU: &CStr = c"/sys/devices/system/cpu";
/// Its files, one by one: `online` cannot be written, but shows what `cpuN/online` was set to.
pub(super) const FILES: &[&CStr] = &[c"online", c"smt/control", c"cpufreq/boost", c"intel_pstate/no_turbo"];

/// Whether a file of `/proc/sys` is not read, or is one of an arena's own.
pub(super) fn skips(path: &str, skip_own: bool) -> bool {
    let Some(path) = path.strip_prefix("/proc/sys/") else { return false };
    let is = |entry: &&str| match entry.strip_suffix('/') {
        Some(dir) => path == dir,
        None => path == *entry,
    };
    NO_SETTINGS.iter().any(is) || skip_own && OF_AN_ARENA.iter().any(|own| path.starts_with(own))
}
