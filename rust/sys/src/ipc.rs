//! System V and POSIX IPC objects: sysvipc(7), sem_overview(7), mq_overview(7).

use std::ffi::CStr;
use std::io;

use crate::check;

fn made(id: libc::c_int) -> io::Result<i32> {
    check(id.into()).map(|()| id)
}

/// Makes a shared memory segment of some bytes, for this user alone, and returns its id.
pub fn make_shm(bytes: usize) -> io::Result<i32> {
    // SAFETY: no memory is passed.
    made(unsafe { libc::shmget(libc::IPC_PRIVATE, bytes, libc::IPC_CREAT | 0o600) })
}

/// Removes a shared memory segment.
pub fn remove_shm(id: i32) -> io::Result<()> {
    // SAFETY: IPC_RMID reads no buffer.
    check(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }.into())
}

/// Makes a set of one semaphore, for this user alone, and returns its id.
pub fn make_sem() -> io::Result<i32> {
    // SAFETY: no memory is passed.
    made(unsafe { libc::semget(libc::IPC_PRIVATE, 1, libc::IPC_CREAT | 0o600) })
}

/// Removes a semaphore set.
pub fn remove_sem(id: i32) -> io::Result<()> {
    // SAFETY: IPC_RMID takes no fourth argument.
    check(unsafe { libc::semctl(id, 0, libc::IPC_RMID) }.into())
}

/// Makes a message queue, for this user alone, and returns its id.
pub fn make_msg() -> io::Result<i32> {
    // SAFETY: no memory is passed.
    made(unsafe { libc::msgget(libc::IPC_PRIVATE, libc::IPC_CREAT | 0o600) })
}

/// Removes a message queue.
pub fn remove_msg(id: i32) -> io::Result<()> {
    // SAFETY: IPC_RMID reads no buffer.
    check(unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) }.into())
}

/// Makes a named POSIX semaphore, for this user alone; fails if it exists.
pub fn make_posix_sem(name: &CStr) -> io::Result<()> {
    // SAFETY: the name is null-terminated; the semaphore is closed once and not used after that.
    unsafe {
        let semaphore = libc::sem_open(name.as_ptr(), libc::O_CREAT | libc::O_EXCL, 0o600 as libc::c_uint, 1);
        if semaphore == libc::SEM_FAILED {
            return Err(io::Error::last_os_error());
        }
        libc::sem_close(semaphore);
    }
    Ok(())
}

/// Removes the name of a POSIX semaphore.
pub fn remove_posix_sem(name: &CStr) -> io::Result<()> {
    // SAFETY: the name is null-terminated.
    check(unsafe { libc::sem_unlink(name.as_ptr()) }.into())
}

/// Makes a POSIX message queue, for this user alone; fails if it exists.
pub fn make_mqueue(name: &CStr) -> io::Result<()> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: the name is null-terminated, null attributes request the defaults, and the descriptor is closed once.
    unsafe {
        let queue = libc::mq_open(name.as_ptr(), flags, 0o600 as libc::c_uint, std::ptr::null::<libc::mq_attr>());
        check(queue.into())?;
        libc::mq_close(queue);
    }
    Ok(())
}

/// Removes the name of a POSIX message queue.
pub fn remove_mqueue(name: &CStr) -> io::Result<()> {
    // SAFETY: the name is null-terminated.
    check(unsafe { libc::mq_unlink(name.as_ptr()) }.into())
}
