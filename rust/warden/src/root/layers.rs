//! The overlays of an arena: one of the host's root, or one of each directory that an ordinary user may overlay.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use leakcheck_sys as sys;
use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount,
};

use super::{FRESH, STAGE, Tree, make_place, open_dir, tmpfs};
use crate::error::Doing;
use crate::mounts::{Mount, shown};

pub(super) fn whole_overlay(root: &Path) -> io::Result<Vec<(String, OwnedFd)>> {
    // xino makes /proc/locks and stat agree on the device; redirect_dir allows renaming directories of the host.
    let upper = overlay("/", "", root, "xino=on,redirect_dir=on,index=off").or_else(|e| {
        let why = match e.raw_os_error() {
            Some(libc::ENODEV) => "mount an overlay of /: this kernel has no overlay file system; modprobe overlay",
            Some(libc::EINVAL) => "mount an overlay of / (on two overlays already?)",
            _ => "mount an overlay of /",
        };
        Err(e).during(why)
    })?;
    Ok(vec![("/".to_owned(), upper)])
}

/// A mount of the host as an overlay without upper layer, not attached yet. Nobody can make that writable, while root inside
/// can do so with a read-only bind.
pub(super) fn read_only(mount: &Mount) -> io::Result<OwnedFd> {
    // overlayfs splits its option at colons.
    let lower = mount.point().to_str().filter(|path| !path.contains([',', ':', '\\'])).ok_or(Errno::INVAL)?;
    let empty = format!("{STAGE}/empty");
    fs::create_dir_all(&empty)?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // One layer alone is refused.
    fsconfig_set_string(&context, "lowerdir", format!("{lower}:{empty}"))?;
    fsconfig_set_string(&context, "xino", "on")?;
    fsconfig_create(&context)?;
    let mut flags = MountAttrFlags::MOUNT_ATTR_RDONLY;
    for (word, flag) in [
        (&b"nosuid"[..], MountAttrFlags::MOUNT_ATTR_NOSUID),
        (b"nodev", MountAttrFlags::MOUNT_ATTR_NODEV),
        (b"noexec", MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ] {
        flags.set(flag, mount.options.split(|b| *b == b',').any(|option| option == word));
    }
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// A user namespace must not see below the mounts that it inherited, so a directory with mounts below it cannot be the
/// lower layer of an overlay. Each directory of the root therefore gets its own overlay. One with mounts below it is made
/// again, and each directory in it gets one.
pub(super) fn overlays(
    root: &Path,
    size: u64,
    host: &[Mount],
    not_covered: &mut Vec<String>,
) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut layers = Vec::new();
    // The new root must be a mount point.
    tmpfs(root, 0o755, size)?;
    for entry in fs::read_dir("/")?.flatten() {
        let (path, Ok(class)) = (entry.path(), entry.file_type()) else { continue };
        let fresh = FRESH.iter().any(|(fresh, _)| Path::new(fresh) == path)
            || ["/dev", "/proc", "/sys"].iter().any(|fresh| Path::new(fresh) == path);
        if !class.is_symlink() && (!class.is_dir() || fresh) {
            make_place(&root.join(entry.file_name()), class.is_dir())?;
            continue;
        }
        cover(&path, class, root, host, &mut layers, not_covered)?;
    }
    Ok(layers)
}

/// The most overlays of one arena: the kernel mounts each, and every look compares it.
const LAYERS: usize = 100;

/// Shows a directory of the host, or a link, below the new root.
fn cover(
    path: &Path,
    class: fs::FileType,
    root: &Path,
    host: &[Mount],
    layers: &mut Vec<(String, OwnedFd)>,
    not_covered: &mut Vec<String>,
) -> io::Result<()> {
    let place = root.join(path.strip_prefix("/").unwrap_or(path));
    if class.is_symlink() {
        return symlink(fs::read_link(path)?, place);
    }
    let bound = |why: String, not_covered: &mut Vec<String>| {
        let bound = Tree::of(path, true, true).and_then(|tree| {
            make_place(&place, tree.is_dir)?;
            tree.attach(&place)
        });
        let how = if bound.is_ok() { "read-only" } else { "missing" };
        not_covered.push(format!("{}: {how}, since {why}", shown(path)));
    };
    // overlayfs splits its options at commas and colons.
    let Some(text) = path.to_str().filter(|text| !text.contains([',', ':', '\\'])) else {
        bound("its name cannot be an option of an overlay".to_owned(), not_covered);
        return Ok(());
    };
    if class.is_dir() && layers.len() < LAYERS {
        fs::create_dir(&place)?;
        let error = match overlay(text, &format!("{}/", text.trim_start_matches('/')), &place, "userxattr") {
            Ok(upper) => {
                layers.push((text.to_owned(), upper));
                return Ok(());
            }
            Err(e) => e,
        };
        let has_mounts = host.iter().any(|m| m.point() != path && m.point().starts_with(path));
        match fs::read_dir(path) {
            Ok(entries) if has_mounts => {
                fs::set_permissions(&place, fs::metadata(path)?.permissions())?;
                for entry in entries.flatten() {
                    cover(&entry.path(), entry.file_type()?, root, host, layers, not_covered)?;
                }
            }
            _ => bound(format!("an overlay of it failed: {}", sys::in_words(&error)), not_covered),
        }
        return Ok(());
    }
    if class.is_dir() {
        bound(format!("an arena has at most {LAYERS} overlays"), not_covered);
    } else {
        // Nobody inside can write to it, whatever the mount says.
        let is_closed = rustix::fs::accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS) == Err(Errno::ACCESS);
        let shown_there = is_closed
            && Tree::of(path, false, true)
                .and_then(|tree| {
                    make_place(&place, false)?;
                    tree.attach(&place)
                })
                .is_ok();
        if !shown_there {
            bound("it is beside a mount".to_owned(), not_covered);
        }
    }
    Ok(())
}

fn overlay(lower: &str, name: &str, place: &Path, options: &str) -> io::Result<OwnedFd> {
    let upper = format!("{STAGE}/upper/{name}");
    let work = format!("{STAGE}/work/{name}");
    for dir in [&upper, &work] {
        fs::create_dir_all(dir)?;
    }
    fs::set_permissions(&upper, fs::Permissions::from_mode(fs::metadata(lower)?.permissions().mode()))?;
    let data = format!("lowerdir={lower},upperdir={upper},workdir={work},{options}");
    let data = std::ffi::CString::new(data).map_err(io::Error::other)?;
    mount("overlay", place, "overlay", MountFlags::empty(), Some(data.as_c_str()))?;
    open_dir(Path::new(&upper))
}
