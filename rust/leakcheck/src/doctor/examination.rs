//! What doctor reports.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::judge::verdict::Verdict;
use crate::kind::Kind;
use crate::snapshot::Level;
use crate::text::Text;

/// All findings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examination {
    /// Always [`Examination::SCHEMA`].
    pub schema: String,
    /// The kernel's release, as `uname -r` gives it.
    pub kernel: String,
    /// The user that runs it.
    pub user: User,
    /// Which cgroup hierarchies are mounted.
    pub cgroups: CgroupVersion,
    /// The mounted hierarchies.
    pub hierarchies: Vec<Hierarchy>,
    /// Whether it runs inside a container.
    pub container: Container,
    /// What one snapshot saw of each kind. Unlike in a guard's verdict, every unreadable process counts here.
    pub kinds: BTreeMap<Kind, Finding>,
    /// The kernel interfaces that the observer prefers.
    pub sources: Vec<Source>,
    /// Processes that could not be read.
    pub unreadable: Vec<Refusal>,
    /// The verdict of a guard with these options for a run that leaves nothing.
    pub guard: Answer,
    /// The page that lists what leakcheck cannot see anywhere.
    pub undetected: String,
}

/// The user and what is permitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Effective user id.
    pub uid: u32,
    /// Names of the effective capabilities (capabilities(7)), or their numbers if unknown.
    pub capabilities: Vec<String>,
}

/// Which cgroup hierarchies are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupVersion {
    /// Version 1 only.
    V1,
    /// Version 2 only.
    V2,
    /// Both.
    Hybrid,
    /// None.
    None,
}

/// A mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// `v2`, or the v1 controllers.
    pub name: String,
    /// Where it is mounted.
    pub mount: Text,
}

/// Whether it looks from inside a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Whether this is the initial pid namespace. If not, processes outside are not visible.
    pub initial_pid_namespace: bool,
    /// Whether this is the initial user namespace. If not, capabilities permit less.
    pub initial_user_namespace: bool,
    /// Other signs of a container.
    pub hints: Vec<String>,
}

/// How much of something is seen, why not more, and what would help.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The level.
    pub level: Level,
    /// Why not more; empty if full.
    pub reason: String,
    /// What to do about it; empty if full.
    pub fix: String,
}

/// A kernel interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name; `fanotify: PATH` for each watched file system.
    pub name: String,
    /// How well it works.
    #[serde(flatten)]
    pub finding: Finding,
}

/// A process that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Process id.
    pub pid: u32,
    /// Command name.
    pub comm: Text,
    /// The file that could not be read, and the kernel's answer.
    pub what: String,
}

/// The verdict of a guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The best possible verdict: `clean` or `unknown`.
    pub verdict: Verdict,
    /// Why not a better one.
    pub because: String,
}

impl User {
    pub(super) fn may(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|c| c == capability)
    }
}

impl Examination {
    /// The version of the JSON form.
    pub const SCHEMA: &'static str = "leakcheck.doctor/1";
}
