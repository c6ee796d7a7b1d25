//! Who descends from the run, with real processes.

mod watch_support;

use std::fs;
use std::process::{Command, Stdio};

use leakcheck::snapshot::Level;
use leakcheck::watch::Membership::{Run, Stranger, Unknown};
use leakcheck::watch::{Options, Watch};
use watch_support::*;

#[test]
fn an_orphan_with_a_new_session_and_no_environment_is_of_the_run() {
    let watch = Watch::start(&Options::default());
    if !available(&watch.levels().descent) {
        return;
    }
    let orphan = Orphan::new();
    let (ppid, start) = stat(orphan.pid);
    assert_ne!(ppid, std::process::id(), "it was adopted by somebody");
    let environment = fs::read(format!("/proc/{}/environ", orphan.pid)).expect("its environment");
    assert!(!environment.windows(8).any(|w| w == b"RUN_MARK"), "its environment was wiped");
    watch.sync();
    assert_eq!(watch.descends(orphan.pid, start), Run);
    assert_eq!(watch.was_run_pid(orphan.pid), Run);
    assert!(watch.live_run_pids().contains(&orphan.pid));
    assert_eq!(watch.descends(orphan.pid, start + 500), Stranger, "the same id, but started five seconds later");
}

#[test]
fn the_orphan_of_a_process_from_before_the_start_is_a_stranger() {
    let maker = OrphanMaker::new();
    let watch = Watch::start(&Options::default());
    if !available(&watch.levels().descent) {
        return;
    }
    let orphan = maker.act();
    watch.sync();
    assert_eq!(watch.descends(orphan.pid, stat(orphan.pid).1), Stranger);
    assert_eq!(watch.was_run_pid(orphan.pid), Stranger);
    assert!(!watch.live_run_pids().contains(&orphan.pid));
}

#[test]
fn a_process_that_has_ended_is_live_no_more_but_was_of_the_run() {
    let watch = Watch::start(&Options::default());
    if !available(&watch.levels().descent) {
        return;
    }
    let puppet = Puppet::new("exit 0");
    let pid = puppet.pid();
    watch.sync();
    assert!(watch.live_run_pids().contains(&pid));
    puppet.act();
    watch.sync();
    assert!(!watch.live_run_pids().contains(&pid));
    assert_eq!(watch.was_run_pid(pid), Run);
}

#[test]
fn our_own_threads_are_no_processes_and_our_parent_is_a_stranger() {
    let watch = Watch::start(&Options::default());
    if !available(&watch.levels().descent) {
        return;
    }
    let tid = std::thread::spawn(rustix::thread::gettid).join().expect("a thread");
    watch.sync();
    assert_eq!(watch.was_run_pid(tid.as_raw_nonzero().get() as u32), Stranger);
    let me = std::process::id();
    let (parent, start) = stat(me);
    assert_eq!(watch.descends(me, start), Run);
    assert_eq!(watch.descends(parent, stat(parent).1), Stranger);
}

const FORKS: usize = 2000;

#[test]
fn two_thousand_quick_forks_each_of_run_and_noise_are_told_apart() {
    let directory = scratch("/tmp");
    let forker = |name: &str| {
        let role = role("forker");
        let out = directory.path().join(name);
        // A shell waits for the word to go, so that the noise can be there before the watch.
        let child = Command::new("sh")
            .args(["-c", "read go; \"$@\"", "sh"])
            .args(role)
            .env("LEAKCHECK_TEST_OUT", &out)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("start sh");
        (child, out)
    };
    let (mut noise, noise_out) = forker("noise");
    let watch = Watch::start(&Options::default());
    if !available(&watch.levels().descent) {
        drop(noise.stdin.take());
        let _ = noise.wait();
        return;
    }
    let (mut run, run_out) = forker("run");
    for child in [&mut noise, &mut run] {
        use std::io::Write;
        child.stdin.take().expect("its stdin").write_all(b"go\n").expect("tell it to go");
    }
    assert!(noise.wait().expect("wait for the noise").success());
    assert!(run.wait().expect("wait for the run").success());
    watch.sync();
    let pids = |path| -> Vec<u32> {
        let text: String = fs::read_to_string(path).expect("the pids");
        text.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect()
    };
    let (run, noise) = (pids(run_out), pids(noise_out));
    assert_eq!((run.len(), noise.len()), (FORKS, FORKS));
    let wrong = run.iter().filter(|pid| watch.was_run_pid(**pid) != Run).count();
    assert_eq!(wrong, 0, "processes of the run not known as such");
    let wrong = noise.iter().filter(|pid| watch.was_run_pid(**pid) != Stranger).count();
    assert_eq!(wrong, 0, "processes of the noise not known as such");
    assert_eq!(watch.levels().descent.level, Level::Full);
    let live = watch.live_run_pids();
    assert!(run.iter().all(|pid| !live.contains(pid)), "all have ended");
}

#[test]
#[ignore = "a role of the test above"]
fn forker() {
    let Some(out) = std::env::var_os("LEAKCHECK_TEST_OUT") else { return };
    let pids: Vec<String> = (0..FORKS).map(|_| fork_and_reap().to_string()).collect();
    fs::write(out, pids.join("\n")).expect("write the pids");
}

#[allow(unsafe_code)]
fn fork_and_reap() -> i32 {
    // SAFETY: the child does nothing but _exit, which is async-signal-safe; the parent waits for exactly this child.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::_exit(0);
        }
        assert!(pid > 1, "fork failed");
        assert_eq!(libc::waitpid(pid, std::ptr::null_mut(), 0), pid);
        pid
    }
}

#[test]
fn a_child_that_an_orphan_gives_to_its_reaper_is_no_stranger() {
    let watch = Watch::start(&Options::default());
    if !available(&watch.levels().descent) {
        return;
    }
    let directory = scratch("/tmp");
    let out = directory.path().join("pid");
    rustix::fs::mkfifoat(rustix::fs::CWD, &out, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).expect("a FIFO");
    let [exe, arguments @ ..] = &role("giver")[..] else { unreachable!("a role has a program") };
    let mut giver = Command::new(exe);
    giver.args(arguments).env("LEAKCHECK_TEST_OUT", &out).stdout(Stdio::null());
    let mut giver = giver.spawn().expect("start the giver");
    // Ends when the orphan does: it alone keeps the FIFO open.
    let text = fs::read_to_string(&out).expect("the pids");
    giver.wait().expect("wait for the giver");
    let pids: Vec<u32> = text.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect();
    let [orphan, given] = pids[..] else { panic!("two pids, not {text:?}") };
    watch.sync();
    assert_eq!(watch.was_run_pid(orphan), Run);
    // The connector takes it for the reaper's, perf events name the orphan.
    assert_ne!(watch.was_run_pid(given), Stranger);
}

#[test]
#[ignore = "a role of the test above"]
fn giver() {
    let Some(out) = std::env::var_os("LEAKCHECK_TEST_OUT") else { return };
    let out = fs::OpenOptions::new().write(true).open(out).expect("open the FIFO");
    give_a_child_to_the_reaper(&out);
}

/// Forks a child, which outlives us, waits until it is adopted, clones with `CLONE_PARENT` and writes both pids.
#[allow(unsafe_code)]
fn give_a_child_to_the_reaper(mut out: &fs::File) {
    use std::io::Write;
    let me = rustix::process::getpid();
    // SAFETY: the children use nothing but system calls and a stack buffer, and end by _exit; the lock of no other thread is needed.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0, "fork failed");
        if pid > 0 {
            libc::_exit(0);
        }
        while rustix::process::getppid() == Some(me) {
            libc::sched_yield();
        }
        let given = libc::syscall(libc::SYS_clone, libc::CLONE_PARENT | libc::SIGCHLD, 0, 0, 0, 0);
        if given == 0 {
            libc::_exit(0);
        }
        let mut buffer = [0u8; 32];
        let length = {
            let mut rest = &mut buffer[..];
            let _ = write!(rest, "{} {given}", libc::getpid());
            32 - rest.len()
        };
        let _ = out.write_all(&buffer[..length]);
        libc::_exit(0);
    }
}

/// Runs a role in a new pid namespace, below a shell that is pid 1 there and has these capabilities (setpriv(1)).
fn in_pid_namespace(name: &str, capabilities: &str) {
    let shell = ["sh", "-c", "\"$@\"; exit $?", "sh"];
    let status = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "--kill-child", "setpriv", "--bounding-set", capabilities])
        .args(shell)
        .args(role(name))
        .env("LEAKCHECK_TEST_NAMESPACE", "1")
        .stdout(Stdio::null())
        .status()
        .expect("start unshare");
    assert!(status.success(), "{name} in a pid namespace: {status}");
}

#[test]
fn in_a_container_perf_events_tell_of_forks_and_without_the_right_to_them_proc_stands_in() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root may make a pid namespace");
        return;
    }
    in_pid_namespace("contained", "+all");
    in_pid_namespace("contained_without_rights", "-all");
}

fn in_namespace() -> bool {
    std::env::var_os("LEAKCHECK_TEST_NAMESPACE").is_some()
}

#[test]
#[ignore = "a role of the test above"]
fn contained() {
    if !in_namespace() {
        return;
    }
    let directory = scratch("/tmp");
    let (by_run, by_dead) = (directory.path().join("run"), directory.path().join("dead"));
    let old = Puppet::new("exit 0");
    let old_maker = OrphanMaker::new();
    let watch = Watch::start(&Options { files: vec!["/tmp".into()], ..Options::default() });
    let levels = watch.levels();
    assert_eq!(levels.descent.level, Level::Full, "{}", levels.descent.reason);
    assert_eq!(levels.files[0].1.level, Level::Full);

    let new = Puppet::new(&format!("touch {} & wait", by_dead.display()));
    let pid = new.pid();
    watch.sync();
    assert_eq!(watch.live_run_pids(), [pid]);
    fs::write(&by_run, "").expect("make a file");
    new.act();
    let orphan = Orphan::new();
    let stranger = old_maker.act();
    // More events than a CPU's ring holds, and never so many at once that it could overflow.
    for _ in 0..40 {
        (0..1_000).for_each(|_| std::thread::spawn(|| ()).join().expect("a thread"));
        watch.sync();
    }
    assert_eq!(watch.levels().descent, leakcheck::snapshot::Coverage::full());
    assert_eq!(watch.descends(old.pid(), stat(old.pid()).1), Stranger);
    assert_eq!(watch.descends(orphan.pid, stat(orphan.pid).1), Run);
    assert_eq!(watch.descends(stranger.pid, stat(stranger.pid).1), Stranger);
    assert_eq!(watch.creator(&by_run).map(|m| m.membership), Some(Run));
    assert_eq!(watch.creator(&by_dead).map(|m| m.membership), Some(Run), "though its maker has ended");
    assert_eq!(watch.live_run_pids(), [orphan.pid]);
    assert_eq!(watch.levels().descent, leakcheck::snapshot::Coverage::full());
    old.act();
}

#[test]
#[ignore = "a role of the test above"]
fn contained_without_rights() {
    if !in_namespace() {
        return;
    }
    let old = Puppet::new("exit 0");
    let old_maker = OrphanMaker::new();
    // So that the first process of the run starts in a later tick than these.
    let before = stat(old.pid()).1.max(stat(old_maker.pid()).1);
    while leakcheck_ticks() <= before + 1 {
        std::thread::yield_now();
    }
    let watch = Watch::start(&Options::default());
    let descent = watch.levels().descent;
    assert_eq!(descent.level, Level::Partial);
    assert!(descent.reason.contains("process connector") && descent.reason.contains("perf events"), "{descent:?}");

    let new = Puppet::new("exit 0");
    let pid = new.pid();
    assert_eq!(watch.descends(pid, stat(pid).1), Run);
    assert_eq!(watch.descends(old.pid(), stat(old.pid()).1), Stranger);
    assert_eq!(watch.live_run_pids(), [pid]);
    new.act();
    let orphan = Orphan::new();
    let stranger = old_maker.act();
    watch.sync();
    assert_eq!(watch.descends(orphan.pid, stat(orphan.pid).1), Unknown, "pid 1 has it now");
    assert_eq!(watch.descends(stranger.pid, stat(stranger.pid).1), Unknown, "and this one too");
    old.act();
}

fn leakcheck_ticks() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second() as i64;
    (now.tv_sec * 1_000_000_000 + now.tv_nsec) as u64 / tick as u64
}
