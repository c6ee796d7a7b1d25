//! Dumps whose replies are a fixed part and attributes.

use std::fmt::Write;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::observe::netlink::{Netlink, malformed};
use crate::parse::netlink::attributes;

/// One dump. Its replies begin with a fixed part of `fixed` bytes.
pub(super) fn dump<T>(
    netlink: &mut Netlink,
    message: u16,
    request: &[u8],
    fixed: usize,
    mut each: impl FnMut(&Reply<'_>) -> Option<T>,
) -> io::Result<Vec<T>> {
    let listed = netlink.dump(message, request, |payload| {
        let Some((fixed, rest)) = payload.split_at_checked(fixed) else {
            return Err(malformed("a message of netlink is too short"));
        };
        let attributes: Result<_, _> = attributes(rest).map(|a| a.map(|a| (a.kind, a.payload))).collect();
        Ok(each(&Reply { fixed, attributes: attributes.map_err(malformed)? }))
    });
    match listed {
        // This kernel has no such objects.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) => Ok(Vec::new()),
        listed => listed,
    }
}

pub(super) struct Reply<'a> {
    pub(super) fixed: &'a [u8],
    pub(super) attributes: Vec<(u16, &'a [u8])>,
}

impl Reply<'_> {
    pub(super) fn word(&self, at: usize) -> u32 {
        self.fixed.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_ne_bytes(*word))
    }

    pub(super) fn bytes(&self, kind: u16) -> Option<&[u8]> {
        self.attributes.iter().find(|(k, _)| *k == kind).map(|(_, bytes)| *bytes)
    }

    pub(super) fn number(&self, kind: u16) -> Option<u32> {
        self.bytes(kind)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
    }

    pub(super) fn ip(&self, kind: u16) -> Option<IpAddr> {
        ip(self.bytes(kind)?)
    }

    /// An address and the length of its prefix; without an attribute the one that has all.
    pub(super) fn prefix(&self, kind: u16, bits: u8) -> String {
        self.ip(kind)
            .map_or_else(|| if bits == 0 { "all".to_owned() } else { format!("?/{bits}") }, |ip| format!("{ip}/{bits}"))
    }

    /// All other attributes.
    pub(super) fn others(&self, shown: &[u16]) -> String {
        let mut text = String::new();
        // All ones are the kernel's word for none.
        let told = |(kind, bytes): &&(u16, &[u8])| !shown.contains(kind) && *bytes != [0xff; 4];
        for (kind, bytes) in self.attributes.iter().filter(told) {
            write!(text, " {kind}={}", hex(bytes)).expect("a String takes every byte");
        }
        text
    }
}

pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))),
        16 => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))),
        _ => None,
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A string attribute's payload up to its NUL.
pub(super) fn text(payload: &[u8]) -> &[u8] {
    payload.split(|byte| *byte == 0).next().unwrap_or_default()
}
