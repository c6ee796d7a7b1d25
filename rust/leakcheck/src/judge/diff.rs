//! The pure comparison of two snapshots.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::kind::{Kind, KindSet};
use crate::resource::{
    Bpf, Cgroup, Fd, File, Ipc, Key, Lock, LockFile, LockFileState, LoopDevice, Mount, Namespace, Net, Process, Sysctl,
};
use crate::resource::{Identified, Resource, each_kind};
use crate::snapshot::{Snapshot, Submount};
use crate::text::Text;

/// The differences, by identity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Diff {
    /// In the second snapshot only.
    pub appeared: Vec<Resource>,
    /// In the first snapshot only.
    pub vanished: Vec<Resource>,
}

impl Diff {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.appeared.is_empty() && self.vanished.is_empty()
    }

    /// Keeps only the settings that changed since `before`, each with its value there. A setting that only one snapshot
    /// has came or went with its module.
    #[must_use]
    pub fn with_settings_as_changes(mut self, before: &Snapshot) -> Self {
        let value = |path: &Text| {
            let at = before.sysctls.binary_search_by(|s| s.path.cmp(path)).ok()?;
            before.sysctls.get(at).map(|s| s.value.clone())
        };
        self.appeared.retain_mut(|r| match r {
            Resource::Sysctl(s) => {
                s.before = value(&s.path);
                s.before.is_some()
            }
            _ => true,
        });
        self.vanished.retain(|r| r.kind() != Kind::Sysctl);
        self
    }
}

/// Compares the kinds that both snapshots cover.
///
/// # Errors
/// [`Error::Usage`] when the two cannot be compared: different boots, different scopes, no common kind.
pub fn diff(before: &Snapshot, after: &Snapshot) -> Result<Diff> {
    let kinds = comparable(before, after)?;
    let mut out = Diff::default();
    macro_rules! merge {
        ($field:ident, $type:ident, $variant:ident) => {
            if <$type as Identified>::KIND != Kind::File && kinds.contains(<$type as Identified>::KIND) {
                merge_sorted(&before.$field, &after.$field, &mut out);
            }
        };
    }
    each_kind!(merge);
    if kinds.contains(Kind::File) && !before.files.is_shared_with(&after.files) {
        let [old, new] = links_alike(&before.files, &after.files);
        merge_sorted(&old, &new, &mut out);
        // Stable: each kind is sorted already.
        out.appeared.sort_by_key(Resource::kind);
        out.vanished.sort_by_key(Resource::kind);
    }
    // A free lock file is as expected, whichever process made it.
    let free = |r: &Resource| matches!(r, Resource::Lockfile(f) if f.state == LockFileState::Free);
    out.appeared.retain(|r| !free(r));
    out.vanished.retain(|r| !free(r));
    // The files of a mount that only one snapshot has came or went with the mount.
    out.appeared.retain(|r| !is_in(r, &after.submounts, &before.submounts));
    out.vanished.retain(|r| !is_in(r, &before.submounts, &after.submounts));
    Ok(out)
}

/// Whether a file is in a mount that is in `here` but not in `there`.
fn is_in(resource: &Resource, here: &[Submount], there: &[Submount]) -> bool {
    let Resource::File(file) = resource else { return false };
    let below = |s: &Submount| file.path.as_ref().strip_prefix(s.path.as_ref()).is_some_and(|p| p.starts_with(b"/"));
    file.mapped_by.is_none() && here.iter().any(|s| below(s) && !there.contains(s))
}

/// The kinds that both cover.
///
/// # Errors
/// See [`diff`].
pub fn comparable(before: &Snapshot, after: &Snapshot) -> Result<KindSet> {
    if before.boot_id != after.boot_id {
        return Err(Error::usage(format!(
            "the snapshots are from two boots ({} and {}): process ids, inodes and mount ids are valid only within one boot; \
             take both again",
            before.boot_id, after.boot_id
        )));
    }
    // The clock may have been set back, but a process cannot start before an earlier one.
    let starts_later = || before.observer.zip(after.observer).is_some_and(|(before, after)| before.1 > after.1);
    if before.taken_ns > after.taken_ns && starts_later() {
        return Err(Error::usage("the first snapshot was taken after the second: exchange them"));
    }
    if before.scope != after.scope {
        return Err(Error::usage(format!(
            "the snapshots have different scopes ({} and {}): take both with the same --scope",
            before.scope, after.scope
        )));
    }
    let kinds = before.kinds.and(after.kinds);
    if kinds == KindSet::EMPTY {
        return Err(Error::usage("the snapshots have no kind in common: take both with the same --kinds"));
    }
    if before.roots != after.roots && kinds.contains(Kind::File) {
        return Err(Error::usage(format!(
            "the snapshots have different roots ({:?} and {:?}): take both with the same --roots",
            before.roots, after.roots
        )));
    }
    if before.lock_paths != after.lock_paths && kinds.contains(Kind::Lockfile) {
        return Err(Error::usage(format!(
            "the snapshots have different lock files ({:?} and {:?}): take both with the same --lock-files",
            before.lock_paths, after.lock_paths
        )));
    }
    Ok(kinds)
}

/// Both sides' files, with the links of each multiply linked file numbered alike: first the names that both sides have.
/// Then only a name that one side alone has can appear or vanish, never one that merely sorts after it. If both sides
/// have names of their own, these were renamed, as many as both sides have.
fn links_alike<'a>(before: &'a [Arc<File>], after: &'a [Arc<File>]) -> [Cow<'a, [Arc<File>]>; 2] {
    type Id = (u64, u64, Option<i64>);
    let id = |f: &File| -> Id { (f.dev, f.ino, f.birth) };
    let sides = [before, after];
    let several: HashSet<Id> = before.iter().chain(after).filter(|f| f.link > 0).map(|f| id(f)).collect();
    if several.is_empty() {
        return sides.map(Cow::Borrowed);
    }
    let linked = |f: &&Arc<File>| f.mapped_by.is_none() && several.contains(&id(f));
    let names = |side: &'a [Arc<File>]| -> HashSet<(Id, &'a Text)> {
        side.iter().filter(linked).map(|f| (id(f), &f.path)).collect()
    };
    let (old, new) = (names(before), names(after));
    sides.map(|side| {
        let mut groups: HashMap<Id, Vec<usize>> = HashMap::new();
        for (at, file) in side.iter().enumerate().filter(|(_, f)| linked(f)) {
            groups.entry(id(file)).or_default().push(at);
        }
        let mut numbered = side.to_vec();
        for (id, mut places) in groups {
            let mut numbers: Vec<u32> = places.iter().map(|&at| side[at].link).collect();
            numbers.sort_unstable();
            let one_sided = |path| !(old.contains(&(id, path)) && new.contains(&(id, path)));
            places.sort_by_key(|&at| (one_sided(&side[at].path), &side[at].path));
            for (at, number) in places.into_iter().zip(numbers) {
                Arc::make_mut(&mut numbered[at]).link = number;
            }
        }
        numbered.sort_by_key(|file| file.id());
        Cow::Owned(numbered)
    })
}

fn merge_sorted<T: Identified + Clone + Into<Resource>>(before: &[T], after: &[T], out: &mut Diff) {
    let (mut a, mut b) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (a.peek(), b.peek()) {
            (Some(x), Some(y)) if x.is_shared_with(y) => Ordering::Equal,
            (Some(x), Some(y)) => x.id().cmp(&y.id()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return,
        };
        match order {
            Ordering::Less => out.vanished.extend(a.next().cloned().map(Into::into)),
            Ordering::Greater => out.appeared.extend(b.next().cloned().map(Into::into)),
            Ordering::Equal => {
                a.next();
                b.next();
            }
        }
    }
}
