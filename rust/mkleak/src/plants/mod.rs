//! The table of plants: one file a kind, each with its own part of the table.

mod bpf;
mod cgroup;
mod fd;
mod file;
mod ipc;
mod key;
mod lock;
mod lockfile;
mod loopdev;
mod mount;
mod namespace;
mod net;
mod netlink;
mod packets;
mod process;
mod sysctl;

use crate::error::Result;
use crate::stage::{Planting, Stage};

/// One leak that can be made.
pub(crate) struct Plant {
    pub(crate) name: &'static str,
    /// What it needs: `root` (capabilities, possibly those of a user namespace), a kernel feature, a device.
    pub(crate) needs: &'static [&'static str],
    /// One sentence, without the full stop.
    pub(crate) what: &'static str,
    /// Builds the scaffolding, which belongs to the observer's baseline, and returns the step that plants.
    pub(crate) prepare: fn(&mut Stage) -> Result<Planting>,
}

/// A plant and its kind, in leakcheck's own names.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) kind: &'static str,
    pub(crate) plant: &'static Plant,
}

const KINDS: [(&str, &[Plant]); 15] = [
    ("process", process::PLANTS),
    ("fd", fd::PLANTS),
    ("mount", mount::PLANTS),
    ("cgroup", cgroup::PLANTS),
    ("lock", lock::PLANTS),
    ("lockfile", lockfile::PLANTS),
    ("file", file::PLANTS),
    ("ipc", ipc::PLANTS),
    ("namespace", namespace::PLANTS),
    ("net", net::PLANTS),
    ("net", packets::PLANTS),
    ("loop", loopdev::PLANTS),
    ("key", key::PLANTS),
    ("bpf", bpf::PLANTS),
    ("sysctl", sysctl::PLANTS),
];

pub(crate) fn all() -> impl Iterator<Item = Entry> {
    KINDS.into_iter().flat_map(|(kind, plants)| plants.iter().map(move |plant| Entry { kind, plant }))
}

pub(crate) fn find(name: &str) -> Option<Entry> {
    all().find(|entry| entry.plant.name == name)
}
