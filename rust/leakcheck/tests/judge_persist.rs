//! Saved snapshots: read back, or refused in one clear line; written whole or not at all.

mod canned;

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;

use canned::*;
use leakcheck::judge::diff::diff;
use leakcheck::persist::write_whole;
use leakcheck::{Error, Snapshot};

fn refused(path: &Path) -> String {
    let error = Snapshot::load(path).expect_err("a damaged file");
    assert!(matches!(error, Error::Saved { .. }) && error.is_usage(), "{error:?}");
    let message = error.to_string();
    assert!(message.starts_with(&path.display().to_string()) && !message.contains('\n'), "{message}");
    message
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_snapshot_saves_and_loads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    let snapshot = with(host(), one_of_each());
    snapshot.save(&path).unwrap();
    assert!(diff(&snapshot, &Snapshot::load(&path).unwrap()).unwrap().is_empty());
    assert_eq!(names(dir.path()), ["a.json"]);
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    let json = with(host(), one_of_each()).to_json().unwrap();
    for end in (1..json.len()).step_by(97) {
        fs::write(&path, &json[..end]).unwrap();
        let message = refused(&path);
        assert!(message.contains("is truncated") && message.contains("make it again"), "{end}: {message}");
    }
}

#[test]
fn what_is_no_snapshot_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    let newer = with(host(), one_of_each()).to_json().unwrap().replace("leakcheck.snapshot/1", "leakcheck.snapshot/2");
    let damaged = with(host(), one_of_each()).to_json().unwrap().replace("\"ppid\":1", "\"ppid\":-1");
    for (content, part) in [
        (newer.as_bytes(), "has schema \"leakcheck.snapshot/2\""),
        (br#"{"schema": "leakcheck.report/1"}"#, "has schema \"leakcheck.report/1\""),
        (b"{}", "has no schema"),
        (damaged.as_bytes(), "is damaged"),
        (b"", "is truncated"),
        (b"hello", "is not JSON"),
        (b"[1]", "is damaged"),
        (b"\xff\xfe", "cannot be read"),
    ] {
        fs::write(&path, content).unwrap();
        let message = refused(&path);
        assert!(message.contains(part), "{message}");
    }
    assert!(refused(dir.path()).contains("cannot be read"), "a directory");
    assert!(refused(&dir.path().join("none")).contains("cannot be read"), "nothing there");
}

#[test]
fn a_snapshot_of_another_boot_loads_but_is_not_compared() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    Snapshot { boot_id: "before".to_owned(), ..host() }.save(&path).unwrap();
    let error = diff(&Snapshot::load(&path).unwrap(), &host()).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("two boots"), "{error}");
}

#[test]
fn a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none/a.json");
    let error = write_whole(&missing, b"new").unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot write {}", missing.display())), "{error}");
    let error = write_whole(dir.path(), b"new").unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("is a directory"), "{error}");
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn a_directory_that_may_not_be_written_leaves_the_old_file() {
    if rustix::process::geteuid().is_root() {
        // Root may write everywhere.
        return as_nobody("a_directory_that_may_not_be_written_leaves_the_old_file");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    write_whole(&path, b"old").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
    let written = write_whole(&path, b"new");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(written.unwrap_err().to_string().contains("permission denied"));
    assert_eq!((fs::read(&path).unwrap(), names(dir.path())), (b"old".to_vec(), vec!["a.json".to_owned()]));
}

/// Runs one test of this file again as an ordinary user.
fn as_nobody(test: &str) {
    let own = std::env::current_exe().unwrap();
    // The build directory may be root's alone: the program goes where nobody can reach it.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = dir.path().join("test");
    fs::copy(own, &copy).unwrap();
    let status = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(copy)
        .args(["--exact", test])
        .current_dir("/")
        .env("TMPDIR", "/tmp")
        .status();
    assert!(status.expect("setpriv of util-linux").success());
}

#[allow(unsafe_code)]
fn leave_mount_namespace() {
    // SAFETY: no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
}

#[test]
fn a_full_disk_leaves_the_old_file() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting a small tmpfs needs root");
        return;
    }
    // In a mount namespace of a thread of its own, which ends with it.
    let small = || {
        leave_mount_namespace();
        let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", dir.path(), "tmpfs", flags, c"size=64k").unwrap();
        let path = dir.path().join("a.json");
        write_whole(&path, b"old").unwrap();
        let error = write_whole(&path, &vec![b'x'; 1 << 20]).unwrap_err().to_string();
        assert!(error.contains("a.json: no space left"), "{error}");
        assert_eq!((fs::read(&path).unwrap(), names(dir.path())), (b"old".to_vec(), vec!["a.json".to_owned()]));
        rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::empty()).unwrap();
    };
    std::thread::spawn(small).join().unwrap();
}

#[test]
fn a_link_is_followed_and_a_pipe_is_written_to_and_stays_a_pipe() {
    let dir = tempfile::tempdir().unwrap();
    let (target, link) = (dir.path().join("target"), dir.path().join("link"));
    write_whole(&target, b"old").unwrap();
    symlink(&target, &link).unwrap();
    write_whole(&link, b"new").unwrap();
    assert!(link.is_symlink());
    assert_eq!(fs::read(&target).unwrap(), b"new");
    let pipe = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read(pipe).unwrap()
    });
    write_whole(&pipe, b"through").unwrap();
    assert_eq!(reader.join().unwrap(), b"through");
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    assert_eq!(names(dir.path()), ["link", "pipe", "target"]);
}
