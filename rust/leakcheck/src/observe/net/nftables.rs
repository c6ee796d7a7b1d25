//! nftables: tables and what they contain (linux/netfilter/nf_tables.h).

use std::io;

use super::dump::text;
use super::elements::{self, Set};
use crate::observe::netlink::{Netlink, malformed};
use crate::parse::netlink::attributes;
use crate::resource::{Net, NetClass};

/// The nftables objects besides tables, each type listed by one dump (linux/netfilter/nf_tables.h).
struct Part {
    class: NetClass,
    /// `NFT_MSG_GET…`.
    message: u16,
    /// `NFTA_…_NAME`, or of a rule its chain's.
    name: u16,
    /// `NFTA_…_HANDLE`.
    handle: u16,
}

const PARTS: [Part; 5] = [
    Part { class: NetClass::NftChain, message: 4, name: 3, handle: 2 },
    Part { class: NetClass::NftRule, message: 7, name: 2, handle: 3 },
    Part { class: NetClass::NftSet, message: 10, name: 2, handle: 16 },
    Part { class: NetClass::NftObject, message: 19, name: 2, handle: 6 },
    Part { class: NetClass::NftFlowtable, message: 23, name: 2, handle: 5 },
];

/// The nftables tables and their contents. The kernel answers only with CAP_NET_ADMIN.
pub(super) fn list(netlink: &mut Netlink, netns: u64) -> io::Result<Vec<Net>> {
    const NFT_MSG_GETTABLE: u16 = 1;
    const NFTA_TABLE_HANDLE: u16 = 4;
    let table = Part {
        class: NetClass::NftTable,
        message: NFT_MSG_GETTABLE,
        name: NFTA_NAME_OF_TABLE,
        handle: NFTA_TABLE_HANDLE,
    };
    let mut sets = Vec::new();
    let mut all = nft_dump(netlink, netns, &table, &mut sets)?;
    if !all.is_empty() {
        for part in &PARTS {
            all.append(&mut nft_dump(netlink, netns, part, &mut sets)?);
        }
        all.append(&mut elements::of_nftables(netlink, netns, &sets)?);
    }
    Ok(all)
}

/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE` and so on: the table's name is the first attribute of all.
const NFTA_NAME_OF_TABLE: u16 = 1;

fn nft_dump(netlink: &mut Netlink, netns: u64, part: &Part, sets: &mut Vec<Set>) -> io::Result<Vec<Net>> {
    const SUBSYSTEM_NFTABLES: u16 = 10;
    const NFTA_SET_FLAGS: u16 = 3;
    const NFT_SET_ANONYMOUS: u32 = 1;
    // If the table changes meanwhile, it is read again.
    let mut named = Vec::new();
    // struct nfgenmsg, every family
    let listed = netlink.dump(SUBSYSTEM_NFTABLES << 8 | part.message, &[0; 4], |reply| {
        let Some((header, rest)) = reply.split_first_chunk::<4>() else {
            return Err(malformed("a message of nftables is too short"));
        };
        let (mut table, mut name, mut handle, mut flags) = (&b""[..], &b""[..], 0, 0);
        for attribute in attributes(rest) {
            let attribute = attribute.map_err(malformed)?;
            if part.class == NetClass::NftSet && attribute.kind == NFTA_SET_FLAGS {
                flags = attribute.payload.first_chunk().map_or(0, |flags| u32::from_be_bytes(*flags));
                if flags & NFT_SET_ANONYMOUS != 0 {
                    // Part of its rule.
                    return Ok(None);
                }
            }
            if attribute.kind == NFTA_NAME_OF_TABLE {
                table = text(attribute.payload);
            }
            if attribute.kind == part.name {
                name = text(attribute.payload);
            }
            if attribute.kind == part.handle {
                handle = attribute.payload.first_chunk().map_or(0, |h| u64::from_be_bytes(*h));
            }
        }
        let of_table = [nft_family(header[0]).as_bytes(), b" ", table].concat();
        let whole = [&of_table, &b" "[..], name].concat();
        if part.class == NetClass::NftSet {
            named.push((whole.clone(), Set::new(header[0], table, name, flags, &whole)));
        }
        let (scope, name) = match part.class {
            NetClass::NftTable => (of_table.clone(), of_table),
            NetClass::NftRule => (whole.clone(), [&whole, format!(" handle {handle}").as_bytes()].concat()),
            _ => (of_table, whole),
        };
        Ok(Some(Net { netns, class: part.class, number: handle, scope: scope.into(), name: name.into(), uid: None }))
    });
    named.sort_by(|(a, _), (b, _)| a.cmp(b));
    named.dedup_by(|(a, _), (b, _)| a == b);
    sets.extend(named.into_iter().map(|(_, set)| set));
    match listed {
        // nfnetlink's answer for a subsystem or message that this kernel does not have: nothing can exist.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(Vec::new()),
        listed => listed,
    }
}

/// `NFPROTO_*` of linux/netfilter.h, as nft(8) names them.
fn nft_family(number: u8) -> String {
    let name = match i32::from(number) {
        libc::NFPROTO_INET => "inet",
        libc::NFPROTO_IPV4 => "ip",
        libc::NFPROTO_ARP => "arp",
        libc::NFPROTO_NETDEV => "netdev",
        libc::NFPROTO_BRIDGE => "bridge",
        libc::NFPROTO_IPV6 => "ip6",
        other => return format!("family {other}"),
    };
    name.to_owned()
}
