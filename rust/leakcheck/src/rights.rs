//! What a run that this process starts can do, by the rights that it inherits: capabilities(7), credentials(7).
//!
//! A run inherits this process' user ids, groups, capabilities, bounding set, no_new_privs and seccomp filters. A user
//! namespace gives it every capability, but only over that namespace and what the namespace owns: over nothing of ours
//! that it could not change before. Only a program with a set-user-ID bit or file capabilities gives more, up to the
//! bounding set; [`Elevation`](crate::watch::Elevation) watches whether one was executed.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags};
use rustix::thread::CapabilitySet;

use crate::arena::ArenaView;
use crate::observe::read_file;
use crate::parse::status;
use crate::snapshot::{Directory, Gap, Unseen};

/// CAP_PERFMON and CAP_BPF (Linux 5.8), linux/capability.h.
const PERFMON_AND_BPF: u64 = 1 << 38 | 1 << 39;

/// What the runs of this process can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rights {
    /// Real, effective, saved and file system user id.
    pub(crate) uids: Vec<u32>,
    /// Capabilities that it has or can get without another user's program.
    pub(crate) capabilities: u64,
    /// The effective ones. If the kernel refuses something despite one of them, it belongs to another user namespace,
    /// over which none of them counts.
    pub(crate) effective: u64,
    /// Capabilities that a program with a set-user-ID bit or file capabilities could add.
    pub(crate) more: u64,
    /// Whether unprivileged users can load BPF programs and create maps.
    pub(crate) bpf: bool,
    /// Whether it has all capabilities over the namespaces that are observed: in an ordinary user's arena.
    pub(crate) in_arena: bool,
    /// Directories that it starts in or receives as descriptors, so that it needs no access to their parents; none if
    /// its capabilities reach every directory.
    pub(crate) inside: Vec<Vec<u8>>,
}

impl Rights {
    /// The rights of this process; none if they cannot be read, so that nothing is excused.
    pub(crate) fn own() -> Option<Self> {
        let text = read_file("/proc/thread-self/status").ok()?;
        let text = status::parse(&text).ok().and_then(|s| Some((s.uid?, String::from_utf8_lossy(&text).into_owned())));
        let (uids, text) = text?;
        let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
        let set = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
        let effective = set("CapEff:")?;
        let held = set("CapPrm:")? | set("CapInh:")? | set("CapAmb:")? | effective;
        let bounding = set("CapBnd:")?;
        let no_new_privs = field("NoNewPrivs:")? != "0";
        // Through a file with capabilities, through another user's process, program or configuration, and as user 0
        // through exec alone.
        let is_root = uids.contains(&0) || held & !HARMLESS != 0;
        let mut capabilities = if is_root { held | bounding } else { held };
        if is_only_user() {
            capabilities &= !CapabilitySet::SETUID.bits();
        }
        let more = if no_new_privs { 0 } else { bounding & !capabilities };
        let bpf = read_file("/proc/sys/kernel/unprivileged_bpf_disabled");
        let bpf = !bpf.is_ok_and(|value| matches!(value.trim_ascii(), b"1" | b"2"));
        let inside = if capabilities & !HARMLESS == 0 { inside()? } else { Vec::new() };
        Some(Rights { uids: uids.to_vec(), capabilities, effective, more, bpf, in_arena: false, inside })
    }

    /// The rights of whatever runs in an ordinary user's arena: all over its own user namespace, and elsewhere those of
    /// this user. Its only user id is this one, so that no program with a set-user-ID bit or file capabilities gives
    /// more (user_namespaces(7), and `mnt_may_suid()` of the kernel). None if the arena is in the observer's user
    /// namespace, or has more user ids.
    pub(crate) fn of_arena(arena: &ArenaView) -> Option<Self> {
        let own = fs::read_link("/proc/thread-self/ns/user").ok()?;
        let inside = rustix::fs::readlinkat(&arena.proc, c"1/ns/user", Vec::new()).ok()?;
        if own.as_os_str().as_bytes() == inside.as_bytes() {
            return None;
        }
        let map =
            rustix::fs::openat(&arena.proc, c"1/uid_map", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let map = std::io::read_to_string(fs::File::from(map)).ok()?;
        let own = Rights::own().filter(|own| !own.uids.contains(&0))?;
        let own = Rights { inside: self::inside()?, ..own };
        is_of_one_user(&map).then_some(Rights { capabilities: 0, effective: 0, more: 0, in_arena: true, ..own })
    }

    fn has(&self, capability: u64) -> bool {
        self.capabilities & capability != 0
    }

    /// Whether the run cannot get any of these capabilities, given that the observer was refused an operation that
    /// needs one of them.
    fn lacks(&self, capabilities: u64) -> bool {
        !self.has(capabilities) || self.effective & capabilities != 0
    }

    /// Why a run cannot have left anything in this place; none if it can. `after` is the same place in the later
    /// snapshot, if it was not read there either.
    pub(crate) fn excuse(&self, gap: &Gap, after: Option<&Gap>) -> Option<String> {
        const BY_CAPABILITY: &str = "which the run does not have and cannot get";
        match &gap.place {
            // It makes them, and sees directories that the mode hides from others.
            Unseen::Nftables | Unseen::Queues | Unseen::Directory(_) if self.in_arena => None,
            Unseen::Nftables => {
                let why =
                    || format!("creating nftables in this network namespace needs CAP_NET_ADMIN, {BY_CAPABILITY}");
                self.lacks(CapabilitySet::NET_ADMIN.bits()).then(why)
            }
            Unseen::Bpf => {
                let why = || format!("creating BPF objects needs CAP_BPF or CAP_SYS_ADMIN, {BY_CAPABILITY}");
                let none = self.effective & CapabilitySet::SYS_ADMIN.bits() != 0
                    || !self.has(CapabilitySet::SYS_ADMIN.bits() | PERFMON_AND_BPF);
                (none && !self.bpf).then(why)
            }
            Unseen::Keys => {
                let why =
                    || "leakcheck did not read the keys of other users; only their owners can create them".to_owned();
                self.lacks(CapabilitySet::SETUID.bits()).then(why)
            }
            // Only the bytes of the observer's own user are counted.
            Unseen::Queues => (!self.has(CapabilitySet::SETUID.bits()))
                .then(|| "the user's message queues use no more bytes than before".to_owned()),
            Unseen::Directory(directory) => {
                let Some(Gap { place: Unseen::Directory(later), .. }) = after else { return None };
                let may = directory != later || directory.dev == 0 || self.reaches(directory);
                (!may).then(|| {
                    "some directories were not listed, but the run can neither write to them nor reach anything below them".to_owned()
                })
            }
        }
    }

    /// Whether it gives no access to other users' resources.
    pub(crate) fn is_ordinary(&self) -> bool {
        !self.uids.contains(&0) && !self.has(!HARMLESS)
    }

    fn reaches(&self, directory: &Directory) -> bool {
        let path = directory.path.as_ref();
        let from_inside =
            |inside: &Vec<u8>| inside.strip_prefix(path).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')));
        self.has(!HARMLESS)
            || self.uids.contains(&directory.uid)
            || !directory.closed && !directory.barren
            || self.inside.iter().any(from_inside)
    }
}

/// Capabilities that create nothing that outlives a process, and give no access to other users' resources.
const HARMLESS: u64 = CapabilitySet::NET_BIND_SERVICE.bits()
    | CapabilitySet::NET_RAW.bits()
    | CapabilitySet::NET_BROADCAST.bits()
    | CapabilitySet::IPC_LOCK.bits()
    | CapabilitySet::SYS_NICE.bits()
    | CapabilitySet::AUDIT_WRITE.bits()
    | CapabilitySet::WAKE_ALARM.bits()
    | CapabilitySet::BLOCK_SUSPEND.bits()
    | CapabilitySet::KILL.bits()
    | CapabilitySet::SYSLOG.bits();

/// The working directory, and the directories among the descriptors that survive exec.
fn inside() -> Option<Vec<Vec<u8>>> {
    let link = |path: &Path| fs::read_link(path).ok().map(|p| p.as_os_str().as_bytes().to_vec());
    let mut all: Vec<Vec<u8>> = link(Path::new("/proc/self/cwd")).into_iter().collect();
    for entry in fs::read_dir("/proc/self/fd").ok()? {
        let path = entry.ok()?.path();
        // What has no path is no directory, and to describe some of it takes long: an inotify queue shows every watch.
        let Some(target) = link(&path).filter(|target| target.first() == Some(&b'/') && is_directory(&path)) else {
            continue;
        };
        let info = read_file(Path::new("/proc/self/fdinfo").join(path.file_name()?)).unwrap_or_default();
        let closed = crate::parse::fdinfo::parse(&info).flags.is_some_and(|flags| flags & libc::O_CLOEXEC as u32 != 0);
        if !closed {
            all.push(target);
        }
    }
    Some(all)
}

/// Whether this user namespace has a single user id (user_namespaces(7)), so that nobody in it becomes another user.
fn is_only_user() -> bool {
    is_of_one_user(&String::from_utf8_lossy(&read_file("/proc/self/uid_map").unwrap_or_default()))
}

fn is_of_one_user(map: &str) -> bool {
    map.lines().count() == 1 && map.split_ascii_whitespace().next_back() == Some("1")
}

/// Does not wait for a file server.
fn is_directory(path: &Path) -> bool {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let st = rustix::fs::statx(CWD, path, flags, StatxFlags::TYPE);
    st.is_ok_and(|st| FileType::from_raw_mode(u32::from(st.stx_mode)) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;
    use crate::snapshot::Level;

    fn nobody() -> Rights {
        Rights {
            uids: vec![65534; 4],
            capabilities: 0,
            effective: 0,
            more: u64::MAX,
            bpf: false,
            in_arena: false,
            inside: vec![b"/work".to_vec()],
        }
    }

    fn gap(place: Unseen) -> Gap {
        Gap { kind: Kind::File, level: Level::Partial, reason: "why".to_owned(), place }
    }

    fn closed() -> Directory {
        let path = crate::text::Text::from(&b"/tmp/theirs"[..]);
        Directory { path, dev: 7, ino: 3, uid: 0, mode: 0o700, closed: true, barren: false }
    }

    fn excused(rights: &Rights, before: Directory, after: Directory) -> bool {
        rights.excuse(&gap(Unseen::Directory(before)), Some(&gap(Unseen::Directory(after)))).is_some()
    }

    #[test]
    fn a_closed_directory_of_another_user_is_excused_while_it_stays_as_it_is() {
        assert!(excused(&nobody(), closed(), closed()));
        assert!(nobody().excuse(&gap(Unseen::Directory(closed())), None).is_none());
        let own = Directory { uid: 65534, ..closed() };
        let open = Directory { closed: false, ..closed() };
        for later in
            [Directory { ino: 4, ..closed() }, Directory { mode: 0o755, ..closed() }, open.clone(), own.clone()]
        {
            assert!(!excused(&nobody(), closed(), later.clone()) && !excused(&nobody(), later, closed()));
        }
        assert!(!excused(&nobody(), open.clone(), open) && !excused(&nobody(), own.clone(), own));
    }

    #[test]
    fn a_directory_that_can_be_passed_through_is_excused_only_if_nothing_is_below_it() {
        let passable = Directory { closed: false, ..closed() };
        assert!(!excused(&nobody(), passable.clone(), passable.clone()));
        let barren = Directory { barren: true, ..passable };
        assert!(excused(&nobody(), barren.clone(), barren));
    }

    #[test]
    fn who_begins_below_a_directory_or_may_override_its_mode_reaches_it() {
        let inside = |path: &str| Rights { inside: vec![path.as_bytes().to_vec()], ..nobody() };
        assert!(!excused(&inside("/tmp/theirs/open"), closed(), closed()));
        assert!(!excused(&inside("/tmp/theirs"), closed(), closed()));
        assert!(excused(&inside("/tmp/theirs-not"), closed(), closed()));
        for capability in [CapabilitySet::DAC_OVERRIDE, CapabilitySet::SETUID, CapabilitySet::SYS_PTRACE] {
            assert!(!excused(&Rights { capabilities: capability.bits(), ..nobody() }, closed(), closed()));
        }
        assert!(excused(&Rights { capabilities: HARMLESS, ..nobody() }, closed(), closed()));
    }

    #[test]
    fn what_takes_a_capability_is_excused_to_those_who_cannot_have_it() {
        let excused = |rights: &Rights, place: Unseen| rights.excuse(&gap(place), None).is_some();
        for (place, capability) in [
            (Unseen::Nftables, CapabilitySet::NET_ADMIN.bits()),
            (Unseen::Bpf, CapabilitySet::SYS_ADMIN.bits()),
            (Unseen::Bpf, PERFMON_AND_BPF),
            (Unseen::Keys, CapabilitySet::SETUID.bits()),
            (Unseen::Queues, CapabilitySet::SETUID.bits()),
        ] {
            assert!(excused(&nobody(), place.clone()), "{place:?}");
            assert!(!excused(&Rights { capabilities: capability, ..nobody() }, place.clone()), "{place:?}");
        }
        assert!(!excused(&Rights { bpf: true, ..nobody() }, Unseen::Bpf));
        // Refused despite it: the capability counts only in a user namespace of its own.
        let all = Rights { capabilities: u64::MAX, effective: u64::MAX, ..nobody() };
        for place in [Unseen::Nftables, Unseen::Bpf, Unseen::Keys] {
            assert!(excused(&all, place));
        }
    }

    #[test]
    fn in_an_ordinary_users_arena_only_what_is_outside_of_its_user_namespace_is_excused() {
        let rights = Rights { in_arena: true, ..nobody() };
        let excused = |rights: &Rights, place: Unseen| rights.excuse(&gap(place.clone()), Some(&gap(place))).is_some();
        for place in [Unseen::Keys, Unseen::Bpf] {
            assert!(excused(&rights, place.clone()), "{place:?}");
        }
        for place in [Unseen::Nftables, Unseen::Queues, Unseen::Directory(closed())] {
            assert!(excused(&nobody(), place.clone()) && !excused(&rights, place.clone()), "{place:?}");
        }
        assert!(!excused(&Rights { bpf: true, ..rights }, Unseen::Bpf));
    }

    #[test]
    fn the_rights_of_this_process_are_read() {
        let rights = Rights::own().expect("/proc");
        assert!(rights.uids.contains(&rustix::process::geteuid().as_raw()));
        assert_eq!(rights.inside.is_empty(), rights.has(!HARMLESS), "{:?}", rights.inside);
    }

    #[test]
    fn directories_that_survive_exec_are_inside_and_no_others() {
        let directory = |flags| rustix::fs::open("/usr/lib", OFlags::DIRECTORY | flags, Mode::empty()).unwrap();
        let is_inside = || inside().unwrap().iter().any(|path| path.ends_with(b"/lib"));
        let _closed = directory(OFlags::CLOEXEC);
        assert!(!is_inside());
        let _open = directory(OFlags::empty());
        assert!(is_inside());
        let here = std::env::current_dir().unwrap();
        assert!(inside().unwrap().contains(&here.into_os_string().into_encoded_bytes()));
    }
}
