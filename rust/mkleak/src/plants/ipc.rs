//! System V and POSIX IPC objects that stay.

use std::ffi::CString;
use std::io;
use std::path::Path;

use leakcheck_sys::ipc;
use rustix::fs::Mode;
use rustix::shm;
use serde_json::json;

use super::Plant;
use crate::error::{Doing, Result};
use crate::facts;
use crate::stage::{Planting, name, planting};

pub(super) const PLANTS: &[Plant] = &[
    Plant {
        name: "shm-sysv",
        needs: &[],
        what: "a System V shared memory segment that nobody has attached",
        prepare: |_| sysv("shm", || ipc::make_shm(4096), ipc::remove_shm),
    },
    Plant {
        name: "sem-sysv",
        needs: &[],
        what: "a System V semaphore set",
        prepare: |_| sysv("sem", ipc::make_sem, ipc::remove_sem),
    },
    Plant {
        name: "msg-sysv",
        needs: &[],
        what: "a System V message queue",
        prepare: |_| sysv("msg", ipc::make_msg, ipc::remove_msg),
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
                ipc::make_posix_sem(&object).during("sem_open")?;
                undo.push(move || ipc::remove_posix_sem(&object).during("sem_unlink"));
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
                ipc::make_mqueue(&object).during("mq_open")?;
                undo.push(move || ipc::remove_mqueue(&object).during("mq_unlink"));
                Ok(json!({"name": format!("/{name}")}))
            })
        },
    },
];

fn c_name(name: &str) -> Result<CString> {
    CString::new(format!("/{name}")).during("name")
}

fn sysv(class: &'static str, make: fn() -> io::Result<i32>, remove: fn(i32) -> io::Result<()>) -> Result<Planting> {
    planting(move |undo| {
        let id = make().during(format_args!("{class}get"))?;
        undo.push(move || remove(id).during(format_args!("{class}ctl IPC_RMID {id}")));
        Ok(json!({"class": class, "id": id}))
    })
}
