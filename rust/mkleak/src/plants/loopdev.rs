//! Loop devices that stay attached (loop(4)).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use leakcheck_sys::devices;
use serde_json::json;

use super::Plant;
use crate::error::{Doing, Error, Result};
use crate::facts;
use crate::stage::{Planting, Stage, Undo, planting, removal};

pub(super) const PLANTS: &[Plant] = &[
    Plant {
        name: "loop-attached",
        needs: &["root", "/dev/loop-control"],
        what: "a loop device with a backing file",
        prepare: |stage| {
            let path = stage.path("disk");
            backing_file(stage.scaffold(), &path)?;
            planting(move |undo| attach(undo, &path))
        },
    },
    Plant {
        name: "loop-deleted-backing",
        needs: &["root", "/dev/loop-control"],
        what: "a loop device whose backing file was deleted",
        prepare: deleted_backing,
    },
];

fn deleted_backing(stage: &mut Stage) -> Result<Planting> {
    let path = stage.path("disk");
    planting(move |undo| {
        let mut made = Undo::default();
        backing_file(&mut made, &path)?;
        let facts = attach(undo, &path)?;
        made.run()?;
        Ok(facts)
    })
}

fn backing_file(undo: &mut Undo, path: &Path) -> Result<()> {
    let file = File::create_new(path).doing("create", path)?;
    undo.push(removal(path));
    file.set_len(64 * 1024).doing("truncate", path)
}

fn attach(undo: &mut Undo, backing: &Path) -> Result<serde_json::Value> {
    let file = OpenOptions::new().read(true).write(true).open(backing).doing("open", backing)?;
    let device = attach_to_free(&file)?;
    let mut facts = facts::of_path(backing)?;
    facts["device"] = json!(device);
    let backing = backing.to_owned();
    undo.push(move || detach(&device, &backing));
    Ok(facts)
}

/// Another process may take the free device first, so this tries several times.
fn attach_to_free(file: &File) -> Result<PathBuf> {
    let path = Path::new("/dev/loop-control");
    let control = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::Unavailable("no /dev/loop-control here".into()));
        }
        opened => opened.doing("open", path)?,
    };
    for _ in 0..16 {
        let number = devices::free_loop(&control).during("LOOP_CTL_GET_FREE")?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Unavailable(format!("{path:?} has no node here")));
            }
            opened => opened.doing("open", &path)?,
        };
        match devices::attach_loop(&device, file) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            done => return done.doing("LOOP_SET_FD", &path).map(|_| path),
        }
    }
    Err(Error::Failed("other processes took every free loop device".into()))
}

fn detach(device: &Path, backing: &Path) -> Result<()> {
    let opened = File::open(device).doing("open", device)?;
    devices::detach_loop(&opened).doing("LOOP_CLR_FD", device)?;
    drop(opened);
    // While another process has the device open, the kernel only marks it for removal (loop(4), autoclear).
    let attached = Path::new("/sys/block").join(device.file_name().unwrap_or_default()).join("loop/backing_file");
    match fs::read(&attached) {
        // The path of a deleted file has a suffix.
        Ok(file) if file.starts_with(backing.as_os_str().as_bytes()) => {
            Err(Error::Failed(format!("{device:?} is still attached: another process has it open")))
        }
        _ => Ok(()),
    }
}
