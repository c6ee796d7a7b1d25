//! Files that stay in a directory.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mkfifoat, mknodat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::Plant;
use crate::error::{Doing, Result};
use crate::facts;
use crate::stage::{self, Planting, Stage, make_directory, planting, removal, tag};

/// A name that breaks a terminal, a line-based parser, a UTF-8 decoder and an HTML page.
const HOSTILE: &[u8] = b"a\nb \x1b[31m\x1b]0;owned\x07 \xff\xfe <script>alert(1)&\"'";

pub(super) const PLANTS: &[Plant] = &[
    Plant {
        name: "file-temp",
        needs: &[],
        what: "a temporary file with some bytes in it",
        prepare: |stage| file(stage.path("temp"), |path| fs::write(path, "leftover\n").doing("write", path)),
    },
    Plant { name: "file-dir", needs: &[], what: "an empty directory", prepare: directory },
    Plant {
        name: "file-fifo",
        needs: &[],
        what: "a FIFO that nobody has open",
        prepare: |stage| file(stage.path("fifo"), |path| mkfifoat(CWD, path, Mode::RUSR).doing("mkfifo", path)),
    },
    Plant {
        name: "file-socket",
        needs: &[],
        what: "the file of a unix socket that was closed",
        prepare: |stage| {
            // A socket's address has 108 bytes (unix(7)), which a deep directory nearly fills.
            let path = stage.dir().join(format!("{}.sock", tag()));
            file(path, |path| UnixListener::bind(path).map(drop).doing("bind", path))
        },
    },
    Plant {
        name: "file-device",
        needs: &["root"],
        what: "a character device node, the same as /dev/null's",
        prepare: |stage| {
            file(stage.path("device"), |path| {
                mknodat(CWD, path, FileType::CharacterDevice, Mode::RUSR, makedev(1, 3)).doing("mknod", path)
            })
        },
    },
    Plant {
        name: "file-symlink",
        needs: &[],
        what: "a symbolic link that points nowhere",
        prepare: |stage| {
            file(stage.path("symlink"), |path| {
                std::os::unix::fs::symlink("leakcheck-mkleak-nowhere", path).doing("symlink", path)
            })
        },
    },
    Plant {
        name: "file-hostile-name",
        needs: &[],
        what: "a file with a newline, escape sequences, invalid UTF-8, quotes and HTML in its name",
        prepare: |stage| {
            let mut name = stage.path("").into_os_string();
            name.push(OsStr::from_bytes(HOSTILE));
            file(name.into(), |path| fs::write(path, "").doing("create", path))
        },
    },
    Plant {
        name: "file-deleted-suffix",
        needs: &[],
        what: "a file whose name ends in ' (deleted)', as /proc marks files that are gone",
        prepare: |stage| file(stage.path("file (deleted)"), |path| fs::write(path, "").doing("create", path)),
    },
    Plant {
        name: "file-hidden-deep",
        needs: &[],
        what: "a dot file four dot directories deep, which were there before",
        prepare: hidden_deep,
    },
    Plant {
        name: "file-in-submount",
        needs: &["root"],
        what: "a file in a tmpfs that was mounted in the directory before",
        prepare: in_submount,
    },
];

fn file(path: PathBuf, create: impl FnOnce(&Path) -> Result<()> + 'static) -> Result<Planting> {
    planting(move |undo| {
        // Before the creation, so that a half-written file is removed too.
        if path.symlink_metadata().is_err() {
            undo.push(removal(&path));
        }
        create(&path)?;
        facts::of_path(&path)
    })
}

fn directory(stage: &mut Stage) -> Result<Planting> {
    let path = stage.path("dir");
    planting(move |undo| {
        make_directory(undo, &path)?;
        facts::of_path(&path)
    })
}

fn hidden_deep(stage: &mut Stage) -> Result<Planting> {
    let mut path = stage.dir().join(format!(".{}", tag()));
    make_directory(stage.scaffold(), &path)?;
    for name in [".a", ".b", ".c"] {
        path.push(name);
        make_directory(stage.scaffold(), &path)?;
    }
    file(path.join(".hidden"), |path| fs::write(path, "leftover\n").doing("write", path))
}

fn in_submount(stage: &mut Stage) -> Result<Planting> {
    let target = stage.directory("submount")?;
    mount("leakcheck-mkleak", &target, "tmpfs", MountFlags::empty(), c"size=64k").doing("mount tmpfs", &target)?;
    let mounted = target.clone();
    stage.scaffold().push(move || unmount(&mounted, UnmountFlags::empty()).doing("unmount", &mounted));
    file(target.join(stage::name("file")), |path| fs::write(path, "leftover\n").doing("write", path))
}
