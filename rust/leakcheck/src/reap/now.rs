//! The current resources of the kinds that cannot be verified through a descriptor.

use std::collections::HashSet;
use std::path::PathBuf;

use super::action::{Outcome, Verb};
use crate::error::Result;
use crate::kind::{Kind, KindSet};
use crate::observe;
use crate::resource::{IpcClass, Resource, each_kind};
use crate::snapshot::{Level, Snapshot};

/// One observation of these kinds.
pub(super) struct Now {
    keys: HashSet<String>,
    pub(super) snapshot: Snapshot,
}

impl Now {
    /// Observes the kinds of `resources`.
    pub(super) fn of(resources: &[Resource]) -> Result<Self> {
        let needs = |r: &&Resource| match r {
            Resource::Process(_) | Resource::Mount(_) | Resource::Cgroup(_) | Resource::Loop(_) => false,
            Resource::File(f) => f.mapped_by.is_some(),
            Resource::Ipc(i) => i.class != IpcClass::PosixShm,
            Resource::Fd(_)
            | Resource::Lock(_)
            | Resource::Lockfile(_)
            | Resource::Namespace(_)
            | Resource::Net(_)
            | Resource::Key(_)
            | Resource::Bpf(_)
            | Resource::Sysctl(_) => true,
        };
        let kinds: KindSet = resources.iter().filter(needs).map(Resource::kind).collect();
        let lock_files: Vec<PathBuf> = resources
            .iter()
            .filter_map(|r| if let Resource::Lockfile(f) = r { Some(f.path.as_path().to_owned()) } else { None })
            .collect();
        // No roots: the only files needed here are mapped ones.
        let options =
            observe::Options { kinds: Some(kinds), roots: Some(Vec::new()), lock_files, ..observe::Options::default() };
        let snapshot = observe::snapshot(&options)?;
        let mut keys = HashSet::new();
        macro_rules! add {
            ($field:ident, $type:ident, $variant:ident) => {
                if kinds.contains(<crate::resource::$type as crate::resource::Identified>::KIND) {
                    keys.extend(snapshot.$field.iter().map(|r| Resource::from(r.clone()).key()));
                }
            };
        }
        each_kind!(add);
        Ok(Now { keys, snapshot })
    }

    /// Whether it exists; the reason if that is not known.
    pub(super) fn has(&self, resource: &Resource) -> std::result::Result<bool, String> {
        if self.keys.contains(&resource.key()) {
            return Ok(true);
        }
        match self.snapshot.coverage.0.get(&resource.kind()) {
            Some(c) if c.level != Level::Full => Err(format!("leakcheck cannot see it now: {}", c.reason)),
            Some(_) | None => Ok(false),
        }
    }

    /// Resources that exist as long as their holder.
    pub(super) fn held(&self, resource: &Resource, advice: &str) -> Outcome {
        match self.has(resource) {
            Ok(false) => Outcome::gone(Verb::None),
            Err(why) => Outcome::skipped(Verb::None, why),
            Ok(true) => {
                let advice = if advice.is_empty() { String::new() } else { format!(": {advice}") };
                let goes = match resource.kind() {
                    Kind::Sysctl => "reap does not change settings",
                    Kind::Net => "goes with its holder or its network namespace",
                    _ => "goes with its holder",
                };
                Outcome::skipped(Verb::None, format!("{goes}{advice}"))
            }
        }
    }
}
