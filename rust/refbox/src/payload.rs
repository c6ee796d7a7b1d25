//! The payload's process between fork and exec: it enters its cgroups, and gives up all privileges permanently.

use std::io;
use std::os::fd::AsFd;

use caps::CapSet;
use leakcheck_sys as sys;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, setsid};

use crate::error::{Doing, Result, lack};
use crate::job::{Job, Wires};
use crate::message::{Message, send};
use crate::root;

const STACK: u64 = 64 << 20;
const FILES: u64 = 1024;

/// Becomes the payload, or reports why it cannot.
pub(crate) fn main(job: &Job, wires: &Wires) -> ! {
    let message = match prepare(job, wires) {
        Ok(()) => {
            send(wires.report.as_fd(), &Message::Started);
            let e = sys::exec(&job.argv, &job.env);
            let mut text = format!("execute {}: {}", job.argv[0].to_string_lossy(), sys::in_words(&e));
            if let Some(what) = lack(&e) {
                text = format!("{text}: {what}");
            }
            match e.raw_os_error() {
                // Because of the machine, not of the program.
                Some(libc::ENOMEM | libc::EAGAIN | libc::EIO | libc::EMFILE | libc::ENFILE) => Message::Failed(text),
                _ => Message::NotExecutable(text),
            }
        }
        Err(e) => Message::Failed(e.to_string()),
    };
    send(wires.report.as_fd(), &message);
    sys::exit(127)
}

fn prepare(job: &Job, wires: &Wires) -> Result<()> {
    for tasks in &wires.entrances.tasks {
        rustix::io::write(tasks, b"0").during("enter cgroup")?;
    }
    // After it entered its cgroups, so that they are the roots of the namespace.
    sys::unshare(libc::CLONE_NEWCGROUP).during("unshare cgroup namespace")?;
    setsid().during("make session")?;
    let streams = [&wires.stdin, &wires.stdout, &wires.stderr];
    sys::set_streams(streams.map(AsFd::as_fd)).during("set standard streams")?;
    rlimits(job)?;
    give_up_capabilities(job.layout.user)?;
    rustix::thread::set_no_new_privs(true).during("set no_new_privs")?;
    rustix::process::chdir(root::WORK).doing("enter", root::WORK)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    sys::default_signals();
    // Exec closes all other descriptors, since they are close-on-exec.
    seccompiler::apply_filter(&job.filter).map_err(io::Error::other).during("apply seccomp filter")
}

fn rlimits(job: &Job) -> Result<()> {
    let limits = &job.limits;
    // The supervisor ends it earlier, by the cgroup's count; this rlimit is for a host without such a cgroup, and for a
    // supervisor that hangs. It counts clock ticks, on a machine under load up to a fifth too many (setrlimit(2) does not
    // mention that), hence one more second.
    let cpu = limits.cpu.as_secs_f64().ceil() as u64 + 1;
    let mut all = vec![
        (Resource::Cpu, cpu, cpu + 1),
        (Resource::Fsize, limits.file_size, limits.file_size),
        // Not 0: the kernel would still start a program that core_pattern pipes to, outside of the box (core(5)).
        (Resource::Core, 1, 1),
        (Resource::Nofile, FILES, FILES),
        (Resource::Stack, STACK, STACK),
    ];
    if job.rlimit_memory {
        all.push((Resource::As, limits.memory, limits.memory));
    }
    if job.rlimit_processes {
        all.push((Resource::Nproc, limits.processes.into(), limits.processes.into()));
    }
    for (resource, soft, hard) in all {
        // Without the right to raise a limit, the inherited one stays the upper bound.
        let bound = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let limit = Rlimit { current: Some(soft.min(bound)), maximum: Some(hard.min(bound)) };
        setrlimit(resource, limit).during(format_args!("set rlimit {resource:?}"))?;
    }
    Ok(())
}

/// Empties all five sets: no later exec regains what the bounding set lacks.
fn give_up_capabilities(user: Option<u32>) -> Result<()> {
    let clear = |set: CapSet| {
        caps::clear(None, set).map_err(io::Error::other).during(format_args!("clear {set:?} capabilities"))
    };
    for capability in caps::all() {
        match caps::drop(None, CapSet::Bounding, capability) {
            Err(_) if !caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) => {}
            dropped => {
                dropped.map_err(io::Error::other).during(format_args!("drop {capability} from the bounding set"))?
            }
        }
    }
    clear(CapSet::Ambient)?;
    if let Some(user) = user {
        sys::become_user(user).during(format_args!("become user {user}"))?;
    }
    clear(CapSet::Inheritable)?;
    clear(CapSet::Effective)?;
    clear(CapSet::Permitted)
}
