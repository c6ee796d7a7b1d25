//! Attached loop devices, by sysfs: opening `/dev/loopN` would keep the device busy for the sandbox that detaches it.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use crate::kind::Kind;
use crate::resource::LoopDevice;
use crate::snapshot::{Level, Snapshot};
use crate::text::Text;

/// Where sysfs lists every block device, those of other containers included.
const BLOCK: &str = "/sys/block";

/// Appends every attached loop device.
pub(crate) fn collect(out: &mut Snapshot) {
    if let Err(e) = list(Path::new(BLOCK), &mut out.loops) {
        out.coverage.lower(Kind::Loop, Level::None, format!("read {BLOCK}: {e}"));
    }
}

fn list(block: &Path, loops: &mut Vec<LoopDevice>) -> io::Result<()> {
    for entry in fs::read_dir(block)? {
        let name = entry?.file_name();
        if name.as_encoded_bytes().starts_with(b"loop") {
            loops.extend(attached(block, &name)?);
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
    // Exactly one newline is the kernel's; the name may end in others.
    backing.pop_if(|last| *last == b'\n');
    let diskseq = match fs::read_to_string(dir.join("diskseq")) {
        Ok(text) => text.trim_end().parse().map_err(|e| io::Error::new(ErrorKind::InvalidData, e))?,
        Err(e) if e.kind() == ErrorKind::NotFound => 0,
        Err(e) => return Err(e),
    };
    Ok(Some(LoopDevice { device: device.into(), diskseq, backing: Text::from(backing) }))
}
