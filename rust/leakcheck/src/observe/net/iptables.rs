//! Legacy iptables(8), ip6tables(8) and arptables(8): chains and rules. The kernel answers only with CAP_NET_ADMIN.
//!
//! Left out are policies that accept, which every table has as soon as somebody looked at it. A table is only read if
//! it is in use: to ask for another one would make it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, pread};
use rustix::net::{AddressFamily, SocketType};

use super::dump::ip;
use crate::observe::remote::Inside;
use crate::observe::sys::socket_option;
use crate::parse::xtables::{Family, Object, objects};
use crate::resource::NetClass;

const FAMILIES: [(Family, &str, &str); 3] = [
    (Family::V4, "ip", "/proc/thread-self/net/ip_tables_names"),
    (Family::V6, "ip6", "/proc/thread-self/net/ip6_tables_names"),
    (Family::Arp, "arp", "/proc/thread-self/net/arp_tables_names"),
];

/// The tables of one family in the network namespace of the thread that opened it.
pub(super) struct Tables {
    family: Family,
    word: &'static str,
    /// The names of those in use.
    names: OwnedFd,
    /// Only where it is kept: another thread's socket would belong to another namespace.
    socket: Option<OwnedFd>,
}

impl Tables {
    /// Those of the calling thread's network namespace; none where the kernel has no legacy iptables.
    pub(super) fn open(inside: Inside<'_>, kept: bool) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for (family, word, path) in FAMILIES {
            let names = match inside.file(path) {
                Err(Errno::NOENT) => continue,
                opened => opened?,
            };
            let socket = if kept { Some(socket(inside, family)?) } else { None };
            found.push(Tables { family, word, names, socket });
        }
        Ok(found)
    }

    /// Class and what identifies the object.
    pub(super) fn list(&self) -> io::Result<Vec<(NetClass, String)>> {
        // Each name has up to 31 bytes, and the kernel knows five tables.
        let mut names = [0; 1024];
        let length = pread(&self.names, &mut names, 0)?;
        let mut found = Vec::new();
        for name in names[..length].split(|byte| *byte == b'\n').filter(|name| !name.is_empty()) {
            let own;
            let socket = match &self.socket {
                Some(socket) => socket,
                None => {
                    own = socket(Inside::Here, self.family)?;
                    &own
                }
            };
            let (table, hooks) = entries(socket, self.family, name)?;
            self.describe(name, objects(&table, self.family, hooks)?, &mut found);
        }
        Ok(found)
    }

    fn describe(&self, table: &[u8], objects: Vec<Object>, found: &mut Vec<(NetClass, String)>) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let place = format!("{} {}", self.word, text(table));
        let mut same: HashMap<String, u32> = HashMap::new();
        for object in objects {
            match object {
                Object::Chain(name) => found.push((NetClass::IptablesChain, format!("{place} {}", text(&name)))),
                Object::Rule { chain, target, whole } => {
                    let mut hasher = DefaultHasher::new();
                    whole.hash(&mut hasher);
                    let length = if self.family == Family::V6 { 16 } else { 4 };
                    let address = |at: usize| whole.get(at..at + length).and_then(ip);
                    let address = |at| {
                        address(at).filter(|ip| !ip.is_unspecified()).map_or("any".to_owned(), |ip| ip.to_string())
                    };
                    let (from, to, target) = (address(0), address(length), text(&target));
                    let rule =
                        format!("{place} {}: from {from} to {to} {target} {:016x}", text(&chain), hasher.finish());
                    // Others that say the same.
                    let number = same.entry(rule.clone()).and_modify(|number| *number += 1).or_insert(1);
                    let rule = if *number > 1 { format!("{rule} ({number})") } else { rule };
                    found.push((NetClass::IptablesRule, rule));
                }
            }
        }
    }
}

fn socket(inside: Inside<'_>, family: Family) -> io::Result<OwnedFd> {
    let family = if family == Family::V6 { AddressFamily::INET6 } else { AddressFamily::INET };
    Ok(inside.socket(family, SocketType::DGRAM, None)?)
}

/// A table as it is, and where its built-in chains begin.
fn entries(socket: impl AsFd, family: Family, name: &[u8]) -> io::Result<(Vec<u8>, [Option<u32>; 5])> {
    // IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES and the number of hooks; of ip6tables the same.
    let (get_info, get_entries, hooks) = if family == Family::Arp { (96, 97, 3) } else { (64, 65, 5) };
    // struct ipt_get_entries { char name[32]; unsigned size; entries }
    const HEAD: usize = 40;
    const ATTEMPTS: usize = 8;
    let level = if family == Family::V6 { libc::SOL_IPV6 } else { libc::SOL_IP };
    for _ in 0..ATTEMPTS {
        // struct ipt_getinfo { char name[32]; unsigned valid_hooks, hook_entry[5], underflow[5], num_entries, size; }
        let mut info = vec![0; 44 + 8 * hooks];
        let length = name.len().min(31);
        info[..length].copy_from_slice(&name[..length]);
        socket_option(&socket, level, get_info, &mut info)?;
        let word = |at: usize| info[at..].first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
        let begins = |hook: usize| (hook < hooks && word(32) & 1 << hook != 0).then(|| word(36 + 4 * hook));
        let size = word(40 + 8 * hooks) as usize;
        let mut table = vec![0; HEAD + size];
        table[..length].copy_from_slice(&name[..length]);
        table[32..36].copy_from_slice(&info[40 + 8 * hooks..]);
        match socket_option(&socket, level, get_entries, &mut table) {
            // It was replaced by one of another size meanwhile.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINVAL)) => {}
            read => {
                read?;
                return Ok((table.split_off(HEAD), std::array::from_fn(begins)));
            }
        }
    }
    Err(io::Error::other(format!("a table of iptables changed during each of {ATTEMPTS} reads")))
}
