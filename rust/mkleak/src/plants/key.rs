//! Keys that stay in the user keyring (keyrings(7)).

use std::ffi::{CStr, CString};
use std::io;
use std::ptr;
use std::time::Duration;

use serde_json::json;

use super::Plant;
use crate::error::{During, Error, Result};
use crate::stage::{Planting, name, planting};

// linux/keyctl.h
const KEY_SPEC_USER_KEYRING: i32 = -4;
const KEYCTL_GET_KEYRING_ID: i32 = 0;
const KEYCTL_DESCRIBE: i32 = 6;
const KEYCTL_UNLINK: i32 = 9;

pub(super) const PLANTS: &[Plant] = &[
    Plant {
        name: "key-user",
        needs: &["keys"],
        what: "a key with a secret in the user keyring",
        prepare: |_| key(c"user", b"secret"),
    },
    Plant {
        name: "key-keyring",
        needs: &["keys"],
        what: "an empty keyring in the user keyring",
        prepare: |_| key(c"keyring", b""),
    },
];

fn key(class: &'static CStr, payload: &'static [u8]) -> Result<Planting> {
    // The kernel makes a user's keyring when it is first asked for: that is not the leak.
    keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_USER_KEYRING, 1).during("keyctl KEYCTL_GET_KEYRING_ID")?;
    planting(move |undo| {
        let description = name("key");
        let text = CString::new(description.as_str()).map_err(io::Error::from).during("name")?;
        let serial = add_key(class, &text, payload).during("add_key")?;
        undo.push(move || remove(serial));
        Ok(json!({"serial": serial, "type": class.to_string_lossy(), "name": description}))
    })
}

/// An unlinked key goes when the kernel's collector has run: this waits for that.
fn remove(serial: i32) -> Result<()> {
    keyctl(KEYCTL_UNLINK, serial, KEY_SPEC_USER_KEYRING).during(format!("keyctl KEYCTL_UNLINK {serial}"))?;
    for _ in 0..500 {
        if keyctl(KEYCTL_DESCRIBE, serial, 0).is_err() {
            return Ok(());
        }
        // The kernel tells nobody when a key is gone (short of a watch queue, which few kernels have).
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(Error::Failed(format!("key {serial} is unlinked, but something else still holds it")))
}

#[allow(unsafe_code)]
fn add_key(class: &CStr, description: &CStr, payload: &[u8]) -> io::Result<i32> {
    let bytes = if payload.is_empty() { ptr::null() } else { payload.as_ptr() };
    // SAFETY: both strings are null-terminated, and the length is that of the payload.
    let serial = unsafe {
        libc::syscall(
            libc::SYS_add_key,
            class.as_ptr(),
            description.as_ptr(),
            bytes,
            payload.len(),
            KEY_SPEC_USER_KEYRING,
        )
    };
    i32::try_from(serial).ok().filter(|&serial| serial > 0).ok_or_else(io::Error::last_os_error)
}

/// The operations used here take two integers; KEYCTL_DESCRIBE with no buffer only tells whether the key is there.
#[allow(unsafe_code)]
fn keyctl(operation: i32, first: i32, second: i32) -> io::Result<()> {
    // SAFETY: no operation used here gets an address (KEYCTL_DESCRIBE gets a null one of length 0).
    let result =
        unsafe { libc::syscall(libc::SYS_keyctl, operation, first, libc::c_long::from(second), libc::c_long::from(0)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
