//! Attached loop devices, by sysfs: opening `/dev/loopN` would keep the device busy while the sandbox detaches it.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, Mode, OFlags, accessat};
use rustix::io::Errno;

use super::walk::names;
use crate::error::in_words;
use crate::kind::Kind;
use crate::resource::LoopDevice;
use crate::snapshot::{Level, Snapshot};
use crate::text::Text;

/// Where sysfs has every block device without hardware, those of other containers included. The links of `/sys/block` lead here.
const BLOCK: &str = "/sys/devices/virtual/block";

/// Appends every attached loop device.
pub(crate) fn collect(out: &mut Snapshot) {
    if let Err(e) = list(Path::new(BLOCK), &mut out.loops) {
        out.coverage.lower(Kind::Loop, Level::None, format!("cannot read {BLOCK}: {}", in_words(e)));
    }
}

fn list(block: &Path, loops: &mut Vec<LoopDevice>) -> io::Result<()> {
    let dir = match rustix::fs::open(block, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(dir) => dir,
        // It exists once the first such device exists.
        Err(Errno::NOENT) if Path::new("/sys/block").exists() => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    for name in names(&dir)? {
        // Most have nothing attached, and a lookup from here is faster than one of a whole path.
        let used = [name.to_bytes(), b"/loop"].concat();
        let unused = || accessat(&dir, &*used, Access::EXISTS, AtFlags::empty()) == Err(Errno::NOENT);
        if name.to_bytes().starts_with(b"loop") && !unused() {
            loops.extend(attached(block, OsStr::from_bytes(name.to_bytes()))?);
        }
    }
    Ok(())
}

/// The device, unless nothing is attached to it: the directory `loop` exists just as long as something is
/// (`loop_sysfs_init()`), and an attribute read while it goes away gives `ENODEV` or `EIO`.
fn attached(block: &Path, device: &OsStr) -> io::Result<Option<LoopDevice>> {
    let dir = block.join(device);
    let mut backing = match fs::read(dir.join("loop/backing_file")) {
        Ok(backing) => backing,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::EIO)) => return Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::ENAMETOOLONG) => b"(path longer than a page)".to_vec(),
        Err(e) => return Err(e),
    };
    // Exactly one newline comes from the kernel; the name may end in others.
    backing.pop_if(|last| *last == b'\n');
    let diskseq = match fs::read_to_string(dir.join("diskseq")) {
        Ok(text) => text.trim_end().parse().map_err(|e| io::Error::new(ErrorKind::InvalidData, e))?,
        Err(e) if e.kind() == ErrorKind::NotFound => 0,
        Err(e) => return Err(e),
    };
    Ok(Some(LoopDevice { device: device.into(), diskseq, backing: Text::from(backing) }))
}
