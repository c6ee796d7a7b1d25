//! A compiler's files on their way to the run: process 1 of one box writes them to memory, process 1 of the next takes them out.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write, copy};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Result};

#[derive(Deserialize, Serialize)]
struct Header {
    name: String,
    mode: u32,
    size: u64,
}

/// Writes the plain files of directory `dir` to `memory`.
pub(crate) fn pack(memory: &OwnedFd, dir: &str) -> Result<()> {
    let named = || format!("keep the files of {dir}");
    let mut out = File::from(memory.try_clone().doing(named)?);
    for entry in fs::read_dir(dir).doing(named)? {
        let entry = entry.doing(named)?;
        // The payload made them: a link could lead anywhere, a fifo would block.
        if !entry.file_type().doing(named)?.is_file() {
            continue;
        }
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(entry.path()).doing(named)?;
        let found = file.metadata().doing(named)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let header = Header { name, mode: found.permissions().mode() & 0o777, size: found.len() };
        let line = serde_json::to_string(&header).expect("a header has string keys only");
        writeln!(out, "{line}").doing(named)?;
        copy(&mut file.take(header.size), &mut out).doing(named)?;
    }
    Ok(())
}

/// Makes the files in `dir` that were packed into `memory`; they belong to `user`.
pub(crate) fn unpack(memory: &OwnedFd, dir: &str, user: Option<u32>) -> Result<()> {
    let named = || format!("put files into {dir}");
    let mut file = File::from(memory.try_clone().doing(named)?);
    file.seek(SeekFrom::Start(0)).doing(named)?;
    let mut from = BufReader::new(file);
    let mut line = String::new();
    while from.read_line(&mut line).doing(named)? > 0 {
        let header: Header = serde_json::from_str(&line).map_err(|e| Error::Internal(format!("{}: {e}", named())))?;
        put(Path::new(dir), &header.name, header.mode, user, &mut from.by_ref().take(header.size))?;
        line.clear();
    }
    Ok(())
}

/// Makes one file, which belongs to `user`.
pub(crate) fn put(dir: &Path, name: &str, mode: u32, user: Option<u32>, content: &mut dyn Read) -> Result<()> {
    let path = dir.join(name);
    let named = || format!("write {} in the box", path.display());
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).doing(named)?;
    copy(content, &mut file).doing(named)?;
    fchown(&file, user, user).doing(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_out_with_its_bytes_and_mode() {
        let base = std::env::temp_dir().join(format!("refbox-archive-{}", std::process::id()));
        let (from, to) = (base.join("from"), base.join("to"));
        for dir in [&from, &to] {
            fs::create_dir_all(dir).unwrap();
        }
        put(&from, "program", 0o755, None, &mut &b"\x7fELF\n{}\n"[..]).unwrap();
        put(&from, "empty", 0o644, None, &mut &b""[..]).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", from.join("link")).unwrap();
        let memory = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        pack(&memory, from.to_str().unwrap()).unwrap();
        unpack(&memory, to.to_str().unwrap(), None).unwrap();
        let program = fs::read(to.join("program")).unwrap();
        let mode = fs::metadata(to.join("program")).unwrap().permissions().mode() & 0o777;
        let count = fs::read_dir(&to).unwrap().count();
        fs::remove_dir_all(&base).unwrap();
        assert_eq!((program.as_slice(), mode & 0o700, count), (&b"\x7fELF\n{}\n"[..], 0o700, 2));
    }
}
