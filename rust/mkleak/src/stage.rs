//! What a plant stands on: its place, its scaffolding, and the way back.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::Value;

use crate::error::{Doing, Result};

/// The steps that take something away again, run last in, first out; also when dropped, so that an error
/// in the middle of planting leaves nothing.
#[derive(Default)]
pub(crate) struct Undo(Vec<Box<dyn FnOnce() -> Result<()>>>);

impl Undo {
    pub(crate) fn push(&mut self, step: impl FnOnce() -> Result<()> + 'static) {
        self.0.push(Box::new(step));
    }

    /// Keeps a value (an open FD, say) until this point of the way back.
    pub(crate) fn keep<T: 'static>(&mut self, value: T) {
        self.push(move || {
            drop(value);
            Ok(())
        });
    }

    /// Runs every step, whatever becomes of the others, and gives the first error.
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

/// The second half of a plant: makes the leak, pushes the way back, and gives the facts for `READY`.
pub(crate) type Planting = Box<dyn FnOnce(&mut Undo) -> Result<Value>>;

pub(crate) fn planting(plant: impl FnOnce(&mut Undo) -> Result<Value> + 'static) -> Result<Planting> {
    Ok(Box::new(plant))
}

/// The first half's tools: whatever is made with them exists from `WAITING` until after `CLEAN`.
pub(crate) struct Stage<'a> {
    dir: &'a Path,
    cgroup: Option<&'a Path>,
    scaffold: Undo,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(dir: &'a Path, cgroup: Option<&'a Path>) -> Self {
        Self { dir, cgroup, scaffold: Undo::default() }
    }

    /// Where file-like plants go.
    pub(crate) fn dir(&self) -> &Path {
        self.dir
    }

    /// Where cgroup plants go, if not below the caller's own cgroup.
    pub(crate) fn cgroup(&self) -> Option<&Path> {
        self.cgroup
    }

    pub(crate) fn scaffold(&mut self) -> &mut Undo {
        &mut self.scaffold
    }

    /// A path below the given directory which nothing uses.
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

    /// Keeps a value until the scaffolding goes, and shares it with the plant.
    pub(crate) fn share<T: 'static>(&mut self, value: T) -> Rc<T> {
        let shared = Rc::new(value);
        self.scaffold.keep(Rc::clone(&shared));
        shared
    }
}

/// `leakcheck-mkleak-PID`, and `.INODE` of the pid namespace where it is not the first one: cgroups, keys and
/// files are shared between pid namespaces, in each of which the same pid may be at work.
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

/// The tag and what it is, the name of whatever has a name.
pub(crate) fn name(suffix: &str) -> String {
    format!("{}-{suffix}", tag())
}

/// A step which removes a file; that it has gone already is fine.
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
