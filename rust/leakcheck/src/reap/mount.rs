//! Unmounts each mount through a descriptor of exactly that mount: a path could lead elsewhere by the time of the call.

use std::collections::HashSet;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, StatxFlags};
use rustix::mount::{UnmountFlags, unmount};

use super::action::{Outcome, Status, Verb};
use super::file::{MOUNT_ROOT, Place};
use crate::observe::read_file;
use crate::observe::sys::{MountStat, STATX_MNT_ID_UNIQUE};
use crate::parse::mountinfo;
use crate::resource::{Mount, MountId, Net, encode_device};
use crate::text::Text;

/// `NSFS_MAGIC`, linux/magic.h.
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// How often a mount that another mount covered is tried again.
const PASSES: usize = 16;

/// A number that is greater for younger mounts.
pub(super) fn age(id: &MountId) -> u64 {
    match id {
        MountId::Unique(id) => *id,
        MountId::Tuple(tuple) => tuple_id(tuple),
    }
}

/// The first word of the mountinfo tuple.
fn tuple_id(tuple: &Text) -> u64 {
    let text = String::from_utf8_lossy(tuple.as_bytes());
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Unmounts what is in the caller's own mount namespace, the deepest first.
pub(super) fn unmount_all(mounts: &[&Mount], apply: bool) -> Vec<Outcome> {
    let own = own_namespace("mnt");
    let mut targets = HashSet::new();
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(mounts.len());
    for pass in 0..PASSES {
        let mut progress = false;
        for (at, mount) in mounts.iter().enumerate() {
            if pass > 0 && outcomes[at].status != Status::Failed {
                continue;
            }
            let outcome = match place(mount, own) {
                Some(skipped) => skipped,
                None => one(mount, &targets, apply).unwrap_or_else(|outcome| outcome),
            };
            progress |= outcome.leaves_nothing();
            if outcome.leaves_nothing() {
                targets.insert(mount.target.as_bytes().to_vec());
            }
            match outcomes.get_mut(at) {
                Some(known) => *known = outcome,
                None => outcomes.push(outcome),
            }
        }
        // A mount that covered another one may be gone now.
        if !progress || !outcomes.iter().any(|o| o.status == Status::Failed) {
            break;
        }
    }
    outcomes
}

/// Why the caller must not unmount a mount.
fn place(mount: &Mount, own: Option<u64>) -> Option<Outcome> {
    if mount.ns == 0 {
        return Some(Outcome::skipped(Verb::None, format!("is detached: it goes with its holder, {}", mount.holder)));
    }
    if Some(mount.ns) != own {
        let why = format!("is in mount namespace {}, not in ours: it goes with that namespace", mount.ns);
        return Some(Outcome::skipped(Verb::None, why));
    }
    (mount.target.as_bytes() == b"/").then(|| Outcome::skipped(Verb::Unmount, "is a root directory"))
}

fn one(mount: &Mount, targets: &HashSet<Vec<u8>>, apply: bool) -> Result<Outcome, Outcome> {
    let held = match Place::of(mount.target.as_path(), Verb::Unmount).and_then(|place| place.hold(Verb::Unmount)) {
        Ok(held) => held,
        // The target cannot be reached, perhaps because another mount covers it.
        Err(outcome) if outcome.status == Status::Gone => return Err(absent(mount, targets, apply)),
        Err(outcome) => return Err(outcome),
    };
    let table = read_file("/proc/self/mountinfo").unwrap_or_default();
    let table = mountinfo::parse(&table).unwrap_or_default();
    let Some(id) = verify(mount, &held, &table)? else { return Err(absent(mount, targets, apply)) };
    // Detaching also detaches what is mounted below.
    for child in table.iter().filter(|m| m.parent_id == id && m.id != id) {
        if apply || !targets.contains(&*child.mount_point) {
            let why = format!("carries a mount that stays, at {}", Text::from(&*child.mount_point));
            return Err(Outcome::new(Verb::Unmount, Status::Failed, why));
        }
    }
    Ok(Outcome::act(Verb::Unmount, apply, "umount2", || detach(&held)))
}

/// The id in mountinfo, if the held descriptor is the root of exactly this mount.
fn verify(mount: &Mount, held: &OwnedFd, table: &[mountinfo::Mount<'_>]) -> Result<Option<u32>, Outcome> {
    let stat = |mask: StatxFlags| {
        rustix::fs::statx(held, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, mask)
            .map_err(|e| Outcome::failed(Verb::Unmount, "statx", e))
    };
    // The id of mountinfo, Linux 5.8.
    let st = stat(StatxFlags::MNT_ID)?;
    if st.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(Outcome::skipped(Verb::Unmount, "statx returns no mount id: needs Linux 5.8"));
    }
    let id = u32::try_from(st.stx_mnt_id).unwrap_or(0);
    if st.stx_attributes.bits() & MOUNT_ROOT == 0 {
        return Ok(None);
    }
    let same = match &mount.id {
        MountId::Unique(wanted) => {
            let st = stat(StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE))?;
            st.stx_mask & STATX_MNT_ID_UNIQUE != 0 && st.stx_mnt_id == *wanted
        }
        // These ids are reused: everything else must be the same too.
        MountId::Tuple(tuple) => {
            tuple_id(tuple) == u64::from(id) && table.iter().any(|m| m.id == id && is_line_of(m, mount))
        }
    };
    Ok(same.then_some(id))
}

/// Whether a line of mountinfo matches the record, except for the id.
fn is_line_of(line: &mountinfo::Mount<'_>, mount: &Mount) -> bool {
    encode_device(line.major, line.minor) == mount.dev
        && [&line.mount_point, &line.root, &line.fs_type, &line.source].map(|bytes| &**bytes)
            == [&mount.target, &mount.root, &mount.fs_type, &mount.source].map(Text::as_bytes)
}

/// The outcome for a mount that is not the topmost at its target.
fn absent(mount: &Mount, targets: &HashSet<Vec<u8>>, apply: bool) -> Outcome {
    match &mount.id {
        MountId::Unique(id) => {
            let Ok(stat) = MountStat::of(*id, 0) else { return Outcome::gone(Verb::Unmount) };
            if stat.point() != mount.target.as_bytes() {
                let why = format!("it was moved to {}", Text::from(stat.point()));
                return Outcome::new(Verb::Unmount, Status::Failed, why);
            }
        }
        MountId::Tuple(tuple) => {
            let table = read_file("/proc/self/mountinfo").unwrap_or_default();
            let table = mountinfo::parse(&table).unwrap_or_default();
            if !table.iter().any(|m| u64::from(m.id) == tuple_id(tuple) && is_line_of(m, mount)) {
                return Outcome::replaced(Verb::Unmount);
            }
        }
    }
    let uncovered = |target: &Vec<u8>| mount.target.as_path().starts_with(Text::from(&**target).as_path());
    if !apply && targets.iter().any(uncovered) {
        return Outcome::new(Verb::Unmount, Status::Would, "after the mount that lies over it");
    }
    Outcome::new(Verb::Unmount, Status::Failed, "another mount lies over it")
}

/// The link of a descriptor names exactly the mount that it was opened on; `UMOUNT_NOFOLLOW` would refuse it.
fn detach(held: &OwnedFd) -> rustix::io::Result<()> {
    unmount(format!("/proc/self/fd/{}", held.as_raw_fd()), UnmountFlags::DETACH)
}

/// A name of ip-netns(8): the namespace's mount and the empty file below it.
pub(super) fn named_netns(net: &Net, apply: bool) -> Outcome {
    try_named_netns(net, apply).unwrap_or_else(|outcome| outcome)
}

fn try_named_netns(net: &Net, apply: bool) -> Result<Outcome, Outcome> {
    let path = net.scope.as_path();
    // /var/run is a link on most systems.
    let path = path.parent().and_then(|p| p.canonicalize().ok()).zip(path.file_name()).map(|(p, n)| p.join(n));
    let Some(path) = path else { return Err(Outcome::gone(Verb::Unlink)) };
    let place = Place::of(&path, Verb::Unlink)?;
    let st = place.stat(Verb::Unlink)?;
    if st.stx_ino != net.number {
        return Err(Outcome::replaced(Verb::Unlink));
    }
    let held = place.hold(Verb::Unlink)?;
    let fs = rustix::fs::fstatfs(&held).map_err(|e| Outcome::failed(Verb::Unlink, "statfs", e))?;
    let bound = fs.f_type as u64 == NSFS_MAGIC;
    if bound != (net.netns != 0) {
        return Err(Outcome::replaced(Verb::Unlink));
    }
    Ok(Outcome::act(Verb::Unlink, apply, "unmount and unlink", || {
        if bound {
            detach(&held)?;
        }
        let below = place.stat(Verb::Unlink).map_err(|_| rustix::io::Errno::NOENT)?;
        let plain = FileType::from_raw_mode(below.stx_mode.into()) == FileType::RegularFile;
        // A second namespace with the same name was not checked.
        if !plain || below.stx_attributes.bits() & MOUNT_ROOT != 0 {
            return Err(rustix::io::Errno::BUSY);
        }
        place.unlink(false)
    }))
}

/// Inode of one of the caller's own namespaces.
pub(super) fn own_namespace(name: &str) -> Option<u64> {
    let link = std::fs::read_link(format!("/proc/self/ns/{name}")).ok()?;
    crate::parse::nslink::parse(link.as_os_str().as_encoded_bytes()).ok().map(|(_, ino)| ino)
}
