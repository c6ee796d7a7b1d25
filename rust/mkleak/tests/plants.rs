//! Every plant: the world differs by exactly the leak between WAITING and READY, and by nothing after CLEAN.

mod common;
#[path = "common/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Mkleak, in_disposable_place};
use serde_json::Value;
use world::{Place, World};

macro_rules! every_plant_of_kind {
    ($($test:ident: $kind:literal,)*) => {
        $(#[test]
        fn $test() {
            in_disposable_place(stringify!($test), |dir| plants_of($kind, dir));
        })*
    };
}

every_plant_of_kind! {
    every_process_plant_is_there_and_goes: "process",
    every_fd_plant_is_there_and_goes: "fd",
    every_mount_plant_is_there_and_goes: "mount",
    every_cgroup_plant_is_there_and_goes: "cgroup",
    every_lock_plant_is_there_and_goes: "lock",
    every_lockfile_plant_is_there_and_goes: "lockfile",
    every_file_plant_is_there_and_goes: "file",
    every_ipc_plant_is_there_and_goes: "ipc",
    every_namespace_plant_is_there_and_goes: "namespace",
    every_net_plant_is_there_and_goes: "net",
    every_loop_plant_is_there_and_goes: "loop",
    every_key_plant_is_there_and_goes: "key",
    every_bpf_plant_is_there_and_goes: "bpf",
    every_sysctl_plant_is_there_and_goes: "sysctl",
}

/// How many lines of each kind a plant adds to the world.
fn expected(kind: &str, name: &str) -> &'static [(&'static str, usize)] {
    match (kind, name) {
        ("process", "proc-covered") => &[("mount", 1)],
        ("process", _) => &[("process", 1)],
        ("fd", "fd-in-flight") => &[("flight", 1)],
        ("fd", "mmap-deleted") => &[("maps", 1)],
        ("fd", _) => &[("fd", 1)],
        ("mount", "mount-lazy-cwd") => &[("cwd", 1)],
        ("mount", "mount-ns-fd" | "mount-detached" | "mount-detached-clone") => &[("fd", 1)],
        ("mount", _) => &[("mount", 1)],
        ("cgroup", "cgroup-nested") => &[("cgroup", 3)],
        ("cgroup", "cgroup-populated" | "cgroup-frozen") => &[("cgroup", 1), ("process", 1)],
        ("cgroup", _) => &[("cgroup", 1)],
        ("lock", "lock-orphaned") => &[("lock", 1), ("process", 1)],
        ("lock", _) => &[("lock", 1)],
        ("lockfile", "lockfile-held") => &[("fd", 1), ("file", 1), ("lock", 1)],
        ("lockfile" | "file", _) => &[("file", 1)],
        ("ipc", "shm-posix" | "sem-posix") => &[("file", 1)],
        ("ipc", "mqueue") => &[("mqueue", 1)],
        ("ipc", _) => &[("sysvipc", 1)],
        ("namespace", "ns-net-fd") => &[("fd", 1)],
        ("namespace", "ns-uts-bind") => &[("mount", 1)],
        ("namespace", _) => &[("ns", 1), ("process", 1)],
        ("net", "net-veth") => &[("interface", 2)],
        ("net", "net-veth-other-ns" | "net-tap" | "net-dummy") => &[("interface", 1)],
        ("net", "net-named-netns") => &[("file", 1), ("mount", 1)],
        ("net", "net-address") => &[("address", 1)],
        ("net", "net-route") => &[("route", 1)],
        ("net", "net-rule") => &[("rule", 1)],
        ("net", "net-neighbour") => &[("neighbour", 1)],
        ("net", "net-filter") => &[("filter", 1)],
        ("net", "net-ipsec-policy") => &[("policy", 1)],
        ("net", "net-ipset") => &[("set", 1)],
        ("net", "net-ipset-element") => &[("element", 1)],
        ("net", "net-forwarding") => &[("forwarding", 1)],
        ("net", "net-iptables-rule") => &[("iptables", 1)],
        ("net", "net-nft-table") => &[("nft", 1)],
        // Their lines also name the table.
        ("net", "net-nft-chain" | "net-nft-rule") => &[("nft", 2)],
        ("net", "net-tcp-listen") => &[("fd", 1), ("tcp", 1)],
        ("net", "net-abstract-unix") => &[("fd", 1), ("unix", 1)],
        ("loop", _) => &[("loop", 1)],
        ("key", _) => &[("key", 1)],
        ("bpf", "bpf-pinned") => &[("file", 1)],
        ("bpf", _) => &[("fd", 1)],
        ("sysctl", _) => &[("sysctl", 1)],
        _ => panic!("{name}: nothing says what it adds to the world"),
    }
}

/// Facts of READY that one of the added lines must contain as text.
fn named(facts: &Value) -> Vec<String> {
    let debug = |path: &str| format!("{path:?}").trim_matches('"').to_owned();
    let mut named = Vec::new();
    for key in ["path", "device", "name", "peer", "leaf", "link"] {
        match facts[key].as_str() {
            // Debug of a path and Debug of a lossy string differ for bytes that are not UTF-8.
            Some(text) if !text.contains('\u{fffd}') => named.push(debug(text).trim_start_matches('/').to_owned()),
            _ => {}
        }
    }
    for key in ["pid", "fd", "id"] {
        named.extend(facts[key].as_i64().map(|number| number.to_string()));
    }
    named
}

fn plants_of(kind: &str, dir: &Path) {
    let list = Command::new(env!("CARGO_BIN_EXE_mkleak")).args(["--list", "--json"]).output().expect("mkleak --list");
    let list: Vec<Value> = serde_json::from_slice(&list.stdout).expect("a JSON array");
    let names: Vec<&str> = list
        .iter()
        .filter(|plant| plant["kind"] == kind)
        .map(|plant| plant["name"].as_str().expect("a name"))
        .collect();
    assert!(names.len() >= 2, "{kind} has {names:?}");
    let failed: Vec<String> = names.iter().filter_map(|name| plant(kind, name, dir).err()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn plant(kind: &str, name: &str, dir: &Path) -> Result<(), String> {
    let Ok(parent) = CgroupParent::for_plant(name) else {
        println!("{name}: skipped: this process's cgroup is another's, and the test can't make its own");
        return Ok(());
    };
    let mut arguments = vec![name, "--hold", "--dir", dir.to_str().expect("ASCII")];
    if let Some(parent) = &parent {
        arguments.extend(["--cgroup", parent.0.to_str().expect("ASCII")]);
    }
    let mut mkleak = Mkleak::start(&arguments);
    let Some(_) = mkleak.facts("WAITING ") else {
        return skip(name, &mut mkleak);
    };
    let place = Place { pid: mkleak.pid(), dir, settings: kind == "sysctl" };
    let before = place.look();
    mkleak.send("\n");
    let Some(facts) = mkleak.facts("READY ") else {
        return skip(name, &mut mkleak);
    };
    let planted = place.look();
    mkleak.send("\n");
    let clean = mkleak.line();
    // The far end of a chain's socket closes with the chain.
    let far_end = |line: &&String| name.starts_with("respawning") && line.starts_with("fd ");
    let gone = |now: &World| now.is_subset(&before) && before.difference(now).all(|line| far_end(&line));
    let after = settled(&place, gone);
    mkleak.send("\n");
    let (status, complaint) = mkleak.end();

    // A single walk of /proc may miss a chain that never rests.
    if !name.starts_with("respawning") {
        check(name, expected(kind, name), &facts, &before, &planted)?;
    }
    if clean.as_deref() != Some("CLEAN") || !status.success() || !complaint.is_empty() {
        return Err(format!("{name}: after READY came {clean:?}, {status}, {complaint:?}"));
    }
    if !gone(&after) {
        return Err(format!("{name}: after CLEAN {}", difference(&before, &after)));
    }
    println!("{name}: planted and gone");
    Ok(())
}

fn check(name: &str, expected: &[(&str, usize)], facts: &Value, before: &World, planted: &World) -> Result<(), String> {
    let added: Vec<&String> = planted.difference(before).collect();
    let mut sorts = BTreeMap::new();
    for line in &added {
        *sorts.entry(line.split(' ').next().unwrap_or_default()).or_insert(0) += 1;
    }
    if !sorts.into_iter().eq(expected.iter().copied()) {
        return Err(format!("{name}: {expected:?} expected, but {}", difference(before, planted)));
    }
    // An FD with the same number, a changed working directory, or a changed value replaces another line.
    let replaced = usize::from(matches!(name, "fd-same-number" | "mount-lazy-cwd") || name.starts_with("sysctl-"));
    if before.difference(planted).count() != replaced {
        return Err(format!("{name}: more than the leak: {}", difference(before, planted)));
    }
    let seen = |text: &String| added.iter().any(|line| line.contains(text.as_str()));
    let missing: Vec<String> = named(facts).into_iter().filter(|text| !seen(text)).collect();
    // Facts of the scaffolding (a mount's pid, a loop device's file) are in other lines, but one fact must be in these.
    if missing.len() == named(facts).len() && !named(facts).is_empty() && !names_by_device(name) {
        return Err(format!("{name}: READY says {facts}, but {added:?}"));
    }
    Ok(())
}

/// A lazily unmounted tree has no name: only the device of the working directory changes.
fn names_by_device(name: &str) -> bool {
    name == "mount-lazy-cwd"
}

fn difference(before: &World, after: &World) -> String {
    let added: Vec<_> = after.difference(before).collect();
    let removed: Vec<_> = before.difference(after).collect();
    format!("added {added:#?}, removed {removed:#?}")
}

/// The kernel frees namespaces and devices shortly after the call that released them.
fn settled(place: &Place, gone: impl Fn(&World) -> bool) -> World {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let now = place.look();
        if gone(&now) || Instant::now() > deadline {
            return now;
        }
        sleep(Duration::from_millis(5));
    }
}

fn skip(name: &str, mkleak: &mut Mkleak) -> Result<(), String> {
    match mkleak.end() {
        (status, reason) if status.code() == Some(77) && reason.lines().count() == 1 => {
            println!("{name}: skipped: {}", reason.trim_end());
            Ok(())
        }
        (status, complaint) => Err(format!("{name}: {status}: {complaint}")),
    }
}

/// A cgroup of this test's own, if another program manages the cgroup that the test runs in.
struct CgroupParent(PathBuf);

impl CgroupParent {
    fn for_plant(plant: &str) -> io::Result<Option<Self>> {
        if !plant.starts_with("cgroup-") {
            return Ok(None);
        }
        let controller = plant.strip_prefix("cgroup-v1-").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|one| one == controller).then_some(path)
        });
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| match controller {
            "" => fields[2] == "cgroup2",
            controller => fields[2] == "cgroup" && fields[3].split(',').any(|option| option == controller),
        });
        let (Some(own), Some(mount)) = (own, mount) else {
            return Ok(None);
        };
        if own == "/" {
            return Ok(None);
        }
        let pid_namespace = fs::read_link("/proc/self/ns/pid")?;
        let path = Path::new(mount[1]).join(format!("leakcheck-mkleak-test-{}", pid_namespace.display()));
        fs::create_dir(&path)?;
        Ok(Some(Self(path)))
    }
}

impl Drop for CgroupParent {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).expect("the test's own cgroup is empty");
    }
}
