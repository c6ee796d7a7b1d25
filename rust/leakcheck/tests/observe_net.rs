//! The net kind against real objects.

#[path = "planted/netlink.rs"]
mod netlink;
mod planted;

use std::ffi::OsStr;
use std::fs;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};

use leakcheck::kind::Kind;
use leakcheck::resource::{Net, NetClass};
use leakcheck::snapshot::Level;
use planted::{Sandbox, eventually, keep_only, observation, on_a_thread, privileged};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::CapabilitySet;

fn see() -> Vec<Net> {
    observation(&[Kind::Net]).net
}

fn inode(fd: &impl AsRawFd) -> u64 {
    fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("an open descriptor").ino()
}

fn find(net: &[Net], class: NetClass, number: u64) -> Option<&Net> {
    net.iter().find(|record| record.class == class && record.number == number)
}

fn own_netns() -> u64 {
    fs::metadata("/proc/self/ns/net").expect("stat").ino()
}

#[test]
fn sees_listening_tcp_and_bound_udp_sockets_until_they_are_closed() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp6 = TcpListener::bind("[::1]:0").ok();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (tcp_inode, udp_inode) = (inode(&tcp), inode(&udp));
    let net = see();
    let record = find(&net, NetClass::Listener, tcp_inode).expect("the TCP listener");
    assert_eq!(record.name.to_string(), format!("tcp {}", tcp.local_addr().unwrap()));
    assert_eq!(record.netns, own_netns());
    assert_eq!(record.uid, Some(rustix::process::geteuid().as_raw()));
    assert!(record.scope.to_string().starts_with("cookie "), "{record:?}");
    let record = find(&net, NetClass::Listener, udp_inode).expect("the UDP socket");
    assert_eq!(record.name.to_string(), format!("udp {}", udp.local_addr().unwrap()));
    if let Some(tcp6) = &tcp6 {
        let record = find(&net, NetClass::Listener, inode(tcp6)).expect("the TCP listener over IPv6");
        assert_eq!(record.name.to_string(), format!("tcp {}", tcp6.local_addr().unwrap()));
    }
    drop((tcp, tcp6, udp));
    let net = see();
    assert_eq!(find(&net, NetClass::Listener, tcp_inode), None);
    assert_eq!(find(&net, NetClass::Listener, udp_inode), None);
}

#[test]
fn a_connection_is_no_listener() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.connect(listener.local_addr().unwrap()).unwrap();
    let net = see();
    for inode in [inode(&client), inode(&accepted), inode(&udp)] {
        assert_eq!(find(&net, NetClass::Listener, inode), None);
    }
}

#[test]
fn sees_unix_sockets_with_hostile_names_until_they_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(OsStr::from_bytes(b"a b\n\x1b[31m\xff<script>"));
    let listener = UnixListener::bind(&path).unwrap();
    let hidden_name = [b"leakcheck\0\n\x1b[2J\xff ".as_slice(), std::process::id().to_string().as_bytes()].concat();
    let address = SocketAddr::from_abstract_name(&hidden_name).unwrap();
    let datagram = UnixDatagram::bind_addr(&address).unwrap();
    let (listener_inode, datagram_inode) = (inode(&listener), inode(&datagram));
    let net = see();
    let record = find(&net, NetClass::Unix, listener_inode).expect("the listener");
    assert_eq!(record.name.as_bytes(), [b"unix stream ", path.as_os_str().as_bytes()].concat());
    let record = find(&net, NetClass::Unix, datagram_inode).expect("the abstract socket");
    assert_eq!(record.name.as_bytes(), [b"unix dgram @", hidden_name.as_slice()].concat());
    assert!(!record.name.to_string().contains(['\n', '\x1b', '\0']), "shown escaped: {}", record.name);
    drop((listener, datagram));
    let net = see();
    assert_eq!(find(&net, NetClass::Unix, listener_inode), None);
    assert_eq!(find(&net, NetClass::Unix, datagram_inode), None);
}

#[test]
fn an_accepted_unix_stream_is_not_listed_under_its_listeners_name() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let client = UnixStream::connect(dir.path().join("s")).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let (one, other) = UnixStream::pair().unwrap();
    let net = see();
    assert!(find(&net, NetClass::Unix, inode(&listener)).is_some());
    for inode in [inode(&client), inode(&accepted), inode(&one), inode(&other)] {
        assert_eq!(find(&net, NetClass::Unix, inode), None);
    }
}

#[test]
fn a_table_of_many_datagrams_is_seen_in_full() {
    let name = |n: i32| format!("leakcheck-many-{}-{n}-{}", std::process::id(), "x".repeat(60));
    let many: Vec<UnixDatagram> =
        (0..500).map(|n| UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name(n)).unwrap()).unwrap()).collect();
    let net = see();
    assert!(many.iter().all(|socket| find(&net, NetClass::Unix, inode(socket)).is_some()));
}

#[test]
fn sees_what_a_sandboxs_own_network_namespace_holds_until_it_ends() {
    if !privileged("sees_what_a_sandboxs_own_network_namespace_holds_until_it_ends") {
        return;
    }
    let sandbox = Sandbox::new();
    let netns = sandbox.netns();
    let (listener, hidden) = sandbox.inside(|| {
        netlink::add_bridge(b"b\x1b[1m\xff");
        netlink::add_inet_table(b"t <b>\n");
        netlink::add_inet_chain(b"t <b>\n", b"c");
        netlink::add_inet_rule(b"t <b>\n", b"c");
        let address = SocketAddr::from_abstract_name(b"leakcheck").unwrap();
        (TcpListener::bind("0.0.0.0:80").unwrap(), UnixListener::bind_addr(&address).unwrap())
    });
    let found = observation(&[Kind::Net]);
    // Some machines' process 1 refuses even root.
    let coverage = &found.coverage.0[&Kind::Net];
    assert!(coverage.level == Level::Full || coverage.reason.ends_with("(1 process in all)"), "{coverage:?}");
    let held: Vec<&Net> = found.net.iter().filter(|record| record.netns == netns).collect();
    let names = |class| held.iter().filter(|r| r.class == class).map(|r| r.name.as_bytes()).collect::<Vec<_>>();
    // Neither the loopback that comes with every namespace, nor anything of the host.
    assert_eq!(names(NetClass::Interface), [b"b\x1b[1m\xff"]);
    assert_eq!(names(NetClass::NftTable), [b"inet t <b>\n"]);
    assert_eq!(names(NetClass::NftChain), [b"inet t <b>\n c"]);
    let rules: Vec<_> = held.iter().filter(|r| r.class == NetClass::NftRule).collect();
    assert!(rules.len() == 1 && rules[0].number > 0 && rules[0].scope.as_bytes() == b"inet t <b>\n c", "{rules:?}");
    assert_eq!(names(NetClass::Listener), [b"tcp 0.0.0.0:80"]);
    assert_eq!(names(NetClass::Unix), [b"unix stream @leakcheck"]);
    assert_eq!(find(&found.net, NetClass::Listener, inode(&listener)).unwrap().netns, netns);
    drop((listener, hidden));
    drop(sandbox);
    eventually("the namespace is gone", || see().iter().all(|record| record.netns != netns));
}

#[test]
fn sees_named_network_namespaces_and_names_without_one() {
    if !privileged("sees_named_network_namespaces_and_names_without_one") {
        return;
    }
    let sandbox = Sandbox::new();
    let netns = sandbox.netns();
    // All of this in a mount namespace of this thread's own, which takes it along.
    on_a_thread(|| {
        #[allow(unsafe_code)]
        // SAFETY: unsharing mounts and file system attributes concerns this thread alone and no descriptor.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        mount("none", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
        assert!(see().iter().all(|record| record.class != NetClass::NamedNetns));
        fs::create_dir("/run/netns").unwrap();
        for name in ["box\n1", "stale"] {
            fs::write(format!("/run/netns/{name}"), "").unwrap();
        }
        mount_bind(sandbox.netns_path(), "/run/netns/box\n1").unwrap();
        let found = see();
        let named: Vec<&Net> = found.iter().filter(|record| record.class == NetClass::NamedNetns).collect();
        assert_eq!(named.len(), 2, "/var/run is the same directory: {named:?}");
        let bound = named.iter().find(|record| record.number == netns).expect("the named namespace");
        assert_eq!((bound.netns, bound.name.as_bytes()), (netns, b"box\n1".as_slice()));
        assert_eq!(bound.scope.as_bytes(), b"/run/netns/box\n1");
        let stale = named.iter().find(|record| record.number != netns).expect("the mere file");
        assert_eq!((stale.netns, stale.name.to_string().as_str()), (0, "stale (no namespace)"));
    });
}

#[test]
fn without_privilege_it_sees_its_own_namespace_and_says_what_it_does_not_see() {
    if !privileged("without_privilege_it_sees_its_own_namespace_and_says_what_it_does_not_see") {
        return;
    }
    let sandbox = Sandbox::new();
    let netns = sandbox.netns();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let found = on_a_thread(|| {
        // With it, the sandbox's namespace is found; what is missing is the right to enter.
        keep_only(CapabilitySet::SYS_PTRACE);
        observation(&[Kind::Net])
    });
    assert!(find(&found.net, NetClass::Listener, inode(&listener)).is_some());
    assert!(found.net.iter().all(|record| record.netns != netns));
    let coverage = &found.coverage.0[&Kind::Net];
    assert_eq!(coverage.level, Level::Partial);
    assert!(coverage.reason.contains("list nftables tables"), "{}", coverage.reason);
    assert!(coverage.reason.contains("CAP_NET_ADMIN"), "{}", coverage.reason);
    assert!(coverage.reason.contains("enter namespace"), "{}", coverage.reason);
    assert!(coverage.reason.contains("CAP_SYS_ADMIN"), "{}", coverage.reason);
}
