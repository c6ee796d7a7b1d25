//! Sockets of the calling thread's network namespace (sock_diag(7)).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::netlink::SOCK_DIAG;

use super::netlink::{Netlink, malformed};
use super::remote::Inside;
use crate::parse::netlink::attributes;
use crate::text::Text;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const ESTABLISHED: u8 = 1;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// An internet transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    fn number(self) -> u8 {
        match self {
            Transport::Tcp => libc::IPPROTO_TCP as u8,
            Transport::Udp => libc::IPPROTO_UDP as u8,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }
}

/// The attributes of a socket that every family reports.
#[derive(Clone, Debug)]
pub(crate) struct Socket {
    /// Inode of the socket's file, 0 for one without a file.
    pub(crate) ino: u64,
    /// A number that is unique within this boot (`sock_gen_cookie()`).
    pub(crate) cookie: u64,
    /// Owner, if the kernel reports it.
    pub(crate) uid: Option<u32>,
    /// Protocol and address, for people.
    pub(crate) name: Text,
}

/// Which sockets of a family to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those that can be reached by an address: listening TCP, bound and unconnected UDP, listening or bound unix sockets.
    Reachable,
    /// Every one.
    All,
}

/// The diagnosis socket of one network namespace.
pub(crate) struct SockDiag(Netlink);

impl SockDiag {
    pub(crate) fn open() -> io::Result<Self> {
        Self::open_in(Inside::Here, false)
    }

    /// As [`open`](Self::open); `kept` is for a socket that threads of other namespaces use later.
    pub(super) fn open_in(inside: Inside<'_>, kept: bool) -> io::Result<Self> {
        Netlink::open(inside, Some(SOCK_DIAG), kept).map(SockDiag)
    }

    /// TCP or UDP sockets over IPv4 and IPv6 (`struct inet_diag_req_v2`, linux/inet_diag.h).
    pub(crate) fn inet(&mut self, transport: Transport, which: Which) -> io::Result<Vec<Socket>> {
        let mut sockets = self.inet_family(libc::AF_INET, transport, which)?;
        match self.inet_family(libc::AF_INET6, transport, which) {
            Ok(more) => sockets.extend(more),
            // The kernel answers for IPv4 and does not support IPv6: no IPv6 socket can exist.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => return Err(e),
        }
        Ok(sockets)
    }

    fn inet_family(&mut self, family: i32, transport: Transport, which: Which) -> io::Result<Vec<Socket>> {
        let states: u32 = match (which, transport) {
            (Which::All, _) => u32::MAX,
            (Which::Reachable, Transport::Tcp) => 1 << LISTEN,
            (Which::Reachable, Transport::Udp) => 1 << CLOSE,
        };
        let mut request = [0; 56];
        request[0] = family as u8;
        request[1] = transport.number();
        request[4..8].copy_from_slice(&states.to_ne_bytes());
        self.0.dump(SOCK_DIAG_BY_FAMILY, &request, |reply| {
            // struct inet_diag_msg
            let [family, state] = bytes(reply, 0)?;
            let (local, remote) = (address(reply, family, 4, 8)?, address(reply, family, 6, 24)?);
            let mut name = format!("{} {local}", transport.name());
            if remote.port() != 0 {
                write!(name, " to {remote}").expect("a String takes every byte");
            }
            if which == Which::All {
                write!(name, " {}", state_name(state)).expect("a String takes every byte");
            }
            Ok(Some(Socket {
                ino: u32_at(reply, 68)?.into(),
                cookie: cookie(reply, 44)?,
                uid: Some(u32_at(reply, 64)?),
                name: Text::from(name.into_bytes()),
            }))
        })
    }

    /// Unix sockets (`struct unix_diag_req`, linux/unix_diag.h). An accepted stream has the name of its listener, which
    /// cannot be distinguished from a name of its own: connected streams are not in [`Which::Reachable`].
    pub(crate) fn unix(&mut self, which: Which) -> io::Result<Vec<Socket>> {
        const SHOW_NAME: u32 = 0x1;
        const SHOW_UID: u32 = 0x40;
        const NAME: u16 = 0;
        const UID: u16 = 7;
        let mut request = [0; 24];
        request[0] = libc::AF_UNIX as u8;
        request[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        request[12..16].copy_from_slice(&(SHOW_NAME | SHOW_UID).to_ne_bytes());
        self.0.dump(SOCK_DIAG_BY_FAMILY, &request, |reply| {
            // struct unix_diag_msg, then attributes
            let [_, socket_type, state] = bytes(reply, 0)?;
            let (mut path, mut uid) = (None, None);
            for attribute in attributes(reply.get(16..).unwrap_or_default()) {
                let attribute = attribute.map_err(malformed)?;
                match attribute.kind {
                    NAME => path = Some(attribute.payload),
                    UID => uid = attribute.u32(),
                    _ => {}
                }
            }
            let stream = i32::from(socket_type) != libc::SOCK_DGRAM;
            let reachable = state == LISTEN || (path.is_some() && !(stream && state == ESTABLISHED));
            if which == Which::Reachable && !reachable {
                return Ok(None);
            }
            let mut name = format!("unix {} ", unix_type(socket_type)).into_bytes();
            match path {
                None => name.extend(b"unnamed"),
                Some([0, abstract_name @ ..]) => {
                    name.push(b'@');
                    name.extend(abstract_name);
                }
                Some(path) => name.extend(path.split(|byte| *byte == 0).next().unwrap_or_default()),
            }
            if which == Which::All && state != CLOSE {
                name.extend(format!(" {}", state_name(state)).bytes());
            }
            Ok(Some(Socket { ino: u32_at(reply, 4)?.into(), cookie: cookie(reply, 8)?, uid, name: name.into() }))
        })
    }

    /// Inodes of unix sockets with something to receive.
    pub(crate) fn unix_queued(&mut self) -> io::Result<Vec<u64>> {
        const SHOW_RQLEN: u32 = 0x10;
        const RQLEN: u16 = 4;
        let mut request = [0; 24];
        request[0] = libc::AF_UNIX as u8;
        request[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        request[12..16].copy_from_slice(&SHOW_RQLEN.to_ne_bytes());
        self.0.dump(SOCK_DIAG_BY_FAMILY, &request, |reply| {
            for attribute in attributes(reply.get(16..).unwrap_or_default()) {
                let attribute = attribute.map_err(malformed)?;
                // struct unix_diag_rqlen: the receive queue first.
                if attribute.kind == RQLEN && u32_at(attribute.payload, 0)? > 0 {
                    return Ok(Some(u32_at(reply, 4)?.into()));
                }
            }
            Ok(None)
        })
    }

    /// Netlink sockets (`struct netlink_diag_req`, linux/netlink_diag.h).
    fn netlink(&mut self) -> io::Result<Vec<Socket>> {
        const ALL_PROTOCOLS: u8 = 255;
        let mut request = [0; 20];
        request[..2].copy_from_slice(&[libc::AF_NETLINK as u8, ALL_PROTOCOLS]);
        self.0.dump(SOCK_DIAG_BY_FAMILY, &request, |reply| {
            let [protocol] = bytes(reply, 2)?;
            let name = format!("netlink {} port {}", netlink_protocol(protocol), u32_at(reply, 4)?);
            let (ino, cookie) = (u32_at(reply, 16)?.into(), cookie(reply, 20)?);
            Ok(Some(Socket { ino, cookie, uid: None, name: Text::from(name.into_bytes()) }))
        })
    }

    /// Packet sockets (`struct packet_diag_req`, linux/packet_diag.h).
    fn packet(&mut self) -> io::Result<Vec<Socket>> {
        let mut request = [0; 20];
        request[0] = libc::AF_PACKET as u8;
        self.0.dump(SOCK_DIAG_BY_FAMILY, &request, |reply| {
            let name = format!("packet protocol {:#06x}", u16::from_ne_bytes(bytes(reply, 2)?));
            let (ino, cookie) = (u32_at(reply, 4)?.into(), cookie(reply, 8)?);
            Ok(Some(Socket { ino, cookie, uid: None, name: Text::from(name.into_bytes()) }))
        })
    }
}

type Table = fn(&mut SockDiag) -> io::Result<Vec<Socket>>;

/// One line for each of these socket inodes that the observer's own network namespace contains: protocol, addresses,
/// state. It reads whole tables, so request all inodes at once, and only those to be shown.
pub(crate) fn describe(wanted: &BTreeSet<u64>) -> BTreeMap<u64, String> {
    let mut found = BTreeMap::new();
    let Ok(mut diag) = SockDiag::open() else { return found };
    let tables: [Table; 5] = [
        |diag| diag.unix(Which::All),
        |diag| diag.netlink(),
        |diag| diag.packet(),
        |diag| diag.inet(Transport::Udp, Which::All),
        |diag| diag.inet(Transport::Tcp, Which::All),
    ];
    for table in tables {
        if found.len() == wanted.len() {
            break;
        }
        // A family that this kernel does not diagnose has no description: it is a hint, not a record.
        for socket in table(&mut diag).unwrap_or_default() {
            if wanted.contains(&socket.ino) {
                found.insert(socket.ino, socket.name.to_string());
            }
        }
    }
    found
}

/// [`describe`] for one socket.
pub(crate) fn describe_socket(ino: u64) -> Option<String> {
    describe(&BTreeSet::from([ino])).remove(&ino)
}

fn bytes<const N: usize>(reply: &[u8], at: usize) -> io::Result<[u8; N]> {
    let found = reply.get(at..).and_then(<[u8]>::first_chunk);
    found.copied().ok_or_else(|| malformed("sock_diag reply is too short"))
}

fn u32_at(reply: &[u8], at: usize) -> io::Result<u32> {
    bytes(reply, at).map(u32::from_ne_bytes)
}

/// Two words in the machine's order, the low one first.
fn cookie(reply: &[u8], at: usize) -> io::Result<u64> {
    Ok(u64::from(u32_at(reply, at + 4)?) << 32 | u64::from(u32_at(reply, at)?))
}

fn address(reply: &[u8], family: u8, port_at: usize, at: usize) -> io::Result<SocketAddr> {
    let ip = if i32::from(family) == libc::AF_INET6 {
        IpAddr::V6(Ipv6Addr::from(bytes::<16>(reply, at)?))
    } else {
        IpAddr::V4(Ipv4Addr::from(bytes::<4>(reply, at)?))
    };
    Ok(SocketAddr::new(ip, u16::from_be_bytes(bytes(reply, port_at)?)))
}

/// `enum` of net/tcp_states.h; unix and UDP sockets use the same numbers.
fn state_name(state: u8) -> String {
    const STATES: [&str; 13] = [
        "established",
        "syn-sent",
        "syn-received",
        "fin-wait-1",
        "fin-wait-2",
        "time-wait",
        "unconnected",
        "close-wait",
        "last-ack",
        "listening",
        "closing",
        "new-syn-received",
        "bound",
    ];
    let known = usize::from(state).checked_sub(1).and_then(|index| STATES.get(index));
    known.map_or_else(|| format!("state {state}"), |name| (*name).to_owned())
}

fn unix_type(socket_type: u8) -> &'static str {
    match i32::from(socket_type) {
        libc::SOCK_STREAM => "stream",
        libc::SOCK_DGRAM => "dgram",
        libc::SOCK_SEQPACKET => "seqpacket",
        _ => "socket",
    }
}

fn netlink_protocol(protocol: u8) -> String {
    let name = match i32::from(protocol) {
        libc::NETLINK_ROUTE => "route",
        libc::NETLINK_SOCK_DIAG => "sock_diag",
        libc::NETLINK_XFRM => "xfrm",
        libc::NETLINK_AUDIT => "audit",
        libc::NETLINK_CONNECTOR => "connector",
        libc::NETLINK_NETFILTER => "netfilter",
        libc::NETLINK_KOBJECT_UEVENT => "uevent",
        libc::NETLINK_GENERIC => "generic",
        libc::NETLINK_CRYPTO => "crypto",
        other => return format!("protocol {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};

    use super::*;

    fn describe_fd(socket: &impl AsRawFd) -> String {
        let meta = std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        describe_socket(meta.ino()).expect("a socket of this namespace")
    }

    #[test]
    fn describes_internet_sockets_by_addresses_and_state() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (here, there) = (client.local_addr().unwrap(), listener.local_addr().unwrap());
        assert_eq!(describe_fd(&listener), format!("tcp {there} listening"));
        assert_eq!(describe_fd(&client), format!("tcp {here} to {there} established"));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(describe_fd(&udp), format!("udp {} unconnected", udp.local_addr().unwrap()));
    }

    #[test]
    fn describes_unix_and_netlink_sockets() {
        let address = UnixAddress::from_abstract_name(format!("leakcheck\n{}", std::process::id())).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        assert_eq!(describe_fd(&listener), format!("unix stream @leakcheck\\n{} listening", std::process::id()));
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(describe_fd(&one), "unix stream unnamed established");
        // The kernel lists a netlink socket from when it has a port.
        let route =
            rustix::net::socket(rustix::net::AddressFamily::NETLINK, rustix::net::SocketType::RAW, None).unwrap();
        rustix::net::bind(&route, &rustix::net::netlink::SocketAddrNetlink::new(0, 0)).unwrap();
        let described = describe_fd(&route);
        assert!(described.starts_with("netlink route port ") && !described.ends_with(" 0"), "{described}");
    }

    #[test]
    fn an_unknown_inode_has_no_description() {
        assert_eq!(describe_socket(u64::MAX), None);
    }

    #[test]
    fn two_sockets_never_share_a_cookie() {
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        let cookies = |diag: &mut SockDiag| {
            let listed = diag.inet(Transport::Tcp, Which::Reachable).unwrap();
            listed.into_iter().map(|socket| socket.cookie).collect::<BTreeSet<_>>()
        };
        let mut diag = SockDiag::open().unwrap();
        let before = cookies(&mut diag);
        assert!(!before.is_empty() && !before.contains(&0));
        let port = one.local_addr().unwrap();
        drop(one);
        let again = TcpListener::bind(port).unwrap();
        let inode = std::fs::metadata(format!("/proc/self/fd/{}", again.as_raw_fd())).unwrap().ino();
        let listed = diag.inet(Transport::Tcp, Which::Reachable).unwrap();
        let socket = listed.iter().find(|socket| socket.ino == inode).expect("the second listener");
        assert!(!before.contains(&socket.cookie), "same address, another socket");
    }

    #[test]
    fn a_reply_that_is_too_short_is_an_error() {
        assert!(cookie(&[0; 51], 44).is_err());
        assert!(address(&[0; 20], libc::AF_INET6 as u8, 4, 8).is_err());
    }
}
