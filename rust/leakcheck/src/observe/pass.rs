//! What a look reads about processes, and the interface of its sources: `/proc` is one.

use std::ffi::CStr;
use std::fmt::{self, Display};

use crate::error::Result;
use crate::kind::KindSet;
use crate::parse::nslink::NsType;
use crate::resource::{Fd, File, Process};

/// Which processes to read.
#[derive(Clone, Debug)]
pub(crate) enum Selection {
    /// All except kernel threads.
    All,
    /// These, if they still live.
    Pids(Vec<u32>),
    /// These and their descendants by parent links.
    Tree(Vec<u32>),
}

/// Every namespace that a process is in, or that its children will be in (namespaces(7)), as links below `/proc/PID`.
pub(crate) const NAMESPACES: &[&CStr] = &[
    c"ns/cgroup",
    c"ns/ipc",
    c"ns/mnt",
    NETWORK,
    c"ns/pid",
    c"ns/pid_for_children",
    c"ns/time",
    c"ns/time_for_children",
    c"ns/user",
    c"ns/uts",
];
pub(crate) const NETWORK: &CStr = c"ns/net";

/// A link below `/proc/PID` that names a namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NsLink {
    /// The thread that is in it, if not the first.
    pub(crate) thread: Option<u32>,
    pub(crate) name: &'static CStr,
}

impl NsLink {
    /// Its name in the directory `ns`.
    pub(crate) fn file(self) -> &'static CStr {
        let name = self.name.to_bytes_with_nul();
        let file = name.strip_prefix(b"ns/").unwrap_or(name);
        CStr::from_bytes_with_nul(file).unwrap_or_default()
    }
}

impl Display for NsLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tid) = self.thread {
            write!(f, "task/{tid}/")?;
        }
        f.write_str(self.name.to_str().unwrap_or_default())
    }
}

/// Which facts to read about each; all but the first cost extra system calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) fds: bool,
    /// Which of [`NAMESPACES`].
    pub(crate) namespaces: &'static [&'static CStr],
    /// Descriptors in flight to each socket, asked one by one.
    pub(crate) queues: bool,
    /// Mounts that the working and root directories and the program keep alive.
    pub(crate) pins: bool,
    /// Deleted files that are mapped.
    pub(crate) maps: bool,
    /// The observer's own descriptors and mappings count.
    pub(crate) own: bool,
}

/// A mount kept alive by a working or root directory, or by the program.
#[derive(Clone, Debug)]
pub(crate) struct Pin {
    pub(crate) what: &'static str,
    /// Unique mount id (Linux 6.8), else none.
    pub(crate) mount: Option<u64>,
    pub(crate) dev: u64,
    pub(crate) path: Vec<u8>,
}

/// The facts about one process.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) process: Process,
    pub(crate) fds: Vec<Fd>,
    /// Type, inode, and the link that names it.
    pub(crate) namespaces: Vec<(NsType, u64, NsLink)>,
    pub(crate) pins: Vec<Pin>,
    pub(crate) deleted_maps: Vec<File>,
    /// The first file that could not be read, with the kernel's answer, and the kinds that all failures hide.
    pub(crate) refused: Option<(String, KindSet)>,
    /// Whether something is mounted over its `/proc/PID`.
    pub(crate) covered: bool,
}

/// Reads processes.
pub(crate) trait ProcessSource {
    /// Finds the selected processes, for threads to read.
    ///
    /// # Errors
    /// If the source as a whole cannot be read.
    fn begin(&self, selection: &Selection, wanted: Wanted) -> Result<Box<dyn Pass + '_>>;
}

/// The processes of one look, which any number of threads read together.
pub(crate) trait Pass: Sync {
    /// How many of this many threads are worthwhile; `least` of them are because of their other work.
    fn worth(&self, threads: usize, least: usize) -> usize;

    /// Takes processes until none is left, and waits for those that other threads have taken; each of the `threads`
    /// calls it.
    fn read(&self, threads: usize);

    /// The ids of processes that were found but exited before they could be read.
    fn gone(&self) -> Vec<u32>;

    /// The results. A process that exited meanwhile is left out.
    ///
    /// # Errors
    /// If the source as a whole could no longer be read.
    fn samples(&self) -> Result<Vec<Sample>>;
}
