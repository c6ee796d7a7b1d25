//! What decides about packets and stays: neighbours, filters, rules, sets, policies of IPsec.

use std::process::{Command, Stdio};

use leakcheck_sys::Failure;
use serde_json::{Value, json};

use super::Plant;
use super::net::{AF_INET, NLM_F_CREATE, NLM_F_EXCL, interface, interface_facts, new_link, number};
use super::netlink::{Family, Message, request};
use crate::error::{Doing, Error, Result};
use crate::stage::{Undo, planting};

/// The interface 1 is lo in every network namespace.
const LOOPBACK: [u8; 4] = 1_u32.to_ne_bytes();

// linux/rtnetlink.h, linux/neighbour.h, linux/pkt_sched.h, linux/pkt_cls.h
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NTF_SELF: u8 = 2;
const NTF_PROXY: u8 = 8;
const NUD_PERMANENT: u8 = 0x80;
const AF_BRIDGE: u8 = 7;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_U32_SEL: u16 = 5;
const CLSACT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const ETH_P_ALL: u16 = 3;

// linux/xfrm.h
const XFRM_MSG_NEWPOLICY: u16 = 0x13;
const XFRM_MSG_DELPOLICY: u16 = 0x14;

// linux/netfilter/ipset/ip_set.h
const IPSET_CMD_CREATE: u16 = 6 << 8 | 2;
const IPSET_CMD_DESTROY: u16 = 6 << 8 | 3;
const IPSET_CMD_ADD: u16 = 6 << 8 | 9;
const IPSET_CMD_DEL: u16 = 6 << 8 | 10;
const IPSET_ATTR_PROTOCOL: u16 = 1;
const IPSET_ATTR_SETNAME: u16 = 2;
const IPSET_ATTR_TYPENAME: u16 = 3;
const IPSET_ATTR_REVISION: u16 = 4;
const IPSET_ATTR_FAMILY: u16 = 5;
const IPSET_ATTR_DATA: u16 = 7;
const IPSET_ATTR_IP: u16 = 1;
const IPSET_ATTR_IPADDR_IPV4: u16 = 1;
const IPSET_ATTR_LINENO: u16 = 9;
const NLA_F_NET_BYTEORDER: u16 = 1 << 14;

pub(super) const PLANTS: &[Plant] = &[
    Plant {
        name: "net-neighbour",
        needs: &["root"],
        what: "a neighbour that the loopback interface answers for",
        prepare: |_| {
            planting(|undo| made(undo, &Family::Route, "neighbour", [RTM_NEWNEIGH, RTM_DELNEIGH], neighbour, host(113)))
        },
    },
    Plant {
        name: "net-filter",
        needs: &["root", "cls_u32"],
        what: "a filter of traffic control on the loopback interface",
        prepare: |stage| {
            let disciplines = [RTM_NEWQDISC, RTM_DELQDISC];
            made(stage.scaffold(), &Family::Route, "queueing discipline", disciplines, clsact, String::new())?;
            let name = format!("pref {}", preference());
            planting(|undo| made(undo, &Family::Route, "filter", [RTM_NEWTFILTER, RTM_DELTFILTER], filter, name))
        },
    },
    Plant {
        name: "net-ipsec-policy",
        needs: &["root", "xfrm"],
        what: "a policy of IPsec for a network of the documentation",
        prepare: |_| {
            let policies = [XFRM_MSG_NEWPOLICY, XFRM_MSG_DELPOLICY];
            planting(move |undo| made(undo, &Family::Ipsec, "policy", policies, policy, host(100)))
        },
    },
    Plant {
        name: "net-ipset",
        needs: &["root", "ipset"],
        what: "an empty set of addresses",
        prepare: |_| {
            let sets = [IPSET_CMD_CREATE, IPSET_CMD_DESTROY];
            planting(move |undo| made(undo, &Family::Netfilter, "set", sets, set, interface("s")))
        },
    },
    Plant {
        name: "net-ipset-element",
        needs: &["root", "ipset"],
        what: "an address in a set that was there before",
        prepare: |stage| {
            let sets = [IPSET_CMD_CREATE, IPSET_CMD_DESTROY];
            made(stage.scaffold(), &Family::Netfilter, "set", sets, set, String::new())?;
            let elements = [IPSET_CMD_ADD, IPSET_CMD_DEL];
            planting(move |undo| made(undo, &Family::Netfilter, "element", elements, element, host(100)))
        },
    },
    Plant {
        name: "net-forwarding",
        needs: &["root", "veth"],
        what: "an entry in the forwarding table of an interface that was there before",
        prepare: |stage| {
            let name = interface("f");
            let link = request(&Family::Route, [new_link(&name, "veth", |info| info)]);
            link.map_err(|e| Error::Unavailable(format!("no veth pair can be made here: {e}")))?;
            let facts = interface_facts(stage.scaffold(), name)?;
            let index = u32::try_from(facts["ifindex"].as_u64().unwrap_or(0)).unwrap_or(0);
            planting(move |undo| {
                let change = move |class, flags| request(&Family::Route, [forwarding(class, flags, index)]);
                change(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_EXCL).during("add a forwarding entry")?;
                undo.push(move || change(RTM_DELNEIGH, 0).during("delete the forwarding entry"));
                let name: String = STATION.iter().chain([&number()]).map(|byte| format!("{byte:02x}")).collect();
                Ok(json!({"name": name}))
            })
        },
    },
    Plant {
        name: "net-iptables-rule",
        needs: &["root", "iptables-legacy"],
        what: "a rule of legacy iptables",
        prepare: |_| {
            // The table stays as long as its network namespace.
            iptables("--list-rules")?;
            planting(|undo| {
                iptables("--append")?;
                undo.push(|| iptables("--delete"));
                Ok(json!({"name": host(113)}))
            })
        },
    },
];

/// Makes an object by the message of `with`, and pushes its removal by the same one.
fn made(
    undo: &mut Undo,
    family: &'static Family,
    what: &'static str,
    [new, delete]: [u16; 2],
    with: fn(u16, u16) -> Message,
    name: String,
) -> Result<Value> {
    let change = move |class, flags| request(family, [with(class, flags)]);
    change(new, NLM_F_CREATE | NLM_F_EXCL).map_err(|e| match e.raw_os_error() {
        // What the kernel answers if a type or a module is missing; ipset has numbers of its own.
        Some(libc::ENOENT | libc::EINVAL | 4096..) => Error::Unavailable(format!("no {what} can be added here: {e}")),
        _ => Failure::during(format_args!("add a {what}"), e).into(),
    })?;
    undo.push(move || change(delete, 0).during(format_args!("delete the {what}")));
    Ok(json!({"name": name}))
}

/// An address of a network of the documentation (RFC 5737), by our process id.
fn host(network: u8) -> String {
    let [a, b, c, d] = address(network);
    format!("{a}.{b}.{c}.{d}")
}

fn address(network: u8) -> [u8; 4] {
    let (first, second) = if network == 113 { (203, 0) } else { (198, 51) };
    [first, second, network, number()]
}

fn neighbour(class: u16, flags: u16) -> Message {
    // struct ndmsg
    let [a, b, c, d] = LOOPBACK;
    let fixed = [AF_INET, 0, 0, 0, a, b, c, d, 0, 0, NTF_PROXY, 0];
    Message::acknowledged(class, flags, &fixed).attribute(NDA_DST, &address(113))
}

/// `struct tcmsg`.
fn traffic(class: u16, flags: u16, handle: u32, parent: u32, info: u32) -> Message {
    let words = [handle, parent, info].map(u32::to_ne_bytes).concat();
    Message::acknowledged(class, flags, &[&[0; 4], &LOOPBACK, words.as_slice()].concat())
}

fn clsact(class: u16, flags: u16) -> Message {
    traffic(class, flags, CLSACT & 0xffff_0000, CLSACT, 0).string(TCA_KIND, "clsact")
}

/// It matches every packet and does nothing.
fn filter(class: u16, flags: u16) -> Message {
    let info = preference() << 16 | u32::from(ETH_P_ALL.to_be());
    // struct tc_u32_sel without keys
    let selector = [0; 16];
    traffic(class, flags, 0, INGRESS, info)
        .string(TCA_KIND, "u32")
        .nested(TCA_OPTIONS, |options| options.attribute(TCA_U32_SEL, &selector))
}

fn preference() -> u32 {
    1000 + u32::from(number())
}

/// From 198.51.100.N/32, outwards, allowed without encryption.
fn policy(class: u16, flags: u16) -> Message {
    // struct xfrm_selector: the addresses, the family at 40, the length of the source's prefix at 43
    let mut selector = [0; 56];
    selector[16..20].copy_from_slice(&address(100));
    (selector[40], selector[43]) = (AF_INET, 32);
    // struct xfrm_userpolicy_id is the selector, an index and a direction: XFRM_POLICY_OUT
    let mut id = [0; 64];
    id[..56].copy_from_slice(&selector);
    id[60] = 1;
    // struct xfrm_userpolicy_info has limits and statistics between them
    let mut info = [0; 168];
    info[..56].copy_from_slice(&selector);
    info[56..88].fill(0xff);
    info[160] = 1;
    let fixed: &[u8] = if class == XFRM_MSG_NEWPOLICY { &info } else { &id };
    Message::acknowledged(class, flags, fixed)
}

fn set(class: u16, flags: u16) -> Message {
    // struct nfgenmsg
    let message = Message::acknowledged(class, flags, &[0; 4])
        .attribute(IPSET_ATTR_PROTOCOL, &[6])
        .string(IPSET_ATTR_SETNAME, &interface("s"));
    if class == IPSET_CMD_DESTROY {
        return message;
    }
    message
        .string(IPSET_ATTR_TYPENAME, "hash:ip")
        .attribute(IPSET_ATTR_REVISION, &[0])
        .attribute(IPSET_ATTR_FAMILY, &[AF_INET])
        .nested(IPSET_ATTR_DATA, |data| data)
}

/// In the set of [`set`]: 198.51.100.N.
fn element(class: u16, flags: u16) -> Message {
    Message::acknowledged(class, flags, &[0; 4])
        .attribute(IPSET_ATTR_PROTOCOL, &[6])
        .string(IPSET_ATTR_SETNAME, &interface("s"))
        .nested(IPSET_ATTR_DATA, |data| {
            data.nested(IPSET_ATTR_IP, |ip| ip.attribute(IPSET_ATTR_IPADDR_IPV4 | NLA_F_NET_BYTEORDER, &address(100)))
        })
        .attribute(IPSET_ATTR_LINENO | NLA_F_NET_BYTEORDER, &1_u32.to_be_bytes())
}

/// The first bytes of a locally administered address of a link.
const STATION: [u8; 5] = [0x02, 0x6d, 0x6b, 0x6c, 0x6b];

fn forwarding(class: u16, flags: u16, index: u32) -> Message {
    // struct ndmsg
    let [a, b, c, d] = index.to_ne_bytes();
    let fixed = [AF_BRIDGE, 0, 0, 0, a, b, c, d, NUD_PERMANENT, 0, NTF_SELF, 0];
    Message::acknowledged(class, flags, &fixed).attribute(NDA_LLADDR, &[&STATION[..], &[number()]].concat())
}

/// Runs iptables on a rule for packets from 203.0.113.N.
fn iptables(verb: &str) -> Result<()> {
    let mut command = Command::new("iptables-legacy");
    // A lock that leaves no file.
    command.env("XTABLES_LOCKFILE", "/dev/null").args(["--wait", verb, "INPUT"]);
    if verb != "--list-rules" {
        command.args(["--source", &host(113)]);
    }
    match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) if verb == "--list-rules" => Err(Error::Unavailable(format!("iptables-legacy ended with {status}"))),
        Ok(status) => Err(Error::Failed(format!("iptables-legacy {verb}: {status}"))),
        Err(_) => Err(Error::Unavailable("no iptables-legacy here".into())),
    }
}
