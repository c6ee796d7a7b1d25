//! The contents of each network namespace (network_namespaces(7)), and named namespaces.
//!
//! Not covered: raw, packet, SCTP and vsock sockets (the FD kind sees them), connected sockets, legacy ebtables, and
//! interfaces that come and go with their namespace.

mod dump;
mod elements;
mod forwarding;
mod ipsec;
mod ipset;
mod iptables;
mod neighbours;
mod nftables;
mod routing;
mod traffic;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, AtFlags, CWD, Dir, Mode, OFlags, StatxFlags, statx};
use rustix::io::{Errno, pread};
use rustix::net::netlink::NETFILTER;

use dump::text;

use super::context::Context;
use super::enter::{NsView, note_refused};
use super::netlink::{Netlink, malformed};
use super::reach::Place;
use super::remote::Inside;
use super::sockdiag::{SockDiag, Socket, Transport, Which};
use crate::error::in_words;
use crate::kind::Kind;
use crate::parse::netlink::attributes;
use crate::parse::sockstat::in_use;
use crate::resource::{Net, NetClass};
use crate::snapshot::{Gap, Level, Snapshot, Unseen};
use crate::text::Text;

/// Where ip-netns(8) bind mounts the namespaces that it names.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// The contents of one network namespace, and what could not be seen.
#[derive(Default)]
pub(super) struct Contents {
    objects: Vec<Net>,
    gaps: Vec<String>,
    /// Why what filters packets, which needs a privilege, was not listed in the observer's own namespace.
    filters: Option<String>,
}

/// Appends the contents of the network namespaces, each read through a [`NsHandle`], and the named namespaces.
pub(super) fn collect(results: Vec<crate::error::Result<Contents>>, context: Context<'_>, out: &mut Snapshot) {
    note_refused(Kind::Net, results.iter().filter_map(|result| result.as_ref().err()), out);
    for mut seen in results.into_iter().flatten() {
        out.net.append(&mut seen.objects);
        seen.gaps.into_iter().for_each(|gap| out.coverage.lower(Kind::Net, Level::Partial, gap));
        let gap = |reason| Gap { kind: Kind::Net, level: Level::Partial, reason, place: Unseen::Nftables };
        out.gaps.extend(seen.filters.map(gap));
    }
    let mut known = Vec::new();
    let mut mounts = context.mounts();
    for dir in NAMED {
        let listed = match context.open_by(&mut mounts, Path::new(dir)) {
            Ok(place) => named(&place, Path::new(dir), &mut known, &mut out.net).map_err(|e| e.to_string()),
            Err(e) if e.is_missing() => continue,
            Err(e) => Err(e.to_string()),
        };
        if let Err(e) = listed {
            out.coverage.lower(Kind::Net, Level::Partial, format!("cannot list {dir}: {}", in_words(e)));
        }
    }
}

/// Handles to read a network namespace: a netlink socket belongs to the namespace that it was created in, whichever
/// thread uses it.
pub(super) struct NsHandle {
    route: io::Result<Netlink>,
    diag: io::Result<SockDiag>,
    /// None on a kernel without nfnetlink, which has no nftables.
    filter: io::Result<Option<Netlink>>,
    iptables: io::Result<Vec<iptables::Tables>>,
    ipsec: Option<io::Result<Netlink>>,
    /// Only in a handle that is kept.
    counters: Option<Counters>,
}

impl NsHandle {
    /// Opens the sockets inside. `kept` is for a handle that other threads use later.
    pub(super) fn open(inside: Inside<'_>, kept: bool) -> Self {
        let is_here = matches!(inside, Inside::Here);
        let kept = kept || !is_here;
        let filter = match Netlink::open(inside, Some(NETFILTER), kept) {
            Ok(netlink) => Ok(Some(netlink)),
            Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ok(None),
            Err(e) => Err(e),
        };
        let counters = (kept && is_here).then(Counters::open).flatten();
        NsHandle {
            route: Netlink::open(inside, None, kept),
            diag: SockDiag::open_in(inside, kept),
            filter,
            iptables: iptables::Tables::open(inside, kept),
            ipsec: ipsec::open(inside, kept),
            counters,
        }
    }

    /// Lists the current contents of the namespace.
    pub(super) fn observe(&mut self, view: &NsView) -> Contents {
        let mut seen = Contents::default();
        let mut links = Links::default();
        let listed =
            self.route.as_mut().map_err(|e| again(e)).and_then(|route| interfaces(route, view.ino, &mut links));
        seen.note("list interfaces", listed);
        if let Ok(route) = &mut self.route {
            let configured = configuration(route, &links, &Namer { netns: view.ino, interfaces: &links.names });
            seen.note("list addresses and routes", configured);
        }
        match &mut self.diag {
            Ok(diag) => {
                let listener = |socket| socket_record(view.ino, NetClass::Listener, socket);
                let unix = |socket| socket_record(view.ino, NetClass::Unix, socket);
                let none = self.counters.as_ref().map(Counters::none_of).unwrap_or_default();
                let mut list =
                    |transport| diag.inet(transport, Which::Reachable).map(|s| s.into_iter().map(listener).collect());
                if !none.contains(&Transport::Tcp) {
                    seen.note("list TCP sockets", list(Transport::Tcp));
                }
                if !none.contains(&Transport::Udp) {
                    seen.note("list UDP sockets", list(Transport::Udp));
                }
                seen.note("list unix sockets", diag.unix(Which::Reachable).map(|s| s.into_iter().map(unix).collect()));
            }
            Err(e) => seen.note("list sockets", Err(again(e))),
        }
        self.filters(view, &mut seen);
        seen
    }

    /// What the kernel shows only with CAP_NET_ADMIN.
    fn filters(&mut self, view: &NsView, seen: &mut Contents) {
        let namer = Namer { netns: view.ino, interfaces: &HashMap::new() };
        let record = |(class, scope)| namer.record(class, 0, scope);
        let (tables, sets) = match &mut self.filter {
            Ok(Some(filter)) => (
                nftables::list(filter, view.ino),
                ipset::list(filter).and_then(|sets| {
                    let mut all = elements::of_ipset(filter, view.ino, &sets)?;
                    all.extend(sets.into_iter().map(|name| namer.set(name)));
                    Ok(all)
                }),
            ),
            Ok(None) => (Ok(Vec::new()), Ok(Vec::new())),
            Err(e) => (Err(again(e)), Ok(Vec::new())),
        };
        let iptables = self.iptables.as_ref().map_err(again).and_then(|families| {
            let listed: io::Result<Vec<_>> = families.iter().map(iptables::Tables::list).collect();
            Ok(listed?.into_iter().flatten().map(record).collect())
        });
        let ipsec = match &mut self.ipsec {
            Some(ipsec) => ipsec.as_mut().map_err(|e| again(e)).and_then(ipsec::list),
            None => Ok(Vec::new()),
        };
        let ipsec = ipsec.map(|listed| listed.into_iter().map(record).collect());
        for (what, listed) in [("nftables tables", tables), ("sets", sets), ("iptables", iptables), ("IPsec", ipsec)] {
            match listed {
                Err(e) if view.own && matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
                    let why = || format!("cannot list {what}: {}; needs CAP_NET_ADMIN", in_words(e));
                    seen.filters.get_or_insert_with(why);
                }
                listed => seen.note(&format!("list {what}"), listed),
            }
        }
    }
}

/// The number of sockets in a network namespace, for IPv4 and, if the kernel supports it, for IPv6. Reading it is
/// faster than reading the tables of the whole machine, which have a few thousand slots each.
struct Counters(OwnedFd, Option<OwnedFd>);

impl Counters {
    /// Call it from a thread inside: the files stay those of its namespace.
    fn open() -> Option<Self> {
        let open = |name| fs::open(name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let first = open(c"/proc/thread-self/net/sockstat").ok()?;
        match open(c"/proc/thread-self/net/sockstat6") {
            Ok(second) => Some(Counters(first, Some(second))),
            Err(Errno::NOENT) => Some(Counters(first, None)),
            Err(_) => None,
        }
    }

    /// The protocols that certainly have no socket.
    fn none_of(&self) -> Vec<Transport> {
        let mut texts = [[0; 512]; 2];
        let [v4, v6] = &mut texts;
        let read = |file: &OwnedFd, text: &mut [u8]| pread(file, text, 0).is_ok();
        if !read(&self.0, v4) || self.1.as_ref().is_some_and(|file| !read(file, v6)) {
            return Vec::new();
        }
        let unused = |protocol: &Transport| {
            let (one, other) = match protocol {
                Transport::Tcp => ("TCP", "TCP6"),
                Transport::Udp => ("UDP", "UDP6"),
            };
            in_use(v4, one) == Some(0) && (self.1.is_none() || in_use(v6, other) == Some(0))
        };
        [Transport::Tcp, Transport::Udp].into_iter().filter(unused).collect()
    }
}

/// Addresses, routes and the like, and what shapes traffic.
fn configuration(route: &mut Netlink, links: &Links, namer: &Namer<'_>) -> io::Result<Vec<Net>> {
    let mut all = routing::list(route)?;
    all.extend(neighbours::list(route)?.into_iter().map(|(index, scope)| (NetClass::Neighbour, index, scope)));
    if links.forwarding {
        let entries = forwarding::entries(route, &links.addresses)?;
        all.extend(entries.into_iter().map(|(index, scope)| (NetClass::Forwarding, index, scope)));
    }
    if links.groups {
        let groups = forwarding::groups(route)?;
        all.extend(groups.into_iter().map(|(index, scope)| (NetClass::MulticastGroup, index, scope)));
    }
    all.extend(traffic::list(route)?);
    Ok(all.into_iter().map(|(class, index, scope)| namer.record(class, index, scope)).collect())
}

/// What the interfaces of a namespace tell about other objects.
#[derive(Default)]
struct Links {
    names: HashMap<u32, Text>,
    /// Of the link layer.
    addresses: HashSet<Vec<u8>>,
    /// Whether an interface can have a forwarding table.
    forwarding: bool,
    /// Whether one can have multicast groups.
    groups: bool,
}

/// Makes records of what has no number but its interface's.
struct Namer<'a> {
    netns: u64,
    interfaces: &'a HashMap<u32, Text>,
}

impl Namer<'_> {
    /// `scope` is what identifies it there.
    fn record(&self, class: NetClass, index: u32, scope: String) -> Net {
        let name = match self.interfaces.get(&index) {
            Some(interface) if index > 0 => [scope.as_bytes(), b" dev ", interface.as_ref()].concat(),
            _ => scope.clone().into_bytes(),
        };
        let (netns, scope) = (self.netns, scope.into_bytes().into());
        Net { netns, class, number: index.into(), scope, name: name.into(), uid: None }
    }

    fn set(&self, name: Text) -> Net {
        Net { netns: self.netns, class: NetClass::Ipset, number: 0, scope: name.clone(), name, uid: None }
    }
}

/// The same error for another report.
fn again(e: &io::Error) -> io::Error {
    e.raw_os_error().map_or_else(|| io::Error::other(e.to_string()), io::Error::from_raw_os_error)
}

impl Contents {
    pub(super) fn is_whole(&self) -> bool {
        self.gaps.is_empty()
    }

    fn note(&mut self, what: &str, listed: io::Result<Vec<Net>>) {
        match listed {
            Ok(objects) => self.objects.extend(objects),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
                self.gaps.push(format!("cannot {what}: {}; needs CAP_NET_ADMIN", in_words(e)))
            }
            Err(e) => self.gaps.push(format!("cannot {what}: {}", in_words(e))),
        }
    }
}

fn socket_record(netns: u64, class: NetClass, socket: Socket) -> Net {
    // Inodes are reused, cookies are not.
    let scope = Text::from(format!("cookie {}", socket.cookie).into_bytes());
    Net { netns, class, number: socket.ino, scope, name: socket.name, uid: socket.uid }
}

/// Interfaces (rtnetlink(7), `RTM_GETLINK`) except those that exist exactly as long as their namespace: its loopback,
/// and the tunnel drivers' fallback devices. They would be reported as many leaks of one leaked namespace.
///
/// Their alternative names come with them, those of any interface; `links` takes what is said of all.
fn interfaces(netlink: &mut Netlink, netns: u64, links: &mut Links) -> io::Result<Vec<Net>> {
    const RTM_GETLINK: u16 = 18;
    const IFLA_ADDRESS: u16 = 1;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_EXT_MASK: u16 = 29;
    const IFLA_PROP_LIST: u16 = 52;
    const IFLA_ALT_IFNAME: u16 = 53;
    const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
    // struct ifinfomsg, then one attribute: statistics are most of a reply.
    let mut request = vec![0; 16];
    request.extend(8_u16.to_ne_bytes());
    request.extend(IFLA_EXT_MASK.to_ne_bytes());
    request.extend(RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let listed = netlink.dump(RTM_GETLINK, &request, |reply| {
        let field = |at: usize| reply.get(at..).and_then(<[u8]>::first_chunk).map(|word| u32::from_ne_bytes(*word));
        let (Some(index), Some(flags)) = (field(4), field(8)) else {
            return Err(malformed("RTM_NEWLINK is too short"));
        };
        let (mut name, mut driver, mut others) = (&b""[..], &b""[..], Vec::new());
        for attribute in attributes(&reply[16..]) {
            let attribute = attribute.map_err(malformed)?;
            match attribute.kind {
                IFLA_ADDRESS if !links.addresses.contains(attribute.payload) => {
                    links.addresses.insert(attribute.payload.to_vec());
                }
                IFLA_IFNAME => name = text(attribute.payload),
                IFLA_LINKINFO => {
                    let mut info = attributes(attribute.payload).filter_map(Result::ok);
                    driver = info.find(|a| a.kind == IFLA_INFO_KIND).map_or(b"", |a| text(a.payload));
                }
                IFLA_PROP_LIST => {
                    let more = attributes(attribute.payload).filter_map(Result::ok);
                    others.extend(more.filter(|a| a.kind == IFLA_ALT_IFNAME).map(|a| text(a.payload)));
                }
                _ => {}
            }
        }
        links.names.insert(index, name.into());
        links.groups |= matches!(driver, b"bridge" | b"vxlan");
        let record = |class, scope: &[u8], name: Vec<u8>| {
            let (scope, name) = (Text::from(scope), Text::from(name));
            Net { netns, class, number: index.into(), scope, name, uid: None }
        };
        let of = |other: &[u8]| [other, b" of ", name].concat();
        let mut found: Vec<Net> = others.into_iter().map(|other| record(NetClass::AltName, other, of(other))).collect();
        if flags & libc::IFF_LOOPBACK as u32 == 0 && !is_fallback_tunnel(name, driver) {
            links.forwarding = true;
            found.push(record(NetClass::Interface, b"", name.to_vec()));
        }
        Ok(Some(found))
    })?;
    Ok(listed.into_iter().flatten().collect())
}

/// The device that a tunnel driver creates itself in every network namespace, as long as the driver is loaded
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

/// The entries of a directory of ip-netns(8). A file without a namespace mounted on it is an entry too: an incomplete
/// removal leaves it. `known` holds the directories that were read under another name. `place` leads to it, `dir` is
/// what it is called.
fn named(place: &Place, dir: &Path, known: &mut Vec<(u32, u32, u64)>, net: &mut Vec<Net>) -> io::Result<()> {
    let identity = identity(&place.fd, Path::new(""))?;
    if known.contains(&identity) {
        return Ok(());
    }
    known.push(identity);
    let nsfs = self::identity(CWD, Path::new("/proc/self/ns/net"))?;
    let listed = Dir::new(place.reopen(OFlags::RDONLY | OFlags::DIRECTORY)?)?;
    for entry in listed {
        let name = entry?.file_name().to_owned();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let (major, minor, ino) = match self::identity(&place.fd, Path::new(OsStr::from_bytes(name.to_bytes()))) {
            Ok(identity) => identity,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let is_namespace = (major, minor) == (nsfs.0, nsfs.1);
        let path = dir.join(OsStr::from_bytes(name.to_bytes()));
        let mut name = name.into_bytes();
        if !is_namespace {
            name.extend(b" (no namespace)");
        }
        let netns = if is_namespace { ino } else { 0 };
        let (scope, class) = (Text::from(path.as_path()), NetClass::NamedNetns);
        net.push(Net { netns, class, number: ino, scope, name: name.into(), uid: None });
    }
    Ok(())
}

/// Device and inode, without waking an automounter or waiting for a server.
fn identity(at: impl AsFd, path: &Path) -> io::Result<(u32, u32, u64)> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC | AtFlags::EMPTY_PATH;
    let stat = statx(at, path, flags, StatxFlags::INO)?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use std::path::PathBuf;

    use rustix::thread::{UnshareFlags, unshare_unsafe};

    use super::*;
    use crate::parse::nslink::NsType;

    #[test]
    fn a_handle_that_is_kept_shows_one_socket_of_any_protocol_and_none_when_it_is_closed() {
        let observation = || {
            #[allow(unsafe_code)]
            // SAFETY: the thread's network namespace concerns sockets that it opens; the thread ends with this test.
            if unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.is_err() {
                return;
            }
            let view = NsView { ns_type: NsType::Net, ino: 1, path: PathBuf::new(), own: false };
            let mut handle = NsHandle::open(Inside::Here, true);
            let mut listeners = || {
                let seen = handle.observe(&view);
                assert!(seen.is_whole(), "{:?}", seen.gaps);
                let listeners = seen.objects.into_iter().filter(|object| object.class == NetClass::Listener);
                listeners.map(|object| object.name.to_string()).collect::<Vec<_>>()
            };
            for address in ["0.0.0.0:4567", "[::]:4567"] {
                assert_eq!(listeners(), Vec::<String>::new());
                let tcp = TcpListener::bind(address).unwrap();
                assert_eq!(listeners(), [format!("tcp {address}")]);
                drop(tcp);
                assert_eq!(listeners(), Vec::<String>::new());
                let udp = UdpSocket::bind(address).unwrap();
                assert_eq!(listeners(), [format!("udp {address}")]);
                drop(udp);
            }
        };
        std::thread::spawn(observation).join().unwrap();
    }
}
