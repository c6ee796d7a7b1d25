//! What a plant needs: its directory, its scaffolding, and the steps that undo it.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::Value;

use crate::error::{Doing, Result};

/// The steps that undo something, the last one first. They also run when this is dropped, so that an error in the middle of
/// planting leaves nothing.
#[derive(Default)]
pub(crate) struct Undo(Vec<Box<dyn FnOnce() -> Result<()>>>);

impl Undo {
    pub(crate) fn push(&mut self, step: impl FnOnce() -> Result<()> + 'static) {
        self.0.push(Box::new(step));
    }

    /// Keeps a value, such as an open FD, until this step.
    pub(crate) fn keep<T: 'static>(&mut self, value: T) {
        self.push(move || {
            drop(value);
            Ok(())
        });
    }

    /// Runs every step, even after a failure, and returns the first error.
    pub(crate) fn run(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        while let Some(step) = self.0.pop() {
            outcome = outcome.and(step());
        }
        outcome
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Err(error) = self.run() {
            eprintln!("mkleak: while cleaning up: {error}");
        }
    }
}

/// The second half of a plant: makes the leak, pushes the steps that undo it, and returns the facts for `READY`.
pub(crate) type Planting = Box<dyn FnOnce(&mut Undo) -> Result<Value>>;

pub(crate) fn planting(plant: impl FnOnce(&mut Undo) -> Result<Value> + 'static) -> Result<Planting> {
    Ok(Box::new(plant))
}

/// The tools of the first half: what they make exists from `WAITING` until after `CLEAN`.
pub(crate) struct Stage<'a> {
    dir: &'a Path,
    cgroup: Option<&'a Path>,
    scaffold: Undo,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(dir: &'a Path, cgroup: Option<&'a Path>) -> Self {
        Self { dir, cgroup, scaffold: Undo::default() }
    }

    /// The directory for file-like plants.
    pub(crate) fn dir(&self) -> &Path {
        self.dir
    }

    /// The cgroup for cgroup plants, if not the caller's own.
    pub(crate) fn cgroup(&self) -> Option<&Path> {
        self.cgroup
    }

    pub(crate) fn scaffold(&mut self) -> &mut Undo {
        &mut self.scaffold
    }

    /// An unused path below the given directory.
    pub(crate) fn path(&self, suffix: &str) -> PathBuf {
        self.dir.join(name(suffix))
    }

    /// An empty file that belongs to the scaffolding.
    pub(crate) fn file(&mut self, suffix: &str) -> Result<PathBuf> {
        let path = self.path(suffix);
        fs::File::create_new(&path).doing("create", &path)?;
        self.scaffold.push(removal(&path));
        Ok(path)
    }

    /// An empty directory that belongs to the scaffolding.
    pub(crate) fn directory(&mut self, suffix: &str) -> Result<PathBuf> {
        let path = self.path(suffix);
        make_directory(&mut self.scaffold, &path)?;
        Ok(path)
    }

    /// Keeps a value as long as the scaffolding, and shares it with the plant.
    pub(crate) fn share<T: 'static>(&mut self, value: T) -> Rc<T> {
        let shared = Rc::new(value);
        self.scaffold.keep(Rc::clone(&shared));
        shared
    }
}

/// `leakcheck-mkleak-PID`, and `.INODE` of the pid namespace unless it is the initial one: pid namespaces share cgroups, keys
/// and files, and each of them may have a process of this pid.
pub(crate) fn tag() -> String {
    // linux/proc_ns.h, PROC_PID_INIT_INO
    const FIRST: &str = "pid:[4026531836]";
    let pid = std::process::id();
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    match link.to_str().filter(|&link| link != FIRST).and_then(|link| link.strip_prefix("pid:[")) {
        Some(inode) => format!("leakcheck-mkleak-{pid}.{}", inode.trim_end_matches(']')),
        None => format!("leakcheck-mkleak-{pid}"),
    }
}

/// The name of an object: the tag and what it is.
pub(crate) fn name(suffix: &str) -> String {
    format!("{}-{suffix}", tag())
}

/// A step that removes a file; a missing file is no error.
pub(crate) fn removal(path: &Path) -> impl FnOnce() -> Result<()> + 'static {
    let path = path.to_owned();
    move || match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).doing("unlink", &path),
        _ => Ok(()),
    }
}

pub(crate) fn make_directory(undo: &mut Undo, path: &Path) -> Result<()> {
    fs::create_dir(path).doing("mkdir", path)?;
    let path = path.to_owned();
    undo.push(move || fs::remove_dir(&path).doing("rmdir", &path));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::error::Error;

    #[test]
    fn undo_runs_every_step_in_reverse_and_gives_the_first_error() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let mut undo = Undo::default();
        for step in 1..=3 {
            let seen = Rc::clone(&seen);
            undo.push(move || {
                seen.borrow_mut().push(step);
                if step == 1 { Ok(()) } else { Err(Error::Failed(format!("step {step}"))) }
            });
        }
        assert_eq!(undo.run().unwrap_err().to_string(), "step 3");
        assert_eq!(*seen.borrow(), [3, 2, 1]);
        assert!(undo.run().is_ok());
    }
}
