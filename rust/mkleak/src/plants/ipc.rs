//! System V and POSIX IPC objects that stay.

use std::ffi::CString;
use std::io;
use std::path::Path;

use rustix::fs::Mode;
use rustix::shm;
use serde_json::json;

use super::Plant;
use crate::error::{During, Result};
use crate::facts;
use crate::stage::{Planting, name, planting};

pub(super) const PLANTS: &[Plant] = &[
    Plant {
        name: "shm-sysv",
        needs: &[],
        what: "a System V shared memory segment that nobody has attached",
        prepare: |_| sysv("shm", make_shm, remove_shm),
    },
    Plant {
        name: "sem-sysv",
        needs: &[],
        what: "a System V semaphore set",
        prepare: |_| sysv("sem", make_sem, remove_sem),
    },
    Plant {
        name: "msg-sysv",
        needs: &[],
        what: "a System V message queue",
        prepare: |_| sysv("msg", make_msg, remove_msg),
    },
    Plant {
        name: "shm-posix",
        needs: &["/dev/shm"],
        what: "a POSIX shared memory object: a file in /dev/shm",
        prepare: |_| {
            planting(|undo| {
                let name = name("shm");
                let flags = shm::OFlags::CREATE | shm::OFlags::EXCL | shm::OFlags::RDWR;
                shm::open(format!("/{name}"), flags, Mode::RUSR | Mode::WUSR).during("shm_open")?;
                let object = name.clone();
                undo.push(move || shm::unlink(format!("/{object}")).during("shm_unlink"));
                facts::of_path(&Path::new("/dev/shm").join(name))
            })
        },
    },
    Plant {
        name: "sem-posix",
        needs: &["/dev/shm"],
        what: "a named POSIX semaphore: a file sem.NAME in /dev/shm",
        prepare: |_| {
            planting(|undo| {
                let name = name("sem");
                let object = c_name(&name)?;
                make_posix_sem(&object).during("sem_open")?;
                undo.push(move || remove_posix_sem(&object).during("sem_unlink"));
                facts::of_path(Path::new(&format!("/dev/shm/sem.{name}")))
            })
        },
    },
    Plant {
        name: "mqueue",
        needs: &["mqueue"],
        what: "a POSIX message queue that nobody has open",
        prepare: |_| {
            planting(|undo| {
                let name = name("mqueue");
                let object = c_name(&name)?;
                make_mqueue(&object).during("mq_open")?;
                undo.push(move || remove_mqueue(&object).during("mq_unlink"));
                Ok(json!({"name": format!("/{name}")}))
            })
        },
    },
];

fn c_name(name: &str) -> Result<CString> {
    CString::new(format!("/{name}")).map_err(io::Error::from).during("name")
}

fn sysv(class: &'static str, make: fn() -> libc::c_int, remove: fn(libc::c_int) -> libc::c_int) -> Result<Planting> {
    planting(move |undo| {
        let id = make();
        if id < 0 {
            return Err(io::Error::last_os_error()).during(format!("{class}get"));
        }
        undo.push(move || match remove(id) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()).during(format!("{class}ctl IPC_RMID {id}")),
        });
        Ok(json!({"class": class, "id": id}))
    })
}

#[allow(unsafe_code)]
fn make_shm() -> libc::c_int {
    // SAFETY: no memory is passed.
    unsafe { libc::shmget(libc::IPC_PRIVATE, 4096, libc::IPC_CREAT | 0o600) }
}

#[allow(unsafe_code)]
fn remove_shm(id: libc::c_int) -> libc::c_int {
    // SAFETY: IPC_RMID reads no buffer.
    unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }
}

#[allow(unsafe_code)]
fn make_sem() -> libc::c_int {
    // SAFETY: no memory is passed.
    unsafe { libc::semget(libc::IPC_PRIVATE, 1, libc::IPC_CREAT | 0o600) }
}

#[allow(unsafe_code)]
fn remove_sem(id: libc::c_int) -> libc::c_int {
    // SAFETY: IPC_RMID takes no fourth argument.
    unsafe { libc::semctl(id, 0, libc::IPC_RMID) }
}

#[allow(unsafe_code)]
fn make_msg() -> libc::c_int {
    // SAFETY: no memory is passed.
    unsafe { libc::msgget(libc::IPC_PRIVATE, libc::IPC_CREAT | 0o600) }
}

#[allow(unsafe_code)]
fn remove_msg(id: libc::c_int) -> libc::c_int {
    // SAFETY: IPC_RMID reads no buffer.
    unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) }
}

#[allow(unsafe_code)]
fn make_posix_sem(name: &CString) -> io::Result<()> {
    // SAFETY: the name is null-terminated; the semaphore is closed once and used by nobody.
    unsafe {
        let semaphore = libc::sem_open(name.as_ptr(), libc::O_CREAT | libc::O_EXCL, 0o600 as libc::c_uint, 1);
        if semaphore == libc::SEM_FAILED {
            return Err(io::Error::last_os_error());
        }
        libc::sem_close(semaphore);
    }
    Ok(())
}

#[allow(unsafe_code)]
fn remove_posix_sem(name: &CString) -> io::Result<()> {
    // SAFETY: the name is null-terminated.
    match unsafe { libc::sem_unlink(name.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[allow(unsafe_code)]
fn make_mqueue(name: &CString) -> io::Result<()> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: the name is null-terminated, the null attributes ask for the defaults, and the descriptor is
    // closed once.
    unsafe {
        let queue = libc::mq_open(name.as_ptr(), flags, 0o600 as libc::c_uint, std::ptr::null::<libc::mq_attr>());
        if queue < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::mq_close(queue);
    }
    Ok(())
}

#[allow(unsafe_code)]
fn remove_mqueue(name: &CString) -> io::Result<()> {
    // SAFETY: the name is null-terminated.
    match unsafe { libc::mq_unlink(name.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
