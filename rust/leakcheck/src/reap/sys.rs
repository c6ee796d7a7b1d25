//! The system calls for removal that no library wraps.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with};

use crate::resource::IpcClass;

/// `_IOR(0x12, 128, __u64)`, linux/fs.h (Linux 5.15).
const BLKGETDISKSEQ: libc::c_ulong = 0x8008_1280;
/// linux/loop.h.
const LOOP_CLR_FD: libc::c_ulong = 0x4c01;

fn check(result: impl Into<i64>) -> io::Result<()> {
    if result.into() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn no_sysv() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// Key and owner of a SysV object (shmctl(2), semctl(2), msgctl(2), `IPC_STAT`).
pub(super) fn ipc_stat(class: IpcClass, id: i32) -> io::Result<(u32, u32)> {
    // SAFETY: each call fills the structure of its class, which outlives it, and is read only after it has succeeded.
    let perm = unsafe {
        match class {
            IpcClass::Shm => {
                let mut stat = MaybeUninit::<libc::shmid_ds>::zeroed();
                check(libc::shmctl(id, libc::IPC_STAT, stat.as_mut_ptr()))?;
                stat.assume_init().shm_perm
            }
            IpcClass::Sem => {
                let mut stat = MaybeUninit::<libc::semid_ds>::zeroed();
                check(libc::semctl(id, 0, libc::IPC_STAT, stat.as_mut_ptr()))?;
                stat.assume_init().sem_perm
            }
            IpcClass::Msg => {
                let mut stat = MaybeUninit::<libc::msqid_ds>::zeroed();
                check(libc::msgctl(id, libc::IPC_STAT, stat.as_mut_ptr()))?;
                stat.assume_init().msg_perm
            }
            IpcClass::PosixShm | IpcClass::Mqueue => return Err(no_sysv()),
        }
    };
    Ok((perm.__key.cast_unsigned(), perm.uid))
}

/// Removes a SysV object (`IPC_RMID`).
pub(super) fn ipc_remove(class: IpcClass, id: i32) -> io::Result<()> {
    // SAFETY: with IPC_RMID the kernel ignores the last argument.
    unsafe {
        match class {
            IpcClass::Shm => check(libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut())),
            IpcClass::Sem => check(libc::semctl(id, 0, libc::IPC_RMID)),
            IpcClass::Msg => check(libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut())),
            IpcClass::PosixShm | IpcClass::Mqueue => Err(no_sysv()),
        }
    }
}

/// mq_unlink(2): the system call takes the name without its slash.
pub(super) fn mq_unlink(name: &[u8]) -> io::Result<()> {
    let name = CString::new(name).map_err(io::Error::other)?;
    // SAFETY: the name ends in NUL and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) })
}

/// Sequence number of the disk, which is never reused.
pub(super) fn disk_sequence(disk: BorrowedFd<'_>) -> io::Result<u64> {
    let mut sequence = 0u64;
    // SAFETY: the request writes one u64 to the pointer, which outlives the call.
    check(unsafe { libc::ioctl(disk.as_raw_fd(), BLKGETDISKSEQ, &raw mut sequence) })?;
    Ok(sequence)
}

/// loop(4), `LOOP_CLR_FD`.
pub(super) fn loop_detach(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD, 0) })
}

/// Unlinks a key from the caller's session, user session and user keyring (keyctl_unlink(3)); false if none contains
/// it.
pub(super) fn unlink_key(serial: u32) -> io::Result<bool> {
    let mut found = false;
    for keyring in [libc::KEY_SPEC_SESSION_KEYRING, libc::KEY_SPEC_USER_SESSION_KEYRING, libc::KEY_SPEC_USER_KEYRING] {
        // SAFETY: the call takes numbers only.
        match check(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_UNLINK, serial, keyring) }) {
            Ok(()) => found = true,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOKEY)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// Deletes an interface of the caller's network namespace (rtnetlink(7), `RTM_DELLINK`).
pub(super) fn delete_link(index: u32) -> io::Result<()> {
    const RTM_DELLINK: u16 = 17;
    const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
    const NLMSG_ERROR: u16 = 2;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(5)))?;
    // struct nlmsghdr, struct ifinfomsg
    let mut request = [0u8; 32];
    request[0..4].copy_from_slice(&32u32.to_ne_bytes());
    request[4..6].copy_from_slice(&RTM_DELLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
    request[20..24].copy_from_slice(&index.to_ne_bytes());
    send(&socket, &request, SendFlags::empty())?;
    let mut reply = [0u8; 1024];
    let (filled, _) = recv(&socket, reply.as_mut_slice(), RecvFlags::empty())?;
    let reply = &reply[..filled];
    let code = match (reply.get(4..6), reply.get(16..).and_then(<[u8]>::first_chunk::<4>)) {
        (Some(kind), Some(code)) if kind == NLMSG_ERROR.to_ne_bytes() => i32::from_ne_bytes(*code),
        (_, _) => return Err(io::Error::other("the kernel's answer does not have its documented format")),
    };
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}
