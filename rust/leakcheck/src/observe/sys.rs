//! The few system calls that no library wraps yet. What bpf(2) and keyctl(2) need is in `bpf.rs` and `keys.rs`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

const SYS_STATMOUNT: libc::c_long = 457;
const SYS_LISTMOUNT: libc::c_long = 458;
/// `STATX_MNT_ID_UNIQUE` (Linux 6.8).
pub(crate) const STATX_MNT_ID_UNIQUE: u32 = 0x4000;
/// `STATX_MNT_ID` (Linux 5.8): the id of mountinfo, which is reused. Given by older kernels where the unique one is asked for.
const STATX_MNT_ID: u32 = 0x1000;
/// `_IOR(0xb7, 5, __u64)` (Linux 6.11).
const NS_GET_MNTNS_ID: libc::c_ulong = 0x8008_b705;
/// `_IOR(0xb7, 13, __u64)` (Linux 6.18).
const NS_GET_ID: libc::c_ulong = 0x8008_b70d;
const LSMT_ROOT: u64 = u64::MAX;

/// `struct mnt_id_req`, version 1 (Linux 6.11).
#[repr(C)]
struct MntIdReq {
    size: u32,
    spare: u32,
    mnt_id: u64,
    param: u64,
    mnt_ns_id: u64,
}

fn check(n: libc::c_long) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// getsockopt(2) of an option that takes and returns a struct of this length.
pub(crate) fn socket_option(socket: impl AsFd, level: i32, option: i32, value: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads and writes at most `length` bytes of `value`, which is borrowed for the call.
    let result = unsafe { libc::getsockopt(fd, level, option, value.as_mut_ptr().cast(), &raw mut length) };
    check(result.into()).map(drop)
}

/// Unique ids of the mounts of a mount namespace (listmount(2), Linux 6.8; other namespaces 6.11). `ns` is a
/// `NS_GET_MNTNS_ID`, or 0 for the caller's.
pub(crate) fn listmount(ns: u64) -> io::Result<Vec<u64>> {
    let mut ids = Vec::new();
    let mut chunk = [0u64; 512];
    loop {
        let after = ids.last().copied().unwrap_or(0);
        let req = MntIdReq { size: 32, spare: 0, mnt_id: LSMT_ROOT, param: after, mnt_ns_id: ns };
        // SAFETY: `req` lives through the call and says its own size; the kernel writes at most `chunk.len()` ids.
        let n = check(unsafe { libc::syscall(SYS_LISTMOUNT, &raw const req, chunk.as_mut_ptr(), chunk.len(), 0u32) })?;
        ids.extend_from_slice(&chunk[..n]);
        if n < chunk.len() {
            return Ok(ids);
        }
    }
}

/// One mount as `statmount(2)` (Linux 6.8) describes it: numbers at fixed offsets, strings behind them.
pub(crate) struct MountStat {
    buffer: Vec<u8>,
}

impl MountStat {
    const STRINGS: usize = 512;
    /// SB_BASIC, MNT_BASIC, PROPAGATE_FROM, MNT_ROOT, MNT_POINT, FS_TYPE, SB_SOURCE.
    const MASK: u64 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x200;

    /// Asks for one mount. `ns` as in [`listmount`].
    pub(crate) fn of(id: u64, ns: u64) -> io::Result<Self> {
        let req = MntIdReq { size: 32, spare: 0, mnt_id: id, param: Self::MASK, mnt_ns_id: ns };
        let mut buffer = vec![0u8; 2048];
        loop {
            // SAFETY: `req` lives through the call; the kernel writes at most `buffer.len()` bytes into `buffer`.
            let n = unsafe { libc::syscall(SYS_STATMOUNT, &raw const req, buffer.as_mut_ptr(), buffer.len(), 0u32) };
            match check(n) {
                Ok(_) => return Ok(MountStat { buffer }),
                Err(e) if e.raw_os_error() == Some(libc::EOVERFLOW) && buffer.len() < 1 << 20 => {
                    buffer.resize(buffer.len() * 4, 0);
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn bytes_at<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.buffer.get(offset..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
    }

    fn u64_at(&self, offset: usize) -> u64 {
        u64::from_ne_bytes(self.bytes_at(offset))
    }

    fn u32_at(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.bytes_at(offset))
    }

    fn string(&self, offset: usize, bit: u64) -> &[u8] {
        if self.u64_at(8) & bit == 0 {
            return b"";
        }
        let text = self.buffer.get(Self::STRINGS + self.u32_at(offset) as usize..).unwrap_or_default();
        text.split(|b| *b == 0).next().unwrap_or_default()
    }

    pub(crate) fn device(&self) -> (u32, u32) {
        (self.u32_at(16), self.u32_at(20))
    }

    pub(crate) fn fs_type(&self) -> &[u8] {
        self.string(36, 0x20)
    }

    pub(crate) fn root(&self) -> &[u8] {
        self.string(104, 0x8)
    }

    pub(crate) fn point(&self) -> &[u8] {
        self.string(108, 0x10)
    }

    pub(crate) fn source(&self) -> &[u8] {
        self.string(124, 0x200)
    }

    /// As the optional fields of mountinfo write it.
    pub(crate) fn propagation(&self) -> String {
        let flags = self.u64_at(72);
        let mut words = Vec::new();
        if flags & libc::MS_SHARED != 0 {
            words.push(format!("shared:{}", self.u64_at(80)));
        }
        if flags & libc::MS_SLAVE != 0 {
            words.push(format!("master:{}", self.u64_at(88)));
        }
        if flags & libc::MS_UNBINDABLE != 0 {
            words.push("unbindable".to_owned());
        }
        words.join(" ")
    }
}

/// Which mount a file was reached through: the unique id where the kernel has it, else that of mountinfo (statx(2)).
pub(crate) fn mount_of(st: &rustix::fs::Statx) -> Option<u64> {
    (st.stx_mask & (STATX_MNT_ID_UNIQUE | STATX_MNT_ID) != 0).then_some(st.stx_mnt_id)
}

/// Gives the calling thread a root and working directory of its own (unshare(2), `CLONE_FS`), without which setns(2) refuses a
/// mount namespace.
pub(crate) fn unshare_root_and_cwd() -> io::Result<()> {
    // SAFETY: CLONE_FS concerns paths alone; no memory, descriptor or id of another thread changes.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }.map_err(Into::into)
}

fn ns_ioctl(ns: BorrowedFd<'_>, request: libc::c_ulong) -> Option<u64> {
    let mut id = 0u64;
    // SAFETY: both requests write one u64 to the pointer, which lives through the call.
    let done = unsafe { libc::ioctl(ns.as_raw_fd(), request, &raw mut id) };
    (done == 0).then_some(id)
}

/// Id of a mount namespace for [`listmount`] (ioctl_nsfs(2), Linux 6.11).
pub(crate) fn mount_ns_id(ns: BorrowedFd<'_>) -> Option<u64> {
    ns_ioctl(ns, NS_GET_MNTNS_ID)
}

/// Id of any namespace, never reused (Linux 6.18).
pub(crate) fn ns_id(ns: BorrowedFd<'_>) -> Option<u64> {
    ns_ioctl(ns, NS_GET_ID)
}

/// Whether two threads share their FD table (kcmp(2), `KCMP_FILES`).
pub(crate) fn same_fd_table(a: u32, b: u32) -> io::Result<bool> {
    const KCMP_FILES: libc::c_long = 2;
    same(a, b, KCMP_FILES)
}

/// Whether two threads share their working and root directory (kcmp(2), `KCMP_FS`).
pub(crate) fn same_directories(a: u32, b: u32) -> io::Result<bool> {
    const KCMP_FS: libc::c_long = 3;
    same(a, b, KCMP_FS)
}

fn same(a: u32, b: u32, what: libc::c_long) -> io::Result<bool> {
    // SAFETY: kcmp takes five numbers and touches no memory of ours.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, a, b, what, 0, 0) };
    if order < 0 { Err(io::Error::last_os_error()) } else { Ok(order == 0) }
}

/// The root of a new mount of a kernel file system, which is attached nowhere and ends with its descriptor (fsmount(2), Linux 5.2).
pub(super) fn detached(fs_type: &str, options: &[(&str, &str)]) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    let plain =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, plain)
}

/// Whether this process may make System V objects at all: a kernel without CONFIG_SYSVIPC answers ENOSYS (shmctl(2)).
pub(super) fn has_system_v() -> bool {
    // SAFETY: no segment has this id, so that nothing is written.
    let answer = unsafe { libc::shmctl(-1, libc::IPC_STAT, std::ptr::null_mut()) };
    answer != -1 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// Bytes that the POSIX message queues of this user take (`RLIMIT_MSGQUEUE`, getrlimit(2)) and one smallest queue with them, which
/// is there for a moment under a name of chance. The kernel tells the number only by where the limit refuses one more; this process'
/// soft limit is lowered meanwhile and put back.
///
/// # Errors
/// What mq_open(2) answers when it is not the limit: then a run cannot be told to have made none.
pub(crate) fn queue_bytes() -> io::Result<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    struct Restore(Rlimit);
    impl Drop for Restore {
        fn drop(&mut self) {
            // What was there a moment ago is permitted still.
            let _ = setrlimit(Resource::Msgqueue, self.0);
        }
    }
    let before = getrlimit(Resource::Msgqueue);
    let _restore = Restore(before);
    let fits = |limit: u64| -> io::Result<bool> {
        setrlimit(Resource::Msgqueue, Rlimit { current: Some(limit), maximum: before.maximum })?;
        match one_queue() {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EMFILE) => Ok(false),
            Err(e) => Err(e),
        }
    };
    let most = before.maximum.unwrap_or(u64::MAX >> 1);
    let (mut too_few, mut enough) = (0, 1024.min(most));
    while !fits(enough)? {
        if enough == most {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        (too_few, enough) = (enough, enough.saturating_mul(2).min(most));
    }
    while enough - too_few > 1 {
        let middle = too_few + (enough - too_few) / 2;
        if fits(middle)? { enough = middle } else { too_few = middle }
    }
    Ok(enough)
}

/// Makes a message queue as small as can be, and takes it away again. Returns its device, which is that of every `mqueue`
/// mount of the current IPC namespace.
pub(super) fn one_queue() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK)?;
    let name = std::ffi::CString::new(format!("leakcheck-{:016x}", u64::from_ne_bytes(bytes)))?;
    // struct mq_attr: flags, messages, size of a message, and what only the kernel fills in
    let attributes: [libc::c_long; 8] = [0, 1, 1, 0, 0, 0, 0, 0];
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: the name ends in NUL, and both pointers live through the calls; the descriptor is ours alone.
    let queue = unsafe {
        let fd = check(libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, 0o600, attributes.as_ptr()))?;
        libc::syscall(libc::SYS_mq_unlink, name.as_ptr());
        OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?)
    };
    Ok(rustix::fs::fstat(queue)?.st_dev)
}
