//! Forwarding tables (bridge(8), fdb) and permanent multicast groups (mdb) of bridges, VXLANs and other interfaces.
//!
//! Left out is what the kernel makes itself: addresses that a bridge learned, those of the interfaces, and the multicast
//! groups that an interface receives.

use std::collections::HashSet;
use std::fmt::Write;
use std::io;

use super::dump::{Reply, dump, hex};
use crate::observe::netlink::Netlink;
use crate::parse::netlink::attributes;

const RTM_GETNEIGH: u16 = 30;
const RTM_GETMDB: u16 = 86;
/// As a family of addresses.
const BRIDGE: u8 = 7;

/// Interface and what identifies the entry there. `own` are the addresses of all interfaces.
pub(super) fn entries(route: &mut Netlink, own: &HashSet<Vec<u8>>) -> io::Result<Vec<(u32, String)>> {
    let mut request = [0; 12];
    request[0] = BRIDGE;
    dump(route, RTM_GETNEIGH, &request, 12, |reply| entry(reply, own))
}

/// `struct ndmsg`.
fn entry(reply: &Reply<'_>, own: &HashSet<Vec<u8>>) -> Option<(u32, String)> {
    // NDA_DST and so on.
    const DST: u16 = 1;
    const LLADDR: u16 = 2;
    const VLAN: u16 = 5;
    const PORT: u16 = 6;
    const VNI: u16 = 7;
    const INDEX: u16 = 8;
    const SOURCE_VNI: u16 = 11;
    const GROUP: u16 = 13;
    const NUD_NOARP: u16 = 0x40;
    const NUD_PERMANENT: u16 = 0x80;
    const NTF_SELF: u8 = 0x02;
    const NTF_EXT_LEARNED: u8 = 0x10;
    let (index, [low, high, flags, _]) = (reply.word(4), reply.word(8).to_ne_bytes());
    let state = u16::from_ne_bytes([low, high]);
    let address = reply.bytes(LLADDR)?;
    let remote = [DST, VNI, INDEX, GROUP].iter().any(|kind| reply.bytes(*kind).is_some());
    let multicast = address.first().is_some_and(|first| first & 1 != 0);
    let entered = state & (NUD_NOARP | NUD_PERMANENT) != 0 || flags & NTF_EXT_LEARNED != 0;
    // An interface lists what it receives as its own entries.
    let received = !remote && (own.contains(address) || multicast && flags & NTF_SELF != 0);
    if !entered || received {
        return None;
    }
    let mut text = hex(address);
    if flags & NTF_SELF != 0 {
        text += " self";
    }
    if let Some(ip) = reply.ip(DST) {
        write!(text, " to {ip}").expect("a String takes every byte");
    }
    for (word, kind) in
        [("vlan", VLAN), ("port", PORT), ("vni", VNI), ("via", INDEX), ("source vni", SOURCE_VNI), ("next hop", GROUP)]
    {
        if let Some(bytes) = reply.bytes(kind) {
            write!(text, " {word} {}", hex(bytes)).expect("a String takes every byte");
        }
    }
    Some((index, text))
}

/// Bridge and what identifies the group there.
pub(super) fn groups(route: &mut Netlink) -> io::Result<Vec<(u32, String)>> {
    let mut request = [0; 8];
    request[0] = BRIDGE;
    Ok(dump(route, RTM_GETMDB, &request, 8, |reply| Some(permanent(reply)))?.into_iter().flatten().collect())
}

/// `struct br_port_msg`, and `MDBA_MDB` with entries that begin with a `struct br_mdb_entry`.
fn permanent(reply: &Reply<'_>) -> Vec<(u32, String)> {
    const MDBA_MDB: u16 = 1;
    const MDB_PERMANENT: u8 = 1;
    /// `MDBA_MDB_EATTR_SOURCE` and so on.
    const TOLD_APART: [(&str, u16); 6] =
        [("source", 4), ("to", 6), ("to port", 7), ("vni", 8), ("via", 9), ("source vni", 10)];
    let bridge = reply.word(4);
    let mut found = Vec::new();
    for entry in attributes(reply.bytes(MDBA_MDB).unwrap_or_default()).filter_map(Result::ok) {
        for info in attributes(entry.payload).filter_map(Result::ok) {
            let Some(fixed) = info.payload.first_chunk::<28>().filter(|fixed| fixed[4] == MDB_PERMANENT) else {
                continue;
            };
            let (port, vlan) = (&fixed[..4], &fixed[6..8]);
            let port = port.first_chunk().map_or(0, |port| u32::from_ne_bytes(*port));
            let vlan = vlan.first_chunk().map_or(0, |vlan| u16::from_ne_bytes(*vlan));
            let mut text = format!("{} port {port} vlan {vlan}", hex(&fixed[8..26]));
            // One group may have an entry for each source, and in a VXLAN for each destination.
            for more in attributes(&info.payload[28..]).filter_map(Result::ok) {
                if let Some((word, _)) = TOLD_APART.iter().find(|(_, kind)| *kind == more.kind) {
                    write!(text, " {word} {}", hex(more.payload)).expect("a String takes every byte");
                }
            }
            found.push((bridge, text));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(address: [u8; 6], state: u16, flags: u8, more: &[(u16, &[u8])]) -> bool {
        let mut fixed = [7, 0, 0, 0, 3, 0, 0, 0, 0, 0, flags, 0];
        fixed[8..10].copy_from_slice(&state.to_ne_bytes());
        let mut attributes: Vec<(u16, &[u8])> = vec![(2, &address)];
        attributes.extend(more);
        entry(&Reply { fixed: &fixed, attributes }, &HashSet::from([vec![2, 0, 0, 0, 0, 1]])).is_some()
    }

    #[test]
    fn an_entry_that_the_kernel_makes_is_no_object_and_one_that_was_entered_is() {
        let mac = [2, 0, 0, 0, 0, 9];
        assert!(seen(mac, 0x40, 0, &[]), "static");
        assert!(seen(mac, 0x80, 2, &[]), "of the interface itself");
        assert!(seen(mac, 0x02, 0x10, &[]), "learned by a daemon");
        assert!(seen([0; 6], 0x80, 2, &[(1, &[192, 0, 2, 7])]), "of a VXLAN");
        assert!(!seen(mac, 0x02, 0, &[]) && !seen(mac, 0x04, 0, &[]), "learned");
        assert!(!seen([2, 0, 0, 0, 0, 1], 0x80, 0, &[]), "an interface's own address");
        assert!(!seen([0x33, 0x33, 0, 0, 0, 1], 0x80, 2, &[]), "a group that an interface receives");
    }

    #[test]
    fn a_multicast_group_is_an_object_if_it_is_permanent() {
        let group = |state| {
            let mut info = vec![32, 0, 1, 0, 5, 0, 0, 0, state, 0, 0, 0, 239, 1, 1, 1];
            info.resize(32, 0);
            let entry = [&[36, 0, 1, 0], info.as_slice()].concat();
            permanent(&Reply { fixed: &[7, 0, 0, 0, 3, 0, 0, 0], attributes: vec![(1, &entry)] }).len()
        };
        assert_eq!((group(1), group(0)), (1, 0));
    }

    #[test]
    fn a_multicast_group_has_an_entry_for_each_source() {
        let group = |source: &[u8]| {
            let mut info = vec![0, 0, 1, 0, 5, 0, 0, 0, 1, 0, 0, 0, 239, 1, 1, 1];
            info.resize(32, 0);
            if !source.is_empty() {
                info.extend([&[8, 0, 4, 0], source].concat());
            }
            info[0] = info.len() as u8;
            let entry = [&[info.len() as u8 + 4, 0, 1, 0], info.as_slice()].concat();
            permanent(&Reply { fixed: &[7, 0, 0, 0, 3, 0, 0, 0], attributes: vec![(1, &entry)] })
        };
        let (any, one, other) = (group(&[]), group(&[10, 9, 9, 9]), group(&[10, 9, 9, 8]));
        assert!(any.len() == 1 && one.len() == 1 && any != one && one != other, "{any:?} {one:?} {other:?}");
    }
}
