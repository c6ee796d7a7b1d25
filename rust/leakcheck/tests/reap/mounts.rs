//! Run by `mounts_named_namespaces_loop_devices_and_interfaces_are_removed`, in mount and network namespaces of their own.

use std::fs;
use std::path::Path;
use std::process::Command;

use leakcheck::judge::attribute::Attribution;
use leakcheck::reap::{Status, Verb, reap};
use leakcheck::resource::{MountId, NetClass, Resource};
use leakcheck::text::Text;

use super::common::*;

fn sh(script: &str) -> bool {
    assert_ne!(
        fs::read_link("/proc/self/ns/mnt").unwrap(),
        fs::read_link("/proc/1/ns/mnt").unwrap_or_default(),
        "only in a mount namespace of its own"
    );
    Command::new("sh").args(["-ec", script]).status().unwrap().success()
}

fn mounts_at(path: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|l| l.split(' ').nth(4) == path.to_str()).count()
}

fn is_at_or_below(place: &Path) -> impl Fn(&Resource) -> bool {
    move |r| matches!(r, Resource::Mount(m) if m.target.as_path().starts_with(place))
}

#[test]
#[ignore = "needs a mount namespace of its own"]
fn stacked_and_nested_mounts_go_from_the_top() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let top = place.path();
    let mut run = Run::begin("mount", &[], &[]);
    assert!(sh(&format!(
        "mount -t tmpfs one {0}; mkdir {0}/a; mount -t tmpfs two {0}/a; mount -t tmpfs three {0}/a; mkdir {0}/a/b; mount -t tmpfs four {0}/a/b",
        top.display()
    )));
    let report = run.end_claiming(is_at_or_below(top));
    assert_eq!(report.leaks.len(), 4, "{:?}", report.leaks);
    let would = reap(&report, false).unwrap();
    assert!(would.iter().all(|a| a.status == Status::Would && a.action == Verb::Unmount), "{would:?}");
    assert_eq!((mounts_at(top), mounts_at(&top.join("a")), mounts_at(&top.join("a/b"))), (1, 2, 1));
    let done = reap(&report, true).unwrap();
    assert!(done.iter().all(|a| a.status == Status::Done), "{done:?}");
    assert_eq!(mounts_at(top), 0);
    assert!(reap(&report, true).unwrap().iter().all(|a| a.status == Status::Gone));
}

#[test]
#[ignore = "needs a mount namespace of its own"]
fn a_mount_that_carries_or_lies_below_another_ones_mount_stays() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let top = place.path();
    let mut run = Run::begin("mount", &[], &[]);
    assert!(sh(&format!("cd {}; mkdir a b c; for d in a b c; do mount -t tmpfs ours $d; done", top.display())));
    let report = run.end_claiming(is_at_or_below(top));
    assert_eq!(report.leaks.len(), 3, "{:?}", report.leaks);
    assert!(sh(&format!(
        "cd {}; mkdir a/x; mount -t tmpfs foreign a/x; mount -t tmpfs foreign b; umount c; mount -t tmpfs foreign c",
        top.display()
    )));
    for apply in [false, true] {
        let actions = reap(&report, apply).unwrap();
        let of = |name: &str| actions.iter().find(|a| a.label.contains(&format!("/{name}:"))).unwrap();
        assert_eq!((of("a").status, of("b").status, of("c").status), (Status::Failed, Status::Failed, Status::Gone));
        assert!(of("a").why.contains("carries") && of("b").why.contains("lies over"), "{actions:?}");
    }
    assert_eq!(["a", "b", "c", "a/x"].map(|d| mounts_at(&top.join(d))), [1, 2, 1, 1]);
    assert!(sh(&format!("cd {}; umount a/x a b b c", top.display())));
}

#[test]
#[ignore = "needs a mount namespace of its own"]
fn a_mount_known_by_its_mountinfo_line_only_is_compared_with_that() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let top = place.path();
    let mut run = Run::begin("mount", &[], &[]);
    assert!(sh(&format!("mount -t tmpfs 'a source' {}", top.display())));
    let report = run.end_claiming(is_at_or_below(top));
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|l| l.split(' ').nth(4) == top.to_str()).unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    let as_tuple = |id: &str| {
        altered(&report, |r| match r {
            Resource::Mount(m) => {
                let tuple = format!("{id} {} {} / {} tmpfs a source", words[1], words[2], top.display());
                m.id = MountId::Tuple(Text::from(tuple.into_bytes()));
            }
            other => panic!("{other:?}"),
        })
    };
    let other = words[0].parse::<u32>().unwrap() + 1;
    assert_eq!(reap(&as_tuple(&other.to_string()), true).unwrap()[0].status, Status::Gone);
    assert_eq!(mounts_at(top), 1);
    assert_eq!(reap(&as_tuple(words[0]), false).unwrap()[0].status, Status::Would);
    assert!(sh(&format!("mount -t tmpfs cover {}", top.display())));
    let covered = reap(&as_tuple(words[0]), true).unwrap();
    assert!(covered[0].status == Status::Failed && covered[0].why.contains("lies over"), "{covered:?}");
    assert!(sh(&format!("umount {}", top.display())));
    assert_eq!(reap(&as_tuple(words[0]), true).unwrap()[0].status, Status::Done);
    assert_eq!(mounts_at(top), 0);
}

#[test]
#[ignore = "needs a mount namespace of its own"]
fn a_mount_of_another_namespace_is_not_touched() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let mut run = Run::begin("mount", &[], &[]);
    assert!(sh(&format!("mount -t tmpfs x {}", place.path().display())));
    let report = run.end_claiming(is_at_or_below(place.path()));
    let elsewhere = altered(&report, |r| match r {
        Resource::Mount(m) => m.ns += 1,
        other => panic!("{other:?}"),
    });
    let actions = reap(&elsewhere, true).unwrap();
    assert_eq!((actions[0].action, actions[0].status), (Verb::None, Status::Skipped), "{actions:?}");
    assert_eq!(mounts_at(place.path()), 1);
    assert_eq!(reap(&report, true).unwrap()[0].status, Status::Done);
}

#[test]
#[ignore = "needs a mount namespace of its own"]
fn a_named_network_namespace_loses_its_mount_and_its_name() {
    let _alone = alone();
    // ip-netns(8) writes below /run: here into one of its own.
    assert!(sh("mount -t tmpfs run /run"));
    let mut run = Run::begin("net,mount", &[], &[]);
    if !sh("command -v ip > /dev/null && ip netns add leakcheck-test") {
        return eprintln!("skipped: no ip(8)");
    }
    let of_name = |r: &Resource| match r {
        Resource::Net(n) => n.class == NetClass::NamedNetns && n.name.as_bytes() == b"leakcheck-test",
        Resource::Mount(m) => m.target.as_bytes() == b"/run/netns/leakcheck-test",
        _ => false,
    };
    let mut report = run.end_claiming(of_name);
    report.leaks.retain(|l| of_name(&record(l)));
    let name = Path::new("/run/netns/leakcheck-test");
    assert!(report.leaks.len() >= 2 && mounts_at(name) == 1, "{:?}", report.leaks);
    assert!(reap(&report, false).unwrap().iter().all(|a| a.status == Status::Would));
    assert!(name.exists());
    let done = reap(&report, true).unwrap();
    let of = |kind: leakcheck::Kind| done.iter().find(|a| a.kind == kind).unwrap();
    assert_eq!(
        (of(leakcheck::Kind::Net).status, of(leakcheck::Kind::Mount).status),
        (Status::Done, Status::Gone),
        "{done:?}"
    );
    assert!(!name.exists());
}

#[test]
#[ignore = "needs a mount namespace of its own"]
fn a_loop_device_is_detached_unless_it_is_attached_anew() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("disk");
    fs::write(&file, vec![0; 1 << 20]).unwrap();
    let attach = || {
        let output = Command::new("losetup").args(["-f", "--show"]).arg(&file).output().ok()?;
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    };
    let mut run = Run::begin("loop", &[], &[]);
    let Some(device) = attach() else { return eprintln!("skipped: no loop device can be attached") };
    struct Detach(String);
    impl Drop for Detach {
        fn drop(&mut self) {
            let _ = Command::new("losetup").args(["-d", &self.0]).output();
        }
    }
    let _detach = Detach(device.clone());
    let report = run.end_claiming(|r| matches!(r, Resource::Loop(d) if d.backing.as_path() == file));
    let [_] = report.leaks.as_slice() else { panic!("{:?}", report.leaks) };
    assert_eq!(reap(&report, false).unwrap()[0].status, Status::Would);
    let attached = || Path::new("/sys/block").join(device.trim_start_matches("/dev/")).join("loop").exists();
    let other = altered(&report, |r| match r {
        Resource::Loop(d) => d.diskseq -= 1,
        other => panic!("{other:?}"),
    });
    assert_eq!(reap(&other, true).unwrap()[0].status, Status::Gone);
    assert!(attached());
    let done = reap(&report, true).unwrap();
    assert_eq!((done[0].status, done[0].action), (Status::Done, Verb::Detach), "{done:?}");
    assert!(!attached());
}

#[test]
#[ignore = "needs a network namespace of its own"]
fn an_interface_is_deleted_by_index_if_it_still_has_its_name() {
    let _alone = alone();
    let mut run = Run::begin("net", &[], &[]);
    if !sh(
        "ip link add lk-test type veth peer name lk-peer 2> /dev/null || ip link add lk-test type bridge 2> /dev/null",
    ) {
        return eprintln!("skipped: no interface can be made");
    }
    let of_test = |r: &Resource| matches!(r, Resource::Net(n) if n.name.as_bytes() == b"lk-test");
    let report = run.end_claiming(of_test);
    let records: Vec<_> = report.leaks.iter().map(record).filter(of_test).collect();
    let report = canned(&report.boot_id, records.into_iter(), Attribution::Creator);
    let [_] = report.leaks.as_slice() else { panic!("{:?}", report.leaks) };
    let exists = || {
        Path::new("/proc/self/net/dev").exists()
            && fs::read_to_string("/proc/self/net/dev").unwrap().contains("lk-test:")
    };
    let renamed = altered(&report, |r| match r {
        Resource::Net(n) => n.name = Text::from(b"lk-other"),
        other => panic!("{other:?}"),
    });
    assert_eq!(reap(&renamed, true).unwrap()[0].status, Status::Gone);
    assert_eq!(reap(&report, false).unwrap()[0].status, Status::Would);
    assert!(exists());
    assert_eq!(reap(&report, true).unwrap()[0].status, Status::Done);
    assert!(!exists());
}
