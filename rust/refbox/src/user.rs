//! The users of a box.

use std::fs;

use crate::error::{Doing, Result};

/// The uid in a box of an unprivileged user, who can map only one.
pub(crate) const ONLY_USER: u32 = 65_534;
const FIRST_USER: u32 = 60_000;

/// The payload of box N is user 60000 + N, so that two boxes cannot signal each other and share no rlimit; `None` if there
/// is only one user.
pub(crate) fn of_box(number: u16) -> Option<u32> {
    rustix::process::geteuid().is_root().then(|| FIRST_USER + u32::from(number))
}

/// Maps root in the box to our own user, and the payload too unless root gives it its own user (user_namespaces(7)).
pub(crate) fn map(pid: i32, payload: Option<u32>) -> Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let map = |own: u32| match payload {
        Some(user) => format!("0 {own} 1\n{user} {user} 1\n"),
        None => format!("{} {own} 1\n", ONLY_USER),
    };
    let write = |file: &str, text: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::write(&path, text).doing("write", path)
    };
    write("uid_map", &map(uid))?;
    if payload.is_none() {
        // An unprivileged user must not leave a group, since a group can deny access.
        write("setgroups", "deny")?;
    }
    write("gid_map", &map(gid))
}
