//! The names in the directories of settings, which stay the same.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, statat};

use super::choice::skips;
use crate::text::Text;

/// The names in a directory, by its path and by whether an arena's own are left out. The type and mode of a name never
/// change: the kernel sets both.
type Listings = HashMap<(String, bool), Arc<Listing>>;
static LISTINGS: LazyLock<Mutex<Listings>> = LazyLock::new(Mutex::default);

/// The last listing of a directory.
#[derive(Default)]
pub(super) struct Listing {
    /// Its names, each with a NUL after it.
    names: Vec<u8>,
    /// The files to read, by name, with the path, which is the sort key.
    pub(super) settings: Vec<(CString, Text)>,
    /// The directories in it, each with its path and a `/`.
    pub(super) directories: Vec<(CString, String)>,
}

impl Listing {
    /// That of `dir` with these names; `path` is the directory's, with a `/` at its end.
    pub(super) fn of(dir: &OwnedFd, path: &str, names: &[u8], skip_own: bool) -> Arc<Self> {
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
