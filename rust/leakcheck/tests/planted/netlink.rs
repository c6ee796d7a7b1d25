//! Just enough netlink to plant an interface and an nftables table where no ip(8) or nft(8) is installed.
#![allow(unreachable_pub, reason = "a module of the tests alone")]

use rustix::net::netlink::NETFILTER;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE_EXCL: u16 = 0x600;

/// Makes a bridge of this name in the calling thread's network namespace.
pub fn add_bridge(name: &[u8]) {
    const RTM_NEWLINK: u16 = 16;
    let mut body = vec![0; 16];
    body.extend(attribute(3, &[name, b"\0"].concat()));
    body.extend(attribute(18, &attribute(1, b"bridge\0")));
    ask(None, &message(RTM_NEWLINK, REQUEST | ACK | CREATE_EXCL, &body));
}

/// Makes an `inet` table of this name in the calling thread's network namespace.
pub fn add_inet_table(name: &[u8]) {
    change_nftables(0, CREATE_EXCL, &[(1, name)]);
}

/// Makes a chain in it.
pub fn add_inet_chain(table: &[u8], name: &[u8]) {
    change_nftables(3, CREATE_EXCL, &[(1, table), (3, name)]);
}

/// Appends a rule, which matches everything and does nothing, to the chain.
pub fn add_inet_rule(table: &[u8], chain: &[u8]) {
    const CREATE_APPEND: u16 = 0xc00;
    change_nftables(6, CREATE_APPEND, &[(1, table), (2, chain)]);
}

/// `change` is one of `NFT_MSG_NEW…`, with attributes that are strings.
fn change_nftables(change: u16, flags: u16, strings: &[(u16, &[u8])]) {
    const BATCH_BEGIN: u16 = 0x10;
    const BATCH_END: u16 = 0x11;
    const SUBSYSTEM_NFTABLES: u16 = 10 << 8;
    // struct nfgenmsg: family, version, resource in network order.
    let batch = [0, 0, 0, 10];
    let mut body = vec![1, 0, 0, 0];
    body.extend(strings.iter().flat_map(|(kind, text)| attribute(*kind, &[text, &b"\0"[..]].concat())));
    let messages = [
        message(BATCH_BEGIN, REQUEST, &batch),
        message(SUBSYSTEM_NFTABLES | change, REQUEST | ACK | flags, &body),
        message(BATCH_END, REQUEST, &batch),
    ];
    ask(Some(NETFILTER), &messages.concat());
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = (16 + body.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(1_u32.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(body);
    bytes
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (4 + payload.len() as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Sends and expects an acknowledgement without error.
fn ask(protocol: Option<Protocol>, request: &[u8]) {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol).expect("socket");
    send(&socket, request, SendFlags::empty()).expect("send");
    let mut answer = [0_u8; 4096];
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty()).expect("an acknowledgement");
    assert!(length >= 20, "a whole acknowledgement");
    let code = i32::from_ne_bytes(answer[16..20].try_into().expect("four bytes"));
    assert_eq!(code, 0, "refused: {}", std::io::Error::from_raw_os_error(-code));
}
