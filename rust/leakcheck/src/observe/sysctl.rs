//! Kernel settings, from `/proc/sys` and some files of `/sys`.
//!
//! A setting is a file whose mode has a read bit and a write bit: a read-only file is a counter, a write-only file
//! triggers an action. Namespaces isolate some of them (`kernel.hostname`, `kernel.shm*` …): the observer's own ones
//! are read, unless an arena is observed, which has its own. `net` has a thousand; only those that sandboxes set are
//! read.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, fstatfs, openat, openat2, statat};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::context::Context;
use super::open_settings::OpenSettings;
use super::walk::names;
use crate::arena::ArenaView;
use crate::error::in_words;
use crate::kind::Kind;
use crate::resource::Sysctl;
use crate::snapshot::{Level, Snapshot};
use crate::text::Text;

const SYS: &CStr = c"/proc/sys";
/// linux/magic.h
const PROC_MAGIC: u64 = 0x9fa0;
const BINFMT_MAGIC: u64 = 0x4249_4e4d;
/// Maximum size of a value in bytes; the kernel returns at most a page for most of them.
const LONGEST: usize = 4096;
/// Directories nest no deeper than `dev/parport/parport0/devices/NAME`.
const DEEPEST: u32 = 8;

/// Files that change by themselves, or trigger an action when read. With a `/` at the end: everything below.
const NO_SETTINGS: &[&str] = &[
    "kernel/hung_task_warnings",         // counted down with each warning
    "kernel/ns_last_pid",                // of each fork
    "kernel/perf_event_max_sample_rate", // lowered by the kernel when interrupts take long
    "kernel/random/",                    // counters, and random numbers
    "kernel/sched_domain/",              // the scheduler's own measurements
    "kernel/tainted",                    // by any warning or module
    "vm/stat_refresh",                   // runs something on each CPU
    // Read separately.
    "fs/binfmt_misc/",
    "net/",
];
/// Settings of the network namespace that container runtimes, network plugins and judges change.
const NET: &[&CStr] = &[
    c"net/bridge/bridge-nf-call-arptables",
    c"net/bridge/bridge-nf-call-ip6tables",
    c"net/bridge/bridge-nf-call-iptables",
    c"net/core/somaxconn",
    c"net/ipv4/conf/all/forwarding",
    c"net/ipv4/conf/all/route_localnet",
    c"net/ipv4/conf/all/rp_filter",
    c"net/ipv4/conf/default/forwarding",
    c"net/ipv4/ip_forward",
    c"net/ipv4/ip_local_port_range",
    c"net/ipv4/ip_unprivileged_port_start",
    c"net/ipv4/ping_group_range",
    c"net/ipv6/conf/all/disable_ipv6",
    c"net/ipv6/conf/all/forwarding",
    c"net/ipv6/conf/default/forwarding",
];
/// Prefixes of the settings that an arena has of its own (uts_namespaces(7), ipc_namespaces(7)).
const OF_AN_ARENA: &[&str] = &[
    "fs/mqueue/",
    "kernel/auto_msgmni",
    "kernel/domainname",
    "kernel/hostname",
    "kernel/msg",
    "kernel/sem",
    "kernel/shm",
];

/// Directories of `/sys` with settings that sandboxes and judges change.
const KNOBS: &[&CStr] = &[c"/sys/kernel/mm/transparent_hugepage", c"/sys/kernel/mm/ksm"];
const CPU: &CStr = c"/sys/devices/system/cpu";
/// Its files, one by one: `online` cannot be written, but shows what `cpuN/online` was set to.
const FILES: &[&CStr] = &[c"online", c"smt/control", c"cpufreq/boost", c"intel_pstate/no_turbo"];

/// The names in a directory, by its path and by whether an arena's own are left out. The type and mode of a name never
/// change: the kernel sets both.
type Listings = HashMap<(String, bool), Arc<Listing>>;
static LISTINGS: LazyLock<Mutex<Listings>> = LazyLock::new(Mutex::default);

/// Reads the settings in advance, while an arena comes up. The next guard of an arena begins with them, as long as the
/// result exists.
pub fn prepare_settings() -> Arc<OpenSettings> {
    let open = Arc::new(OpenSettings::default());
    let mut walk = Walk { buffer: vec![0; LONGEST], skip_own: true, ..Walk::default() };
    if let Ok(dir) = open_sys() {
        walk.all(&dir, None, Some(&open));
        open.offer(walk.found, walk.refused);
    }
    open
}

/// The last listing of a directory.
#[derive(Default)]
struct Listing {
    /// Its names, each with a NUL after it.
    names: Vec<u8>,
    /// The files to read, by name, with the path, which is the sort key.
    settings: Vec<(CString, Text)>,
    /// The directories in it, each with its path and a `/`.
    directories: Vec<(CString, String)>,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Appends every setting.
pub(super) fn collect(context: Context<'_>, out: &mut Snapshot) {
    if let Some(arena) = context.arena
        && !shares(arena, c"user")
    {
        // Only the first user namespace's root may (`net_ctl_permissions()`, `set_permissions()`: what it may write is its own).
        let why = "an arena with its own user namespace cannot change a setting of the machine";
        return out.coverage.lower(Kind::Sysctl, Level::Full, why);
    }
    let mut walk = Walk { buffer: vec![0; LONGEST], skip_own: context.arena.is_some(), ..Walk::default() };
    let open = context.open_settings;
    match open_sys() {
        Ok(dir) => {
            match open.and_then(|open| Some((open, open.files.get()?))) {
                Some((open, files)) => match open.first() {
                    Some((found, refused)) => (walk.found, walk.refused) = (found, refused),
                    None => files.iter().for_each(|(path, file)| walk.value(path, file)),
                },
                None => walk.all(&dir, context.old_settings, open),
            }
            if context.arena.is_none_or(|arena| shares(arena, c"net")) {
                NET.iter().for_each(|name| walk.file(&dir, name, text("/proc/sys/", name)));
            }
            walk.binfmt_misc(&dir);
        }
        Err(why) => {
            walk.gap(Level::None, why);
            walk.knobs();
        }
    }
    walk.adviser();
    if walk.refused > 0 {
        let why = format!("this user can neither read nor write {} settings", walk.refused);
        walk.gap(Level::Full, why);
    }
    out.sysctls.append(&mut walk.found);
    for (level, why) in walk.gaps {
        out.coverage.lower(Kind::Sysctl, level, why);
    }
}

/// `/proc/sys`, not something that is mounted over it.
fn open_sys() -> Result<OwnedFd, String> {
    let dir = rustix::fs::open(SYS, DIRECTORY, Mode::empty())
        .map_err(|e| format!("cannot open directory /proc/sys: {}", in_words(e)))?;
    match fstatfs(&dir) {
        Ok(fs) if fs.f_type as u64 == PROC_MAGIC => Ok(dir),
        Ok(_) => Err("a mount covers /proc/sys".to_owned()),
        Err(e) => Err(format!("cannot statfs /proc/sys: {}", in_words(e))),
    }
}

/// Whether the arena's PID 1 is in our namespace of this type; true if unknown.
fn shares(arena: &ArenaView, ns: &CStr) -> bool {
    let link = |pid: &str| CString::new(format!("{pid}/ns/{}", ns.to_string_lossy())).unwrap_or_default();
    let ours = statat(rustix::fs::CWD, &*[b"/proc/", link("self").to_bytes()].concat(), AtFlags::empty());
    let its = statat(&arena.proc, &*link("1"), AtFlags::empty());
    match (ours, its) {
        (Ok(ours), Ok(its)) => (ours.st_dev, ours.st_ino) == (its.st_dev, its.st_ino),
        _ => true,
    }
}

impl Listing {
    /// That of `dir` with these names; `path` is the directory's, with a `/` at its end.
    fn of(dir: &OwnedFd, path: &str, names: &[u8], skip_own: bool) -> Arc<Self> {
        let key = (path.to_owned(), skip_own);
        let mut known = LISTINGS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listing) = known.get(&key).filter(|listing| listing.names == names) {
            return Arc::clone(listing);
        }
        let mut listing = Listing { names: names.to_vec(), ..Listing::default() };
        let mut whole = true;
        for name in names.split_inclusive(|b| *b == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok()) {
            let full = format!("{path}{}", name.to_string_lossy());
            if skips(&full, skip_own) {
                continue;
            }
            let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
            let Ok(stat) = statat(dir, name, flags) else {
                whole = false;
                continue;
            };
            match FileType::from_raw_mode(stat.st_mode) {
                // Counters of each size of huge pages.
                FileType::Directory if full.ends_with("kB/stats") => {}
                FileType::Directory => listing.directories.push((name.to_owned(), format!("{full}/"))),
                FileType::RegularFile if stat.st_mode & 0o222 != 0 && stat.st_mode & 0o444 != 0 => {
                    listing.settings.push((name.to_owned(), full.as_bytes().into()));
                }
                _ => {}
            }
        }
        listing.settings.sort_by(|a, b| a.1.cmp(&b.1));
        let listing = Arc::new(listing);
        if whole {
            known.insert(key, Arc::clone(&listing));
        }
        listing
    }
}

fn skips(path: &str, skip_own: bool) -> bool {
    let Some(path) = path.strip_prefix("/proc/sys/") else { return false };
    let is = |entry: &&str| match entry.strip_suffix('/') {
        Some(dir) => path == dir,
        None => path == *entry,
    };
    NO_SETTINGS.iter().any(is) || skip_own && OF_AN_ARENA.iter().any(|own| path.starts_with(own))
}

#[derive(Default)]
struct Walk {
    found: Vec<Sysctl>,
    gaps: Vec<(Level, String)>,
    /// Files that only root can read and write.
    refused: usize,
    skip_own: bool,
    buffer: Vec<u8>,
    names: Vec<u8>,
    /// The files read, if they are to stay open.
    open: Option<Vec<(Text, OwnedFd)>>,
    /// The highest number that one of them may have.
    highest: u32,
}

impl Walk {
    fn gap(&mut self, level: Level, why: String) {
        self.gaps.push((level, why));
    }

    /// Reads everything but what is read separately, and keeps the files in `open`.
    fn all(&mut self, dir: &OwnedFd, old: Option<&[Sysctl]>, open: Option<&OpenSettings>) {
        self.open = open.map(|_| Vec::new());
        let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        self.highest = u32::try_from(most / 2).unwrap_or(u32::MAX);
        match old {
            Some(old) => self.again(dir, old),
            None => self.directory(dir, "/proc/sys/", 0),
        }
        self.knobs();
        let all = self.gaps.iter().all(|(level, _)| *level == Level::Full);
        if let (Some(open), Some(files), true) = (open, self.open.take(), all) {
            // Not set yet: a guard's looks follow one another.
            let _ = open.files.set(files);
        }
    }

    /// Reads what the baseline read. A setting that appears with a module or a device has nothing to be compared with, so
    /// no directory is listed: that would take a third of the time.
    fn again(&mut self, dir: &OwnedFd, old: &[Sysctl]) {
        let separate = |below: &&[u8]| below.starts_with(b"net/") || below.starts_with(b"fs/binfmt_misc");
        for setting in old {
            let below = setting.path.as_ref().strip_prefix(b"/proc/sys/").filter(|below| !separate(below));
            if let Some(name) = below.and_then(|below| CString::new(below).ok()) {
                self.file(dir, &name, setting.path.clone());
            }
        }
    }

    /// `path` is the directory's, with a `/` at its end.
    fn directory(&mut self, dir: &OwnedFd, path: &str, depth: u32) {
        if depth >= DEEPEST {
            return self.gap(Level::Partial, format!("{path} is too deeply nested: not entered"));
        }
        if let Err(e) = self.list(dir) {
            return self.gap(Level::Partial, format!("cannot read directory {path}: {}", in_words(e)));
        }
        let listing = Listing::of(dir, path, &self.names, self.skip_own);
        for (name, path) in &listing.settings {
            self.file(dir, name, path.clone());
        }
        for (name, path) in &listing.directories {
            match openat2(dir, &**name, DIRECTORY, Mode::empty(), ResolveFlags::NO_XDEV) {
                Ok(inner) => self.directory(&inner, path, depth + 1),
                Err(Errno::NOENT) => {}
                Err(e) => {
                    let path = path.trim_end_matches('/');
                    let why = match e {
                        Errno::XDEV => format!("a mount covers {path}"),
                        e => format!("cannot open directory {path}: {}", in_words(e)),
                    };
                    self.gap(Level::Partial, why);
                }
            }
        }
    }

    /// Puts the names in a directory into `names`.
    fn list(&mut self, dir: &OwnedFd) -> rustix::io::Result<()> {
        self.names.clear();
        let mut buffer = [MaybeUninit::<u8>::uninit(); 8192];
        let mut entries = RawDir::new(dir, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes_with_nul();
            if !matches!(name, b".\0" | b"..\0") {
                self.names.extend_from_slice(name);
            }
        }
        Ok(())
    }

    fn file(&mut self, dir: &OwnedFd, name: &CStr, path: Text) {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        match openat2(dir, name, flags, Mode::empty(), ResolveFlags::NO_XDEV) {
            Ok(file) => {
                self.value(&path, &file);
                self.keep(path, file);
            }
            Err(Errno::ACCESS | Errno::PERM) => self.refused += 1,
            Err(Errno::XDEV) => self.gap(Level::Partial, format!("a mount covers {path}")),
            // Some disappear with their module.
            Err(_) => {}
        }
    }

    fn value(&mut self, path: &Text, file: &OwnedFd) {
        match rustix::io::pread(file, &mut self.buffer[..], 0) {
            Ok(n) => {
                let value = chosen(self.buffer[..n].strip_suffix(b"\n").unwrap_or(&self.buffer[..n])).into();
                self.found.push(Sysctl { path: path.clone(), value, before: None });
            }
            Err(Errno::ACCESS | Errno::PERM) => self.refused += 1,
            // Some have no value yet (EIO), and others disappear with their module.
            Err(_) => {}
        }
    }

    /// Keeps a file open, unless there are so many that the program around may need the numbers.
    fn keep(&mut self, path: Text, file: OwnedFd) {
        if let Some(open) = &mut self.open {
            if file.as_raw_fd().unsigned_abs() > self.highest {
                self.open = None;
            } else {
                open.push((path, file));
            }
        }
    }

    /// The registered formats. If the file system is not mounted, there are none (Linux 6.7), and opening the directory
    /// could mount it: a descriptor opened with O_PATH triggers no automount (open(2)), unless O_DIRECTORY is set too.
    fn binfmt_misc(&mut self, sys: &OwnedFd) {
        let place = OFlags::PATH | OFlags::CLOEXEC;
        let path = "/proc/sys/fs/binfmt_misc";
        let Ok(place) = openat(sys, c"fs/binfmt_misc", place, Mode::empty()) else { return };
        let mut registered = Vec::new();
        if fstatfs(&place).is_ok_and(|fs| fs.f_type as u64 == BINFMT_MAGIC) {
            let listed = openat(&place, c".", DIRECTORY, Mode::empty()).and_then(|dir| Ok((names(&dir)?, dir)));
            match listed {
                Ok((names, dir)) => {
                    for name in names.into_iter().filter(|name| name.as_c_str() != c"register") {
                        let text = name.to_string_lossy();
                        self.file(&dir, &name, format!("{path}/{text}").as_bytes().into());
                        if name.as_c_str() != c"status" {
                            registered.push(text.into_owned());
                        }
                    }
                }
                Err(e) => self.gap(Level::Partial, format!("cannot read directory {path}: {}", in_words(e))),
            }
        }
        registered.sort();
        let value = Text::from(registered.join(" ").as_bytes());
        self.found.push(Sysctl { path: path.as_bytes().into(), value, before: None });
    }

    fn knobs(&mut self) {
        for path in KNOBS {
            // Not every kernel has it.
            if let Ok(dir) = rustix::fs::open(*path, DIRECTORY, Mode::empty()) {
                self.directory(&dir, &format!("{}/", path.to_string_lossy()), 0);
            }
        }
        self.cpus();
    }

    fn cpus(&mut self) {
        let place = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(cpu) = rustix::fs::open(CPU, place, Mode::empty()) else { return };
        let path = |name: &CStr| text("/sys/devices/system/cpu/", name);
        for name in FILES {
            self.file(&cpu, name, path(name));
        }
        // Not the frequencies: they depend on the temperature.
        let policies = openat(&cpu, c"cpufreq", DIRECTORY, Mode::empty()).and_then(|dir| names(&dir));
        for policy in policies.unwrap_or_default().iter().filter(|name| name.to_bytes().starts_with(b"policy")) {
            let Ok(name) = CString::new([b"cpufreq/", policy.to_bytes(), b"/scaling_governor"].concat()) else {
                continue;
            };
            self.file(&cpu, &name, path(&name));
        }
    }

    /// KSM's adviser, where it is on, sets how many pages to scan (Linux 6.8).
    fn adviser(&mut self) {
        let ksm = |s: &Sysctl, name: &str| s.path.as_ref() == format!("/sys/kernel/mm/ksm/{name}").as_bytes();
        if self.found.iter().any(|s| ksm(s, "advisor_mode") && s.value.as_ref() != b"none") {
            self.found.retain(|s| !ksm(s, "pages_to_scan"));
        }
    }
}

fn text(dir: &str, name: &CStr) -> Text {
    [dir.as_bytes(), name.to_bytes()].concat().into()
}

/// The word in brackets, if there is exactly one: the other words are the alternatives.
fn chosen(value: &[u8]) -> &[u8] {
    if !value.contains(&b'[') {
        return value;
    }
    let mut words = value.split(|byte| *byte == b' ');
    let bracketed = |word: &&[u8]| word.len() > 2 && word.starts_with(b"[") && word.ends_with(b"]");
    match (words.clone().count() > 1, words.find(bracketed), words.find(bracketed)) {
        (true, Some(word), None) => &word[1..word.len() - 1],
        _ => value,
    }
}

impl Sysctl {
    /// The name for sysctl(8), or the path.
    pub(crate) fn name(&self) -> Text {
        match self.path.as_ref().strip_prefix(b"/proc/sys/") {
            Some(below) if !below.contains(&b'.') && !below.starts_with(b"fs/binfmt_misc") => {
                below.iter().map(|b| if *b == b'/' { b'.' } else { *b }).collect::<Vec<u8>>().into()
            }
            _ => self.path.clone(),
        }
    }

    /// The command that restores it.
    pub(crate) fn restore(&self) -> Option<String> {
        let before = self.before.as_ref()?;
        let by_itself = |path: &[u8]| path.starts_with(b"/proc/sys/fs/binfmt_misc") || path.ends_with(b"/cpu/online");
        let quote = super::detail::quote;
        let path: &[u8] = self.path.as_ref();
        // A tab between numbers may be written as a space (`proc_dointvec()`), which every shell can write.
        let value: Vec<u8> = before.as_ref().iter().map(|b: &u8| if *b == b'\t' { b' ' } else { *b }).collect();
        (!by_itself(path)).then(|| format!("echo {} > {}", quote(&value), quote(path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::KindSet;
    use crate::scope::Scope;

    fn observation() -> Snapshot {
        let mut out = Snapshot::empty(Scope::Host, KindSet::all());
        collect(
            Context { arena: None, table: None, old_mounts: None, old_settings: None, open_settings: None },
            &mut out,
        );
        out
    }

    #[test]
    fn settings_are_read_and_what_changes_by_itself_is_none() {
        let found = observation();
        let has = |path: &str| found.sysctls.iter().any(|s| s.path.as_ref() == path.as_bytes());
        assert!(has("/proc/sys/vm/swappiness") && has("/proc/sys/kernel/core_pattern"));
        assert!(!has("/proc/sys/kernel/ns_last_pid") && !has("/proc/sys/vm/stat_refresh"));
        assert!(!has("/proc/sys/fs/file-nr") && !has("/proc/sys/vm/drop_caches"));
        assert!(
            has("/sys/devices/system/cpu/online") || !std::path::Path::new("/sys/devices/system/cpu/online").exists()
        );
    }

    #[test]
    fn nothing_changes_while_nobody_changes_anything() {
        let (first, load) = (observation(), std::process::Command::new("true").status());
        assert!(load.is_ok_and(|status| status.success()));
        let last = observation();
        let differs: Vec<_> = last.sysctls.iter().filter(|s| !first.sysctls.contains(s)).collect();
        assert!(differs.is_empty(), "{differs:?}");
    }

    #[test]
    fn files_that_are_kept_open_show_what_a_walk_shows() {
        let open = OpenSettings::default();
        let observation = || {
            let mut out = Snapshot::empty(Scope::Host, KindSet::all());
            let (old_mounts, old_settings) = Default::default();
            collect(
                Context { arena: None, table: None, old_mounts, old_settings, open_settings: Some(&open) },
                &mut out,
            );
            out.sysctls.sort_by(|a, b| a.path.cmp(&b.path));
            out.sysctls
        };
        let (first, last) = (observation(), observation());
        assert!(open.files.get().is_some_and(|files| files.len() > 100));
        assert_eq!(first, last);
        let mut walked = self::observation().sysctls;
        walked.sort_by(|a, b| a.path.cmp(&b.path));
        assert_eq!(first, walked);
    }

    #[test]
    fn what_was_read_in_advance_is_what_the_next_guard_begins_with() {
        let ready = prepare_settings();
        let open = OpenSettings::take();
        assert!(Arc::ptr_eq(&open, &ready));
        let look = || {
            let mut out = Snapshot::empty(Scope::Host, KindSet::all());
            let (old_mounts, old_settings) = Default::default();
            collect(
                Context { arena: None, table: None, old_mounts, old_settings, open_settings: Some(&open) },
                &mut out,
            );
            out.sysctls
        };
        let (first, last) = (look(), look());
        assert!(open.first().is_none() && first.len() > 100);
        assert_eq!(first, last);
    }

    #[test]
    fn of_a_choice_the_chosen_word_is_the_value() {
        assert_eq!(chosen(b"always [madvise] never"), b"madvise");
        assert_eq!(chosen(b"[x]"), b"[x]");
        assert_eq!(chosen(b"[a] [b]"), b"[a] [b]");
        assert_eq!(chosen(b"60"), b"60");
    }

    #[test]
    fn the_command_that_restores_it_is_one_of_the_shell() {
        let one = |path: &str, before: &str| Sysctl {
            path: path.as_bytes().into(),
            value: "9".as_bytes().into(),
            before: Some(before.as_bytes().into()),
        };
        let setting = one("/proc/sys/kernel/printk", "4\t4\t1\t7");
        assert_eq!(setting.restore().as_deref(), Some("echo '4 4 1 7' > /proc/sys/kernel/printk"));
        assert_eq!(setting.name().to_string(), "kernel.printk");
        assert_eq!(one("/sys/kernel/mm/ksm/run", "0").name().to_string(), "/sys/kernel/mm/ksm/run");
    }
}
