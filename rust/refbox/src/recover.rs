//! Removes what a run left whose supervisor died. It can be killed at any instant itself: it removes the state file last.

use std::path::{Path, PathBuf};

use rustix::fs::statfs;

use crate::cgroup::removal::{Below, remove};
use crate::cgroup::{lock, plan};
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::lock::Lock;
use crate::sabotage::removed;
use crate::state::{Phase, State};
use crate::store::{Found, Store};

/// The command `recover`: one box, or all that are not in use.
pub(crate) fn recover(store: &Store, number: Option<u16>) -> Result<()> {
    if let Some(number) = number {
        let lock = if removed("recover-lock") { Lock::none() } else { Lock::take(store, number, false) }?;
        return undo(store, number, &lock);
    }
    let mut failed = Ok(());
    for number in store.boxes()? {
        match Lock::take(store, number, false).and_then(|lock| undo(store, number, &lock)) {
            Ok(()) | Err(Error::InUse { .. }) => {}
            // A failure does not stop the recovery of the others.
            Err(e) => failed = failed.and(Err(e)),
        }
    }
    failed
}

/// The command `clean`: `recover`, and removal of the quarantined files too. The lock file stays.
pub(crate) fn clean(store: &Store, number: u16) -> Result<()> {
    let lock = Lock::take(store, number, false)?;
    undo(store, number, &lock)?;
    store.remove_set_aside(number)
}

/// Makes a box that we have locked idle, or puts it into quarantine.
pub(crate) fn undo(store: &Store, number: u16, _lock: &Lock) -> Result<()> {
    let found = match store.read(number)? {
        // It has the name of one of our cgroups, but contains another's files.
        Found::State(state) if !state.cgroups.iter().all(|dir| absent_or_cgroup(dir)) => {
            Found::Corrupt("a directory in it is not a cgroup".to_owned())
        }
        found => found,
    };
    let mut dirs: Vec<PathBuf> = Vec::new();
    let mut event = None;
    let idle = matches!(found, Found::Idle);
    match found {
        Found::Idle => {}
        Found::Corrupt(why) => store.set_aside(number, &why)?,
        Found::State(state) => {
            event = Some(match state.quarantined {
                Some(why) => ("returned-to-service", why),
                None => ("recovered", format!("supervisor {} died in {}", state.supervisor.pid, state.phase)),
            });
            dirs = state.cgroups;
        }
    }
    // Without a valid state, a cgroup is found by its name.
    for place in plan::plan(&store.cgroup_name(number))? {
        if idle && place.dir.is_dir() && !removed("missing") {
            event = Some(("state-missing", format!("cgroup {} has no state file", place.dir.display())));
        }
        if !dirs.contains(&place.dir) {
            dirs.push(place.dir);
        }
    }
    match remove_unlocked(&dirs).and_then(|()| store.remove(number)) {
        Ok(()) => {
            if let Some((event, why)) = event {
                store.audit(number, event, &why);
            }
            Ok(())
        }
        Err(e) => Err(quarantine(store, number, dirs, &e.to_string())),
    }
}

fn absent_or_cgroup(dir: &Path) -> bool {
    const V1: u32 = 0x0027_e0eb;
    const V2: u32 = 0x6367_7270;
    statfs(dir).map_or(true, |found| [V1, V2].contains(&(found.f_type as u32)))
}

fn remove_unlocked(dirs: &[PathBuf]) -> Result<()> {
    let mut locks = Vec::new();
    for dir in dirs.iter().filter(|dir| dir.is_dir()) {
        match lock(dir)? {
            Some(held) => locks.push(held),
            None => {
                return Err(Error::Internal(format!("remove cgroup {}: another supervisor has it", dir.display())));
            }
        }
    }
    remove(dirs, Below::Remove)
}

/// Takes a box out of service, so that later runs do not inherit its damage.
pub(crate) fn quarantine(store: &Store, number: u16, cgroups: Vec<PathBuf>, why: &str) -> Error {
    let reason = why.to_owned();
    store.audit(number, "quarantined", why);
    let written = Identity::own().and_then(|supervisor| {
        let quarantined = Some(reason.clone());
        store.write(&State { number, phase: Phase::Cleanup, supervisor, cgroups, quarantined })
    });
    match written {
        Ok(_) => Error::Quarantined { number, reason },
        // The earlier state, if there is one, still shows that the box isn't idle.
        Err(e) => Error::Internal(format!("{reason}; {e}")),
    }
}
