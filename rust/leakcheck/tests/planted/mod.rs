//! What the observer tests plant, each with a guard that removes it, also when the test panics.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses a part")]

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use leakcheck::Snapshot;
use leakcheck::kind::Kind;
use leakcheck::observe::{Options, snapshot};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType, move_into_link_name_space};

/// Observes these kinds on the whole host.
pub fn observation(kinds: &[Kind]) -> Snapshot {
    let kinds = Some(kinds.iter().copied().collect());
    snapshot(&Options { kinds, ..Options::default() }).expect("a snapshot of the host")
}

/// Whether the test may do what only root may; says so where the test then shows nothing.
pub fn privileged(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root()
        && rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    if !root {
        eprintln!("{test}: not run: needs root with CAP_SYS_ADMIN");
    }
    root
}

/// Takes every capability but `kept` from the calling thread, for good: run it on a thread of its own.
pub fn keep_only(kept: CapabilitySet) {
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).expect("capabilities can be dropped");
}

/// Tries until `done`, for what the kernel frees behind its callers' backs; panics when it takes over a minute.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        std::thread::yield_now();
    }
}

/// A process in new network and IPC namespaces, which ends with this value or with the test.
pub struct Sandbox(Child);

impl Sandbox {
    pub fn new() -> Self {
        let script = "exec 9>/dev/null; echo ready; exec cat >&9";
        let mut command = Command::new("unshare");
        command.args(["--net", "--ipc", "sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("unshare(1) starts");
        let mut ready = [0; 6];
        child.stdout.take().expect("piped").read_exact(&mut ready).expect("the sandbox is up");
        Sandbox(child)
    }

    fn namespace(&self, name: &str) -> File {
        File::open(format!("/proc/{}/ns/{name}", self.0.id())).expect("the sandbox lives")
    }

    pub fn netns(&self) -> u64 {
        self.namespace("net").metadata().expect("stat").ino()
    }

    pub fn ipcns(&self) -> u64 {
        self.namespace("ipc").metadata().expect("stat").ino()
    }

    /// The sandbox's network namespace as a path.
    pub fn netns_path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// Runs `f` in both namespaces, on a thread of its own.
    pub fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let (net, ipc) = (self.namespace("net"), self.namespace("ipc"));
        on_a_thread(move || {
            move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
            move_into_link_name_space(ipc.as_fd(), Some(LinkNameSpaceType::InterProcessCommunication)).expect("setns");
            f()
        })
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("cat ends with its input");
    }
}

/// Runs `f` on a thread that then ends, and its panic with it.
pub fn on_a_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(f).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// Calls a function when dropped.
pub struct Guard<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for Guard<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
