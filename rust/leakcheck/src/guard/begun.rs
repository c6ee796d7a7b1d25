//! How a guard begins: with a watch, its own or the one of the guard before it, and a baseline.

use std::path::PathBuf;

use super::kept::{KeptWatch, Lent, MountsHere, Place};
use super::options::Options;
use crate::error::Result;
use crate::kind::{Kind, KindSet};
use crate::observe;
use crate::scope::Scope;
use crate::snapshot::Snapshot;
use crate::watch::{self, Watch};

/// A watch, and the baseline that was taken after its start: everything that is new after the baseline has an event.
pub(super) struct Begun {
    pub(super) watch: Option<Watch>,
    pub(super) lent: Option<Lent>,
    pub(super) baseline: Snapshot,
    pub(super) baseline_ns: i64,
}

impl Begun {
    pub(super) fn of(options: &mut Options, kinds: KindSet, mounts: bool) -> Result<Self> {
        if options.observe.arena.is_some() {
            let baseline_ns = observe::file_clock_ns();
            let baseline = observe::snapshot(&options.observe)?;
            return Ok(Begun { watch: None, lent: None, baseline, baseline_ns });
        }
        let host = options.observe.scope == Scope::Host;
        let (kept, mut lent) = options.kept.as_ref().filter(|_| host).map_or((None, None), KeptWatch::take);
        if let Some((watch, place)) = kept {
            let begun = Begun::with(watch, options)?;
            let roots = options.observe.roots.as_deref().unwrap_or_default();
            let now = MountsHere::now().and_then(|mounts| Place::of(&begun.baseline, roots, mounts));
            if now.is_some_and(|now| now == place) {
                if let Some(lent) = &mut lent {
                    lent.place = Some(place);
                }
                options.observe.hidden_fds.extend(begun.watch.iter().flat_map(Watch::own_fds));
                return Ok(Begun { lent, ..begun });
            }
        }
        let mounts_before = lent.as_ref().and_then(|_| MountsHere::now());
        let files = if host { watched_files(options, kinds) } else { Vec::new() };
        let watch = Watch::start(&watch::Options { root: std::process::id(), files, mounts });
        let begun = Begun::with(watch, options)?;
        if let Some(lent) = &mut lent {
            let roots = options.observe.roots.as_deref().unwrap_or_default();
            lent.place = mounts_before.and_then(|mounts| Place::of(&begun.baseline, roots, mounts));
        }
        options.observe.hidden_fds.extend(begun.watch.iter().flat_map(Watch::own_fds));
        Ok(Begun { lent, ..begun })
    }

    fn with(watch: Watch, options: &Options) -> Result<Self> {
        let mut observed = options.observe.clone();
        observed.hidden_fds.extend(watch.own_fds());
        let baseline_ns = observe::file_clock_ns();
        let baseline = observe::snapshot(&observed)?;
        Ok(Begun { watch: Some(watch), lent: None, baseline, baseline_ns })
    }
}

/// Paths on all file systems of a host on which something of these kinds may be made.
fn watched_files(options: &Options, kinds: KindSet) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = Vec::new();
    let roots = options.observe.effective_roots();
    if kinds.any(&[Kind::File, Kind::Ipc, Kind::Lockfile, Kind::Loop, Kind::Net]) {
        files.extend(options.observe.lock_files.iter().filter_map(|f| Some(f.parent()?.to_owned())));
        files.push("/dev/shm".into());
        files.extend(observe::local_mounts_below(&roots));
        files.extend_from_slice(&roots);
    }
    if kinds.contains(Kind::Cgroup) {
        files.extend(observe::cgroup_mounts());
    }
    files
}
