//! Traffic control (tc(8)): queueing disciplines, their classes and filters.
//!
//! Left out are the default disciplines, classes that a discipline makes itself, and actions that no filter uses.

use std::io;

use super::dump::{Reply, dump};
use crate::observe::netlink::Netlink;
use crate::resource::NetClass;
use crate::text::Text;

const RTM_GETQDISC: u16 = 38;
const RTM_GETTCLASS: u16 = 42;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
/// `TC_H_ROOT`: the parent of an interface's own discipline.
const ROOT: u32 = u32::MAX;

/// `struct tcmsg` and the kind.
#[derive(Debug)]
struct Message {
    index: u32,
    handle: u32,
    parent: u32,
    info: u32,
    kind: Text,
    chain: u32,
}

impl Message {
    fn of(reply: &Reply<'_>) -> Option<Self> {
        const TCA_CHAIN: u16 = 11;
        Some(Message {
            index: reply.word(4),
            handle: reply.word(8),
            parent: reply.word(12),
            info: reply.word(16),
            kind: reply.bytes(TCA_KIND)?.split(|byte| *byte == 0).next()?.into(),
            chain: reply.number(TCA_CHAIN).unwrap_or(0),
        })
    }

    /// What its filters may be attached to, besides its classes.
    fn places(&self) -> Vec<u32> {
        match self.kind.as_bytes() {
            // These have no filters.
            b"noqueue" | b"pfifo_fast" | b"pfifo" | b"bfifo" | b"mq" | b"fq" => Vec::new(),
            // TC_H_MIN_INGRESS and TC_H_MIN_EGRESS
            b"clsact" => vec![self.handle | 0xfff2, self.handle | 0xfff3],
            // Without a number of its own only the interface's own discipline can be named.
            _ if self.handle == 0 && self.parent != ROOT => Vec::new(),
            _ => vec![self.handle],
        }
    }

    /// Whether only people make its classes.
    fn has_classes(&self) -> bool {
        matches!(self.kind.as_bytes(), b"htb" | b"hfsc" | b"drr" | b"qfq" | b"cbq")
    }

    /// Each priority and protocol of a place has a nameless entry beside its filters, and u32 its tables.
    fn is_filter(&self) -> bool {
        self.handle != 0 && (self.kind.as_bytes() != b"u32" || self.handle & 0xf_ffff != 0)
    }
}

/// Class, interface and what identifies the object there.
pub(super) fn list(route: &mut Netlink) -> io::Result<Vec<(NetClass, u32, String)>> {
    let mut found = Vec::new();
    for discipline in ask(route, RTM_GETQDISC, 0, 0)? {
        let Message { index, handle, parent, kind, .. } = &discipline;
        if *handle != 0 {
            found.push((NetClass::Qdisc, *index, format!("{kind} {:x}: parent {parent:x}", handle >> 16)));
        }
        let mut places = discipline.places();
        if discipline.has_classes() {
            for class in ask(route, RTM_GETTCLASS, *index, *handle)? {
                let (major, minor) = (class.handle >> 16, class.handle & 0xffff);
                let shown = format!("{} {major:x}:{minor:x} parent {:x}", class.kind, class.parent);
                found.push((NetClass::TrafficClass, *index, shown));
                places.push(class.handle);
            }
        }
        for place in places {
            for filter in ask(route, RTM_GETTFILTER, *index, place)?.into_iter().filter(Message::is_filter) {
                let Message { handle, parent, info, kind, chain, .. } = filter;
                // The protocol is in network order.
                let (priority, protocol) = (info >> 16, (info as u16).swap_bytes());
                let shown =
                    format!("{kind} {handle:x} parent {parent:x} chain {chain} pref {priority} protocol {protocol:x}");
                found.push((NetClass::Filter, *index, shown));
            }
        }
    }
    Ok(found)
}

fn ask(route: &mut Netlink, message: u16, index: u32, parent: u32) -> io::Result<Vec<Message>> {
    let mut request = [0; 20];
    request[4..8].copy_from_slice(&index.to_ne_bytes());
    request[12..16].copy_from_slice(&parent.to_ne_bytes());
    match dump(route, message, &request, 20, Message::of) {
        // The interface or the discipline went meanwhile.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::EINVAL)) && index != 0 => {
            Ok(Vec::new())
        }
        listed => listed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: &str, handle: u32, parent: u32) -> Message {
        Message { index: 1, handle, parent, info: 0, kind: kind.as_bytes().into(), chain: 0 }
    }

    #[test]
    fn filters_are_asked_for_where_a_discipline_can_have_them() {
        assert!(message("noqueue", 0, ROOT).places().is_empty());
        assert_eq!(message("clsact", 0xffff_0000, 0xffff_fff1).places(), [0xffff_fff2, 0xffff_fff3]);
        assert_eq!(message("ingress", 0xffff_0000, 0xffff_fff1).places(), [0xffff_0000]);
        assert_eq!(message("fq_codel", 0, ROOT).places(), [0], "the default of an interface");
        assert!(message("fq_codel", 0, 1).places().is_empty());
    }

    #[test]
    fn what_stands_for_a_priority_or_a_table_is_no_filter() {
        assert!(!message("bpf", 0, 0).is_filter() && !message("u32", 0x8000_0000, 0).is_filter());
        assert!(message("bpf", 1, 0).is_filter() && message("u32", 0x8000_0800, 0).is_filter());
    }
}
