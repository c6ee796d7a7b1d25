//! Elements of sets: of nftables (nft(8)) and of ipset(8). The kernel answers only with CAP_NET_ADMIN.
//!
//! Left out are elements that packets put into a set (`dynamic`) and that expire.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};
use std::io;

use super::dump::{hex, ip, text};
use crate::observe::netlink::{Netlink, malformed};
use crate::parse::netlink::attributes;
use crate::resource::{Net, NetClass};
use crate::text::Text;

/// Of a set with more elements than this, only their number and a digest of all are an object.
const MOST: usize = 4096;

/// Numbers below are those of interfaces.
const NO_INTERFACE: u64 = 1 << 63;

/// A set as the kernel names it, and as it is shown.
pub(super) struct Set {
    family: u8,
    table: Vec<u8>,
    name: Vec<u8>,
    dynamic: bool,
    shown: Text,
}

impl Set {
    pub(super) fn new(family: u8, table: &[u8], name: &[u8], flags: u32, shown: &[u8]) -> Self {
        const NFT_SET_EVAL: u32 = 0x20;
        let (table, name) = (table.to_vec(), name.to_vec());
        Set { family, table, name, dynamic: flags & NFT_SET_EVAL != 0, shown: shown.into() }
    }
}

/// The elements of one set.
#[derive(Default)]
struct Elements {
    first: Vec<(u64, String)>,
    number: usize,
    /// Does not depend on their order.
    digest: u64,
}

impl Elements {
    /// `shown` is not called for one that is not shown.
    fn add(&mut self, identity: u64, shown: impl FnOnce() -> String) {
        self.number += 1;
        self.digest = self.digest.wrapping_add(identity);
        if self.number <= MOST {
            self.first.push((identity, shown()));
        }
    }

    fn records(self, netns: u64, class: NetClass, set: &Text) -> Vec<Net> {
        let record = |(identity, shown): (u64, String)| {
            let name = Text::from([set.as_bytes(), b": ", shown.as_bytes()].concat());
            Net { netns, class, number: identity | NO_INTERFACE, scope: set.clone(), name, uid: None }
        };
        if self.number <= MOST {
            return self.first.into_iter().map(record).collect();
        }
        vec![record((self.digest, format!("{} elements, digest {:016x}", self.number, self.digest)))]
    }
}

fn digest(parts: &[(u16, &[u8])]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (kind, bytes) in parts {
        hasher.write_u16(*kind);
        hasher.write_usize(bytes.len());
        hasher.write(bytes);
    }
    hasher.finish()
}

type Parts<'a> = Vec<(u16, &'a [u8])>;

fn parts(payload: &[u8]) -> io::Result<Parts<'_>> {
    attributes(payload).map(|a| a.map(|a| (a.kind, a.payload)).map_err(malformed)).collect()
}

fn part<'a>(parts: &Parts<'a>, kind: u16) -> Option<&'a [u8]> {
    parts.iter().find(|(k, _)| *k == kind).map(|(_, bytes)| *bytes)
}

/// Those of the named sets of nftables (`NFT_MSG_GETSETELEM`).
pub(super) fn of_nftables(netlink: &mut Netlink, netns: u64, sets: &[Set]) -> io::Result<Vec<Net>> {
    const GET_ELEMENTS: u16 = 10 << 8 | 13;
    // NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS
    const TABLE: u16 = 1;
    const SET: u16 = 2;
    const ELEMENTS: u16 = 3;
    let mut found = Vec::new();
    for set in sets {
        let mut request = vec![set.family, 0, 0, 0];
        for (kind, name) in [(TABLE, &set.table), (SET, &set.name)] {
            request.extend((4 + name.len() as u16 + 1).to_ne_bytes());
            request.extend(kind.to_ne_bytes());
            request.extend(name);
            request.push(0);
            request.resize(request.len().next_multiple_of(4), 0);
        }
        let mut elements = Elements::default();
        let listed = netlink.dump(GET_ELEMENTS, &request, |reply| {
            let mut page = Vec::new();
            let all = parts(reply.get(4..).unwrap_or_default())?;
            for (_, element) in parts(part(&all, ELEMENTS).unwrap_or_default())? {
                page.extend(an_nft_element(&parts(element)?, set.dynamic));
            }
            Ok(Some(page))
        });
        match listed {
            // The set went meanwhile.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => continue,
            listed => listed?.into_iter().flatten().for_each(|(identity, shown)| elements.add(identity, || shown)),
        }
        found.append(&mut elements.records(netns, NetClass::NftElement, &set.shown));
    }
    Ok(found)
}

/// Without its timeout and its counters, which change by themselves.
fn an_nft_element(all: &Parts<'_>, dynamic: bool) -> Option<(u64, String)> {
    // NFTA_SET_ELEM_KEY and so on.
    const KEY: u16 = 1;
    const DATA: u16 = 2;
    const FLAGS: u16 = 3;
    const TIMEOUT: u16 = 4;
    const EXPIRATION: u16 = 5;
    const EXPRESSION: u16 = 7;
    const KEY_END: u16 = 10;
    const EXPRESSIONS: u16 = 11;
    const INTERVAL_END: u32 = 1;
    if dynamic && part(all, EXPIRATION).is_some() {
        return None;
    }
    let changing = [TIMEOUT, EXPIRATION, EXPRESSION, EXPRESSIONS, 8];
    let identity: Parts<'_> = all.iter().filter(|(kind, _)| !changing.contains(kind)).copied().collect();
    // Nested: NFTA_DATA_VALUE
    let value = |kind| Some(part(&parts(part(all, kind)?).ok()?, 1)?.to_vec());
    let flags = part(all, FLAGS).and_then(|f| f.first_chunk()).map_or(0, |f| u32::from_be_bytes(*f));
    let mut shown = if flags & INTERVAL_END != 0 { "before ".to_owned() } else { String::new() };
    for (word, kind) in [("", KEY), ("-", KEY_END), (" : ", DATA)] {
        if let Some(bytes) = value(kind) {
            shown += word;
            shown += &ip(&bytes).map_or_else(|| hex(&bytes), |ip| ip.to_string());
        }
    }
    Some((digest(&identity), shown))
}

/// Those of all sets of ipset, by the set. `names` are the sets that were listed.
pub(super) fn of_ipset(netlink: &mut Netlink, netns: u64, names: &[Text]) -> io::Result<Vec<Net>> {
    const LIST: u16 = 6 << 8 | 7;
    // struct nfgenmsg; IPSET_ATTR_PROTOCOL: 6
    const REQUEST: [u8; 12] = [0, 0, 0, 0, 5, 0, 1, 0, 6, 0, 0, 0];
    const SET_NAME: u16 = 2;
    const ELEMENTS: u16 = 8;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let listed = netlink.dump(LIST, &REQUEST, |reply| {
        let all = parts(reply.get(4..).unwrap_or_default())?;
        let name = Text::from(text(part(&all, SET_NAME).unwrap_or_default()));
        let mut page = Vec::new();
        for (_, element) in parts(part(&all, ELEMENTS).unwrap_or_default())? {
            page.push(an_ipset_element(&parts(element)?));
        }
        Ok(Some((name, page)))
    });
    let mut by_set: BTreeMap<Text, Elements> = BTreeMap::new();
    for (name, page) in listed? {
        let elements = by_set.entry(name).or_default();
        page.into_iter().for_each(|(identity, shown)| elements.add(identity, || shown));
    }
    Ok(by_set.into_iter().flat_map(|(set, e)| e.records(netns, NetClass::IpsetElement, &set)).collect())
}

/// Without its timeout and its counters, which change by themselves.
fn an_ipset_element(all: &Parts<'_>) -> (u64, String) {
    // IPSET_ATTR_IP and so on (linux/netfilter/ipset/ip_set.h).
    const IP: u16 = 1;
    const CIDR: u16 = 3;
    const PORT: u16 = 4;
    const TIMEOUT: u16 = 6;
    const PROTO: u16 = 7;
    const ETHER: u16 = 17;
    const NAME: u16 = 18;
    const IP2: u16 = 20;
    const CIDR2: u16 = 21;
    const IFACE: u16 = 23;
    const BYTES: u16 = 24;
    const PACKETS: u16 = 25;
    let identity: Parts<'_> =
        all.iter().filter(|(kind, _)| ![TIMEOUT, BYTES, PACKETS].contains(kind)).copied().collect();
    let mut shown = String::new();
    for (kind, bytes) in &identity {
        let address = || attributes(bytes).next()?.ok().and_then(|a| ip(a.payload));
        let word = match (*kind, *bytes) {
            (IP | IP2, _) => address().map(|ip| ip.to_string()),
            (CIDR | CIDR2, [bits]) => {
                write!(shown, "/{bits}").expect("a String takes every byte");
                continue;
            }
            (PORT, [a, b]) => Some(u16::from_be_bytes([*a, *b]).to_string()),
            (PROTO, [protocol]) => Some(format!("protocol {protocol}")),
            (ETHER, bytes) => Some(hex(bytes)),
            (NAME | IFACE, bytes) => Some(String::from_utf8_lossy(text(bytes)).into_owned()),
            _ => None,
        };
        let Some(word) = word else { continue };
        write!(shown, "{}{word}", if shown.is_empty() { "" } else { "," }).expect("a String takes every byte");
    }
    (digest(&identity), shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_by_itself_does_not_identify_an_element() {
        let address = [8, 0, 1, 0, 192, 0, 2, 7].as_slice();
        let (plain, shown) = an_ipset_element(&vec![(1, address), (3, &[24])]);
        assert_eq!(shown, "192.0.2.7/24");
        assert_eq!(an_ipset_element(&vec![(1, address), (3, &[24]), (6, &[0, 0, 0, 9]), (25, &[1; 8])]).0, plain);
        assert_ne!(an_ipset_element(&vec![(1, address), (3, &[25])]).0, plain);
        let key = [8, 0, 1, 0, 192, 0, 2, 7].as_slice();
        let of = |more: &[(u16, &'static [u8])], dynamic| {
            let mut all: Parts<'_> = vec![(1, key)];
            all.extend(more);
            an_nft_element(&all, dynamic)
        };
        let plain = of(&[], false).expect("an element");
        assert_eq!(plain.1, "192.0.2.7");
        assert_eq!(of(&[(4, &[1; 8]), (5, &[2; 8]), (11, &[3; 4])], false), Some(plain.clone()));
        assert_ne!(of(&[(3, &[0, 0, 0, 1])], false), Some(plain));
        assert_eq!(of(&[(5, &[2; 8])], true), None, "made by packets");
    }

    #[test]
    fn a_large_set_is_one_object_which_changes_with_each_element_and_not_with_their_order() {
        let records = |elements: &mut dyn Iterator<Item = u64>| {
            let mut all = Elements::default();
            elements.for_each(|n| all.add(digest(&[(1, &n.to_ne_bytes())]), || n.to_string()));
            all.records(1, NetClass::IpsetElement, &Text::from(&b"blocked"[..]))
        };
        let most = MOST as u64;
        assert_eq!(records(&mut (0..most)).len(), MOST);
        let large = records(&mut (0..=most));
        assert_eq!(large.len(), 1);
        assert!(large[0].name.to_string().starts_with("blocked: 4097 elements, digest "), "{}", large[0].name);
        assert_eq!(records(&mut (0..=most).rev()), large);
        assert_ne!(records(&mut (1..=most + 1)), large, "one took the place of another");
    }
}
