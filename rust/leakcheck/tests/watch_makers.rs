//! Who made which file, cgroup and mount, with real ones.

mod watch_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use leakcheck::watch::Membership::{Run, Stranger};
use leakcheck::watch::{Maker, Options, Watch};
use watch_support::*;

fn watching(paths: &[&Path]) -> Option<Watch> {
    let files = paths.iter().map(PathBuf::from).collect();
    let watch = Watch::start(&Options { files, ..Options::default() });
    let levels = watch.levels();
    let all = levels.files.iter().all(|(_, coverage)| available(coverage)) && available(&levels.descent);
    all.then_some(watch)
}

/// Both filesystems that every machine has: the disk's and a tmpfs.
fn roots() -> Vec<&'static str> {
    ["/tmp", "/dev/shm"].into_iter().filter(|p| Path::new(p).is_dir()).collect()
}

#[test]
fn files_of_every_type_are_told_from_the_noises_though_their_makers_are_dead() {
    for root in roots() {
        let directory = scratch(root);
        let at = |name: &str| directory.path().join(name);
        let make = "touch f; mkdir d; mkfifo p; ln -s /nowhere l; mknod s p";
        let script =
            |who: &str| format!("cd {} && mkdir {who} && cd {who} && {{ {make}; }}", directory.path().display());
        let noise = Puppet::new(&script("noise"));
        let Some(watch) = watching(&[directory.path()]) else { return };
        let run = Puppet::new(&script("run"));
        noise.act();
        run.act();
        watch.sync();
        for name in ["", "f", "d", "p", "l", "s"] {
            let of = |who: &str| watch.creator(&at(who).join(name)).map(|m| m.membership);
            assert_eq!(of("run"), Some(Run), "{root}: run/{name}");
            assert_eq!(of("noise"), Some(Stranger), "{root}: noise/{name}");
        }
        assert_eq!(watch.creator(directory.path()), None, "it was there before the start");
    }
}

#[test]
fn a_file_that_was_renamed_into_place_or_linked_is_of_who_made_it_and_who_named_it() {
    for root in roots() {
        let directory = scratch(root);
        let at = |name: &str| directory.path().join(name);
        let script = |body: &str| format!("cd {} && {{ {body}; }}", directory.path().display());
        fs::write(at("old"), "").expect("a file from before the start");
        let noise = Puppet::new(&script("touch n.tmp; mv n.tmp noise; mv r2 moved; ln noise linked-by-noise"));
        let Some(watch) = watching(&[directory.path()]) else { return };
        let run = Puppet::new(&script("touch r.tmp; mv r.tmp run; touch r2; mv old new"));
        let late = Puppet::new(&script("ln noise linked-by-run"));
        run.act();
        noise.act();
        late.act();
        watch.sync();
        let of = |name: &str| watch.creator(&at(name)).map(|m| m.membership);
        assert_eq!(of("run"), Some(Run));
        assert_eq!(of("moved"), Some(Run), "the noise only renamed it");
        assert_eq!(of("new"), Some(Run), "the run gave the name");
        assert_eq!(of("linked-by-run"), Some(Run), "the run gave the name");
        assert_eq!(of("noise"), Some(Stranger));
        assert_eq!(of("linked-by-noise"), Some(Stranger));
        assert_eq!(of("gone"), None);
    }
}

#[test]
fn a_path_is_found_through_links_and_by_a_relative_name() {
    let directory = scratch("/tmp");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(directory.path(), &link).expect("a link");
    let Some(watch) = watching(&[directory.path()]) else { return };
    let name = std::ffi::OsStr::new("a\nb \u{1b}[31m <b>");
    fs::write(directory.path().join(name), "").expect("a file");
    watch.sync();
    let me = Some(Maker { pid: std::process::id(), membership: Run });
    assert_eq!(watch.creator(&directory.path().join(name)), me);
    assert_eq!(watch.creator(&link.join(name)), me);
    assert_eq!(watch.creator(&link), None, "the link itself is older");
}

#[test]
fn a_cgroup_directory_is_attributed_in_v2_and_v1() {
    let parents = own_cgroups();
    if parents.is_empty() {
        eprintln!("skipped: no cgroup of ours is writable");
    }
    for parent in parents {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root may make cgroups in {}", parent.display());
            return;
        }
        let cgroup = TestCgroup::below(&parent);
        let (run, noise) = (cgroup.0.join("run"), cgroup.0.join("noise"));
        let noise_maker = Puppet::new(&format!("mkdir {}", noise.display()));
        let Some(watch) = watching(&[&parent]) else { return };
        noise_maker.act();
        Puppet::new(&format!("mkdir {}", run.display())).act();
        watch.sync();
        let of = |path| watch.creator(path).map(|m| m.membership);
        assert_eq!(of(&run), Some(Run), "{}", parent.display());
        assert_eq!(of(&noise), Some(Stranger), "{}", parent.display());
        assert_eq!(of(&cgroup.0), None);
    }
}

#[test]
fn a_path_that_cannot_be_watched_says_why_and_hinders_no_other() {
    let files = vec!["/proc".into(), "/nowhere/at/all".into(), "/tmp".into()];
    let watch = Watch::start(&Options { files, ..Options::default() });
    let levels = watch.levels().files;
    assert!(levels.iter().take(2).all(|(_, c)| !c.reason.is_empty()), "{levels:?}");
    if available(&levels[2].1) {
        assert!(levels[1].1.reason.contains("/nowhere/at/all"), "{levels:?}");
    }
}

#[test]
fn a_mount_is_attributed_to_the_task_that_attached_it() {
    let probe = Watch::start(&Options { mounts: true, ..Options::default() });
    if !available(&probe.levels().mounts) || !available(&probe.levels().descent) {
        return;
    }
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .args(role("mounter"))
        .env("LEAKCHECK_TEST_NAMESPACE", "1")
        .stdout(std::process::Stdio::null())
        .status()
        .expect("start unshare");
    assert!(status.success(), "in a mount namespace: {status}");
}

#[test]
#[ignore = "a role of the test above"]
fn mounter() {
    if std::env::var_os("LEAKCHECK_TEST_NAMESPACE").is_none() {
        return;
    }
    let directory = scratch("/tmp");
    let [by_run, by_noise] = ["run", "noise"].map(|name| {
        let path = directory.path().join(name);
        fs::create_dir(&path).expect("a mount point");
        path
    });
    let mount = |path: &Path| format!("exec mount -t tmpfs none {}", path.display());
    let noise = Puppet::new(&mount(&by_noise));
    let watch = Watch::start(&Options { mounts: true, ..Options::default() });
    let levels = watch.levels();
    assert!(available(&levels.mounts) && available(&levels.descent), "they were a moment ago");
    let noise = noise.act();
    let run = Puppet::new(&mount(&by_run)).act();
    watch.sync();
    assert_eq!(watch.mount_creator(mount_id(&by_run)), Some(Maker { pid: run, membership: Run }));
    assert_eq!(watch.mount_creator(mount_id(&by_noise)), Some(Maker { pid: noise, membership: Stranger }));
    assert_eq!(watch.mount_creator(mount_id(Path::new("/"))), None, "older than the watch");
    for path in [by_run, by_noise] {
        rustix::mount::unmount(&path, rustix::mount::UnmountFlags::empty()).expect("unmount what we mounted");
    }
}

fn mount_id(path: &Path) -> u64 {
    // STATX_MNT_ID_UNIQUE, Linux 6.8.
    let unique = rustix::fs::StatxFlags::from_bits_retain(0x4000);
    let statx = rustix::fs::statx(rustix::fs::CWD, path, rustix::fs::AtFlags::empty(), unique).expect("statx");
    assert_ne!(statx.stx_mask & 0x4000, 0, "the kernel knows unique mount ids");
    statx.stx_mnt_id
}
