//! Neighbours (arp(7), ip-neighbour(8)) that somebody entered: permanent ones, those that a daemon learned elsewhere, and
//! those that are answered for (proxies). The kernel learns the others itself and forgets them.

use std::io;

use super::dump::{Reply, dump, hex};
use crate::observe::netlink::Netlink;

const RTM_GETNEIGH: u16 = 30;
const NTF_PROXY: u8 = 0x08;

/// Interface and what identifies the entry there.
pub(super) fn list(route: &mut Netlink) -> io::Result<Vec<(u32, String)>> {
    let mut request = [0; 12];
    let mut found = dump(route, RTM_GETNEIGH, &request, 12, entry)?;
    request[10] = NTF_PROXY;
    found.extend(dump(route, RTM_GETNEIGH, &request, 12, entry)?);
    Ok(found)
}

/// `struct ndmsg`.
fn entry(reply: &Reply<'_>) -> Option<(u32, String)> {
    const NDA_DST: u16 = 1;
    const NDA_LLADDR: u16 = 2;
    const NDA_FLAGS_EXT: u16 = 15;
    const NUD_PERMANENT: u16 = 0x80;
    const NTF_EXT_LEARNED: u8 = 0x10;
    const NTF_EXT_MANAGED: u32 = 1;
    let (index, [low, high, flags, _]) = (reply.word(4), reply.word(8).to_ne_bytes());
    let address = reply.ip(NDA_DST)?;
    if flags & NTF_PROXY != 0 {
        return Some((index, format!("proxy for {address}")));
    }
    let managed = reply.number(NDA_FLAGS_EXT).unwrap_or(0) & NTF_EXT_MANAGED != 0;
    let entered = u16::from_ne_bytes([low, high]) & NUD_PERMANENT != 0 || flags & NTF_EXT_LEARNED != 0 || managed;
    // The address of the link of one that is permanent does not change by itself.
    let at = if flags & NTF_EXT_LEARNED == 0 && !managed { reply.bytes(NDA_LLADDR).map(hex) } else { None };
    entered.then(|| (index, at.map_or_else(|| address.to_string(), |at| format!("{address} at {at}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(state: u16, flags: u8) -> Option<(u32, String)> {
        let mut fixed = [2, 0, 0, 0, 7, 0, 0, 0, 0, 0, flags, 0];
        fixed[8..10].copy_from_slice(&state.to_ne_bytes());
        entry(&Reply { fixed: &fixed, attributes: vec![(1, &[192, 0, 2, 9]), (2, &[2, 0, 0, 0, 0, 9])] })
    }

    #[test]
    fn only_neighbours_that_somebody_entered_are_objects() {
        assert_eq!(seen(0x80, 0), Some((7, "192.0.2.9 at 020000000009".to_owned())), "permanent");
        assert_eq!(seen(0x02, 0x10), Some((7, "192.0.2.9".to_owned())), "learned by a daemon");
        assert_eq!(seen(0, 0x08), Some((7, "proxy for 192.0.2.9".to_owned())));
        for by_the_kernel in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40] {
            assert_eq!(seen(by_the_kernel, 0), None);
        }
    }
}
