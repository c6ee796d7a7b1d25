//! The guard around real runs. Most of it needs root; what is missing is said and skipped.
//!
//! Plants are small shell scripts. A survivor tells its id through a FIFO and is ended through a pidfd.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use leakcheck::guard::{Guard, Options};
use leakcheck::judge::attribute::Attribution;
use leakcheck::judge::class::Class;
use leakcheck::judge::settle::Policy;
use leakcheck::snapshot::Level;
use leakcheck::watch::{self, Watch};
use leakcheck::{Kind, Leak, Report, Verdict};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

static TURN: Mutex<()> = Mutex::new(());

/// One test at a time: what another thread starts descends from this process as well.
fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Root, with all that tells whose residue is.
fn root_and_all_sources() -> bool {
    if !root() {
        return false;
    }
    let levels = Watch::start(&watch::Options { files: vec!["/tmp".into()], ..watch::Options::default() }).levels();
    let full = levels.descent.level == Level::Full && levels.files[0].1.level == Level::Full;
    if !full {
        eprintln!("skipped: {levels:?}");
    }
    full
}

/// In a chroot no user namespace can be made (user_namespaces(7)).
fn chrooted() -> bool {
    !std::process::Command::new("unshare").args(["--user", "true"]).status().is_ok_and(|status| status.success())
}

/// A process that is ended, and waited for, when this is dropped.
struct Survivor {
    pid: u32,
    pidfd: OwnedFd,
}

impl Survivor {
    fn of(pid: u32) -> Self {
        assert!(pid > 1, "never {pid}");
        let raw = Pid::from_raw(pid.try_into().unwrap()).unwrap();
        Survivor { pid, pidfd: pidfd_open(raw, PidfdFlags::empty()).expect("the survivor lives") }
    }

    /// Waits until it has ended, zombie or not.
    fn ended(&self) {
        let mut set = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(poll(&mut set, Some(&limit)), Ok(1), "{} does not end", self.pid);
    }
}

impl Drop for Survivor {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.ended();
    }
}

/// A directory outside the guarded roots, with a FIFO through which a script tells a process id.
struct Plant {
    dir: tempfile::TempDir,
}

impl Plant {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("tell");
        rustix::fs::mknodat(rustix::fs::CWD, fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        Plant { dir }
    }

    fn tell(&self) -> PathBuf {
        self.dir.path().join("tell")
    }

    /// Waits for what the script tells.
    fn told(&self) -> u32 {
        let text = fs::read_to_string(self.tell()).unwrap();
        text.trim().parse().unwrap_or_else(|_| panic!("told {text:?}"))
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env("TELL", self.tell()).env("DIR", self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn run(&self, script: &str) {
        assert!(self.command(script).status().unwrap().success(), "{script}");
    }

    /// Starts a process that is there before the guard is, and goes on when [`Stranger::go`] says so.
    fn stranger(&self, script: &str) -> Stranger {
        let ready = format!("echo $$ >$TELL; read go; {script}");
        let child = self.command(&ready).stdin(Stdio::piped()).spawn().unwrap();
        let pid = self.told();
        assert_eq!(pid, child.id());
        Stranger { child }
    }
}

struct Stranger {
    child: Child,
}

impl Stranger {
    fn go(&mut self) {
        self.say("go");
    }

    fn say(&mut self, line: &str) {
        use std::io::Write;
        writeln!(self.child.stdin.take().unwrap(), "{line}").unwrap();
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // Not yet waited for, so the id is still its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn begin(kinds: &[Kind], roots: &[&Path]) -> Guard {
    let mut options = Options { policy: Policy::new(Duration::from_millis(500)), ..Options::default() };
    options.observe.kinds = Some(kinds.iter().copied().collect());
    options.observe.roots = Some(roots.iter().map(|r| r.to_path_buf()).collect());
    Guard::begin(options).unwrap()
}

fn leak<'a>(report: &'a Report, kind: Kind, part: &str) -> &'a Leak {
    let found = report.leaks.iter().find(|l| l.kind == kind && (l.label.contains(part) || l.key.contains(part)));
    found.unwrap_or_else(|| panic!("no {kind} leak with {part:?} in {}", leakcheck::testing::describe(report)))
}

fn assert_clean(report: &Report) {
    assert_eq!(report.verdict, Verdict::Clean, "{}", leakcheck::testing::describe(report));
}

/// Lives on after the run: orphaned by a double fork, in a session of its own, with another name and no environment.
const ORPHAN: &str = "env -i TELL=$TELL setsid sh -c 'echo $$ >$TELL; exec env -i sleep 300' &";

#[test]
fn a_clean_run_is_clean() {
    let _turn = turn();
    if !root_and_all_sources() {
        return;
    }
    use Kind::{Cgroup, Fd, File, Ipc, Lock, Mount, Namespace, Process};
    let scratch = tempfile::tempdir().unwrap();
    let mut guard = begin(&[Process, Fd, Mount, Namespace, Cgroup, Ipc, Lock, File], &[scratch.path()]);
    assert!(Command::new("/bin/true").status().unwrap().success());
    assert_clean(&guard.end(None).unwrap());
}

#[test]
fn an_orphan_without_name_or_environment_is_leaked_by_descent() {
    let _turn = turn();
    if !root_and_all_sources() {
        return;
    }
    let plant = Plant::new();
    let mut guard = begin(&[Kind::Process, Kind::Fd], &[]);
    plant.run(ORPHAN);
    let survivor = Survivor::of(plant.told());
    let report = guard.end(None).unwrap();
    assert_eq!((report.verdict, report.leaks.len()), (Verdict::Leaked, 1), "its descriptors go with it: {report:?}");
    let leak = leak(&report, Kind::Process, &format!("process:{}@", survivor.pid));
    assert_eq!((leak.attribution, leak.class), (Attribution::Descent, Class::Orphaned));
    drop(survivor);
    assert_clean(&guard.end(None).unwrap());
}

#[test]
fn a_file_of_the_run_is_leaked_and_a_strangers_is_noise() {
    let _turn = turn();
    if !root_and_all_sources() {
        return;
    }
    let (plant, scratch) = (Plant::new(), tempfile::tempdir().unwrap());
    let script = format!("echo x >{}/theirs; echo 1 >$TELL; read on", scratch.path().display());
    let mut stranger = plant.stranger(&script);
    let mut guard = begin(&[Kind::File], &[scratch.path()]);
    stranger.go();
    plant.told();
    plant.run(&format!("echo x >'{}/m\n\u{1b}[31mine'", scratch.path().display()));
    let report = guard.end(None).unwrap();
    assert_eq!((report.verdict, report.leaks.len(), report.noise), (Verdict::Leaked, 1, 1), "{report:?}");
    let leak = leak(&report, Kind::File, r"m\n\x1b[31mine");
    assert_eq!((leak.attribution, leak.class), (Attribution::Creator, Class::Orphaned));
}

#[test]
fn a_strangers_child_with_the_runs_token_is_the_runs() {
    let _turn = turn();
    if !root_and_all_sources() {
        return;
    }
    let plant = Plant::new();
    // It tells its pid after exec: before, its environment is still the stranger's.
    let mut stranger = plant.stranger("LEAKCHECK_RUN=$go sh -c 'echo $$ >$TELL; exec sleep 300' & wait");
    let mut guard = begin(&[Kind::Process], &[]);
    stranger.say(guard.token().1);
    let marked = Survivor::of(plant.told());
    let report = guard.end(None).unwrap();
    let found = leak(&report, Kind::Process, &format!("process:{}@", marked.pid));
    assert_eq!((found.attribution, report.leaks.len()), (Attribution::Token, 1), "{report:?}");
}

#[test]
fn what_recovery_removes_is_reclaimable_and_what_it_leaves_still_counts() {
    let _turn = turn();
    if !root_and_all_sources() {
        return;
    }
    let (plant, scratch) = (Plant::new(), tempfile::tempdir().unwrap());
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    let mut guard = begin(&[Kind::File], &[scratch.path()]);
    plant.run(&format!("touch {} {}", a.display(), b.display()));
    assert_eq!(guard.end(None).unwrap().leaks.len(), 2);
    fs::remove_file(&a).unwrap();
    let report = guard.recovered().unwrap();
    let classes = |report: &Report| report.leaks.iter().map(|l| l.class).collect::<Vec<_>>();
    assert_eq!((report.verdict, report.leaks.len()), (Verdict::Leaked, 2));
    assert!(classes(&report).contains(&Class::Reclaimable) && classes(&report).contains(&Class::Orphaned));
    fs::remove_file(&b).unwrap();
    let report = guard.recovered().unwrap();
    assert_eq!((report.verdict, classes(&report)), (Verdict::Clean, vec![Class::Reclaimable; 2]));
}

struct CgroupDirs(Vec<PathBuf>);

impl Drop for CgroupDirs {
    fn drop(&mut self) {
        for dir in &self.0 {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// A new directory below the own cgroup, in the v2 hierarchy and in v1's `pids`, as far as they are mounted.
fn cgroup_plants() -> Vec<(String, PathBuf)> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut plants = Vec::new();
    for line in mounts.lines() {
        let (place, of) = line.split_once(" - ").unwrap();
        let place: Vec<&str> = place.split(' ').collect();
        let name = match of {
            _ if of.starts_with("cgroup2 ") => "v2",
            _ if of.starts_with("cgroup ") && of.ends_with(",pids") => "pids",
            _ => continue,
        };
        let entry = own.lines().find_map(|l| match name {
            "v2" => l.strip_prefix("0::"),
            _ => l.split_once(":pids:").map(|(_, path)| path),
        });
        let below = entry.and_then(|path| Path::new(path).strip_prefix(place[3]).ok().map(Path::to_owned));
        let taken = plants.iter().any(|(known, _)| known == name);
        if let (Some(below), false) = (below, taken) {
            let unique = format!("leakcheck-test-{}", std::process::id());
            plants.push((name.to_owned(), Path::new(place[4]).join(below).join(unique)));
        }
    }
    plants
}

#[test]
fn a_cgroup_of_the_run_is_named_in_its_hierarchy() {
    let _turn = turn();
    if !root_and_all_sources() {
        return;
    }
    let plants = cgroup_plants();
    if plants.is_empty() {
        return eprintln!("skipped: no writable cgroup hierarchy");
    }
    let mut guard = begin(&[Kind::Cgroup], &[]);
    let _dirs = CgroupDirs(plants.iter().map(|(_, dir)| dir.clone()).collect());
    let plant = Plant::new();
    for (_, dir) in &plants {
        plant.run(&format!("mkdir {}", dir.display()));
    }
    let report = guard.end(None).unwrap();
    assert_eq!(report.leaks.len(), plants.len(), "{}", leakcheck::testing::describe(&report));
    for (hierarchy, _) in &plants {
        let leak = leak(&report, Kind::Cgroup, &format!("cgroup:{hierarchy}:"));
        assert_eq!((leak.attribution, leak.class), (Attribution::Creator, Class::Orphaned));
    }
}

#[test]
fn a_child_that_is_about_to_end_is_never_leaked() {
    let _turn = turn();
    if !root_and_all_sources() {
        return;
    }
    let plant = Plant::new();
    let mut guard = begin(&[Kind::Process, Kind::Fd], &[]);
    plant.run("sleep 0.05 &");
    let report = guard.end(None).unwrap();
    assert_clean(&report);
    for gone in &report.transient {
        assert!(gone.gone_after_ms > 0.0, "{gone:?}");
    }
}

#[test]
fn a_strangers_zombie_is_noise_and_ones_own_is_held_by_its_parent() {
    let _turn = turn();
    if !root_and_all_sources() {
        return;
    }
    let plant = Plant::new();
    // The shell becomes a program that never waits for the child.
    let mut stranger = plant.stranger("sh -c 'read go' </dev/zero & echo $! >$TELL; exec sleep 300");
    let mut guard = begin(&[Kind::Process], &[]);
    stranger.go();
    let theirs = Survivor::of(plant.told());
    pidfd_send_signal(&theirs.pidfd, Signal::KILL).unwrap();
    theirs.ended();
    assert_clean(&guard.end(None).unwrap());
    let mut child = plant.command("read go").stdin(Stdio::piped()).spawn().unwrap();
    let mine = Survivor::of(child.id());
    drop(child.stdin.take());
    mine.ended();
    let report = guard.end(None).unwrap();
    let zombie = leak(&report, Kind::Process, &format!("zombie {}", child.id()));
    assert_eq!((zombie.attribution, zombie.class), (Attribution::Descent, Class::Held));
    child.wait().unwrap();
}

#[test]
fn a_mount_in_a_private_namespace_goes_with_the_process_that_holds_it() {
    let _turn = turn();
    if !root_and_all_sources() {
        return;
    }
    let inside = "unshare -m --propagation private sh -c 'mount -t tmpfs planted $DIR && echo $$ >&3; exec 3>&-; \
                  exec sleep 300' 3>$TELL &";
    let plant = Plant::new();
    let mut guard = begin(&[Kind::Process, Kind::Fd, Kind::Mount, Kind::Namespace], &[]);
    plant.run(inside);
    let survivor = Survivor::of(plant.told());
    let report = guard.end(None).unwrap();
    leak(&report, Kind::Process, &format!("process:{}@", survivor.pid));
    let namespace = leak(&report, Kind::Namespace, "mnt");
    assert_eq!((namespace.attribution, namespace.class), (Attribution::Holder, Class::Held));
    assert_eq!(report.leaks.len(), 2, "{}", leakcheck::testing::describe(&report));
    drop((survivor, guard));

    if chrooted() {
        eprintln!(
            "skipped: in a chroot another mount namespace shows its paths from another root, so its copies look new"
        );
        return;
    }
    // Asked for mounts alone, that one mount and none of the namespace's copies.
    let mut guard = begin(&[Kind::Mount], &[]);
    plant.run(inside);
    let _survivor = Survivor::of(plant.told());
    let report = guard.end(None).unwrap();
    assert_eq!(report.leaks.len(), 1, "{}", leakcheck::testing::describe(&report));
    let mount = leak(&report, Kind::Mount, "planted");
    assert_eq!((mount.attribution, mount.class), (Attribution::Namespace, Class::Held));
    assert_eq!(report.coverage.0.len(), 1, "what only helped is not in the coverage");
}

#[test]
fn a_strangers_namespace_is_noise_when_namespaces_alone_are_asked_for() {
    let _turn = turn();
    if !root_and_all_sources() {
        return;
    }
    let plant = Plant::new();
    let mut stranger = plant.stranger("exec unshare -n -i sh -c 'echo $$ >$TELL; exec sleep 300'");
    let mut guard = begin(&[Kind::Namespace], &[]);
    stranger.go();
    plant.told();
    let report = guard.end(None).unwrap();
    assert_clean(&report);
    assert!(report.noise >= 2, "{report:?}");
}

#[test]
fn what_a_survivor_makes_after_the_run_is_the_runs_when_files_alone_are_asked_for() {
    let _turn = turn();
    if !root_and_all_sources() {
        return;
    }
    let (plant, scratch) = (Plant::new(), tempfile::tempdir().unwrap());
    let mut guard = begin(&[Kind::File], &[scratch.path()]);
    let late = format!("echo $$ >$TELL; sleep 0.05; echo x >{}/late; exec sleep 300", scratch.path().display());
    plant.run(&format!("setsid sh -c '{late}' &"));
    let _survivor = Survivor::of(plant.told());
    let report = guard.end(None).unwrap();
    assert_eq!(leak(&report, Kind::File, "late").attribution, Attribution::Creator);
}

/// Runs a test of this file that is ignored otherwise, with this program as an argument of `command`.
fn elsewhere(command: &mut Command, test: &str) {
    let output = command.args(["--exact", test, "--ignored", "--nocapture"]).stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].map(|t| String::from_utf8_lossy(&t).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn in_a_container_without_process_events_an_orphan_is_leaked_by_nobody_known() {
    let _turn = turn();
    if !root() {
        return;
    }
    // The shell is pid 1 and adopts orphans.
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    // Who may not measure the machine is told of no forks by perf events either (perf_event_open(2)).
    unshare.args(["setpriv", "--bounding-set=-perfmon,-sys_admin", "--inh-caps=-perfmon,-sys_admin"]);
    unshare.args(["sh", "-c", "\"$0\" \"$@\" & wait $!"]);
    elsewhere(unshare.arg(std::env::current_exe().unwrap()), "inside_a_container");
}

#[test]
#[ignore = "runs inside the container of another test"]
fn inside_a_container() {
    assert!(std::process::id() > 1 && fs::read_to_string("/proc/1/comm").unwrap().starts_with("sh"));
    let levels = Watch::start(&watch::Options::default()).levels();
    assert_eq!(levels.descent.level, Level::Partial, "{levels:?}");
    let plant = Plant::new();
    let mut stranger = plant.stranger("sleep 300 & echo $! >$TELL; wait");
    // By /proc alone a process is older than the guard from the next tick on.
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_millis(30) {
        std::thread::yield_now();
    }
    let mut guard = begin(&[Kind::Process, Kind::Fd], &[]);
    stranger.go();
    let theirs = Survivor::of(plant.told());
    let report = guard.end(None).unwrap();
    assert_clean(&report);
    assert!(report.noise >= 1, "the child of a living stranger: {report:?}");
    plant.run(ORPHAN);
    let orphan = Survivor::of(plant.told());
    let report = guard.end(None).unwrap();
    let found = leak(&report, Kind::Process, &format!("process:{}@", orphan.pid));
    assert_eq!((found.attribution, report.leaks.len()), (Attribution::None, 1), "{report:?}");
    drop((orphan, theirs));
    assert_clean(&guard.end(None).unwrap());
}

#[test]
fn an_ordinary_users_run_is_clean_though_its_observer_sees_less() {
    let _turn = turn();
    if !root() {
        return ordinary_user();
    }
    // The build directory may be root's alone: the program goes where everybody can reach it.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let copy = dir.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy).current_dir("/");
    elsewhere(&mut setpriv, "ordinary_user");
}

#[test]
#[ignore = "runs as nobody out of another test"]
fn ordinary_user() {
    assert!(!rustix::process::geteuid().is_root());
    let mut all = Options { policy: Policy::new(Duration::from_millis(50)), ..Options::default() };
    all.attributed_only = true;
    let mut guard = Guard::begin(all).unwrap();
    assert!(Command::new("/bin/true").status().unwrap().success());
    let report = guard.end(None).unwrap();
    // Others may run a set-user-ID program meanwhile, or log in for the first time.
    let told = leakcheck::testing::describe(&report);
    assert!(
        report.verdict == Verdict::Clean || told.contains("a process opened") || told.contains("new keys"),
        "{told}"
    );
    let bpf = &report.coverage.0[&Kind::Bpf];
    assert!(bpf.reason.contains("CAP_BPF") && !report.unreadable.is_empty(), "{bpf:?}");
    let mut some = Options { attributed_only: true, ..Options::default() };
    some.observe.kinds = Some([Kind::Process].into_iter().collect());
    let mut guard = Guard::begin(some).unwrap();
    assert!(Command::new("/bin/true").status().unwrap().success());
    assert_clean(&guard.end(None).unwrap());
}
