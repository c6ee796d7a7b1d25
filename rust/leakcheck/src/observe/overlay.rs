//! Changes in an overlay: its upper layer, compared with the lower layer.
//!
//! A file in the upper layer is not always changed: opening for writing, chmod to the same mode and writing the same
//! bytes copy a file up (Documentation/filesystems/overlayfs.rst). Both layers are walked with descriptors; no mount is
//! entered in the lower one, since the overlay shows none.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::{CStr, CString};
use std::hash::{Hash, Hasher};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Statx};
use rustix::io::Errno;

use super::lookup::now_ns;
use super::walk::{DEPTH, MOUNT_ROOT, PROTECTED, Walk, attributes, names, open_dir, record, stat};
use crate::arena::ArenaView;
use crate::error::Doing;
use crate::resource::{FileState, encode_device};
use crate::snapshot::Level;
use crate::text::Text;

/// Files above this size are compared only by size and times.
const READ_MOST: u64 = 64 << 20;
/// A change this close to the look may share its time stamp with the next one (ns; a tick is 10 ms at most).
const FRESH: i64 = 20_000_000;

/// Result for a file that has not changed since.
#[derive(Clone, Copy)]
struct Finding {
    ctime: i64,
    size: u64,
    state: FileState,
    version: u64,
}

/// Findings by upper inode and digest of the path, so that each content is compared once.
#[derive(Default)]
pub(super) struct OverlayCache(HashMap<(u64, u64), Finding>);

/// Walks every overlay of the arena; returns how many files were touched and no more.
pub(super) fn walk(arena: &ArenaView, cache: &mut OverlayCache, out: &mut Walk) -> i64 {
    let names = OverlayNames::new();
    let (old, new, now) = (&cache.0, HashMap::new(), now_ns());
    let mut compare = Compare { out, old, new, now, touched: 0, names: &names, holds_user: false, top: None };
    for layer in &arena.layers {
        compare.layer(&layer.path, &layer.upper, &layer.lower);
    }
    let (touched, new) = (compare.touched, compare.new);
    cache.0 = new;
    touched
}

struct Compare<'a> {
    out: &'a mut Walk,
    old: &'a HashMap<(u64, u64), Finding>,
    new: HashMap<(u64, u64), Finding>,
    now: i64,
    touched: i64,
    names: &'a OverlayNames,
    /// Whether the upper layer's file system holds extended attributes of users.
    holds_user: bool,
    /// Root of the lower layer, from which a renamed directory's origin is found.
    top: Option<OwnedFd>,
}

/// One name in both layers.
struct Pair<'a> {
    upper: BorrowedFd<'a>,
    lower: Option<BorrowedFd<'a>>,
    name: &'a CStr,
    path: &'a [u8],
    names: &'a OverlayNames,
}

impl Compare<'_> {
    fn layer(&mut self, path: &Path, upper: &OwnedFd, lower: &Path) {
        let text = path.as_os_str().as_encoded_bytes();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(lower, flags, Mode::empty()).doing("open directory", lower).and_then(|low| {
            let dir = open_dir(upper, c".").doing("open the upper layer of", path)?;
            Ok((low, dir))
        });
        let (low, dir) = match opened {
            Ok(opened) => opened,
            Err(e) => return self.out.gap(Level::Partial, e.to_string()),
        };
        // A tmpfs supports them since Linux 6.6; if the upper layer does not, none was copied up.
        let probe = rustix::fs::fgetxattr(&dir, c"user.leakcheck", &mut [0u8; 1][..]);
        self.holds_user = probe == Err(Errno::NODATA);
        let root = Pair { upper: dir.as_fd(), lower: Some(low.as_fd()), name: c"", path: text, names: self.names };
        if let (Ok(st), Ok(below)) = (stat(&dir, c""), stat(&low, c""))
            && (attributes(&st) != attributes(&below)
                || root.differs_beside(&xattr_names_of(&dir), &below, self.holds_user))
        {
            self.changed(&root, &st, &below);
        }
        self.top = low.try_clone().ok();
        self.descend(&dir, Some(&low), text, 0);
    }

    fn descend(&mut self, dir: &OwnedFd, lower: Option<&OwnedFd>, path: &[u8], depth: usize) {
        let names = match names(dir) {
            Ok(names) => names,
            Err(e) => return self.failed("list", path, e),
        };
        for name in names {
            let full = [path.strip_suffix(b"/").unwrap_or(path), b"/", name.to_bytes()].concat();
            let st = match stat(dir, &name) {
                Ok(st) => st,
                Err(Errno::NOENT) => continue,
                Err(e) => {
                    self.failed("stat", &full, e);
                    continue;
                }
            };
            let lower_fd = lower.map(AsFd::as_fd);
            let pair = Pair { upper: dir.as_fd(), lower: lower_fd, name: &name, path: &full, names: self.names };
            match class(&st) {
                FileType::Directory if depth >= DEPTH => {
                    let why = format!("{} is deeper than {DEPTH} levels: not entered", Text::from(&*full));
                    self.out.gap(Level::Partial, why);
                }
                FileType::Directory => self.directory(&pair, dir, lower, &st, depth),
                _ => self.file(&pair, &st),
            }
        }
    }

    fn directory(&mut self, pair: &Pair<'_>, dir: &OwnedFd, lower: Option<&OwnedFd>, st: &Statx, depth: usize) {
        let sub = match open_dir(dir, pair.name) {
            Ok(sub) => sub,
            Err(Errno::NOENT) => return,
            Err(e) => return self.failed("open directory", pair.path, e),
        };
        let below = pair.below();
        // One list tells which of the others need not be asked for: most directories have none.
        let given = xattr_names_of(&sub);
        let value = |name: &CStr| may_have(&given, name).then(|| attribute(&sub, name)).flatten();
        let opaque = value(&self.names.opaque).is_some_and(|v| v == b"y");
        let origin = value(&self.names.redirect).and_then(|to| self.origin(lower, &to));
        match &below {
            // A mount of the host there hides what the overlay shows: nothing to compare with.
            Some(low) if is_mount(low) => return self.descend(&sub, None, pair.path, depth + 1),
            None => self.created(st, pair.path),
            Some(low) => {
                let replaced = opaque || origin.is_some() || class(low) != FileType::Directory;
                if replaced || attributes(st) != attributes(low) || pair.differs_beside(&given, low, self.holds_user) {
                    self.changed(pair, st, low);
                }
            }
        }
        let low = match origin {
            Some(origin) => Some(origin),
            None if opaque || below.is_none() => None,
            None => lower.and_then(|l| open_below(l, pair.name)),
        };
        self.descend(&sub, low.as_ref(), pair.path, depth + 1);
    }

    /// The lower directory that a renamed one shows: a path from the layer's root, or a name beside.
    fn origin(&self, lower: Option<&OwnedFd>, redirect: &[u8]) -> Option<OwnedFd> {
        let absolute = redirect.strip_prefix(b"/");
        let from = if absolute.is_some() { self.top.as_ref()? } else { lower? };
        open_below(from, &CString::new(absolute.unwrap_or(redirect)).ok()?)
    }

    fn file(&mut self, pair: &Pair<'_>, st: &Statx) {
        let below = pair.below().filter(|low| !is_mount(low));
        let device = (st.stx_rdev_major, st.stx_rdev_minor) == (0, 0);
        let whiteout = class(st) == FileType::CharacterDevice && device
            || class(st) == FileType::RegularFile && st.stx_size == 0 && pair.is_whiteout_by_attribute();
        match below {
            None if whiteout => {}
            None => self.created(st, pair.path),
            Some(low) if whiteout => {
                let mut file = record(&low, pair.path, class(&low));
                (file.birth, file.link, file.state) = (None, 0, Some(FileState::Deleted));
                file.version = Some(digest(|h| pair.path.hash(h)));
                self.out.files.push(file);
            }
            Some(low) => self.changed(pair, st, &low),
        }
    }

    fn created(&mut self, st: &Statx, path: &[u8]) {
        let mut file = record(st, path, class(st));
        file.state = Some(FileState::Created);
        self.out.files.push(file);
    }

    /// A name in both layers. Its identity is the lower file's, with the current content.
    fn changed(&mut self, pair: &Pair<'_>, st: &Statx, low: &Statx) {
        let key = (st.stx_ino, digest(|h| pair.path.hash(h)));
        let ctime = st.stx_ctime.tv_sec * 1_000_000_000 + i64::from(st.stx_ctime.tv_nsec);
        let known = self.old.get(&key).filter(|f| (f.ctime, f.size) == (ctime, st.stx_size)).copied();
        let finding = known.unwrap_or_else(|| {
            let (state, version) = pair.compare(st, low, self.holds_user);
            Finding { ctime, size: st.stx_size, state, version }
        });
        if self.now - ctime > FRESH {
            self.new.insert(key, finding);
        }
        if finding.state == FileState::Touched {
            self.touched += 1;
            return;
        }
        let mut file = record(st, pair.path, class(st));
        (file.dev, file.ino) = (encode_device(low.stx_dev_major, low.stx_dev_minor), low.stx_ino);
        (file.birth, file.link) = (None, 0);
        (file.state, file.version) = (Some(finding.state), Some(finding.version));
        self.out.files.push(file);
    }

    fn failed(&mut self, what: &str, path: &[u8], e: Errno) {
        if e != Errno::NOENT {
            self.out.gap(Level::Partial, format!("{what} {}: {}", Text::from(path), std::io::Error::from(e)));
        }
    }
}

impl Pair<'_> {
    fn below(&self) -> Option<Statx> {
        stat(self.lower?, self.name).ok()
    }

    /// Whether the two differ in more than times, and a digest of the upper one.
    fn compare(&self, st: &Statx, low: &Statx, holds_user: bool) -> (FileState, u64) {
        let mut same = class(st) == class(low) && attributes(st) == attributes(low);
        let mut hasher = DefaultHasher::new();
        let given = xattr_names(&Self::in_proc(self.upper, self.name), false);
        (self.path, st.stx_mode, attributes(st), self.protection(&given)).hash(&mut hasher);
        match class(st) {
            FileType::RegularFile => same &= self.contents(st, low, &mut hasher),
            FileType::Symlink => {
                let target = |dir: BorrowedFd<'_>| rustix::fs::readlinkat(dir, self.name, Vec::new()).ok();
                let ours = target(self.upper);
                same &= ours.is_some() && ours == self.lower.and_then(target);
                ours.hash(&mut hasher);
            }
            // Only a directory that was replaced or whose attributes differ comes here.
            FileType::Directory => same = false,
            _ => {}
        }
        same = same && !self.differs_beside(&given, low, holds_user);
        (if same { FileState::Touched } else { FileState::Changed }, hasher.finish())
    }

    fn contents(&self, st: &Statx, low: &Statx, hasher: &mut DefaultHasher) -> bool {
        let same_size = st.stx_size == low.stx_size;
        let open = |dir: BorrowedFd<'_>| {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            rustix::fs::openat(dir, self.name, flags | OFlags::NOATIME, Mode::empty()).ok()
        };
        let (Some(upper), true) = (open(self.upper), st.stx_size <= READ_MOST) else {
            (st.stx_size, st.stx_mtime.tv_sec, st.stx_mtime.tv_nsec).hash(hasher);
            (st.stx_ctime.tv_sec, st.stx_ctime.tv_nsec).hash(hasher);
            let time = |s: &Statx| (s.stx_mtime.tv_sec, s.stx_mtime.tv_nsec);
            return same_size && time(st) == time(low);
        };
        let lower = self.lower.filter(|_| same_size).and_then(open);
        let mut same = lower.is_some();
        let (mut ours, mut theirs) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        loop {
            let n = fill(&upper, &mut ours);
            hasher.write(&ours[..n]);
            if let Some(lower) = lower.as_ref().filter(|_| same) {
                same = fill(lower, &mut theirs) == n && ours[..n] == theirs[..n];
            }
            if n < ours.len() {
                return same;
            }
        }
    }

    fn in_proc(dir: BorrowedFd<'_>, name: &CStr) -> Vec<u8> {
        let dir = format!("/proc/self/fd/{}/", dir.as_raw_fd());
        [dir.as_bytes(), name.to_bytes()].concat()
    }

    fn is_whiteout_by_attribute(&self) -> bool {
        let path = Self::in_proc(self.upper, self.name);
        rustix::fs::lgetxattr(&*path, &*self.names.whiteout, &mut [0u8; 8][..]).is_ok()
    }

    /// Whether attributes that stat(2) does not show differ: extended attributes, access lists, and the protecting
    /// flags of chattr(1). `given` are the names of the upper one's extended attributes.
    fn differs_beside(&self, given: &[Vec<u8>], low: &Statx, holds_user: bool) -> bool {
        self.protection(given) != low.stx_attributes.bits() & PROTECTED || self.xattrs_differ(given, holds_user)
    }

    /// The flags that the overlay shows. It keeps them in an attribute: set on the upper file itself they would hold it up.
    fn protection(&self, given: &[Vec<u8>]) -> u64 {
        let name = &*self.names.protattr;
        if !may_have(given, name) {
            return 0;
        }
        let mut value = [0u8; 16];
        let path = Self::in_proc(self.upper, self.name);
        let n = rustix::fs::lgetxattr(&*path, name, &mut value[..]).unwrap_or(0);
        value[..n].iter().fold(0, |flags, letter| {
            flags | [(b'i', 0x10), (b'a', 0x20)].iter().filter(|(l, _)| l == letter).map(|(_, flag)| flag).sum::<u64>()
        })
    }

    /// Whether an extended attribute was added, changed or removed. Labels of security modules may be missing, and so
    /// may user attributes if the upper layer's file system does not support them.
    fn xattrs_differ(&self, given: &[Vec<u8>], holds_user: bool) -> bool {
        let Some(lower) = self.lower else { return false };
        let (ours, theirs) = (Self::in_proc(self.upper, self.name), Self::in_proc(lower, self.name));
        let value = |path: &[u8], name: &[u8]| xattr(path, name, false);
        let differs = |name: &Vec<u8>| name == TOO_MANY || value(&ours, name) != value(&theirs, name);
        let is_copied = |name: &[u8]| {
            let user = name.starts_with(b"user.") && holds_user;
            user || name == b"security.capability"
                || name.starts_with(b"trusted.")
                || name.starts_with(b"system.posix_acl")
        };
        // What the inside writes under these names, the overlay keeps under longer ones (Linux 6.7).
        let own = |name: &[u8]| name.starts_with(self.names.own.as_bytes());
        let escaped = |name: &[u8]| name.starts_with(self.names.escaped.as_bytes());
        let plain = |name: &&Vec<u8>| !own(name) || escaped(name);
        given.iter().filter(plain).any(differs)
            || xattr_names(&theirs, false).iter().filter(plain).filter(|n| is_copied(n)).any(differs)
    }
}

/// Names of attributes that are the overlay's own: a user's (option `userxattr`) cannot write those of root.
struct OverlayNames {
    opaque: CString,
    redirect: CString,
    whiteout: CString,
    protattr: CString,
    /// How all of them begin.
    own: CString,
    /// How those begin that the inside wrote under such a name.
    escaped: CString,
}

impl OverlayNames {
    fn new() -> Self {
        let class = if rustix::process::geteuid().is_root() { "trusted" } else { "user" };
        let name = |name: &str| CString::new(format!("{class}.overlay.{name}")).unwrap_or_default();
        let [opaque, redirect, whiteout, protattr] = ["opaque", "redirect", "whiteout", "protattr"].map(name);
        OverlayNames { opaque, redirect, whiteout, protattr, own: name(""), escaped: name("overlay.") }
    }
}

/// Whether a user set an extended attribute. The kernel sets others on each new file (a security module's label).
pub(super) fn is_given(name: &[u8]) -> bool {
    name == b"security.capability"
        || [&b"user."[..], b"trusted.", b"system."].iter().any(|class| name.starts_with(class))
}

/// The value of an attribute; `follow` a link at the end of the path.
pub(super) fn xattr(path: &[u8], name: &[u8], follow: bool) -> Option<Vec<u8>> {
    let mut value = vec![0u8; 65536];
    let read = match follow {
        true => rustix::fs::getxattr(path, name, &mut value[..]),
        false => rustix::fs::lgetxattr(path, name, &mut value[..]),
    };
    value.truncate(read.ok()?);
    Some(value)
}

pub(super) fn xattr_names(path: &[u8], follow: bool) -> Vec<Vec<u8>> {
    listed(|list| match follow {
        true => rustix::fs::listxattr(path, list),
        false => rustix::fs::llistxattr(path, list),
    })
}

fn xattr_names_of(file: &OwnedFd) -> Vec<Vec<u8>> {
    listed(|list| rustix::fs::flistxattr(file, list))
}

/// `XATTR_LIST_MAX` (linux/limits.h): the kernel lists none if there are more.
const XATTR_LIST_MAX: usize = 65536;
/// Stands for the names of a file that has too many.
const TOO_MANY: &[u8] = b"user.(too many to be listed)";

fn listed(list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> Vec<Vec<u8>> {
    let names = |list: &[u8]| list.split(|b| *b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    let mut few = [0u8; 1024];
    match list(&mut few) {
        Ok(n) => names(&few[..n]),
        Err(Errno::RANGE) => {
            let mut all = vec![0u8; XATTR_LIST_MAX];
            list(&mut all).map_or_else(|_| vec![TOO_MANY.to_vec()], |n| names(&all[..n]))
        }
        Err(_) => Vec::new(),
    }
}

/// Whether an attribute is among these names, or may be.
fn may_have(names: &[Vec<u8>], name: &CStr) -> bool {
    names.iter().any(|one| one == name.to_bytes() || one == TOO_MANY)
}

fn attribute(dir: &OwnedFd, name: &CStr) -> Option<Vec<u8>> {
    let mut value = [0u8; 4096];
    let n = rustix::fs::fgetxattr(dir, name, &mut value[..]).ok()?;
    Some(value[..n].to_vec())
}

fn open_below(lower: &OwnedFd, path: &CStr) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    rustix::fs::openat2(lower, path, flags, Mode::empty(), resolve).ok()
}

fn is_mount(st: &Statx) -> bool {
    st.stx_attributes.bits() & MOUNT_ROOT != 0
}

fn class(st: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(st.stx_mode))
}

fn digest(write: impl FnOnce(&mut DefaultHasher)) -> u64 {
    let mut hasher = DefaultHasher::new();
    write(&mut hasher);
    hasher.finish()
}

/// Reads until the buffer is full or the file ends.
pub(super) fn fill(file: &OwnedFd, buffer: &mut [u8]) -> usize {
    let mut n = 0;
    while n < buffer.len() {
        match rustix::io::read(file, &mut buffer[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    n
}
