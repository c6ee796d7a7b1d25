//! The ipc kind against real objects.
#![allow(
    unsafe_code,
    reason = "System V and POSIX IPC have no safe wrapper here; each call is a number in, a number out"
)]

mod planted;

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use leakcheck::kind::Kind;
use leakcheck::resource::{Ipc, IpcClass};
use leakcheck::snapshot::Level;
use planted::{Guard, Sandbox, eventually, keep_only, observation, on_a_thread, privileged};
use rustix::thread::CapabilitySet;

fn see() -> Vec<Ipc> {
    observation(&[Kind::Ipc]).ipc
}

fn own_ipcns() -> u64 {
    fs::metadata("/proc/thread-self/ns/ipc").expect("stat").ino()
}

/// A System V object, removed when dropped, in the IPC namespace of the thread that drops it.
struct SystemV {
    class: IpcClass,
    id: i32,
}

impl SystemV {
    fn new(class: IpcClass) -> Self {
        const FLAGS: i32 = libc::IPC_CREAT | 0o600;
        let id = match class {
            // SAFETY: numbers only.
            IpcClass::Shm => unsafe { libc::shmget(libc::IPC_PRIVATE, 8192, FLAGS) },
            // SAFETY: numbers only.
            IpcClass::Sem => unsafe { libc::semget(libc::IPC_PRIVATE, 3, FLAGS) },
            // SAFETY: numbers only.
            IpcClass::Msg => unsafe { libc::msgget(libc::IPC_PRIVATE, FLAGS) },
            IpcClass::PosixShm | IpcClass::Mqueue => unreachable!("not System V"),
        };
        assert!(id >= 0, "{class:?}: {}", std::io::Error::last_os_error());
        SystemV { class, id }
    }

    fn find<'a>(&self, ipc: &'a [Ipc], ns: u64) -> Option<&'a Ipc> {
        ipc.iter().find(|r| (r.ns, r.class, r.id) == (ns, self.class, self.id.cast_unsigned().into()))
    }
}

impl Drop for SystemV {
    fn drop(&mut self) {
        match self.class {
            // SAFETY: IPC_RMID takes no buffer.
            IpcClass::Shm => unsafe { libc::shmctl(self.id, libc::IPC_RMID, std::ptr::null_mut()) },
            // SAFETY: IPC_RMID takes no argument.
            IpcClass::Sem => unsafe { libc::semctl(self.id, 0, libc::IPC_RMID) },
            // SAFETY: IPC_RMID takes no buffer.
            IpcClass::Msg => unsafe { libc::msgctl(self.id, libc::IPC_RMID, std::ptr::null_mut()) },
            IpcClass::PosixShm | IpcClass::Mqueue => unreachable!("not System V"),
        };
    }
}

/// A message queue of this name in the calling thread's IPC namespace, with a guard that unlinks it there.
fn queue(name: &[u8]) -> impl Drop {
    let name = CString::new([b"/", name].concat()).unwrap();
    // SAFETY: the name is NUL-terminated; no attributes are the kernel's defaults.
    let queue = unsafe {
        let no_attributes = std::ptr::null_mut::<libc::mq_attr>();
        libc::mq_open(name.as_ptr(), libc::O_CREAT | libc::O_EXCL | libc::O_RDWR, 0o600, no_attributes)
    };
    assert!(queue >= 0, "mq_open: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is this function's own, and the name outlives the call.
    Guard(move || unsafe {
        libc::mq_close(queue);
        libc::mq_unlink(name.as_ptr());
    })
}

#[test]
fn sees_system_v_objects_until_they_are_removed() {
    let ns = own_ipcns();
    let planted = [IpcClass::Shm, IpcClass::Sem, IpcClass::Msg].map(SystemV::new);
    let ipc = see();
    let records: Vec<&Ipc> = planted.iter().map(|p| p.find(&ipc, ns).expect("the planted object")).collect();
    assert_eq!(records.iter().map(|r| r.size).collect::<Vec<_>>(), [8192, 3, 0]);
    assert_eq!((records[0].creator, records[0].attached), (std::process::id(), 0));
    assert!(records.iter().all(|r| r.uid == rustix::process::geteuid().as_raw() && r.birth.is_none()));
    assert_eq!(records[0].name.to_string(), "key 0x00000000");
    let ids = planted.each_ref().map(|p| (p.class, u64::from(p.id.cast_unsigned())));
    drop(planted);
    let ipc = see();
    assert!(ipc.iter().all(|r| r.ns != ns || !ids.contains(&(r.class, r.id))));
}

#[test]
fn sees_a_message_queue_with_a_hostile_name_until_it_is_unlinked() {
    if !privileged("sees_a_message_queue_with_a_hostile_name_until_it_is_unlinked") {
        return;
    }
    let name = [b"lc \n\x1b[1m\xff ".as_slice(), std::process::id().to_string().as_bytes()].concat();
    let planted = queue(&name);
    let is_it = |r: &Ipc| r.class == IpcClass::Mqueue && r.name.as_bytes().ends_with(&name);
    let found = observation(&[Kind::Ipc]);
    // Some machines' process 1 refuses even root.
    let coverage = &found.coverage.0[&Kind::Ipc];
    assert!(coverage.level == Level::Full || coverage.reason.ends_with("(1 process in all)"), "{coverage:?}");
    let record = found.ipc.iter().find(|r| is_it(r)).expect("the queue");
    assert_eq!(record.ns, own_ipcns());
    assert_eq!(record.name.as_bytes(), [b"/dev/mqueue/", name.as_slice()].concat());
    drop(planted);
    assert!(!see().iter().any(is_it));
}

#[test]
fn sees_the_objects_of_a_sandboxs_own_ipc_namespace_and_not_as_the_hosts() {
    if !privileged("sees_the_objects_of_a_sandboxs_own_ipc_namespace_and_not_as_the_hosts") {
        return;
    }
    let sandbox = Sandbox::new();
    let ns = sandbox.ipcns();
    // They go with their namespace; here there is nothing to remove them from.
    sandbox.inside(|| {
        std::mem::forget((queue(b"boxed"), [IpcClass::Shm, IpcClass::Sem, IpcClass::Msg].map(SystemV::new)))
    });
    let ipc = see();
    let mut classes: Vec<IpcClass> = ipc.iter().filter(|r| r.ns == ns).map(|r| r.class).collect();
    classes.sort();
    assert_eq!(classes, [IpcClass::Shm, IpcClass::Sem, IpcClass::Msg, IpcClass::Mqueue]);
    drop(sandbox);
    eventually("the namespace is gone", || see().iter().all(|r| r.ns != ns));
}

#[test]
fn sees_posix_shared_memory_and_named_semaphores_until_they_are_unlinked() {
    let pid = std::process::id();
    let names = [format!("lc \n\x1b[1m{pid}").into_bytes(), format!("sem.lc-{pid}").into_bytes()];
    let paths = names.each_ref().map(|name| Path::new("/dev/shm").join(OsStr::from_bytes(name)));
    let planted = Guard(|| paths.iter().for_each(|path| drop(fs::remove_file(path))));
    for path in &paths {
        fs::write(path, "12345").unwrap();
    }
    // Neither a directory nor a link is an object of shm_open(3).
    let dir = tempfile::Builder::new().prefix("lc").tempdir_in("/dev/shm").unwrap();
    let ipc = see();
    for path in &paths {
        let meta = fs::metadata(path).unwrap();
        let record = ipc.iter().find(|r| r.class == IpcClass::PosixShm && r.id == meta.ino()).expect("the object");
        assert_eq!((record.name.as_path(), record.size, record.ns), (path.as_path(), 5, 0));
        let created = meta.created().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        assert_eq!(record.birth, created.map(|t| i64::try_from(t.as_nanos()).unwrap()));
    }
    assert!(ipc.iter().all(|r| r.name.as_path() != dir.path()));
    drop(planted);
    assert!(see().iter().all(|r| !paths.iter().any(|path| r.name.as_path() == path)));
}

#[test]
fn without_privilege_it_sees_system_v_objects_of_its_own_namespace_and_says_what_is_missing() {
    if !privileged("without_privilege_it_sees_system_v_objects_of_its_own_namespace_and_says_what_is_missing") {
        return;
    }
    let sandbox = Sandbox::new();
    let planted = SystemV::new(IpcClass::Sem);
    let found = on_a_thread(|| {
        keep_only(CapabilitySet::SYS_PTRACE);
        observation(&[Kind::Ipc])
    });
    assert!(planted.find(&found.ipc, own_ipcns()).is_some());
    assert!(found.ipc.iter().all(|r| r.ns != sandbox.ipcns()));
    let coverage = &found.coverage.0[&Kind::Ipc];
    assert_eq!(coverage.level, Level::Partial);
    assert!(coverage.reason.contains("enter namespace"), "{}", coverage.reason);
    assert!(coverage.reason.contains("CAP_SYS_ADMIN"), "{}", coverage.reason);
}
