//! Plants that go when the test does, whatever becomes of it.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use leakcheck::judge::attribute::Attribution;
use leakcheck::judge::class::Class;
use leakcheck::judge::report::Leak;
use leakcheck::judge::settle::Policy;
use leakcheck::reap::load;
use leakcheck::resource::{IpcClass, Resource};
use leakcheck::{Guard, Report, guard, observe};

/// A guard takes for its run's whatever this process starts: one test at a time.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn options(kinds: &str, roots: &[&Path], lock_files: &[PathBuf]) -> observe::Options {
    observe::Options {
        kinds: Some(kinds.parse().unwrap()),
        roots: Some(roots.iter().map(|p| p.to_path_buf()).collect()),
        lock_files: lock_files.to_vec(),
        ..observe::Options::default()
    }
}

/// A guarded run.
pub(crate) struct Run(Guard);

impl Run {
    pub(crate) fn begin(kinds: &str, roots: &[&Path], lock_files: &[PathBuf]) -> Run {
        let policy = Policy::new(Duration::from_millis(20));
        let observe = options(kinds, roots, lock_files);
        Run(Guard::begin(guard::Options { observe, policy, attributed_only: true, ..Default::default() }).unwrap())
    }

    /// What the guard attributes, and what lies in the roots of this test alone. Saved and loaded, as a user would.
    pub(crate) fn end_attributed(&mut self) -> Report {
        self.end_claiming(|_| false)
    }

    /// Likewise, with what the test knows to be its own: semaphores and queues name no creator, and below the first pid
    /// namespace nothing does.
    pub(crate) fn end_claiming(&mut self, claim: impl Fn(&Resource) -> bool) -> Report {
        let mut report = self.0.end(None).unwrap();
        let first = fs::read_link("/proc/self/ns/pid").unwrap() == Path::new("pid:[4026531836]");
        for mut leak in std::mem::take(&mut report.unattributed) {
            let resource = record(&leak);
            let in_roots = matches!(resource, Resource::File(_) | Resource::Lockfile(_));
            if in_roots || !first || claim(&resource) {
                leak.attribution = Attribution::Creator;
                report.leaks.push(leak);
            }
        }
        let text = serde_json::to_string(&report).unwrap();
        load(&text, Path::new("report.json")).unwrap()
    }
}

pub(crate) fn record(leak: &Leak) -> Resource {
    serde_json::from_value(leak.evidence["resource"].clone()).unwrap()
}

fn leak(resource: &Resource, attribution: Attribution) -> Leak {
    let mut evidence = serde_json::Map::new();
    evidence.insert("resource".to_owned(), serde_json::to_value(resource).unwrap());
    let (kind, key) = (resource.kind(), resource.key());
    Leak { kind, class: Class::Orphaned, label: key.clone(), attribution, key, evidence }
}

/// The report with its first record changed.
pub(crate) fn altered(report: &Report, change: impl Fn(&mut Resource)) -> Report {
    let mut altered = report.clone();
    for old in &mut altered.leaks {
        let mut resource = record(old);
        change(&mut resource);
        *old = leak(&resource, old.attribution);
    }
    altered
}

/// A report of these records.
pub(crate) fn canned(boot_id: &str, records: impl Iterator<Item = Resource>, attribution: Attribution) -> Report {
    let mut report = Report::empty(boot_id.to_owned(), leakcheck::snapshot::CoverageMap::default());
    report.leaks = records.map(|r| leak(&r, attribution)).collect();
    report.baseline_ns = 1;
    report
}

pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned()
}

/// Waits for something that has no event of its own.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::yield_now();
    }
}

pub(crate) fn bytes(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

/// Names in a directory, sorted.
pub(crate) fn entries(dir: &Path) -> Vec<OsString> {
    let names: BTreeSet<OsString> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.into_iter().collect()
}

/// A child of this process: its id is its own until it is waited for.
pub(crate) struct Planted(Child);

pub(crate) fn planted(command: &mut Command) -> Planted {
    planted_with(command, Stdio::null())
}

fn planted_with(command: &mut Command, input: Stdio) -> Planted {
    Planted(command.stdin(input).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

pub(crate) fn sleeper() -> Planted {
    let child = planted(Command::new("sleep").arg("600"));
    // Before its execve(2) it would look like this program.
    until("sleep runs", || fs::read(format!("/proc/{}/comm", child.pid())).unwrap() == b"sleep\n");
    child
}

impl Planted {
    /// One that alone has `input` open when this returns.
    pub(crate) fn with_input(command: &mut Command, input: fs::File) -> Planted {
        let child = planted_with(command, Stdio::from(input));
        command.stdin(Stdio::null());
        child
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// The signal that ended it; a failure when it has not ended.
    pub(crate) fn signal(&mut self) -> Option<i32> {
        self.0.try_wait().unwrap().expect("it has ended").signal()
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub(crate) fn wait_for_zombie_child(&self) {
        let pid = self.pid();
        until("a zombie", || {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            let zombie = |c: &str| fs::read_to_string(format!("/proc/{c}/stat")).is_ok_and(|s| s.contains(") Z "));
            fs::read(format!("/proc/{pid}/comm")).unwrap() == b"sleep\n" && children.split_whitespace().any(zombie)
        });
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cgroup directory of this test.
pub(crate) struct Cgroup(pub(crate) PathBuf);

impl Cgroup {
    /// Below the cgroup of this process; none where that is not permitted.
    pub(crate) fn plant_root() -> Option<Cgroup> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|l| l.contains(" - cgroup2 "))?.split(' ').nth(4)?.to_owned();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|l| l.strip_prefix("0::"))?.trim_start_matches('/').to_owned();
        let dir = Path::new(&mount).join(own).join(format!("leakcheck-test-{}", std::process::id()));
        fs::create_dir(&dir).ok().map(|()| Cgroup(dir))
    }

    pub(crate) fn child(&self, name: &str) -> Cgroup {
        let dir = self.0.join(name);
        fs::create_dir(&dir).unwrap();
        Cgroup(dir)
    }

    pub(crate) fn admit(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Those who are in it go back above.
        let above = self.0.parent().unwrap().join("cgroup.procs");
        for pid in fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(&above, pid);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

/// One SysV object of each class.
pub(crate) struct SystemV([(IpcClass, i32); 3]);

#[allow(unsafe_code, reason = "libc is the only way to these calls")]
impl SystemV {
    pub(crate) fn plant() -> SystemV {
        // SAFETY: the calls take numbers only.
        let ids = unsafe {
            [
                (IpcClass::Shm, libc::shmget(libc::IPC_PRIVATE, 4096, 0o600)),
                (IpcClass::Sem, libc::semget(libc::IPC_PRIVATE, 1, 0o600)),
                (IpcClass::Msg, libc::msgget(libc::IPC_PRIVATE, 0o600)),
            ]
        };
        let planted = SystemV(ids);
        assert!(ids.iter().all(|(_, id)| *id >= 0), "{ids:?}");
        planted
    }

    pub(crate) fn are(&self, resource: &Resource) -> bool {
        let Resource::Ipc(object) = resource else { return false };
        self.0.iter().any(|(class, id)| *class == object.class && object.id == u64::from(id.cast_unsigned()))
    }

    /// Which of them the kernel lists.
    pub(crate) fn exist(&self) -> [bool; 3] {
        self.0.map(|(class, id)| {
            let file = match class {
                IpcClass::Shm => "shm",
                IpcClass::Sem => "sem",
                _ => "msg",
            };
            let table = fs::read_to_string(format!("/proc/sysvipc/{file}")).unwrap();
            table.lines().skip(1).any(|l| l.split_whitespace().nth(1) == Some(&id.to_string()))
        })
    }
}

#[allow(unsafe_code, reason = "libc is the only way to these calls")]
impl Drop for SystemV {
    fn drop(&mut self) {
        for (class, id) in self.0 {
            // SAFETY: with IPC_RMID the kernel reads no memory of ours.
            let _ = unsafe {
                match class {
                    IpcClass::Shm => libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()),
                    IpcClass::Sem => libc::semctl(id, 0, libc::IPC_RMID),
                    _ => libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()),
                }
            };
        }
    }
}

/// A file in `/dev/shm`.
pub(crate) struct ShmFile(pub(crate) PathBuf);

impl ShmFile {
    pub(crate) fn plant() -> ShmFile {
        let path = Path::new("/dev/shm").join(format!("leakcheck-test-{}", std::process::id()));
        fs::write(&path, "x").unwrap();
        ShmFile(path)
    }
}

impl Drop for ShmFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A POSIX message queue.
pub(crate) struct Queue(CString);

#[allow(unsafe_code, reason = "libc is the only way to these calls")]
impl Queue {
    pub(crate) fn plant() -> Option<Queue> {
        let name = CString::new(format!("/leakcheck-test-{}", std::process::id())).unwrap();
        // SAFETY: the name ends in NUL; a null attribute means the defaults.
        let fd = unsafe {
            libc::mq_open(
                name.as_ptr(),
                libc::O_CREAT | libc::O_EXCL | libc::O_RDWR,
                0o600,
                std::ptr::null::<libc::mq_attr>(),
            )
        };
        if fd < 0 {
            return None;
        }
        // SAFETY: the descriptor is ours and used nowhere else.
        unsafe { libc::mq_close(fd) };
        Some(Queue(name))
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/dev/mqueue").join(self.0.to_str().unwrap().trim_start_matches('/'))
    }

    pub(crate) fn exists(&self) -> bool {
        // SAFETY: the name ends in NUL; the descriptor is closed at once.
        unsafe {
            let fd = libc::mq_open(self.0.as_ptr(), libc::O_RDONLY);
            fd >= 0 && libc::mq_close(fd) == 0
        }
    }
}

#[allow(unsafe_code, reason = "libc is the only way to these calls")]
impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the name ends in NUL.
        unsafe { libc::mq_unlink(self.0.as_ptr()) };
    }
}

/// A key in the user keyring.
pub(crate) struct PlantedKey(pub(crate) u32);

#[allow(unsafe_code, reason = "libc is the only way to these calls")]
impl PlantedKey {
    pub(crate) fn plant() -> Option<PlantedKey> {
        let description = CString::new(format!("leakcheck-test-{}", std::process::id())).unwrap();
        let keyring = libc::KEY_SPEC_USER_KEYRING;
        // SAFETY: both strings end in NUL, the payload is one byte long.
        let serial = unsafe {
            libc::syscall(libc::SYS_add_key, c"user".as_ptr(), description.as_ptr(), c"x".as_ptr(), 1usize, keyring)
        };
        u32::try_from(serial).ok().map(PlantedKey)
    }

    fn unlink(&self) -> bool {
        // SAFETY: the call takes numbers only.
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_UNLINK, self.0, libc::KEY_SPEC_USER_KEYRING) == 0 }
    }

    /// Whether the user keyring still has it.
    pub(crate) fn is_linked(&self) -> bool {
        let mut serials = [0u32; 1024];
        // SAFETY: the kernel writes at most that many bytes to the array.
        let length = unsafe {
            let (keyring, size) = (libc::KEY_SPEC_USER_KEYRING, size_of_val(&serials));
            libc::syscall(libc::SYS_keyctl, libc::KEYCTL_READ, keyring, serials.as_mut_ptr(), size)
        };
        let length = usize::try_from(length).expect("the user keyring can be read") / 4;
        serials[..length.min(serials.len())].contains(&self.0)
    }
}

impl Drop for PlantedKey {
    fn drop(&mut self) {
        self.unlink();
    }
}
