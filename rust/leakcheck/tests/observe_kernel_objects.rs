//! The loop and key kinds against real objects. BPF objects are tested beside their system call wrapper.
#![allow(unsafe_code, reason = "keyctl(2), add_key(2) and the loop ioctls have no safe wrapper here")]

mod planted;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use leakcheck::kind::Kind;
use leakcheck::resource::{Key, LoopDevice};
use leakcheck::snapshot::Level;
use planted::{eventually, observation, on_a_thread, privileged};

fn see_keys() -> Vec<Key> {
    observation(&[Kind::Key]).keys
}

fn see_loops() -> Vec<LoopDevice> {
    observation(&[Kind::Loop]).loops
}

/// Attaches a file to a free loop device (loop(4)). The device detaches itself with its last descriptor, hence also
/// when the test is killed.
fn attach(backing: &File) -> (String, File) {
    const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
    const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
    const AUTOCLEAR: u32 = 4;
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").unwrap();
    for _ in 0..64 {
        // SAFETY: takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        assert!(number >= 0, "{}", std::io::Error::last_os_error());
        let name = format!("loop{number}");
        let device = OpenOptions::new().read(true).write(true).open(format!("/dev/{name}")).unwrap();
        // struct loop_config: the descriptor first, lo_flags 60 bytes in.
        let mut config = [0_u32; 76];
        config[0] = backing.as_raw_fd().cast_unsigned();
        config[15] = AUTOCLEAR;
        // SAFETY: the kernel reads sizeof(struct loop_config) = 304 bytes, which is what `config` has.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, config.as_ptr()) } == 0 {
            return (name, device);
        }
        let error = std::io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "{error}");
    }
    panic!("no loop device stays free");
}

/// One test at a time: to read the keys of others, a look makes the whole process undumpable for a moment.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[test]
fn sees_an_attached_loop_device_with_a_hostile_backing_name_until_it_is_detached() {
    let _alone = alone();
    if !privileged("sees_an_attached_loop_device") || !Path::new("/dev/loop-control").exists() {
        eprintln!("not run: no /dev/loop-control");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image \x1b[1m<b>\n");
    let backing = File::create_new(&path).unwrap();
    backing.set_len(1 << 20).unwrap();
    let (name, device) = attach(&backing);
    let found = see_loops();
    let record = found.iter().find(|r| r.device.to_string() == name).expect("the device");
    assert_eq!(record.backing.as_path(), path);
    assert_ne!(record.diskseq, 0);
    drop(device);
    eventually("the device is detached", || see_loops().iter().all(|r| r.diskseq != record.diskseq));
    let (_, device) = attach(&backing);
    let again = see_loops();
    assert!(again.iter().any(|r| r.backing == record.backing && r.diskseq != record.diskseq), "another attachment");
    drop(device);
}

/// A session keyring of the calling thread's own, which goes with the thread, and all keys in it.
fn join_session_keyring() {
    // SAFETY: a null name asks for an anonymous keyring.
    let serial = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<i8>()) };
    assert!(serial > 0, "{}", std::io::Error::last_os_error());
}

fn add_key(key_type: &str, description: &[u8], payload: &[u8]) -> u32 {
    let (key_type, description) = (CString::new(key_type).unwrap(), CString::new(description).unwrap());
    // SAFETY: both strings are NUL-terminated and the payload has the length that is passed.
    let serial = unsafe {
        libc::syscall(
            libc::SYS_add_key,
            key_type.as_ptr(),
            description.as_ptr(),
            payload.as_ptr(),
            payload.len(),
            libc::KEY_SPEC_SESSION_KEYRING,
        )
    };
    assert!(serial > 0, "add_key: {}", std::io::Error::last_os_error());
    u32::try_from(serial).unwrap()
}

fn keyctl(operation: u32, serial: u32) {
    // SAFETY: both operations that are used here take one serial.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, operation, serial, libc::KEY_SPEC_SESSION_KEYRING) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn find(keys: &[Key], serial: u32) -> Option<&Key> {
    keys.iter().find(|key| key.serial == serial)
}

#[test]
fn sees_a_key_exactly_until_it_is_unlinked() {
    let _alone = alone();
    on_a_thread(|| {
        join_session_keyring();
        let description = b"leakcheck: a b: 16\x1b[1m\xff".as_slice();
        let serial = add_key("user", description, b"secret");
        let found = see_keys();
        let record = find(&found, serial).expect("the key");
        assert_eq!((record.key_type.as_bytes(), record.description.as_bytes()), (b"user".as_slice(), description));
        assert_eq!(record.uid, rustix::process::geteuid().as_raw());
        keyctl(libc::KEYCTL_UNLINK, serial);
        eventually("the key is gone", || find(&see_keys(), serial).is_none());
    });
}

#[test]
fn a_description_that_imitates_the_list_makes_no_key() {
    let _alone = alone();
    on_a_thread(|| {
        join_session_keyring();
        let forged =
            b"x: 1\n00beef01 I--Q---     1 perm 3f010000     0     0 user      forged: 16\nnonsense".as_slice();
        let serial = add_key("user", forged, b"secret");
        let found = see_keys();
        assert_eq!(find(&found, serial).expect("the key").description.as_bytes(), forged);
        assert_eq!(find(&found, 0x00be_ef01), None);
        assert!(found.iter().all(|key| key.description.as_bytes() != b"forged"));
    });
}

#[test]
fn a_revoked_key_is_still_a_key_and_an_invalidated_one_is_none() {
    let _alone = alone();
    on_a_thread(|| {
        join_session_keyring();
        let revoked = add_key("user", b"leakcheck revoked: 7", b"secret");
        let invalidated = add_key("user", b"leakcheck invalidated", b"secret");
        let before = see_keys();
        keyctl(libc::KEYCTL_REVOKE, revoked);
        keyctl(libc::KEYCTL_INVALIDATE, invalidated);
        let after = see_keys();
        assert_eq!(find(&after, revoked), find(&before, revoked), "the same identity");
        assert!(find(&before, invalidated).is_some());
        assert_eq!(find(&after, invalidated), None);
    });
}

#[test]
fn another_users_key_in_the_place_of_one_that_was_seen_is_seen() {
    let _alone = alone();
    if !privileged("another_users_key_in_the_place_of_one_that_was_seen_is_seen") {
        return;
    }
    let (planted, plant) = std::sync::mpsc::channel();
    let (next, wait) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            join_session_keyring();
            // SAFETY: concerns the file system uid of this thread alone, which ends.
            unsafe { libc::syscall(libc::SYS_setfsuid, 54_322) };
            let first = add_key("user", b"leakcheck first", b"secret");
            planted.send(first).unwrap();
            wait.recv().unwrap();
            keyctl(libc::KEYCTL_UNLINK, first);
            planted.send(add_key("user", b"leakcheck second", b"secret")).unwrap();
            // Ends when the sender is dropped, by a panic too.
            let _ = wait.recv();
        });
        let next = next;
        let first = plant.recv().unwrap();
        for _ in 0..3 {
            assert!(find(&see_keys(), first).is_some(), "also where nothing changed");
        }
        next.send(()).unwrap();
        let second = plant.recv().unwrap();
        let found = see_keys();
        assert!(find(&found, second).is_some());
        eventually("the first key is gone", || find(&see_keys(), first).is_none());
        assert!(find(&see_keys(), second).is_some());
        drop(next);
    });
}

#[test]
fn root_sees_other_users_keys_and_stays_as_it_was() {
    let _alone = alone();
    const OTHER: u32 = 54_321;
    if !privileged("root_sees_other_users_keys_and_stays_as_it_was") {
        return;
    }
    let (planted, plant) = std::sync::mpsc::channel();
    let (finish, finished) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            join_session_keyring();
            // SAFETY: concerns the file system uid of this thread alone, which ends.
            unsafe { libc::syscall(libc::SYS_setfsuid, OTHER) };
            planted.send(add_key("user", b"leakcheck other", b"secret")).unwrap();
            // Ends when the sender is dropped, by a panic too.
            let _ = finished.recv();
        });
        let finish = finish;
        let serial = plant.recv().unwrap();
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable).unwrap();
        let found = observation(&[Kind::Key]);
        assert_eq!(find(&found.keys, serial).expect("the other user's key").uid, OTHER);
        assert_eq!(found.coverage.0[&Kind::Key].level, Level::Full, "{:?}", found.coverage);
        let dumpable = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(dumpable, rustix::process::DumpableBehavior::Dumpable, "the process is as it was");
        let unprivileged = on_a_thread(|| {
            planted::keep_only(rustix::thread::CapabilitySet::empty());
            observation(&[Kind::Key])
        });
        assert_eq!(find(&unprivileged.keys, serial), None);
        let coverage = &unprivileged.coverage.0[&Kind::Key];
        assert_eq!(coverage.level, Level::Partial);
        assert!(coverage.reason.contains("54321"), "{}", coverage.reason);
        drop(finish);
    });
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    assert!(status.contains("Uid:\t0\t0\t0\t0"), "this thread kept its file system uid");
}
