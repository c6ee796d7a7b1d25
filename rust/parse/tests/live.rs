//! The parsers against the kernel that runs the tests: what it prints of this very process must come out right.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use leakcheck_parse::fdlink::FdLink;
use leakcheck_parse::locks::LockKind;
use leakcheck_parse::*;

fn read(path: &str) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

#[test]
fn this_process_has_its_own_pid_in_stat_and_status() {
    let text = read("/proc/self/stat");
    let stat = stat::parse(&text).unwrap();
    let status = status::parse(&read("/proc/self/status")).unwrap();
    assert_eq!(stat.pid.cast_unsigned(), std::process::id());
    assert_eq!((Some(stat.pid), Some(stat.ppid)), (status.pid, status.ppid));
    assert_eq!(status.uid.unwrap()[1], fs::metadata("/proc/self").unwrap().uid());
}

#[test]
fn every_process_of_this_machine_has_a_stat_that_parses() {
    let mut seen = 0;
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // Processes end while we look.
        let Ok(text) = fs::read(entry.path().join("stat")) else {
            continue;
        };
        if text.is_empty() {
            continue;
        }
        assert_eq!(stat::parse(&text).unwrap().pid, pid);
        seen += 1;
    }
    assert!(seen > 0);
}

#[test]
fn a_flocked_open_file_shows_its_lock_inode_and_path() {
    let file = tempfile::Builder::new().prefix("a\nb (deleted)").tempfile().unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let fd = file.as_file().as_raw_fd();
    let info = fdinfo::parse(&read(&format!("/proc/self/fdinfo/{fd}")));
    assert_eq!(info.malformed, None);
    let inode = file.as_file().metadata().unwrap().ino();
    let [lock] = info.locks[..] else { panic!("{:?}", info.locks) };
    assert_eq!((lock.kind, lock.inode, lock.end), (LockKind::Flock, inode, None));
    let all = locks::parse(&read("/proc/locks")).unwrap();
    assert!(all.iter().any(|other| (other.dev, other.inode) == (lock.dev, inode)));

    let link = || fs::read_link(format!("/proc/self/fd/{fd}")).unwrap().into_os_string().into_encoded_bytes();
    let name = file.path().as_os_str().as_encoded_bytes();
    assert_eq!(fdlink::parse(&link()), FdLink::Path { path: name, deleted: false });
    let (file, path) = file.keep().unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(fdlink::parse(&link()), FdLink::Path { path: path.as_os_str().as_encoded_bytes(), deleted: true });
    assert_eq!(file.metadata().unwrap().nlink(), 0);
}

#[test]
fn a_pipe_and_a_socket_are_known_by_their_inodes() {
    let (end, _other) = std::io::pipe().unwrap();
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let link = |fd: i32| fs::read_link(format!("/proc/self/fd/{fd}")).unwrap().into_os_string().into_encoded_bytes();
    let inode = rustix::fs::fstat(&end).unwrap().st_ino;
    assert_eq!(fdlink::parse(&link(end.as_raw_fd())), FdLink::Pipe(inode));
    let inode = rustix::fs::fstat(&socket).unwrap().st_ino;
    assert_eq!(fdlink::parse(&link(socket.as_raw_fd())), FdLink::Socket(inode));
}

#[test]
fn the_mount_of_the_root_directory_is_listed_with_its_device() {
    let text = read("/proc/self/mountinfo");
    let mounts = mountinfo::parse(&text).unwrap();
    let device = Device::from_raw(fs::metadata("/").unwrap().dev());
    assert!(mounts.iter().any(|mount| *mount.mount_point == *b"/" && mount.major == device.major));
}

#[test]
fn every_mapping_of_this_process_parses() {
    let text = read("/proc/self/maps");
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let mapping = maps::parse_line(line).unwrap();
        assert!(mapping.start < mapping.end);
    }
    assert!(maps::deleted(&text).all(|mapping| mapping.is_ok()));
}

#[test]
fn the_namespace_links_of_this_process_are_known() {
    for entry in fs::read_dir("/proc/self/ns").unwrap().flatten() {
        let link = fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes();
        let (ns_type, inode) = nslink::parse(&link).unwrap();
        assert!(entry.file_name().to_str().unwrap().starts_with(ns_type.as_str()));
        assert_eq!(fs::metadata(entry.path()).unwrap().ino(), inode);
    }
}

/// Some of these files need a kernel option; where the kernel has the file, it must parse.
#[test]
fn the_files_that_this_kernel_has_parse() {
    let present = |path: &str| fs::read(path).ok();
    if let Some(text) = present("/proc/self/cgroup") {
        cgroup::parse(&text).unwrap();
    }
    if let Some(text) = present("/proc/cgroups") {
        cgroup::parse_controllers(&text).unwrap();
    }
    if let Some(text) = present("/proc/sysvipc/shm") {
        sysvipc::parse_shm(&text).unwrap();
        sysvipc::parse_sem(&read("/proc/sysvipc/sem")).unwrap();
        sysvipc::parse_msg(&read("/proc/sysvipc/msg")).unwrap();
    }
    if let Some(text) = present("/proc/keys").filter(|text| !text.is_empty()) {
        keys::parse(&text).unwrap();
        keys::parse_key_users(&read("/proc/key-users")).unwrap();
    }
    if let Some(text) = present("/proc/net/sockstat") {
        assert!(sockstat::in_use(&text, "TCP").is_some() && sockstat::in_use(&text, "UDP").is_some());
    }
}
