//! Kernel settings, from `/proc/sys` and some files of `/sys`.
//!
//! A setting is a file whose mode has a read bit and a write bit: a read-only file is a counter, a write-only file
//! triggers an action. Namespaces isolate some of them (`kernel.hostname`, `kernel.shm*` …): the observer's own ones
//! are read, unless an arena is observed, which has its own. `net` has a thousand; only those that sandboxes set are
//! read.

mod choice;
mod listing;
mod walk;

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, fstatfs, statat};

use super::context::Context;
use super::open_settings::OpenSettings;
use crate::arena::ArenaView;
use crate::error::in_words;
use crate::kind::Kind;
use crate::resource::Sysctl;
use crate::snapshot::{Level, Snapshot};
use crate::text::Text;
use choice::NET;
use walk::{DIRECTORY, Walk, text};

const SYS: &CStr = c"/proc/sys";
/// linux/magic.h
const PROC_MAGIC: u64 = 0x9fa0;
/// Reads the settings in advance, while an arena comes up. The next guard of an arena begins with them, as long as the
/// result exists.
pub fn prepare_settings() -> Arc<OpenSettings> {
    let open = Arc::new(OpenSettings::default());
    let mut walk = Walk::new(true);
    if let Ok(dir) = open_sys() {
        walk.all(&dir, None, Some(&open));
        open.offer(walk.found, walk.refused);
    }
    open
}

/// Appends every setting.
pub(super) fn collect(context: Context<'_>, out: &mut Snapshot) {
    if let Some(arena) = context.arena
        && !shares(arena, c"user")
    {
        // Only the first user namespace's root may (`net_ctl_permissions()`, `set_permissions()`: what it may write is its own).
        let why = "an arena with its own user namespace cannot change a setting of the machine";
        return out.coverage.lower(Kind::Sysctl, Level::Full, why);
    }
    let mut walk = Walk::new(context.arena.is_some());
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
    walk.swaps();
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
        let by_itself = |path: &[u8]| {
            path.starts_with(b"/proc/sys/fs/binfmt_misc")
                || path.ends_with(b"/cpu/online")
                || path == walk::SWAPS.as_bytes()
        };
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
