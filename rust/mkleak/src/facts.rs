//! The identifying facts that `READY` reports, in the vocabulary of `/proc`.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Stat, fstat, major, minor, statat};
use serde_json::{Value, json};

use crate::error::{Doing, Result};

/// An FD of this process: number, device, inode, and its link in `/proc/self/fd`.
pub(crate) fn of_fd(fd: impl AsFd) -> Result<Value> {
    let number = fd.as_fd().as_raw_fd();
    let stat = fstat(&fd).during(format_args!("fstat fd {number}"))?;
    let link = Path::new("/proc/self/fd").join(number.to_string());
    let target = fs::read_link(&link).doing("readlink", &link)?;
    let mut facts = json!({"pid": std::process::id(), "fd": number, "link": text(target.as_os_str())});
    merge(&mut facts, of_stat(&stat));
    Ok(facts)
}

/// A path, without following a link: device and inode, and `path_hex` if the path is not UTF-8.
pub(crate) fn of_path(path: &Path) -> Result<Value> {
    let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).doing("stat", path)?;
    let mut facts = json!({"path": text(path.as_os_str())});
    if path.to_str().is_none() {
        facts["path_hex"] = json!(hex(path.as_os_str().as_bytes()));
    }
    merge(&mut facts, of_stat(&stat));
    Ok(facts)
}

fn of_stat(stat: &Stat) -> Value {
    json!({"dev": format!("{}:{}", major(stat.st_dev), minor(stat.st_dev)), "ino": stat.st_ino})
}

pub(crate) fn merge(into: &mut Value, from: Value) {
    if let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}

fn text(bytes: &OsStr) -> String {
    bytes.to_string_lossy().into_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// A field of this process's `fdinfo` of an FD, such as `map_id` (proc_pid_fdinfo(5)).
pub(crate) fn fdinfo(fd: impl AsFd, field: &str) -> Result<Option<String>> {
    let path = Path::new("/proc/self/fdinfo").join(fd.as_fd().as_raw_fd().to_string());
    let content = fs::read_to_string(&path).doing("read", &path)?;
    Ok(content.lines().find_map(|line| {
        let value = line.strip_prefix(field)?.strip_prefix(':')?;
        Some(value.trim().to_owned())
    }))
}
