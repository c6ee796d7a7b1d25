//! Sets of ipset(8), by their names. The kernel answers only with CAP_NET_ADMIN.

use std::io;
use std::path::Path;

use super::dump::text;
use crate::observe::netlink::{Netlink, malformed};
use crate::parse::netlink::attributes;
use crate::text::Text;

pub(super) fn list(netlink: &mut Netlink) -> io::Result<Vec<Text>> {
    const SUBSYSTEM_IPSET: u16 = 6;
    const IPSET_CMD_LIST: u16 = 7;
    const IPSET_ATTR_SETNAME: u16 = 2;
    // struct nfgenmsg; IPSET_ATTR_PROTOCOL: 6; IPSET_ATTR_FLAGS in network order: IPSET_FLAG_LIST_SETNAME
    const REQUEST: [u8; 20] = [0, 0, 0, 0, 5, 0, 1, 0, 6, 0, 0, 0, 8, 0, 6, 0x40, 0, 0, 0, 2];
    // To ask a kernel without them would load them.
    if !Path::new("/sys/module/ip_set").exists() {
        return Ok(Vec::new());
    }
    let listed = netlink.dump(SUBSYSTEM_IPSET << 8 | IPSET_CMD_LIST, &REQUEST, |reply| {
        let attributes = attributes(reply.get(4..).unwrap_or_default());
        let names = attributes.filter_map(Result::ok).filter(|attribute| attribute.kind == IPSET_ATTR_SETNAME);
        match names.last() {
            Some(name) => Ok(Some(Text::from(text(name.payload)))),
            None => Err(malformed("a set without a name")),
        }
    });
    match listed {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(Vec::new()),
        listed => listed,
    }
}
