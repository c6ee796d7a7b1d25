//! Processes that stay behind.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::event::Timespec;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use rustix::process::{WaitIdOptions, setsid};
use serde_json::{Value, json};

use super::Plant;
use crate::child::{PAUSE, Then, spawn};
use crate::error::{Doing, Error, Result};
use crate::orphan::orphan;
use crate::stage::{Planting, Stage, Undo, planting, removal};

/// A name like those of kernel threads, which people filter out of `ps`.
const DISGUISE: &str = "kworker/u8:3-ev";

pub(super) const PLANTS: &[Plant] = &[
    Plant {
        name: "zombie",
        needs: &[],
        what: "a child that exited and that its parent has not reaped",
        prepare: |_| child(|| Ok(Then::Exit), Some(WaitIdOptions::EXITED)),
    },
    Plant {
        name: "orphan",
        needs: &[],
        what: "a daemon: forked twice, in its own session, its parent gone",
        prepare: |_| daemon(|| Ok(Then::Pause(None))),
    },
    Plant {
        name: "renamed-wiped",
        needs: &[],
        what: "an orphan that took a kernel thread's name and overwrote its arguments and environment",
        prepare: |_| {
            daemon(|| {
                rename_and_wipe()?;
                Ok(Then::Pause(None))
            })
        },
    },
    Plant {
        name: "hostile-comm",
        needs: &[],
        what: "an orphan whose comm holds a parenthesis, blanks and a newline, as if it were the rest of its stat line",
        prepare: |_| {
            daemon(|| {
                rustix::thread::set_name(c"a) Z 1\n1 (b").during("prctl PR_SET_NAME")?;
                Ok(Then::Pause(None))
            })
        },
    },
    Plant {
        name: "stopped",
        needs: &[],
        what: "a child that stopped itself by SIGSTOP",
        prepare: |_| child(|| Ok(Then::Stop), Some(WaitIdOptions::STOPPED)),
    },
    Plant {
        name: "child-in-own-session",
        needs: &[],
        what: "a child that left its parent's session and process group",
        prepare: |_| {
            child(
                || {
                    setsid().during("setsid")?;
                    Ok(Then::Pause(None))
                },
                None,
            )
        },
    },
    Plant {
        name: "dead-leader",
        needs: &[],
        what: "a child whose first thread has ended, so that /proc calls it a zombie, while another one goes on",
        prepare: |_| child(|| Ok(Then::LoseLeader), None),
    },
    Plant {
        name: "proc-covered",
        needs: &["root"],
        what: "an orphan whose directory in /proc a tmpfs was mounted over",
        prepare: |_| planting(covered),
    },
    Plant {
        name: "respawning-slow",
        needs: &[],
        what: "a chain of processes, each of which starts the next after 100 ms and ends",
        prepare: |stage| respawning(stage, c"respawning-slow", 100_000_000),
    },
    Plant {
        name: "respawning",
        needs: &[],
        what: "a chain of processes, each of which starts the next after 20 ms and ends",
        prepare: |stage| respawning(stage, c"respawning", 20_000_000),
    },
    Plant {
        name: "respawning-fast",
        needs: &[],
        what: "a chain of processes, each of which starts the next at once and ends",
        prepare: |stage| respawning(stage, c"respawning-fast", 0),
    },
    Plant {
        name: "deleted-exe",
        needs: &[],
        what: "a child that runs an executable which was deleted",
        prepare: deleted_exe,
    },
];

fn child(setup: impl FnOnce() -> Result<Then> + 'static, until: Option<WaitIdOptions>) -> Result<Planting> {
    planting(move |undo| {
        let child = spawn(0, setup)?;
        undo.push(move || child.end());
        if let Some(state) = until {
            child.wait_unreaped(state)?;
        }
        Ok(json!({"pid": child.pid()}))
    })
}

fn covered(undo: &mut Undo) -> Result<Value> {
    let orphan = orphan(|| Ok(()), || Ok(Then::Pause(None)))?;
    let place = format!("/proc/{}", orphan.pid());
    let facts = json!({"pid": orphan.pid(), "path": place});
    undo.push(move || orphan.end());
    mount(c"mkleak", &place, c"tmpfs", MountFlags::empty(), None::<&CStr>).doing("mount on", &place)?;
    // The mount is removed first, since the orphan cannot be verified behind it.
    undo.push(move || unmount(&place, UnmountFlags::DETACH).doing("unmount", &place));
    Ok(facts)
}

/// A chain that a socket ends. Both ends belong to the scaffolding, so that no descriptor is a leak.
fn respawning(stage: &mut Stage, name: &'static CStr, pace: i64) -> Result<Planting> {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).during("socketpair")?;
    let ours = stage.share(ours);
    planting(move |undo| {
        let link = theirs.try_clone().during("dup")?;
        let pace = Timespec { tv_sec: 0, tv_nsec: pace };
        let first = spawn(0, move || {
            rustix::thread::set_name(name).during("prctl PR_SET_NAME")?;
            Ok(Then::Respawn(link, pace))
        })?;
        drop(theirs);
        undo.push(move || {
            shutdown(&*ours, Shutdown::Write).during("shutdown")?;
            // A hang-up here means that its last process has closed its end.
            match rustix::io::read(&*ours, &mut [0u8; 1]).during("read")? {
                0 => Ok(()),
                _ => Err(Error::Failed("the chain of processes sent a byte".into())),
            }
        });
        first.wait_unreaped(WaitIdOptions::EXITED)?;
        first.end()?;
        Ok(json!({"comm": name.to_string_lossy()}))
    })
}

fn daemon(setup: impl FnOnce() -> Result<Then> + 'static) -> Result<Planting> {
    planting(move |undo| {
        let orphan = orphan(|| Ok(()), setup)?;
        let pid = orphan.pid();
        undo.push(move || orphan.end());
        Ok(json!({"pid": pid}))
    })
}

/// Overwrites what `/proc/PID/{comm,cmdline,environ}` show of this process.
fn rename_and_wipe() -> Result<()> {
    let comm = CString::new(DISGUISE).during("name")?;
    rustix::thread::set_name(&comm).during("prctl PR_SET_NAME")?;
    leakcheck_sys::overwrite_arguments(DISGUISE.as_bytes()).during("overwrite the arguments")
}

fn deleted_exe(stage: &mut Stage) -> Result<Planting> {
    let path = stage.path("exe");
    planting(move |undo| {
        let mut copied = Undo::default();
        copied.push(removal(&path));
        copy_own_exe(&path)?;
        let exe = CString::new(path.as_os_str().as_encoded_bytes()).doing("exec", &path)?;
        let argument = CString::new(PAUSE).doing("exec", &path)?;
        let no_environment: [CString; 0] = [];
        let child = spawn(0, || Err(leakcheck_sys::exec(&[&exe, &argument], &no_environment)).doing("exec", &path))?;
        undo.push(move || child.end());
        copied.run()?;
        Ok::<Value, Error>(json!({"pid": child.pid(), "exe": path}))
    })
}

fn copy_own_exe(to: &Path) -> Result<()> {
    let bytes = fs::read("/proc/self/exe").doing("read", "/proc/self/exe")?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(to).doing("create", to)?;
    file.write_all(&bytes).doing("write", to)
}
