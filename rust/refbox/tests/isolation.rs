//! What a payload sees and may do, and that a hostile payload changes nothing for the next one.

mod common;

use std::fs;

use common::{Place, exists, root};

const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

#[test]
fn a_payload_has_namespaces_of_its_own_and_no_rights() {
    if !root() {
        return;
    }
    let place = Place::new("probe");
    let script = "for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done; cat /proc/self/status";
    let ran = place.run(4, &["--", "/bin/sh", "-c", script]);
    assert_eq!(ran.status(), "OK", "{}", ran.all());
    for (name, inside) in NAMESPACES.iter().zip(ran.stdout.lines()) {
        let outside = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert!(inside.starts_with(name) && inside != outside.to_str().unwrap(), "{name}: {inside}");
    }
    let status: Vec<(&str, &str)> = ran.stdout.lines().filter_map(|line| line.split_once(":\t")).collect();
    let value = |key: &str| status.iter().find(|(k, _)| *k == key).map_or("missing", |(_, v)| *v);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(value(set), "0000000000000000", "{set}");
    }
    assert_eq!((value("NoNewPrivs"), value("Seccomp")), ("1", "2"));
    assert_eq!(value("Uid"), "60004\t60004\t60004\t60004");
    assert_eq!(value("Groups").trim(), "");
}

#[test]
fn a_payload_sees_nothing_of_the_host_except_its_programs() {
    if !root() {
        return;
    }
    let place = Place::new("hidden");
    let secret = place.write("secret", "secret");
    for script in [
        "cat /etc/shadow".to_owned(),
        format!("cat {secret}"),
        "ls /root /home /var /sys".to_owned(),
        "cat /proc/1/cmdline".to_owned(),
        "echo x >/usr/x".to_owned(),
        "echo x >/x".to_owned(),
        "echo x >/proc/sys/kernel/hostname".to_owned(),
        "grep -v -e lo: -e '|' /proc/net/dev".to_owned(),
        "mount -t tmpfs none /tmp".to_owned(),
        "unshare --user true".to_owned(),
        "unshare --mount true".to_owned(),
        "chroot / true".to_owned(),
        "mknod /tmp/x b 8 0".to_owned(),
        "ls /proc/self/fd | grep -v -x -e 0 -e 1 -e 2 -e 3".to_owned(),
    ] {
        let ran = place.run(1, &["--", "/bin/sh", "-c", &script]);
        assert_eq!(ran.status(), "RE", "{script}: {}", ran.all());
    }
    let ran = place.run(1, &["--bind", place.dir.to_str().unwrap(), "--", "/bin/cat", &secret]);
    assert_eq!(ran.stdout, "secret", "{}", ran.all());
    let ran = place.run(1, &["--bind", place.dir.to_str().unwrap(), "--", "/bin/sh", "-c", &format!("echo >{secret}")]);
    assert_eq!(ran.status(), "RE", "{}", ran.all());
}

#[test]
fn system_calls_that_reach_beyond_the_box_are_denied() {
    if !root() || !exists("/usr/bin/python3") {
        return;
    }
    let place = Place::new("calls");
    // Numbers of x86-64: ptrace, unshare, setns, keyctl, bpf, io_uring_setup, clone3, and getpid by its x32 number.
    let script = "
import ctypes, errno, platform
libc = ctypes.CDLL(None, use_errno=True)
assert platform.machine() == 'x86_64'
for number, wanted in ((101, 1), (272, 1), (308, 1), (250, 1), (321, 1), (425, 1), (435, 38), (0x40000000 | 39, 38)):
    assert libc.syscall(number, 0, 0, 0) == -1 and ctypes.get_errno() == wanted, (number, ctypes.get_errno())
for flag in (0x20000, 0x10000000, 0x20000000, 0x40000000):
    assert libc.syscall(56, flag | 17, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1, flag
";
    if cfg!(target_arch = "x86_64") {
        let ran = place.run(1, &["--", "/usr/bin/python3", "-c", script]);
        assert_eq!(ran.status(), "OK", "{}", ran.all());
    }
}

#[test]
fn no_hostile_payload_escapes_or_changes_the_status_of_the_next() {
    if !root() {
        return;
    }
    let place = Place::new("hostile");
    let table: [(&str, &[&str], &[&str], &str); 13] = [
        (
            "fork bomb",
            &["--processes", "16", "--wall", "0.5"],
            &["TLE", "RE"],
            "f() { f | f & }; f; while :; do f; done",
        ),
        ("daemons", &[], &["OK"], "setsid sleep 600 & (setsid setsid sleep 600 &) ; exit 0"),
        ("zombies", &["--wall", "0.3"], &["TLE"], "for i in 1 2 3 4 5 6 7 8; do true & done; exec sleep 600"),
        ("litter", &[], &["OK"], "mkdir /tmp/d /dev/shm/d; echo x >/tmp/d/x; echo x >/dev/shm/d/x; echo x >x"),
        ("deaf", &["--wall", "0.3"], &["TLE"], "trap '' TERM INT HUP XCPU; sleep 600; sleep 600"),
        ("deaf spin", &["--cpu", "0.2"], &["TLE"], "trap '' TERM INT HUP XCPU; while :; do :; done"),
        ("flood", &["--output", "64K"], &["OLE"], "yes >&2 & yes"),
        ("no descriptors", &[], &["OK"], "exec 0<&- 1>&- 2>&-; exit 0"),
        ("stopped", &["--wall", "0.3"], &["TLE"], "sleep 600 & kill -STOP $! $$"),
        ("kills all", &["--wall", "1"], &["OK", "RE"], "kill -KILL -1; kill -KILL 1; exit 0"),
        ("memory in files", &["--memory", "16M"], &["MLE"], "head -c 64M /dev/zero >/dev/shm/x; exit 0"),
        ("many files", &["--memory", "64M", "--wall", "20"], &["RE", "MLE"], "cd /tmp; seq 1 70000 | xargs touch"),
        ("keeps the pipe", &[], &["OK"], "sleep 600 & exit 0"),
    ];
    for (name, limits, statuses, script) in table {
        let mut arguments = limits.to_vec();
        arguments.extend(["--", "/bin/sh", "-c", script]);
        let ran = place.run(3, &arguments);
        assert_eq!(ran.code, 0, "{name}: {}", ran.all());
        assert!(statuses.contains(&ran.status()), "{name}: {}", ran.all());
        place.assert_nothing_left(name);
        let next =
            place.run(3, &["--", "/bin/sh", "-c", "[ -z \"$(ls -A /tmp /box /dev/shm | grep -v :)\" ] && echo clean"]);
        assert_eq!((next.status(), next.stdout.trim()), ("OK", "clean"), "after {name}: {}", next.all());
    }
}

#[test]
fn a_hog_of_descriptors_and_sockets_ends_with_its_own_limit() {
    if !root() || !exists("/usr/bin/python3") {
        return;
    }
    let place = Place::new("hog");
    let script = "
import socket
held = []
try:
    while True:
        held.append(socket.socketpair())
except OSError as error:
    assert error.errno == 24, error
";
    let ran = place.run(1, &["--", "/usr/bin/python3", "-c", script]);
    assert_eq!(ran.status(), "OK", "{}", ran.all());
    place.assert_nothing_left("hog");
}
