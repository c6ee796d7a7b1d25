//! Passes a compiler's files to the run: process 1 of one box writes them to memory, and process 1 of the next box reads
//! them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write, copy};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Result};

#[derive(Deserialize, Serialize)]
struct Header {
    name: String,
    mode: u32,
    size: u64,
}

/// Writes the regular files of directory `dir` to `memory`.
pub(crate) fn pack(memory: &OwnedFd, dir: &str) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut out = File::from(memory.try_clone()?);
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // The payload created them: a link could lead anywhere, a fifo would block.
            if !entry.file_type()?.is_file() {
                continue;
            }
            let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(entry.path())?;
            let found = file.metadata()?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let header = Header { name, mode: found.permissions().mode() & 0o777, size: found.len() };
            writeln!(out, "{}", serde_json::to_string(&header)?)?;
            copy(&mut file.take(header.size), &mut out)?;
        }
        Ok(())
    };
    write().doing("keep the files of", dir)
}

/// Creates in `dir` the files that [`pack`] wrote to `memory`; they belong to `user`.
pub(crate) fn unpack(memory: &OwnedFd, dir: &str, user: Option<u32>) -> Result<()> {
    let open = || -> io::Result<BufReader<File>> {
        let mut file = File::from(memory.try_clone()?);
        file.seek(SeekFrom::Start(0))?;
        Ok(BufReader::new(file))
    };
    let mut from = open().doing("put files into", dir)?;
    let mut line = String::new();
    while from.read_line(&mut line).doing("put files into", dir)? > 0 {
        let header: Header = serde_json::from_str(&line).doing("put files into", dir)?;
        put(Path::new(dir), &header.name, header.mode, user, &mut from.by_ref().take(header.size))?;
        line.clear();
    }
    Ok(())
}

/// Creates one file, which belongs to `user`.
pub(crate) fn put(dir: &Path, name: &str, mode: u32, user: Option<u32>, content: &mut dyn Read) -> Result<()> {
    let path = dir.join(name);
    let mut write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        copy(content, &mut file)?;
        fchown(&file, user, user)
    };
    write().doing("write in the box", &path)
}
