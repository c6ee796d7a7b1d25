//! Addresses, their labels, routes, routing rules and next hops (rtnetlink(7)), each type listed by one dump.
//!
//! Left out is what the kernel makes itself: the namespace's own loopback and link-local addresses (before Linux 5.18 all
//! that are link-local), routes that follow from an address, and its three rules. Who gives an address a lifetime, or says that a route comes from DHCP or a
//! router, may be anybody.

use std::fmt::Write;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;

use super::dump::{Reply, dump, hex};
use crate::observe::netlink::Netlink;
use crate::resource::NetClass;

const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_GETRULE: u16 = 34;
const RTM_GETADDRLABEL: u16 = 74;
const RTM_GETNEXTHOP: u16 = 106;

/// The first interface of every network namespace.
const LOOPBACK: u32 = 1;

/// `RTPROT_KERNEL`: who installed a route or a rule, as they say themselves.
const BY_KERNEL: u8 = 2;

/// Class, interface (0 for none) and what identifies the object there.
pub(super) fn list(route: &mut Netlink) -> io::Result<Vec<(NetClass, u32, String)>> {
    let mut all = Vec::new();
    let addresses = dump(route, RTM_GETADDR, &[0; 8], 8, |reply| Some(Address::of(reply, says_who_made_it())))?;
    let made = addresses.iter().filter(|address| !address.is_the_kernels());
    all.extend(made.map(|address| (NetClass::Address, address.index, address.shown())));
    let routes = dump(route, RTM_GETROUTE, &[0; 12], 12, |reply| a_route(reply, &addresses))?;
    all.extend(routes.into_iter().map(|(index, scope)| (NetClass::Route, index, scope)));
    let rules = dump(route, RTM_GETRULE, &[0; 12], 12, a_rule)?;
    all.extend(rules.into_iter().map(|scope| (NetClass::Rule, 0, scope)));
    let hops = dump(route, RTM_GETNEXTHOP, &[0; 8], 8, a_next_hop)?;
    all.extend(hops.into_iter().map(|(index, scope)| (NetClass::Nexthop, index, scope)));
    let mut request = [0; 12];
    request[0] = libc::AF_INET6 as u8;
    let labels = dump(route, RTM_GETADDRLABEL, &request, 12, a_label)?;
    all.extend(labels.into_iter().map(|(index, scope)| (NetClass::AddressLabel, index, scope)));
    Ok(all)
}

/// Whether two addresses have the same first bits.
fn same_prefix(one: IpAddr, other: IpAddr, bits: u8) -> bool {
    match (one, other) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(bits),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(bits),
        _ => false,
    }
}

/// `struct ifaddrmsg`.
struct Address {
    index: u32,
    local: IpAddr,
    /// The address of the other end of a point-to-point link; else the same.
    far: IpAddr,
    bits: u8,
    /// Whether it cannot be the kernel's by what it says of itself.
    by_hand: bool,
}

/// Whether the kernel says of its own link-local addresses that they are.
fn says_who_made_it() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let system = rustix::system::uname();
        let mut numbers = system.release().to_bytes().split(|byte| !byte.is_ascii_digit());
        let mut number = || numbers.next().and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok());
        (number(), number()) >= (Some(5), Some(18))
    })
}

impl Address {
    /// `protocols`: whether the kernel has `IFA_PROTO` (Linux 5.18), which it sets to `IFAPROT_KERNEL_LL`.
    fn of(reply: &Reply<'_>, protocols: bool) -> Self {
        const IFA_ADDRESS: u16 = 1;
        const IFA_LOCAL: u16 = 2;
        const IFA_PROTO: u16 = 11;
        const KERNEL_LINK_LOCAL: &[u8] = &[3];
        let far = reply.ip(IFA_ADDRESS).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let by_hand = protocols && reply.bytes(IFA_PROTO) != Some(KERNEL_LINK_LOCAL);
        Address { index: reply.word(4), local: reply.ip(IFA_LOCAL).unwrap_or(far), far, bits: reply.fixed[1], by_hand }
    }

    /// Those that an interface has as soon as it is up.
    fn is_the_kernels(&self) -> bool {
        match self.local {
            IpAddr::V4(ip) => ip == Ipv4Addr::LOCALHOST && self.bits == 8 && self.index == LOOPBACK,
            IpAddr::V6(ip) => {
                ip == Ipv6Addr::LOCALHOST && self.index == LOOPBACK || ip.is_unicast_link_local() && !self.by_hand
            }
        }
    }

    fn shown(&self) -> String {
        let peer = if self.far == self.local { String::new() } else { format!(" peer {}", self.far) };
        format!("{}/{}{peer}", self.local, self.bits)
    }
}

/// `struct rtmsg`: the interface, and what identifies the route.
fn a_route(reply: &Reply<'_>, addresses: &[Address]) -> Option<(u32, String)> {
    const RTA_DST: u16 = 1;
    const RTA_SRC: u16 = 2;
    const RTA_OIF: u16 = 4;
    const RTA_GATEWAY: u16 = 5;
    const RTA_PRIORITY: u16 = 6;
    const RTA_PREFSRC: u16 = 7;
    const RTA_MULTIPATH: u16 = 9;
    const RTA_CACHEINFO: u16 = 12;
    const RTA_TABLE: u16 = 15;
    const RTA_VIA: u16 = 18;
    const RTA_PREF: u16 = 20;
    const RTA_EXPIRES: u16 = 23;
    const RTM_F_CLONED: u32 = 0x200;
    let [family, bits, from_bits, tos, table, by, _, class] = *reply.fixed.first_chunk()?;
    // Of multicast routing, whose routes its daemon's socket holds.
    if reply.word(8) & RTM_F_CLONED != 0 || family >= 128 {
        return None;
    }
    let (index, gateway) = (reply.number(RTA_OIF).unwrap_or(0), reply.ip(RTA_GATEWAY));
    let direct = gateway.is_none() && [RTA_VIA, RTA_MULTIPATH].iter().all(|kind| reply.bytes(*kind).is_none());
    let target = reply.ip(RTA_DST);
    if by == BY_KERNEL && direct && follows(class, index, target, bits, addresses) {
        return None;
    }
    let types =
        ["unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit"];
    let mut text = types.get(usize::from(class)).map_or_else(|| format!("type {class}"), |&name| name.to_owned());
    let to = target.map_or_else(|| format!("default of family {family}"), |ip| format!("{ip}/{bits}"));
    write!(text, " {to}").expect("a String takes every byte");
    if let Some(gateway) = gateway {
        write!(text, " via {gateway}").expect("a String takes every byte");
    }
    let (table, metric) = (reply.number(RTA_TABLE).unwrap_or(table.into()), reply.number(RTA_PRIORITY).unwrap_or(0));
    write!(text, " table {table} metric {metric}").expect("a String takes every byte");
    if let Some(source) = reply.ip(RTA_PREFSRC) {
        write!(text, " src {source}").expect("a String takes every byte");
    }
    if from_bits > 0 {
        write!(text, " from {}", reply.prefix(RTA_SRC, from_bits)).expect("a String takes every byte");
    }
    if tos > 0 {
        write!(text, " tos {tos}").expect("a String takes every byte");
    }
    if let Some(hops) = reply.bytes(RTA_MULTIPATH) {
        write!(text, " nexthops {}", hex_without_flags(hops)).expect("a String takes every byte");
    }
    text += &reply.others(&[
        RTA_DST,
        RTA_SRC,
        RTA_OIF,
        RTA_GATEWAY,
        RTA_PRIORITY,
        RTA_PREFSRC,
        RTA_MULTIPATH,
        RTA_CACHEINFO,
        RTA_TABLE,
        RTA_PREF,
        RTA_EXPIRES,
    ]);
    Some((index, text))
}

/// Whether the kernel makes such a route with an address or an interface: one for the address's network, one for the address
/// itself, on the loopback interface for all of the network, and those for its broadcast and anycast addresses.
fn follows(class: u8, index: u32, target: Option<IpAddr>, bits: u8, addresses: &[Address]) -> bool {
    const RTN_UNICAST: u8 = 1;
    const RTN_LOCAL: u8 = 2;
    const RTN_MULTICAST: u8 = 5;
    const RTN_UNREACHABLE: u8 = 7;
    match target {
        // Of IPv6 without a default route.
        None => class == RTN_UNREACHABLE && bits == 0,
        Some(IpAddr::V6(ip)) if ip.is_multicast() => bits == 8 && class <= RTN_MULTICAST,
        Some(ip) => addresses.iter().any(|address| {
            let inside = |of| same_prefix(ip, of, address.bits);
            let whole = bits == address.bits && (inside(address.local) || inside(address.far));
            match class {
                RTN_UNICAST => whole && address.index == index,
                RTN_LOCAL => ip == address.local || whole && (address.index, index) == (LOOPBACK, LOOPBACK),
                _ => class <= RTN_MULTICAST && inside(address.local),
            }
        }),
    }
}

/// `struct rtnexthop { unsigned short rtnh_len; unsigned char rtnh_flags, rtnh_hops; int rtnh_ifindex; }` and attributes; the
/// flags tell whether the link is up.
fn hex_without_flags(hops: &[u8]) -> String {
    let mut bytes = hops.to_vec();
    let mut at = 0;
    while let Some(length) = bytes.get(at..at + 2).map(|two| usize::from(u16::from_ne_bytes([two[0], two[1]]))) {
        if let Some(flags) = bytes.get_mut(at + 2) {
            *flags = 0;
        }
        at += length.next_multiple_of(4).max(8);
    }
    hex(&bytes)
}

/// `struct fib_rule_hdr`.
fn a_rule(reply: &Reply<'_>) -> Option<String> {
    const FRA_DST: u16 = 1;
    const FRA_SRC: u16 = 2;
    const FRA_PRIORITY: u16 = 6;
    const FRA_TABLE: u16 = 15;
    const FRA_PROTOCOL: u16 = 21;
    const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
    const RTPROT_UNSPEC: u8 = 0;
    const RTPROT_KERNEL: u8 = 2;
    /// The rules of a new namespace, by priority and table.
    const INITIAL: [(u32, u32); 3] = [(0, 255), (32766, 254), (32767, 253)];
    let [family, to_bits, from_bits, tos, table, _, _, action] = *reply.fixed.first_chunk()?;
    let table = reply.number(FRA_TABLE).unwrap_or(table.into());
    let priority = reply.number(FRA_PRIORITY).unwrap_or(0);
    let shown = [FRA_DST, FRA_SRC, FRA_PRIORITY, FRA_TABLE, FRA_PROTOCOL];
    let plain = action == 1 && (to_bits, from_bits, tos, reply.word(8)) == (0, 0, 0, 0);
    let bare = reply
        .attributes
        .iter()
        .all(|(kind, bytes)| shown.contains(kind) || *kind == FRA_SUPPRESS_PREFIXLEN && *bytes == [0xff; 4]);
    // Families from 128 on are those of multicast routing.
    let initial = INITIAL.contains(&(priority, table)) || family >= 128 && (priority, table) == (32767, 254);
    // Since Linux 4.17; two rules may differ in it alone.
    let protocol = reply.bytes(FRA_PROTOCOL).and_then(|bytes| bytes.first().copied());
    if plain && bare && initial && matches!(protocol, None | Some(RTPROT_KERNEL)) {
        return None;
    }
    let (from, to) = (reply.prefix(FRA_SRC, from_bits), reply.prefix(FRA_DST, to_bits));
    let head =
        format!("priority {priority} from {from} to {to} table {table} action {action} family {family} tos {tos}");
    // What ip(8) enters if it is not told otherwise.
    let protocol =
        protocol.filter(|protocol| *protocol != RTPROT_UNSPEC).map(|protocol| format!(" protocol {protocol}"));
    Some(head + &format!(" flags {}", reply.word(8)) + &reply.others(&shown) + &protocol.unwrap_or_default())
}

/// `struct nhmsg`.
fn a_next_hop(reply: &Reply<'_>) -> Option<(u32, String)> {
    const NHA_ID: u16 = 1;
    const NHA_OIF: u16 = 5;
    const NHA_GATEWAY: u16 = 6;
    let mut text = format!("id {}", reply.number(NHA_ID)?);
    if let Some(gateway) = reply.ip(NHA_GATEWAY) {
        write!(text, " via {gateway}").expect("a String takes every byte");
    }
    Some((reply.number(NHA_OIF).unwrap_or(0), text))
}

/// `struct ifaddrlblmsg { u8 family, reserved, prefixlen, flags; u32 index, seq; }`. Each namespace begins with a table of
/// labels (`ip6addrlbl_init_table` of the kernel, RFC 6724).
fn a_label(reply: &Reply<'_>) -> Option<(u32, String)> {
    const IFAL_ADDRESS: u16 = 1;
    const IFAL_LABEL: u16 = 2;
    const INITIAL: [(&str, u32); 10] = [
        ("all", 1),
        ("fc00::/7", 5),
        ("fec0::/10", 11),
        ("2002::/16", 2),
        ("3ffe::/16", 12),
        ("2001::/32", 6),
        ("2001:10::/28", 7),
        ("::ffff:0.0.0.0/96", 4),
        ("::/96", 3),
        ("::1/128", 0),
    ];
    let (prefix, label) = (reply.prefix(IFAL_ADDRESS, reply.fixed[2]), reply.number(IFAL_LABEL)?);
    let prefix = if prefix == "::/0" { "all" } else { &prefix };
    let initial = reply.word(4) == 0 && INITIAL.contains(&(prefix, label));
    (!initial).then(|| (reply.word(4), format!("{prefix} label {label}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_labels_that_every_namespace_has_are_no_objects() {
        let label = |bits: u8, address: &[u8], label: u32, index: u8| {
            let label = label.to_ne_bytes();
            let fixed = [10, 0, bits, 0, index, 0, 0, 0, 0, 0, 0, 0];
            a_label(&Reply { fixed: &fixed, attributes: vec![(1, address), (2, &label)] })
        };
        assert_eq!(label(0, &[0; 16], 1, 0), None);
        let mut teredo = [0; 16];
        teredo[..2].copy_from_slice(&[0x20, 0x01]);
        assert_eq!(label(32, &teredo, 6, 0), None);
        assert_eq!(label(32, &teredo, 99, 0), Some((0, "2001::/32 label 99".to_owned())));
        assert_eq!(label(32, &teredo, 6, 4), Some((4, "2001::/32 label 6".to_owned())));
    }

    fn address(local: &str, bits: u8, index: u32) -> Address {
        let local = local.parse().expect("an address");
        Address { index, local, far: local, bits, by_hand: false }
    }

    fn attribute(kind: u16, text: &str) -> (u16, Vec<u8>) {
        let bytes = match text.parse() {
            Ok(IpAddr::V4(ip)) => ip.octets().to_vec(),
            Ok(IpAddr::V6(ip)) => ip.octets().to_vec(),
            Err(_) => text.parse::<u32>().expect("a number").to_ne_bytes().to_vec(),
        };
        (kind, bytes)
    }

    /// A route by protocol, type, length of its prefix and attributes.
    fn route(by: u8, class: u8, bits: u8, attributes: &[(u16, &str)], addresses: &[Address]) -> Option<(u32, String)> {
        let owned: Vec<_> = attributes.iter().map(|(kind, text)| attribute(*kind, text)).collect();
        let v6 = attributes.iter().any(|(_, text)| text.contains(':'));
        let family = if v6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
        let fixed = [family, bits, 0, 0, 254, by, 0, class, 0, 0, 0, 0];
        let attributes = owned.iter().map(|(kind, bytes)| (*kind, bytes.as_slice())).collect();
        a_route(&Reply { fixed: &fixed, attributes }, addresses)
    }

    #[test]
    fn routes_that_follow_from_an_address_are_the_kernels_and_others_that_say_so_are_not() {
        let known = [address("192.0.2.2", 24, 4), address("fe80::1", 64, 4)];
        let of_kernel = |class, bits, attributes: &[(u16, &str)]| route(2, class, bits, attributes, &known).is_none();
        assert!(of_kernel(1, 24, &[(1, "192.0.2.0"), (4, "4"), (7, "192.0.2.2")]));
        assert!(of_kernel(2, 32, &[(1, "192.0.2.2"), (4, "4")]), "local");
        assert!(of_kernel(3, 32, &[(1, "192.0.2.255"), (4, "4")]), "broadcast");
        assert!(of_kernel(1, 64, &[(1, "fe80::"), (4, "4")]));
        assert!(of_kernel(5, 8, &[(1, "ff00::"), (4, "4")]));
        assert!(!of_kernel(1, 24, &[(1, "198.51.100.0"), (4, "4")]), "no address is in it");
        assert!(!of_kernel(1, 16, &[(1, "192.0.0.0"), (4, "4")]), "wider than the address's prefix");
        assert!(!of_kernel(1, 32, &[(1, "192.0.2.7"), (4, "4")]), "narrower");
        assert!(!of_kernel(2, 32, &[(1, "192.0.2.7"), (4, "1")]), "local, but no address");
        assert!(!of_kernel(1, 24, &[(1, "192.0.2.0"), (4, "5")]), "another interface");
        assert!(!of_kernel(1, 24, &[(1, "192.0.2.0"), (4, "4"), (5, "192.0.2.1")]), "through a gateway");
        assert!(!of_kernel(6, 32, &[(1, "192.0.2.7")]), "a black hole");
    }

    #[test]
    fn a_route_that_says_that_dhcp_or_a_router_made_it_may_be_anybodys() {
        let gateway = [(4, "4"), (5, "192.0.2.1")];
        assert!(route(16, 1, 0, &gateway, &[address("192.0.2.2", 24, 4)]).is_some());
        assert!(route(9, 1, 0, &[(4, "4"), (5, "fe80::1")], &[]).is_some());
        let (index, shown) = route(3, 1, 0, &gateway, &[]).expect("a route");
        assert_eq!((index, shown.as_str()), (4, "unicast default of family 2 via 192.0.2.1 table 254 metric 0"));
    }

    #[test]
    fn addresses_of_the_loopback_interface_are_the_kernels_only_there() {
        let is_the_kernels = |local, bits, index| address(local, bits, index).is_the_kernels();
        assert!(is_the_kernels("127.0.0.1", 8, 1) && is_the_kernels("::1", 128, 1) && is_the_kernels("fe80::1", 64, 4));
        assert!(!is_the_kernels("127.0.0.1", 8, 4) && !is_the_kernels("::1", 128, 4));
        assert!(!is_the_kernels("127.0.0.2", 8, 1) && !is_the_kernels("127.0.0.1", 32, 1));
    }

    #[test]
    fn a_link_local_address_is_the_kernels_only_if_it_says_so_where_it_can() {
        let ip = "fe80::1".parse::<Ipv6Addr>().expect("an address").octets();
        let fixed = [libc::AF_INET6 as u8, 64, 0, 0, 4, 0, 0, 0];
        let is_the_kernels = |protocol: &[u8], known| {
            let mut attributes = vec![(1, ip.as_slice())];
            attributes.extend((!protocol.is_empty()).then_some((11, protocol)));
            Address::of(&Reply { fixed: &fixed, attributes }, known).is_the_kernels()
        };
        assert!(is_the_kernels(&[3], true) && !is_the_kernels(&[], true) && !is_the_kernels(&[4], true));
        assert!(is_the_kernels(&[], false), "Linux 5.17");
    }

    #[test]
    fn a_link_that_goes_down_changes_no_identity() {
        let hop = |flags: u8| {
            let mut bytes = 8_u16.to_ne_bytes().to_vec();
            bytes.extend([flags, 0]);
            bytes.extend(4_u32.to_ne_bytes());
            bytes
        };
        let [up, down] = [0, 0x11].map(|flags| hex_without_flags(&[hop(0), hop(flags)].concat()));
        assert_eq!(up, down);
        assert_eq!(hex_without_flags(&[0, 0, 1]), "000000");
    }

    #[test]
    fn the_initial_rules_are_no_objects_and_one_with_a_selector_is() {
        let rule = |priority: u32, extra: &[(u16, &[u8])]| {
            let (priority, table) = (priority.to_ne_bytes(), 254_u32.to_ne_bytes());
            let mut attributes: Vec<(u16, &[u8])> = vec![(6, &priority), (15, &table), (14, &[0xff; 4]), (21, &[2])];
            attributes.extend(extra);
            a_rule(&Reply { fixed: &[2, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0], attributes })
        };
        assert_eq!(rule(32766, &[]), None);
        assert!(rule(100, &[]).is_some() && rule(32767, &[]).is_some());
        assert!(rule(32766, &[(10, &[1, 0, 0, 0])]).is_some(), "only for marked packets");
    }

    #[test]
    fn rules_that_differ_in_who_entered_them_are_two() {
        let rule = |priority: u32, protocol: u8| {
            let (priority, table, protocol) = (priority.to_ne_bytes(), 254_u32.to_ne_bytes(), [protocol]);
            let attributes: Vec<(u16, &[u8])> = vec![(6, &priority), (15, &table), (14, &[0xff; 4]), (21, &protocol)];
            a_rule(&Reply { fixed: &[2, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0], attributes })
        };
        assert!(rule(32766, 0).is_some(), "as ip rule add pref 32766 lookup main enters it, beside the kernel's");
        assert_ne!(rule(50, 0), rule(50, 99));
    }
}
