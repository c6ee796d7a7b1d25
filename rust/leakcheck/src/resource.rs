//! What can be left behind: one record a kind, its identity apart from what merely describes it.
//!
//! Two records are the same resource exactly when their [`Identified::id`]s are equal. Counts, names and FD numbers alone
//! are never an identity: all of them are reused.

mod any;
mod files;
mod records;

pub use any::Resource;
pub(crate) use any::each_kind;
pub use files::Files;
pub use records::{
    Bpf, BpfClass, Cgroup, Fd, File, FileState, Identified, Ipc, IpcClass, Key, Lock, LockFile, LockFileState,
    LoopDevice, Mount, MountId, Namespace, Net, NetClass, NsHolder, Process, Sysctl, device, encode_device,
};
