//! Where a look is made: what goes by no record, and every collector needs.

use std::collections::HashSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::mount_table::Mounts;
use super::reach::{self, Place, Refusal};
use crate::arena::{ArenaView, proc_path};

/// The host, or an arena.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    /// What the arena is seen through, if there is one.
    pub(super) arena: Option<&'a ArenaView>,
    /// Which mounts a path may lead into, where not into all.
    pub(super) old_mounts: Option<&'a Arc<HashSet<u64>>>,
}

impl Context<'_> {
    /// A path below the `/proc` that the pids of the look belong to.
    pub(super) fn proc(self, below: impl Display) -> PathBuf {
        proc_path(self.arena, below)
    }

    /// The mounts here, of which some may be entered.
    pub(super) fn mounts(self) -> Mounts {
        let mut mounts = Mounts::of(self.arena);
        if let Some(old) = self.old_mounts {
            mounts.limit_to(Arc::clone(old));
        }
        mounts
    }

    /// Opens a path once, links followed: as the first process of the arena does, if there is one.
    ///
    /// # Errors
    /// As [`reach::open`].
    pub(super) fn open(self, path: &Path) -> Result<Place, Refusal> {
        let root = self.arena.map(ArenaView::root).transpose()?;
        reach::open(path, root.as_ref(), true, &mut self.mounts())
    }
}
