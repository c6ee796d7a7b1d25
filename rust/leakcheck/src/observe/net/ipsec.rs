//! IPsec (ip-xfrm(8)): states and policies. The kernel answers only with CAP_NET_ADMIN.
//!
//! Left out is what waits for a daemon's answer and goes by itself, and policies of sockets, which go with the socket.

use std::fmt::Write;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::OnceLock;

use rustix::net::netlink::XFRM;

use super::dump::{Reply, dump, hex, ip};
use crate::observe::netlink::Netlink;
use crate::observe::proc_root::read_file;
use crate::observe::remote::Inside;
use crate::resource::NetClass;

const XFRM_MSG_GETSA: u16 = 0x12;
const XFRM_MSG_GETPOLICY: u16 = 0x15;

/// A socket to list them, if the kernel has IPsec by now. To open one would load it.
pub(super) fn open(inside: Inside<'_>, kept: bool) -> Option<io::Result<Netlink>> {
    static BUILT_IN: OnceLock<bool> = OnceLock::new();
    // The kernel's own socket: protocol 6, port 0.
    let registered = || {
        let sockets = read_file("/proc/thread-self/net/netlink").unwrap_or_default();
        String::from_utf8_lossy(&sockets).lines().any(|line| {
            let mut words = line.split_ascii_whitespace().skip(1);
            words.next() == Some("6") && words.next() == Some("0")
        })
    };
    let there = *BUILT_IN.get_or_init(registered) || Path::new("/sys/module/xfrm_user").exists();
    there.then(|| Netlink::open(inside, Some(XFRM), kept))
}

/// Class and what identifies the object.
pub(super) fn list(xfrm: &mut Netlink) -> io::Result<Vec<(NetClass, String)>> {
    let mut found = Vec::new();
    found.extend(dump(xfrm, XFRM_MSG_GETSA, &[], 224, state)?.into_iter().map(|s| (NetClass::IpsecState, s)));
    found.extend(dump(xfrm, XFRM_MSG_GETPOLICY, &[], 168, policy)?.into_iter().map(|p| (NetClass::IpsecPolicy, p)));
    Ok(found)
}

/// `struct xfrm_usersa_info`.
fn state(reply: &Reply<'_>) -> Option<String> {
    const XFRMA_MARK: u16 = 21;
    let number = u32::from_be_bytes(*reply.fixed.get(72..)?.first_chunk()?);
    if number == 0 {
        return None;
    }
    let family = u16::from_ne_bytes(*reply.fixed.get(212..)?.first_chunk()?);
    let (to, from) = (address(reply, 56, family)?, address(reply, 80, family)?);
    let mut text = format!("from {from} to {to} spi {number:#x} protocol {}", reply.fixed.get(76)?);
    if let Some(mark) = reply.bytes(XFRMA_MARK) {
        write!(text, " mark {}", hex(mark)).expect("a String takes every byte");
    }
    Some(text)
}

/// `struct xfrm_userpolicy_info`, which begins with a `struct xfrm_selector`.
fn policy(reply: &Reply<'_>) -> Option<String> {
    let [direction, action, ..] = *reply.fixed.get(160..)?.first_chunk::<4>()?;
    let direction = ["in", "out", "fwd"].get(usize::from(direction))?;
    let family = u16::from_ne_bytes(*reply.fixed.get(40..)?.first_chunk()?);
    let [to_bits, from_bits, protocol, _] = *reply.fixed.get(42..)?.first_chunk()?;
    let (to, from) = (address(reply, 0, family)?, address(reply, 16, family)?);
    let (priority, index) = (reply.word(152), reply.word(156));
    let what = format!("{direction} from {from}/{from_bits} to {to}/{to_bits} protocol {protocol} action {action}");
    Some(format!("{what} priority {priority} index {index}"))
}

/// `xfrm_address_t`.
fn address(reply: &Reply<'_>, at: usize, family: u16) -> Option<IpAddr> {
    let long = i32::from(family) == libc::AF_INET6;
    ip(reply.fixed.get(at..at + if long { 16 } else { 4 })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_told_by_its_addresses_number_and_protocol_and_one_without_a_number_waits_for_a_daemon() {
        let mut fixed = [0; 224];
        fixed[56..60].copy_from_slice(&[192, 0, 2, 2]);
        fixed[80..84].copy_from_slice(&[192, 0, 2, 1]);
        fixed[76] = 50;
        fixed[212] = libc::AF_INET as u8;
        let seen = |fixed: &[u8]| state(&Reply { fixed, attributes: Vec::new() });
        assert_eq!(seen(&fixed), None);
        fixed[75] = 0x10;
        assert_eq!(seen(&fixed).as_deref(), Some("from 192.0.2.1 to 192.0.2.2 spi 0x10 protocol 50"));
    }

    #[test]
    fn a_policy_of_a_socket_is_no_object() {
        let mut fixed = [0; 168];
        fixed[40] = libc::AF_INET6 as u8;
        let seen = |fixed: &[u8]| policy(&Reply { fixed, attributes: Vec::new() });
        let shown = "in from ::/0 to ::/0 protocol 0 action 0 priority 0 index 0";
        assert_eq!(seen(&fixed).as_deref(), Some(shown));
        fixed[160] = 3;
        assert_eq!(seen(&fixed), None);
    }
}
