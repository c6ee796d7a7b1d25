//! Kernel keys (keyrings(7)).
//!
//! `/proc/keys` lists the keys that grant *view* to its reader, even with CAP_SYS_ADMIN. But keys grant it to their
//! owner by default, and the kernel compares the owner with the reader's file system uid, which is per thread. So a
//! privileged observer reads the list again for each user that owns keys it has not seen, in a thread. The lists are
//! read again only when keys have changed.
//!
//! The list is only a hint. It truncates the type to 9 bytes, appends a summary of the payload to the description, and
//! the description may contain a newline followed by lines that look like keys. `KEYCTL_DESCRIBE` gives the exact
//! record.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::proc_root;
use super::read::read_all;
use crate::coverage::HIDDEN_KEYS;
use crate::error::in_words;
use crate::kind::Kind;
use crate::parse::keys;
use crate::resource::Key;
use crate::snapshot::{Gap, Level, Snapshot, Unseen};

const LIST: &str = "/proc/keys";
const USERS: &str = "/proc/key-users";

/// Maximum number of attempts to read a list that changes: keys come and go meanwhile.
const TRIES: usize = 4;

/// A key in a list.
#[derive(Clone, Copy)]
struct Listed {
    uid: u32,
    in_quota: bool,
}

/// The keys that were listed so far, by serial.
#[derive(Default)]
struct Seen {
    keys: Vec<Key>,
    /// Every serial, including those being destroyed.
    listed: BTreeMap<u32, Listed>,
}

/// What earlier looks of this process found.
static LAST: Mutex<Option<Last>> = Mutex::new(None);

/// How many keys the lists of other users may make the kernel go through in one look: about two seconds. The list of each
/// user goes through all keys, so that the time grows with the square of their number.
const MOST_VISITS: u64 = 1 << 20;

/// A key and its group, or why the kernel describes none.
type Described = Result<(Key, u32), Errno>;

/// What the lists showed. Each read of a list costs a search for each key, and other users' lists a thread.
struct Last {
    parts: BTreeMap<u32, Part>,
    /// Whether every key that counts towards a quota was listed and exists.
    is_whole: bool,
    rights: (u32, bool),
    /// The users whose keys are not looked at, because there are too many: they stay the same, so that none of their keys
    /// ever seems new.
    skipped: BTreeSet<u32>,
}

/// The keys of one user.
#[derive(Default)]
struct Part {
    /// The number of all and of those in the quota.
    counts: (u32, u32),
    keys: Vec<Key>,
    listed: Vec<(u32, Listed)>,
    /// What the kernel said about each listed key to this observer.
    described: Vec<(u32, Described)>,
    is_whole: bool,
}

impl Part {
    /// Whether the lists would show the same: all of these keys exist and are as they were, and the user's quota counts
    /// just as many, so that there are no others. Keys of the kernel's own, which no quota counts, may only have replaced
    /// each other. The kernel distinguishes a key that cannot be viewed from one that is gone.
    fn is_current(&self, counts: (u32, u32)) -> bool {
        let same = |(serial, answer): &(u32, Described)| describe(*serial) == *answer;
        self.is_whole && self.counts == counts && self.described.iter().all(same)
    }
}

impl Last {
    fn of(seen: &Seen, is_complete: bool, skipped: BTreeSet<u32>) -> Option<Self> {
        let mut parts: BTreeMap<u32, Part> = BTreeMap::new();
        for (uid, all, in_quota) in counts()? {
            parts.entry(uid).or_default().counts = (all, in_quota);
        }
        for (serial, listed) in &seen.listed {
            let part = parts.entry(listed.uid).or_default();
            part.listed.push((*serial, *listed));
            part.described.push((*serial, describe(*serial)));
        }
        for key in &seen.keys {
            parts.entry(key.uid).or_default().keys.push(key.clone());
        }
        for part in parts.values_mut() {
            let exists = |(_, answer): &(u32, Described)| {
                matches!(answer, Ok(_) | Err(Errno::ACCESS | Errno::KEYREVOKED | Errno::KEYEXPIRED))
            };
            let in_quota = part.listed.iter().filter(|(_, key)| key.in_quota).count();
            part.is_whole = in_quota as u64 == u64::from(part.counts.1) && part.described.iter().all(exists);
        }
        let is_whole = is_complete && parts.values().all(|part| part.is_whole);
        Some(Last { parts, is_whole, rights: rights(), skipped })
    }

    /// Whether nothing has changed for any user. An observer with other rights does not get what these showed.
    fn is_current(&self) -> bool {
        let same = |counts: Vec<(u32, u32, u32)>| {
            counts.len() == self.parts.len()
                && counts.iter().all(|(uid, all, in_quota)| {
                    self.parts.get(uid).is_some_and(|part| part.is_current((*all, *in_quota)))
                })
        };
        self.is_whole && rights() == self.rights && counts().is_some_and(same)
    }
}

/// The number of all keys and of those in the quota, by user.
fn counts() -> Option<Vec<(u32, u32, u32)>> {
    Some(users().ok()?.into_iter().map(|user| (user.uid, user.nkeys, user.qnkeys)).collect())
}

/// The user, and whether the lists of others can be read.
fn rights() -> (u32, bool) {
    let may = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SETUID));
    (rustix::process::geteuid().as_raw(), may)
}

/// Appends every key that can be seen. The gauge `hidden_keys` is the number of keys that the quota of
/// `/proc/key-users` counts beyond these: keys that grant *view* only to their possessors. For an unprivileged
/// observer, the keys of other users are a gap. Dead, invalidated and unreferenced keys already belong to the garbage
/// collector and are not in the result; revoked and expired keys still have an owner and are.
///
/// The number of all keys is not suitable: it includes keys that the garbage collector is still freeing, about 30 ms
/// after they left the list. The quota does not include them (Linux 6.9), and omits only the kernel's own keys.
pub(crate) fn collect(out: &mut Snapshot) {
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(same) = last.as_ref().filter(|last| last.is_current()) {
        out.gauges.insert(HIDDEN_KEYS.to_owned(), 0);
        return same.parts.values().for_each(|part| out.keys.extend_from_slice(&part.keys));
    }
    let known = last.take().filter(|last| rights() == last.rights);
    let (parts, mut skipped) = known.map(|last| (last.parts, last.skipped)).unwrap_or_default();
    let mut before = quotas();
    for attempt in 1.. {
        let mut seen = Seen::default();
        let mut covered = false;
        match seen.read_list() {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => covered = true,
            Err(e) if e.kind() == io::ErrorKind::NotFound && describe(1) == Err(Errno::NOSYS) => return,
            Err(e) => {
                return out.coverage.lower(Kind::Key, Level::None, format!("cannot read {LIST}: {}", in_words(e)));
            }
        }
        let gap = if covered { None } else { seen.add_others(&parts, &mut skipped).err() };
        let after = quotas();
        if attempt < TRIES && before.as_ref().ok() != after.as_ref().ok() {
            before = after;
            continue;
        }
        match before.and(after) {
            Ok(quotas) => {
                let mut hidden = beyond(quotas, seen.listed.values().filter(|key| key.in_quota));
                if gap.is_some() {
                    // Other users' keys are in that gap, whoever makes more of them.
                    let own = own_uids();
                    hidden.retain(|uid, _| own.contains(uid));
                }
                out.gauges.insert(HIDDEN_KEYS.to_owned(), hidden.into_values().sum());
                *last = if covered { None } else { Last::of(&seen, gap.is_none(), skipped) };
            }
            Err(e) => {
                let level = if covered { Level::None } else { Level::Partial };
                out.coverage.lower(Kind::Key, level, format!("cannot read {USERS}: {}", in_words(e)));
            }
        }
        if covered {
            let why = format!("a mount covers {LIST}: leakcheck counts keys, but cannot list them");
            out.coverage.lower(Kind::Key, Level::Full, why);
        }
        if let Some(reason) = gap {
            out.gaps.push(Gap { kind: Kind::Key, level: Level::Partial, reason, place: Unseen::Keys });
        }
        return out.keys.append(&mut seen.keys);
    }
}

/// Real, effective, saved and file system user id: a key belongs to the last of them.
fn own_uids() -> [u32; 4] {
    let status = read("/proc/thread-self/status").unwrap_or_default();
    let ids = crate::parse::status::parse(&status).ok().and_then(|status| status.uid);
    ids.unwrap_or([rustix::process::geteuid().as_raw(); 4])
}

/// In few reads: the file reports no size.
fn read(path: &str) -> io::Result<Vec<u8>> {
    let file = proc_root::open(Path::new(path), OFlags::RDONLY)?;
    read_all(file.as_fd()).map_err(Into::into)
}

fn users() -> io::Result<Vec<keys::KeyUser>> {
    keys::parse_key_users(&read(USERS)?).map_err(malformed)
}

/// How many keys count towards the quota of each user.
fn quotas() -> io::Result<BTreeMap<u32, i64>> {
    Ok(users()?.into_iter().map(|user| (user.uid, user.qnkeys.into())).collect())
}

/// How many more keys each user has than these.
fn beyond<'a>(mut counts: BTreeMap<u32, i64>, listed: impl Iterator<Item = &'a Listed>) -> BTreeMap<u32, i64> {
    for key in listed {
        counts.entry(key.uid).and_modify(|count| *count -= 1);
    }
    counts.retain(|_, count| *count > 0);
    counts
}

impl Seen {
    /// Reads the list that the calling thread can view.
    fn read_list(&mut self) -> io::Result<()> {
        let text = read(LIST)?;
        for line in keys::parse(&text).map_err(malformed)? {
            let [.., dead, quota, _, _, invalidated] = line.flags;
            let collected = dead == b'D' || invalidated == b'i' || line.usage == 0;
            let in_quota = quota == b'Q';
            if let Some(listed) = self.listed.get_mut(&line.serial) {
                // One of the two lines is part of a description, and must not hide another key.
                listed.in_quota &= in_quota;
                continue;
            }
            let (key, gid) = match describe(line.serial) {
                Ok(described) => described,
                // Revoked and expired keys are not described any more.
                Err(Errno::KEYREVOKED | Errno::KEYEXPIRED) => (as_listed(&line), line.gid),
                // Removed since, or never existed: the line was part of a description.
                Err(_) => continue,
            };
            self.listed.insert(line.serial, Listed { uid: key.uid, in_quota });
            if !collected && !is_bookkeeping(&key, gid) {
                self.keys.push(key);
            }
        }
        Ok(())
    }

    /// Adds the keys of other users that have more keys than listed: those of `parts`, where they are as they were, and
    /// what the lists of the others show. Returns the reason if it cannot.
    fn add_others(&mut self, parts: &BTreeMap<u32, Part>, skipped: &mut BTreeSet<u32>) -> Result<(), String> {
        // Without the numbers, it is unknown whether there are any: the quotas are read again later, and the failure is
        // reported then.
        let users = users().unwrap_or_default();
        let all = users.iter().map(|user| (user.uid, user.nkeys.into())).collect();
        let mut hidden = beyond(all, self.listed.values());
        hidden.remove(&rustix::process::geteuid().as_raw());
        for user in &users {
            let part = parts.get(&user.uid).filter(|_| hidden.contains_key(&user.uid));
            if let Some(part) = part.filter(|part| part.is_current((user.nkeys, user.qnkeys))) {
                let new = |key: &&Key| !self.listed.contains_key(&key.serial);
                self.keys.extend(part.keys.iter().filter(new).cloned());
                self.listed.extend(part.listed.iter().copied());
                hidden.remove(&user.uid);
            }
        }
        let visits: u64 = users.iter().map(|user| u64::from(user.nkeys)).sum();
        let most = usize::try_from(MOST_VISITS / visits.max(1)).unwrap_or(usize::MAX);
        let asked: Vec<u32> = hidden.keys().copied().filter(|uid| !skipped.contains(uid)).collect();
        let (asked, too_many) = asked.split_at(most.min(asked.len()));
        skipped.extend(too_many);
        if !asked.is_empty() {
            self.read_lists_of(asked).map_err(|e| {
                let whose: Vec<String> = asked.iter().map(u32::to_string).collect();
                format!("cannot list the keys of uid {}: {}; needs CAP_SETUID", whose.join(", "), in_words(e))
            })?;
        }
        let left = hidden.keys().filter(|uid| skipped.contains(uid)).count();
        if left > 0 {
            return Err(format!("too many users have keys to list them all: those of {left} users were not listed"));
        }
        Ok(())
    }

    /// Reads the list as each of these users, in a thread that takes their file system uid and then exits.
    fn read_lists_of(&mut self, uids: &[u32]) -> io::Result<()> {
        // A change of the uid makes the whole process undumpable (prctl(2), PR_SET_DUMPABLE).
        let dumpable = rustix::process::dumpable_behavior();
        let read = thread::scope(|scope| {
            let read = || {
                uids.iter()
                    .try_for_each(|uid| set_fs_uid(*uid).map_err(io::Error::from).and_then(|()| self.read_list()))
            };
            let reader = thread::Builder::new().name("leakcheck-keys".into()).spawn_scoped(scope, read)?;
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        if let Ok(before @ rustix::process::DumpableBehavior::Dumpable) = dumpable {
            rustix::process::set_dumpable_behavior(before)?;
        }
        read
    }
}

/// The kernel gives each user that uses keyrings two of its own, and keeps them (user-keyring(7),
/// user-session-keyring(7)): the user's first login leaves them, not a run. Their contents are seen. They have no
/// group, unlike a keyring that a user gave the same name.
fn is_bookkeeping(key: &Key, gid: u32) -> bool {
    const OVERFLOW_GID: u32 = 65534;
    let names = [format!("_uid.{}", key.uid), format!("_uid_ses.{}", key.uid)];
    gid == OVERFLOW_GID
        && key.key_type.as_ref() == b"keyring"
        && names.iter().any(|name| key.description.as_ref() == name.as_bytes())
}

/// The key from the list: the type is cut to 9 bytes, and the payload's summary is removed from the description.
fn as_listed(line: &keys::Key<'_>) -> Key {
    let summary = |text: &&[u8]| {
        let tail = text.rsplit(|byte| *byte == b':').next().unwrap_or_default();
        let tail = tail.strip_prefix(b" ").unwrap_or_default();
        tail == b"empty" || (!tail.is_empty() && tail.iter().all(u8::is_ascii_digit))
    };
    let description = match memchr::memrchr(b':', line.description) {
        Some(colon) if summary(&line.description) => &line.description[..colon],
        _ => line.description,
    };
    Key { serial: line.serial, key_type: line.key_type.into(), description: description.into(), uid: line.uid }
}

/// `KEYCTL_DESCRIBE` (keyctl_describe(3)): `type;uid;gid;permissions;description`. The key and its group.
#[allow(unsafe_code)]
fn describe(serial: u32) -> Described {
    // A type is at most 31 bytes, a description 4095 (add_key(2)).
    let mut buffer = [0_u8; 8192];
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`, which outlives the call.
    let length =
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_DESCRIBE, serial, buffer.as_mut_ptr(), buffer.len()) };
    let length = usize::try_from(length).map_err(|_| last_errno())?;
    let record = buffer.get(..length).and_then(|text| text.strip_suffix(b"\0")).ok_or(Errno::OVERFLOW)?;
    let mut fields = record.splitn(5, |byte| *byte == b';');
    let (key_type, uid, gid, description) = (fields.next(), fields.next(), fields.next(), fields.nth(1));
    let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse::<i64>().ok();
    let (Some(key_type), Some(uid), Some(gid), Some(description)) =
        (key_type, uid.and_then(number), gid.and_then(number), description)
    else {
        return Err(Errno::PROTO);
    };
    // The kernel prints the ids with %d.
    Ok((Key { serial, key_type: key_type.into(), description: description.into(), uid: uid as u32 }, gid as u32))
}

/// setfsuid(2) of the calling thread; only the result of a second call shows a failure.
#[allow(unsafe_code)]
fn set_fs_uid(uid: u32) -> Result<(), Errno> {
    // SAFETY: the call takes and returns numbers; it changes only the calling thread's credentials.
    let now = unsafe {
        libc::syscall(libc::SYS_setfsuid, uid);
        libc::syscall(libc::SYS_setfsuid, u32::MAX)
    };
    if now as u32 == uid { Ok(()) } else { Err(Errno::PERM) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn malformed(error: crate::parse::ParseError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::*;

    /// Nobody's, so that no other key counts to its quota.
    fn uid() -> u32 {
        static UID: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
        let now = || std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
        *UID.get_or_init(|| 3_000_000_000 + now())
    }

    /// In a session keyring, which goes with the thread and belongs to its real user.
    fn add_key(description: &std::ffi::CStr) -> u32 {
        // SAFETY: the kernel reads two strings that end and a payload of one byte.
        let serial = unsafe {
            let session = libc::KEY_SPEC_SESSION_KEYRING;
            libc::syscall(libc::SYS_add_key, c"user".as_ptr(), description.as_ptr(), c"x".as_ptr(), 1, session)
        };
        assert!(serial > 0, "{}", io::Error::last_os_error());
        serial as u32
    }

    fn keyctl(operation: u32, serial: u32, argument: i32) {
        // SAFETY: the operations that are used here take numbers.
        let done = unsafe { libc::syscall(libc::SYS_keyctl, operation, serial, argument) };
        assert!(done >= 0, "{}", io::Error::last_os_error());
    }

    /// What the user has beyond the list, by the number of its keys and by its quota.
    fn observation() -> (i64, i64) {
        let mut seen = Seen::default();
        seen.read_list().unwrap();
        let all = users().unwrap().into_iter().map(|user| (user.uid, user.nkeys.into())).collect();
        let of = |counts: BTreeMap<u32, i64>| counts.get(&uid()).copied().unwrap_or(0);
        let hidden = beyond(quotas().unwrap(), seen.listed.values().filter(|key| key.in_quota));
        (of(beyond(all, seen.listed.values())), of(hidden))
    }

    #[test]
    fn a_key_that_takes_the_place_of_a_listed_one_is_listed() {
        let run = || {
            // SAFETY: a null name asks for an anonymous keyring.
            let join = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, 0_usize) };
            assert!(join > 0, "{}", io::Error::last_os_error());
            let listed = || {
                let mut out = Snapshot::empty(crate::scope::Scope::Host, crate::kind::KindSet::all());
                collect(&mut out);
                out.keys.into_iter().map(|key| key.serial).collect::<Vec<_>>()
            };
            let mut last = add_key(c"first");
            for _ in 0..20 {
                // The second one of these may come from the first.
                assert!(listed().contains(&last) && listed().contains(&last));
                keyctl(libc::KEYCTL_UNLINK, last, libc::KEY_SPEC_SESSION_KEYRING);
                let next = add_key(c"next");
                assert!(listed().contains(&next));
                // The kernel frees it a little later.
                while listed().contains(&last) {}
                last = next;
            }
        };
        thread::spawn(run).join().unwrap();
    }

    #[test]
    fn a_key_that_the_kernel_still_frees_is_not_hidden_and_one_that_grants_no_view_is() {
        let may = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SETUID));
        let release = read("/proc/sys/kernel/osrelease").unwrap();
        let release = String::from_utf8(release).unwrap();
        let mut version = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (version.next().unwrap_or(0), version.next().unwrap_or(0));
        if !may || version < (6, 9) {
            eprintln!("not run: needs CAP_SETUID and Linux 6.9, not {version:?}");
            return;
        }
        let dumpable = rustix::process::dumpable_behavior();
        let run = || {
            set_fs_uid(uid()).unwrap();
            // SAFETY: a null name asks for an anonymous keyring.
            let join = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, 0_usize) };
            assert!(join > 0, "{}", io::Error::last_os_error());
            assert_eq!(observation(), (0, 0));
            let key = add_key(c"hidden");
            // Possessors may do all, others nothing (keyctl_setperm(3)). In another session its owner is no possessor.
            keyctl(libc::KEYCTL_SETPERM, key, 0x3f00_0000);
            let other = thread::spawn(move || {
                // SAFETY: as above.
                unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, 0_usize) };
                observation()
            });
            assert_eq!(other.join().unwrap(), (1, 1));
            let unlink = |key| keyctl(libc::KEYCTL_UNLINK, key, libc::KEY_SPEC_SESSION_KEYRING);
            unlink(key);
            let left = || users().unwrap().into_iter().find(|user| user.uid == uid()).map_or(0, |user| user.nkeys);
            while left() > 0 {}
            unlink(add_key(c"hidden"));
            let (mut freeing, mut hidden) = (0, 0);
            while left() > 0 {
                let now = observation();
                (freeing, hidden) = (freeing + now.0, hidden + now.1);
            }
            (freeing, hidden)
        };
        let (freeing, hidden) = thread::spawn(run).join().unwrap();
        if let Ok(before @ rustix::process::DumpableBehavior::Dumpable) = dumpable {
            rustix::process::set_dumpable_behavior(before).unwrap();
        }
        // One look may fall between the key's end and its quota's.
        assert!(hidden < freeing || freeing == 0, "{hidden} of {freeing}");
    }
}
