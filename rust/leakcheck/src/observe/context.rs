//! The context of a look: what every collector needs and no record contains.

use std::collections::HashSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::mount_table::{InitTable, Mounts};
use super::open_settings::OpenSettings;
use super::reach::{self, Place, Refusal};
use crate::arena::{ArenaView, proc_path};
use crate::resource::Sysctl;

/// The host, or an arena.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    /// The arena's descriptors and paths, if there is an arena.
    pub(super) arena: Option<&'a ArenaView>,
    /// Its mount table, if the look reads one.
    pub(super) table: Option<&'a InitTable>,
    /// Which mounts a path may lead into; none means all.
    pub(super) old_mounts: Option<&'a Arc<HashSet<u64>>>,
    /// The settings to read below `/proc/sys`; none means all.
    pub(super) old_settings: Option<&'a [Sysctl]>,
    /// Where the first look keeps the files of settings open, for the next ones.
    pub(super) open_settings: Option<&'a OpenSettings>,
}

impl Context<'_> {
    /// A path below the `/proc` with the pids of the look.
    pub(super) fn proc(self, below: impl Display) -> PathBuf {
        proc_path(self.arena, below)
    }

    /// The mounts here, with those that may be entered.
    pub(super) fn mounts(self) -> Mounts {
        let read = self.arena.zip(self.table).and_then(|(arena, table)| table.get(arena).ok());
        let mut mounts = Mounts::of(self.arena).with(read);
        if let Some(old) = self.old_mounts {
            mounts.limit_to(Arc::clone(old));
        }
        mounts
    }

    /// Opens a path once and follows links, as seen by the first process of the arena if there is one.
    ///
    /// # Errors
    /// As [`reach::open`].
    pub(super) fn open(self, path: &Path) -> Result<Place, Refusal> {
        self.open_by(&mut self.mounts(), path)
    }

    /// As [`Context::open`], with [`Context::mounts`] that are used for several paths.
    ///
    /// # Errors
    /// As [`reach::open`].
    pub(super) fn open_by(self, mounts: &mut Mounts, path: &Path) -> Result<Place, Refusal> {
        let root = self.arena.map(ArenaView::root).transpose()?;
        reach::open(path, root.as_ref(), true, mounts)
    }
}
