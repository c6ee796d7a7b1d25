//! Keys that stay in the user keyring (keyrings(7)).

use std::ffi::{CStr, CString};
use std::time::Duration;

use leakcheck_sys::keys;
use serde_json::json;

use super::Plant;
use crate::error::{Doing, Error, Result};
use crate::stage::{Planting, name, planting};

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
    // The kernel creates a user's keyring at the first request: that is not the leak.
    keys::make_user_keyring().during("keyctl KEYCTL_GET_KEYRING_ID")?;
    planting(move |undo| {
        let description = name("key");
        let text = CString::new(description.as_str()).during("name")?;
        let serial = keys::add_key(class, &text, payload).during("add_key")?;
        undo.push(move || remove(serial));
        Ok(json!({"serial": serial, "type": class.to_string_lossy(), "name": description}))
    })
}

/// The kernel's collector removes an unlinked key later: this waits for that.
fn remove(serial: i32) -> Result<()> {
    keys::unlink_key(serial).during(format_args!("keyctl KEYCTL_UNLINK {serial}"))?;
    for _ in 0..500 {
        if keys::find_key(serial).is_err() {
            return Ok(());
        }
        // The kernel reports the end of a key only to a watch queue, which few kernels have.
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(Error::Failed(format!("key {serial} is unlinked, but something else still holds it")))
}
