//! Kernel keys (keyrings(7)).
//!
//! `/proc/keys` lists the keys that grant *view* to its reader, and CAP_SYS_ADMIN is no exception. But keys grant it to
//! their owner unless told otherwise, and the owner is compared with the reader's file system uid, which is a thread's own:
//! so a privileged observer reads the list once more for each user that owns keys it has not seen. That takes a thread, hence it
//! is done again only when these keys are others.
//!
//! What the list prints is only a hint. It truncates the type to 9 bytes, appends a summary of the payload to the description,
//! and the description may hold a newline and then lines that look like keys. `KEYCTL_DESCRIBE` gives the exact record.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::read::read_all;
use crate::kind::Kind;
use crate::parse::keys;
use crate::resource::Key;
use crate::snapshot::{Gap, Level, Snapshot, Unseen};

const LIST: &str = "/proc/keys";
const USERS: &str = "/proc/key-users";

/// The keys that were listed so far, by serial.
#[derive(Clone, Default)]
struct Seen {
    keys: Vec<Key>,
    /// Every serial with its owner, those that are being destroyed included.
    listed: BTreeMap<u32, u32>,
}

/// What the last reading of other users' lists showed.
static OTHERS: Mutex<Option<Seen>> = Mutex::new(None);

/// Appends every key that can be seen. What the quota of `/proc/key-users` counts beyond is the gauge `hidden_keys`: keys that
/// grant *view* to nobody but their possessors. A privileged observer always has a few, the kernel's own; to an unprivileged
/// one, those of other users are a gap. Keys that are dead, invalidated or unreferenced belong to the garbage collector
/// already and are none of the result; revoked and expired ones still are somebody's.
pub(crate) fn collect(out: &mut Snapshot) {
    let mut seen = Seen::default();
    match seen.read_list() {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound && describe(1) == Err(Errno::NOSYS) => return,
        Err(e) => return out.coverage.lower(Kind::Key, Level::None, format!("read {LIST}: {e}")),
    }
    let users = match read(USERS).and_then(|text| keys::parse_key_users(&text).map(owners).map_err(malformed)) {
        Ok(users) => users,
        Err(e) => {
            out.coverage.lower(Kind::Key, Level::Partial, format!("read {USERS}: {e}"));
            BTreeMap::new()
        }
    };
    let me = rustix::process::geteuid().as_raw();
    let mut hidden = seen.hidden(&users);
    hidden.remove(&me);
    let others: Vec<u32> = hidden.keys().copied().collect();
    if !others.is_empty()
        && let Err(e) = seen.add_others(&hidden, &others)
    {
        let whose: Vec<String> = others.iter().map(u32::to_string).collect();
        let why = format!("keys of uid {} cannot be listed: {e}; needs CAP_SETUID", whose.join(", "));
        out.gaps.push(Gap { kind: Kind::Key, level: Level::Partial, reason: why, place: Unseen::Keys });
    }
    out.gauges.insert("hidden_keys".to_owned(), seen.hidden(&users).into_values().sum());
    out.keys.append(&mut seen.keys);
}

/// In few reads: the file tells no size.
fn read(path: &str) -> io::Result<Vec<u8>> {
    read_all(fs::File::open(path)?.as_fd()).map_err(Into::into)
}

fn owners(users: Vec<keys::KeyUser>) -> BTreeMap<u32, i64> {
    users.into_iter().map(|user| (user.uid, user.nkeys.into())).collect()
}

impl Seen {
    /// Reads the list as the calling thread may view it.
    fn read_list(&mut self) -> io::Result<()> {
        let text = read(LIST)?;
        for line in keys::parse(&text).map_err(malformed)? {
            let [.., dead, _, _, _, invalidated] = line.flags;
            let collected = dead == b'D' || invalidated == b'i' || line.usage == 0;
            if self.listed.contains_key(&line.serial) {
                continue;
            }
            let key = match describe(line.serial) {
                Ok(key) => key,
                // Revoked and expired keys are not described any more.
                Err(Errno::KEYREVOKED | Errno::KEYEXPIRED) => as_listed(&line),
                // Gone since, or never there: the line was part of a description.
                Err(_) => continue,
            };
            self.listed.insert(line.serial, key.uid);
            if !collected && !is_bookkeeping(&key) {
                self.keys.push(key);
            }
        }
        Ok(())
    }

    /// How many keys each user has that were not listed.
    fn hidden(&self, users: &BTreeMap<u32, i64>) -> BTreeMap<u32, i64> {
        let mut hidden = users.clone();
        for uid in self.listed.values() {
            hidden.entry(*uid).and_modify(|count| *count -= 1);
        }
        hidden.retain(|_, count| *count > 0);
        hidden
    }

    /// Adds the keys of users who have so many that are `hidden`.
    fn add_others(&mut self, hidden: &BTreeMap<u32, i64>, uids: &[u32]) -> io::Result<()> {
        let mut last = OTHERS.lock().unwrap_or_else(PoisonError::into_inner);
        // Who may not read them now is not told of them either.
        let may =
            || rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SETUID));
        let others = match last.take().filter(|others| others.are_all(hidden) && may()) {
            Some(same) => same,
            None => {
                let mut others = Seen { keys: Vec::new(), listed: self.listed.clone() };
                let read = others.read_lists_of(uids);
                others.listed.retain(|serial, _| !self.listed.contains_key(serial));
                if read.is_err() {
                    self.add(&others);
                    return read;
                }
                others
            }
        };
        self.add(&others);
        *last = Some(others);
        Ok(())
    }

    fn add(&mut self, others: &Seen) {
        self.keys.extend_from_slice(&others.keys);
        self.listed.extend(&others.listed);
    }

    /// Whether these are as many of each user as are `hidden`, and still there: then there is no other. One that may not be viewed
    /// is told from one that is gone.
    fn are_all(&self, hidden: &BTreeMap<u32, i64>) -> bool {
        let mut owned: BTreeMap<u32, i64> = BTreeMap::new();
        self.listed.values().for_each(|uid| *owned.entry(*uid).or_default() += 1);
        owned == *hidden && self.listed.keys().all(|serial| describe(*serial) == Err(Errno::ACCESS))
    }

    /// Reads the list as each of these users would, on a thread that takes their file system uid and then ends.
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

/// The kernel gives each user that ever comes near keyrings two of its own, and keeps them (user-keyring(7),
/// user-session-keyring(7)): the user's first login leaves them, not a run. What is in them is seen.
fn is_bookkeeping(key: &Key) -> bool {
    let names = [format!("_uid.{}", key.uid), format!("_uid_ses.{}", key.uid)];
    key.key_type.as_ref() == b"keyring" && names.iter().any(|name| key.description.as_ref() == name.as_bytes())
}

/// The key as the list has it: type cut to 9 bytes, description with the payload's summary, which is taken off.
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

/// `KEYCTL_DESCRIBE` (keyctl_describe(3)): `type;uid;gid;permissions;description`.
#[allow(unsafe_code)]
fn describe(serial: u32) -> Result<Key, Errno> {
    // A type is at most 31 bytes, a description 4095 (add_key(2)).
    let mut buffer = [0_u8; 8192];
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`, which outlives the call.
    let length =
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_DESCRIBE, serial, buffer.as_mut_ptr(), buffer.len()) };
    let length = usize::try_from(length).map_err(|_| last_errno())?;
    let record = buffer.get(..length).and_then(|text| text.strip_suffix(b"\0")).ok_or(Errno::OVERFLOW)?;
    let mut fields = record.splitn(5, |byte| *byte == b';');
    let (key_type, uid, description) = (fields.next(), fields.next(), fields.nth(2));
    let uid = uid.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<i64>().ok());
    let (Some(key_type), Some(uid), Some(description)) = (key_type, uid, description) else {
        return Err(Errno::PROTO);
    };
    // The kernel prints the uid with %d.
    Ok(Key { serial, key_type: key_type.into(), description: description.into(), uid: uid as u32 })
}

/// setfsuid(2) of the calling thread; it reports no failure but by what a second call returns.
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
