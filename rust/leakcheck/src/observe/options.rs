//! What to observe: the scope, the kinds, and the observer's own resources.

use std::collections::HashSet;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::arena::ObservedArena;
use super::context::Context;
use super::file::{self, DEFAULT_ROOTS};
use super::listings::Remembered;
use super::open_settings::OpenSettings;
use crate::error::{Error, Result};
use crate::kind::{Kind, KindSet};
use crate::resource::Sysctl;
use crate::scope::Scope;
use crate::snapshot::{Snapshot, Submount};

/// Whose mappings of deleted files a look reads. The kernel takes longer to list the mappings of a process than all else
/// about it.
#[derive(Clone, Debug)]
pub enum Mappings {
    /// Those of all processes.
    All,
    /// Those of the calling process.
    Own,
    /// Those of the calling process, and of all processes except these: pid and start time.
    New(Arc<HashSet<(u32, u64)>>),
}

impl Mappings {
    /// Whether those of a process are read that is not the calling one.
    pub(super) fn include(&self, pid: u32, start: u64) -> bool {
        match self {
            Mappings::All => true,
            Mappings::Own => false,
            Mappings::New(known) => !known.contains(&(pid, start)),
        }
    }
}

/// What to observe.
#[derive(Clone, Debug)]
pub struct Options {
    /// The scope.
    pub scope: Scope,
    /// The kinds; none means every kind that the scope can limit.
    pub kinds: Option<KindSet>,
    /// Roots of the file kind; none means [`DEFAULT_ROOTS`] in the host scope and no files elsewhere.
    pub roots: Option<Vec<PathBuf>>,
    /// Which of the file systems mounted below the roots are read too; none means all local ones. One that appears
    /// later is reported as a mount, without its files.
    pub submounts: Option<Vec<Submount>>,
    /// Which mounts a path may lead into, by the numbers of statx(2); none means all that respond. A mount of the run
    /// may not respond.
    pub old_mounts: Option<Arc<HashSet<u64>>>,
    /// The settings to read below `/proc/sys`; none means all.
    pub old_settings: Option<Arc<Vec<Sysctl>>>,
    /// Where the first look keeps the files of settings open, for the next ones; none if each opens them.
    pub open_settings: Option<Arc<OpenSettings>>,
    /// Whose mappings to read.
    pub mappings: Mappings,
    /// Lock files, or directories of them.
    pub lock_files: Vec<PathBuf>,
    /// Threads for the process pass; 0 means as many as there are CPUs, at most four.
    pub threads: usize,
    /// Whether the calling process' own descriptors count.
    pub include_self: bool,
    /// In a `tree:` scope, further processes that belong to it, with their descendants: orphans that left the tree.
    pub members: Vec<u32>,
    /// Descriptors of the calling process that are the observer's. One that the program has closed hides nothing: another
    /// file may have its number.
    pub hidden_fds: Vec<RawFd>,
    /// What looks with the same value remember of each other: directories that did not change are not listed again.
    pub remembered: Remembered,
    /// The arena to observe, instead of `scope` and `roots`.
    pub arena: Option<Arc<ObservedArena>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            scope: Scope::Host,
            kinds: None,
            roots: None,
            submounts: None,
            old_mounts: None,
            old_settings: None,
            open_settings: None,
            mappings: Mappings::All,
            lock_files: Vec::new(),
            threads: 0,
            include_self: false,
            members: Vec::new(),
            hidden_fds: Vec::new(),
            remembered: Remembered::default(),
            arena: None,
        }
    }
}

impl Options {
    /// The options that a snapshot was taken with, except the arena itself.
    pub fn like(snapshot: &Snapshot, include_self: bool) -> Self {
        Options {
            scope: snapshot.scope.clone(),
            kinds: Some(snapshot.kinds),
            roots: (snapshot.kinds.contains(Kind::File) && snapshot.scope != Scope::Arena)
                .then(|| snapshot.roots.clone()),
            submounts: Some(snapshot.submounts.clone()),
            lock_files: snapshot.lock_paths.clone(),
            include_self,
            ..Options::default()
        }
    }

    /// The kinds that a snapshot with these options looks for.
    ///
    /// # Errors
    /// [`Error::Usage`] if a kind was named that the scope cannot limit.
    pub fn effective_kinds(&self) -> Result<KindSet> {
        match (&self.arena, &self.scope) {
            (None, Scope::Arena) => return Err(Error::usage("scope arena names no arena: pass the arena itself")),
            (Some(_), Scope::Host | Scope::Arena) if self.roots.is_none() => {}
            (Some(_), Scope::Host | Scope::Arena) => {
                return Err(Error::usage(
                    "an arena's snapshot covers all its files: do not declare roots with an arena",
                ));
            }
            (Some(_), other) => return Err(Error::usage(format!("scope {other} cannot be combined with an arena"))),
            (None, _) => {}
        }
        let mut possible: Vec<Kind> = self.scope.kinds().into();
        if self.roots.is_some() {
            possible.push(Kind::File);
        }
        if !self.lock_files.is_empty() {
            possible.push(Kind::Lockfile);
        }
        let possible: KindSet = possible.into_iter().collect();
        match self.kinds {
            // They belong to the whole machine, but a guard observes them nevertheless.
            None if self.arena.is_some() => Ok(possible.iter().filter(|kind| *kind != Kind::Sysctl).collect()),
            None => Ok(possible),
            Some(asked) if asked.and(possible) == asked => Ok(asked),
            Some(asked) => {
                let wrong: Vec<_> = asked.iter().filter(|k| !possible.contains(*k)).map(Kind::as_str).collect();
                Err(Error::usage(format!(
                    "scope {} cannot limit {}: use scope host, or declare --roots or --lock-files",
                    self.scope,
                    wrong.join(" and ")
                )))
            }
        }
    }

    pub(super) fn context(&self) -> Context<'_> {
        Context {
            arena: self.arena.as_deref().map(|arena| &arena.view),
            table: self.arena.as_deref().map(|arena| &arena.table),
            old_mounts: self.old_mounts.as_ref(),
            old_settings: self.old_settings.as_ref().map(|old| old.as_slice()),
            open_settings: self.open_settings.as_deref(),
        }
    }

    /// The roots of the file kind.
    pub fn effective_roots(&self) -> Vec<PathBuf> {
        match &self.roots {
            _ if self.arena.is_some() => Vec::new(),
            Some(roots) => roots.clone(),
            None if self.scope == Scope::Host => {
                let cgroups = file::is_tmpfs_of_cgroups().then_some(file::CGROUPS);
                DEFAULT_ROOTS.into_iter().chain(cgroups).map(PathBuf::from).collect()
            }
            None => Vec::new(),
        }
    }
}
