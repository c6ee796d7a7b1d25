//! The doctor tells what is so, as root and as nobody.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use leakcheck::doctor::{CgroupVersion, Examination, doctor};
use leakcheck::observe::Options;
use leakcheck::snapshot::Level;
use leakcheck::{Kind, Verdict};

const NOBODY: u32 = 65534;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn examine() -> Examination {
    let files = tempfile::tempdir().unwrap();
    doctor(&Options { roots: Some(vec![files.path().to_owned()]), ..Options::default() }).unwrap()
}

#[test]
fn every_kind_is_examined_and_every_gap_has_its_reason_and_remedy() {
    let found = examine();
    assert_eq!(found.kinds.keys().copied().collect::<Vec<_>>(), Kind::ALL);
    let all = found.kinds.values().chain(found.sources.iter().map(|s| &s.finding));
    for finding in all {
        assert_eq!(finding.level == Level::Full, finding.reason.is_empty(), "{finding:?}");
        assert_eq!(finding.level == Level::Full, finding.fix.is_empty(), "{finding:?}");
    }
}

#[test]
fn the_facts_are_those_of_the_machine() {
    let found = examine();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(found.kernel, release.trim());
    assert_eq!(found.user.uid, rustix::process::geteuid().as_raw());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let has = |fs_type: &str| mounts.lines().any(|l| l.split(' ').nth(2) == Some(fs_type));
    let expected = match (has("cgroup"), has("cgroup2")) {
        (true, true) => CgroupVersion::Hybrid,
        (true, false) => CgroupVersion::V1,
        (false, true) => CgroupVersion::V2,
        (false, false) => CgroupVersion::None,
    };
    assert_eq!(found.cgroups, expected);
    assert!(found.hierarchies.iter().all(|h| h.mount.as_path().join("cgroup.procs").exists()));
    let own = std::fs::read_link("/proc/self/ns/pid").unwrap();
    assert_eq!(found.container.initial_pid_namespace, own.to_str() == Some("pid:[4026531836]"));
}

#[test]
fn what_the_doctor_says_of_each_kind_is_what_a_snapshot_says() {
    let options = |kinds: &str| Options { kinds: Some(kinds.parse().unwrap()), ..Options::default() };
    let found = doctor(&options("process,cgroup,bpf")).unwrap();
    let observation = leakcheck::observe::snapshot(&options("process,cgroup,bpf")).unwrap();
    for (kind, coverage) in &observation.coverage.0 {
        assert_eq!(found.kinds[kind].level, coverage.level, "{kind}: {}", coverage.reason);
    }
}

#[test]
fn it_is_one_json_object_with_its_schema_that_reads_back() {
    let found = examine();
    let text = serde_json::to_string(&found).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["schema"], "leakcheck.doctor/1");
    assert_eq!(value["undetected"], "docs/explanation/undetected.md");
    assert!(value["sources"].as_array().unwrap().iter().all(|s| s["level"].is_string() && s["name"].is_string()));
    assert_eq!(serde_json::from_str::<Examination>(&text).unwrap(), found);
}

#[test]
fn it_leaves_no_descriptor_behind() {
    // Other tests of this binary open descriptors meanwhile: a process of its own is asked.
    let own = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "inner_descriptors", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    assert!(own.status.success(), "{}", String::from_utf8_lossy(&own.stdout));
}

#[test]
#[ignore = "run by it_leaves_no_descriptor_behind"]
fn inner_descriptors() {
    let list = || {
        let all = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|e| std::fs::read_link(e.ok()?.path()).ok());
        all.collect::<Vec<_>>()
    };
    examine();
    let before = list();
    examine();
    assert_eq!(list().len(), before.len(), "{:?} then {:?}", before, list());
}

#[test]
fn nobody_is_told_what_it_cannot_see_and_to_run_as_root() {
    if !is_root() {
        eprintln!("skipped: only root can become nobody");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.path().join("doctor");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let result = place.path().join("result");
    std::fs::File::create(&result).unwrap();
    std::fs::set_permissions(&result, std::fs::Permissions::from_mode(0o666)).unwrap();
    let status = Command::new(&program)
        .args(["--exact", "inner_nobody", "--ignored"])
        .env("LEAKCHECK_TEST_RESULT", &result)
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    let text = std::fs::read_to_string(&result).unwrap();
    assert!(status.success(), "{text}");
    let found: Examination = serde_json::from_str(&text).unwrap();
    assert_eq!((found.user.uid, found.user.capabilities.len()), (NOBODY, 0));
    assert_eq!(found.guard.verdict, Verdict::Clean, "{}", found.guard.because);
    assert!(found.kinds[&Kind::Bpf].fix.contains("run as root"), "{:?}", found.kinds[&Kind::Bpf]);
    assert!(found.kinds[&Kind::Fd].level == Level::Partial && !found.unreadable.is_empty());
    let sources: BTreeMap<_, _> = found.sources.iter().map(|s| (s.name.as_str(), &s.finding)).collect();
    assert_eq!(sources["fanotify mounts"].level, Level::None);
    let fanotify = sources["fanotify mounts"];
    let advice = ["CAP_SYS_ADMIN", "outside the container"];
    assert!(advice.iter().any(|word| fanotify.fix.contains(word)), "{fanotify:?}");
}

#[test]
#[ignore = "run by nobody_is_told_what_it_cannot_see_and_to_run_as_root"]
fn inner_nobody() {
    let Some(result) = std::env::var_os("LEAKCHECK_TEST_RESULT") else { return };
    let found = doctor(&Options { roots: Some(Vec::new()), ..Options::default() }).unwrap();
    std::fs::write(result, serde_json::to_string(&found).unwrap()).unwrap();
}
