//! The `/proc` source: proc(5).
//!
//! Each process is read through one descriptor of its directory, so that a reused pid cannot mix two processes, and
//! nothing here waits for a file system: links are read as text, `statx` is told not to synchronise.

mod processes;
mod reader;
mod shared;

use super::pass::{Pass, ProcessSource, Selection, Wanted};
use crate::error::Result;
pub(crate) use processes::Procfs;
use reader::Scratch;
use shared::SharedPass;

impl ProcessSource for Procfs {
    fn begin(&self, selection: &Selection, wanted: Wanted) -> Result<Box<dyn Pass + '_>> {
        let mut pids = self.select(selection)?;
        let mut first = Vec::new();
        // This process first, while the observer has only descriptors that it knows.
        if pids.contains(&self.own_pid) {
            first.extend(self.sample(self.own_pid, wanted, &mut Scratch::new())?);
            pids.retain(|&pid| pid != self.own_pid);
        }
        Ok(Box::new(SharedPass::new(self, pids, wanted, first)))
    }
}
