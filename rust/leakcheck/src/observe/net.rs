//! What each network namespace holds (network_namespaces(7)), and the names that namespaces have.
//!
//! Not looked at: raw, packet, SCTP and vsock sockets (the FD kind sees them), connected sockets, legacy iptables rules,
//! routes and addresses (they end with their interface), and interfaces that come and go with their namespace.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fd::AsRawFd;
use rustix::fs::{AtFlags, CWD, OFlags, StatxFlags, statx};
use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use super::enter::{NsView, note_refused};
use super::netlink::{Netlink, malformed};
use super::sockdiag::{SockDiag, Socket, Transport, Which};
use crate::kind::Kind;
use crate::parse::netlink::attributes;
use crate::resource::{Net, NetClass};
use crate::snapshot::{Level, Snapshot};
use crate::text::Text;

/// Where ip-netns(8) binds the namespaces that it names.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// What one network namespace holds, and what could not be seen of it.
#[derive(Default)]
pub(super) struct Seen {
    objects: Vec<Net>,
    gaps: Vec<String>,
}

/// Appends what [`namespace`] saw of the network namespaces, and the named namespaces.
pub(super) fn collect(results: Vec<crate::Result<Seen>>, out: &mut Snapshot) {
    note_refused(Kind::Net, results.iter().filter_map(|result| result.as_ref().err()), out);
    for mut seen in results.into_iter().flatten() {
        out.net.append(&mut seen.objects);
        seen.gaps.into_iter().for_each(|gap| out.coverage.lower(Kind::Net, Level::Partial, gap));
    }
    let mut known = Vec::new();
    let mut inside_arena;
    for dir in NAMED {
        let place = match out.arena.as_deref() {
            None => Ok(PathBuf::from(dir)),
            Some(arena) => match arena.open_inside(Path::new(dir), OFlags::PATH | OFlags::DIRECTORY) {
                Ok(fd) => {
                    inside_arena = fd;
                    Ok(format!("/proc/self/fd/{}", inside_arena.as_raw_fd()).into())
                }
                Err(Errno::NOENT) => continue,
                Err(e) => Err(e.into()),
            },
        };
        let listed = place.and_then(|place| named(&place, Path::new(dir), &mut known, &mut out.net));
        if let Err(e) = listed {
            out.coverage.lower(Kind::Net, Level::Partial, format!("list {dir}: {e}"));
        }
    }
}

/// Looks from a thread inside: a netlink socket belongs to the namespace that it was created in.
pub(super) fn namespace(view: &NsView) -> Seen {
    let mut seen = Seen::default();
    seen.note("list interfaces", interfaces(view.ino));
    match SockDiag::open() {
        Ok(mut diag) => {
            let listener = |socket| socket_record(view.ino, NetClass::Listener, socket);
            let unix = |socket| socket_record(view.ino, NetClass::Unix, socket);
            let mut list =
                |transport| diag.inet(transport, Which::Reachable).map(|s| s.into_iter().map(listener).collect());
            seen.note("list TCP sockets", list(Transport::Tcp));
            seen.note("list UDP sockets", list(Transport::Udp));
            seen.note("list unix sockets", diag.unix(Which::Reachable).map(|s| s.into_iter().map(unix).collect()));
        }
        Err(e) => seen.note("list sockets", Err(e)),
    }
    seen.note("list nftables tables", tables(view.ino));
    seen
}

impl Seen {
    fn note(&mut self, what: &str, listed: io::Result<Vec<Net>>) {
        match listed {
            Ok(objects) => self.objects.extend(objects),
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                self.gaps.push(format!("{what}: {e}; needs CAP_NET_ADMIN"))
            }
            Err(e) => self.gaps.push(format!("{what}: {e}")),
        }
    }
}

fn socket_record(netns: u64, class: NetClass, socket: Socket) -> Net {
    // Inodes are reused, cookies never.
    let scope = Text::from(format!("cookie {}", socket.cookie).into_bytes());
    Net { netns, class, number: socket.ino, scope, name: socket.name, uid: socket.uid }
}

/// Interfaces (rtnetlink(7), `RTM_GETLINK`) but those that exist exactly as long as their namespace does: its loopback,
/// and the tunnel drivers' fallback devices. They would be reported as so many leaks of one leaked namespace.
fn interfaces(netns: u64) -> io::Result<Vec<Net>> {
    const RTM_GETLINK: u16 = 18;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_EXT_MASK: u16 = 29;
    const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
    // struct ifinfomsg, then one attribute: statistics are most of a reply.
    let mut request = vec![0; 16];
    request.extend(8_u16.to_ne_bytes());
    request.extend(IFLA_EXT_MASK.to_ne_bytes());
    request.extend(RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    Netlink::open(None)?.dump(RTM_GETLINK, &request, |reply| {
        let field = |at: usize| reply.get(at..).and_then(<[u8]>::first_chunk).map(|word| u32::from_ne_bytes(*word));
        let (Some(index), Some(flags)) = (field(4), field(8)) else {
            return Err(malformed("RTM_NEWLINK is too short"));
        };
        let (mut name, mut driver) = (&b""[..], &b""[..]);
        for attribute in attributes(&reply[16..]) {
            let attribute = attribute.map_err(malformed)?;
            match attribute.kind {
                IFLA_IFNAME => name = text(attribute.payload),
                IFLA_LINKINFO => {
                    let mut info = attributes(attribute.payload).filter_map(Result::ok);
                    driver = info.find(|a| a.kind == IFLA_INFO_KIND).map_or(b"", |a| text(a.payload));
                }
                _ => {}
            }
        }
        if flags & libc::IFF_LOOPBACK as u32 != 0 || is_fallback_tunnel(name, driver) {
            return Ok(None);
        }
        let (class, scope) = (NetClass::Interface, Text::default());
        Ok(Some(Net { netns, class, number: index.into(), scope, name: name.into(), uid: None }))
    })
}

/// The device that a tunnel driver makes by itself in every network namespace, for as long as it is loaded
/// (`net.core.fb_tunnels_only_for_init_net`, Documentation/admin-guide/sysctl/net.rst).
fn is_fallback_tunnel(name: &[u8], driver: &[u8]) -> bool {
    const FALLBACKS: [(&[u8], &[u8]); 9] = [
        (b"tunl0", b"ipip"),
        (b"gre0", b"gre"),
        (b"gretap0", b"gretap"),
        (b"erspan0", b"erspan"),
        (b"ip_vti0", b"vti"),
        (b"ip6_vti0", b"vti6"),
        (b"sit0", b"sit"),
        (b"ip6tnl0", b"ip6tnl"),
        (b"ip6gre0", b"ip6gre"),
    ];
    FALLBACKS.contains(&(name, driver))
}

/// nftables tables (`NFT_MSG_GETTABLE`, linux/netfilter/nf_tables.h); the kernel answers none but CAP_NET_ADMIN.
fn tables(netns: u64) -> io::Result<Vec<Net>> {
    const SUBSYSTEM_NFTABLES: u16 = 10;
    const NFT_MSG_GETTABLE: u16 = 1;
    const NFTA_TABLE_NAME: u16 = 1;
    const NFTA_TABLE_HANDLE: u16 = 4;
    let mut netlink = match Netlink::open(Some(NETFILTER)) {
        Ok(netlink) => netlink,
        // A kernel without nfnetlink has no nftables: nothing can exist.
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    // struct nfgenmsg, every family
    let listed = netlink.dump(SUBSYSTEM_NFTABLES << 8 | NFT_MSG_GETTABLE, &[0; 4], |reply| {
        let Some((header, rest)) = reply.split_first_chunk::<4>() else {
            return Err(malformed("NFT_MSG_NEWTABLE is too short"));
        };
        let (mut name, mut handle) = (&b""[..], 0);
        for attribute in attributes(rest) {
            let attribute = attribute.map_err(malformed)?;
            match attribute.kind {
                NFTA_TABLE_NAME => name = text(attribute.payload),
                NFTA_TABLE_HANDLE => handle = attribute.payload.first_chunk().map_or(0, |h| u64::from_be_bytes(*h)),
                _ => {}
            }
        }
        let name = [nft_family(header[0]).as_bytes(), b" ", name].concat();
        let (class, scope) = (NetClass::NftTable, Text::from(name.as_slice()));
        Ok(Some(Net { netns, class, number: handle, scope, name: name.into(), uid: None }))
    });
    match listed {
        // nfnetlink's word for a subsystem that is neither built in nor a module: nothing can exist.
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

/// The entries of a directory of ip-netns(8). A file that no namespace is bound over any more is an entry too: it is what
/// a half-done removal leaves. `known` holds the directories that were read under another name.
/// `place` leads to it, `dir` is what it is called.
fn named(place: &Path, dir: &Path, known: &mut Vec<(u32, u32, u64)>, net: &mut Vec<Net>) -> io::Result<()> {
    let identity = match identity(place) {
        Ok(identity) => identity,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if known.contains(&identity) {
        return Ok(());
    }
    known.push(identity);
    let nsfs = self::identity(Path::new("/proc/self/ns/net"))?;
    for entry in fs::read_dir(place)? {
        let path = entry?.path();
        let (major, minor, ino) = match self::identity(&path) {
            Ok(identity) => identity,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let is_namespace = (major, minor) == (nsfs.0, nsfs.1);
        let mut name = path.file_name().unwrap_or_default().as_bytes().to_vec();
        if !is_namespace {
            name.extend(b" (no namespace)");
        }
        let netns = if is_namespace { ino } else { 0 };
        let path = dir.join(path.file_name().unwrap_or_default());
        let (scope, class) = (Text::from(path.as_path()), NetClass::NamedNetns);
        net.push(Net { netns, class, number: ino, scope, name: name.into(), uid: None });
    }
    Ok(())
}

/// Device and inode, without waking an automounter or waiting for a server.
fn identity(path: &Path) -> io::Result<(u32, u32, u64)> {
    let stat = statx(CWD, path, AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC, StatxFlags::INO)?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino))
}

/// A string attribute's payload up to its NUL.
fn text(payload: &[u8]) -> &[u8] {
    payload.split(|byte| *byte == 0).next().unwrap_or_default()
}
