//! Keys of the user keyring: keyrings(7).

use std::ffi::CStr;
use std::io;

use crate::check;

// linux/keyctl.h
const KEY_SPEC_USER_KEYRING: i32 = -4;
const KEYCTL_GET_KEYRING_ID: i32 = 0;
const KEYCTL_DESCRIBE: i32 = 6;
const KEYCTL_UNLINK: i32 = 9;

/// Makes the user keyring if it does not exist yet.
pub fn make_user_keyring() -> io::Result<()> {
    keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_USER_KEYRING, 1)
}

/// Adds a key to the user keyring, and returns its serial number (add_key(2)).
pub fn add_key(class: &CStr, description: &CStr, payload: &[u8]) -> io::Result<i32> {
    // A keyring must have no payload: not even an address.
    let bytes = if payload.is_empty() { std::ptr::null() } else { payload.as_ptr() };
    let (class, description) = (class.as_ptr(), description.as_ptr());
    // SAFETY: both strings are null-terminated, and the length is that of the payload.
    let serial =
        unsafe { libc::syscall(libc::SYS_add_key, class, description, bytes, payload.len(), KEY_SPEC_USER_KEYRING) };
    check(serial)?;
    i32::try_from(serial).map_err(io::Error::other)
}

/// Removes a key from the user keyring. The kernel collects it later.
pub fn unlink_key(serial: i32) -> io::Result<()> {
    keyctl(KEYCTL_UNLINK, serial, KEY_SPEC_USER_KEYRING)
}

/// Fails if the kernel has collected the key.
pub fn find_key(serial: i32) -> io::Result<()> {
    keyctl(KEYCTL_DESCRIBE, serial, 0)
}

fn keyctl(operation: i32, first: i32, second: i32) -> io::Result<()> {
    let (second, length) = (libc::c_long::from(second), libc::c_long::from(0));
    // SAFETY: of the operations above only KEYCTL_DESCRIBE takes an address, and it gets a null one of length 0.
    check(unsafe { libc::syscall(libc::SYS_keyctl, operation, first, second, length) })
}
