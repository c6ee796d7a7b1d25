//! Reads the settings.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, RawDir, ResolveFlags, fstatfs, openat, openat2};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::choice::{CPU, FILES, KNOBS};
use super::listing::Listing;
use crate::error::in_words;
use crate::observe::open_settings::OpenSettings;
use crate::observe::proc_root::read_file;
use crate::observe::walk::names;
use crate::resource::Sysctl;
use crate::snapshot::Level;
use crate::text::Text;

/// linux/magic.h
const BINFMT_MAGIC: u64 = 0x4249_4e4d;
/// Maximum size of a value in bytes; the kernel returns at most a page for most of them.
const LONGEST: usize = 4096;
/// Directories nest no deeper than `dev/parport/parport0/devices/NAME`.
const DEEPEST: u32 = 8;

pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

#[derive(Default)]
pub(super) struct Walk {
    pub(super) found: Vec<Sysctl>,
    pub(super) gaps: Vec<(Level, String)>,
    /// Files that only root can read and write.
    pub(super) refused: usize,
    skip_own: bool,
    buffer: Vec<u8>,
    names: Vec<u8>,
    /// The files read, if they are to stay open.
    open: Option<Vec<(Text, OwnedFd)>>,
    /// The highest number that one of them may have.
    highest: u32,
}

impl Walk {
    /// Leaves out what an arena has of its own, if `skip_own`.
    pub(super) fn new(skip_own: bool) -> Self {
        Walk { buffer: vec![0; LONGEST], skip_own, ..Walk::default() }
    }

    pub(super) fn gap(&mut self, level: Level, why: String) {
        self.gaps.push((level, why));
    }

    /// Reads everything but what is read separately, and keeps the files in `open`.
    pub(super) fn all(&mut self, dir: &OwnedFd, old: Option<&[Sysctl]>, open: Option<&OpenSettings>) {
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

    pub(super) fn file(&mut self, dir: &OwnedFd, name: &CStr, path: Text) {
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

    pub(super) fn value(&mut self, path: &Text, file: &OwnedFd) {
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
    pub(super) fn binfmt_misc(&mut self, sys: &OwnedFd) {
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

    pub(super) fn knobs(&mut self) {
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

    /// The files and devices that are swapped to (proc(5)), as one setting.
    pub(super) fn swaps(&mut self) {
        // Not every kernel swaps.
        if let Ok(text) = read_file(SWAPS) {
            self.found.push(Sysctl { path: SWAPS.as_bytes().into(), value: swapped_to(&text).into(), before: None });
        }
    }

    /// KSM's adviser, where it is on, sets how many pages to scan (Linux 6.8).
    pub(super) fn adviser(&mut self) {
        let ksm = |s: &Sysctl, name: &str| s.path.as_ref() == format!("/sys/kernel/mm/ksm/{name}").as_bytes();
        if self.found.iter().any(|s| ksm(s, "advisor_mode") && s.value.as_ref() != b"none") {
            self.found.retain(|s| !ksm(s, "pages_to_scan"));
        }
    }
}

pub(super) fn text(dir: &str, name: &CStr) -> Text {
    [dir.as_bytes(), name.to_bytes()].concat().into()
}

pub(super) const SWAPS: &str = "/proc/swaps";

/// The names in `/proc/swaps`, without type, size, use and priority. The kernel writes blanks in a name as `\040`.
fn swapped_to(table: &[u8]) -> Vec<u8> {
    let name = |line: &[u8]| {
        let name = line.split(|byte| byte.is_ascii_whitespace()).next().unwrap_or_default().to_vec();
        name.strip_suffix(br"\040(deleted)").map(<[u8]>::to_vec).unwrap_or(name)
    };
    let mut names: Vec<_> = table.split(|byte| *byte == b'\n').skip(1).map(name).filter(|n| !n.is_empty()).collect();
    names.sort();
    names.join(&b' ')
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_swapped_to_does_not_change_with_its_use() {
        let table = |used: u32, name: &str| {
            let line = format!("{name}                                file\t\t2044\t\t{used}\t\t-2\n");
            swapped_to(format!("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n{line}").as_bytes())
        };
        assert_eq!(table(0, "/swap"), b"/swap");
        assert_eq!(table(9, r"/swap\040(deleted)"), b"/swap");
        assert_eq!(swapped_to(b"Filename\t\t\t\tType\n"), b"");
    }

    #[test]
    fn of_a_choice_the_chosen_word_is_the_value() {
        assert_eq!(chosen(b"always [madvise] never"), b"madvise");
        assert_eq!(chosen(b"[x]"), b"[x]");
        assert_eq!(chosen(b"[a] [b]"), b"[a] [b]");
        assert_eq!(chosen(b"60"), b"60");
    }
}
