//! Network objects that stay: interfaces, a named namespace, a table, listening sockets.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use leakcheck_sys::devices;
use serde_json::{Value, json};

use super::netlink::{Family, Message, request};
use super::{Plant, namespace};
use crate::error::{Doing, Error, Result};
use crate::facts;
use crate::stage::{self, Planting, Stage, Undo, make_directory, planting, removal};

// linux/rtnetlink.h, linux/if_link.h, linux/veth.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
/// `struct ifinfomsg`, all zero.
const IFINFOMSG: [u8; 16] = [0; 16];

// linux/if_addr.h, linux/fib_rules.h
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
pub(super) const AF_INET: u8 = 2;

// linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_DELRULE: u16 = 8;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NLM_F_APPEND: u16 = 0x800;
const NFPROTO_INET: u8 = 1;

pub(super) const PLANTS: &[Plant] = &[
    Plant {
        name: "net-veth",
        needs: &["root", "veth"],
        what: "a pair of virtual Ethernet devices, both ends here",
        prepare: |_| veth(None),
    },
    Plant {
        name: "net-veth-other-ns",
        needs: &["root", "veth"],
        what: "a pair of virtual Ethernet devices, the far end in another network namespace",
        prepare: |stage| {
            let (path, mut helper) = namespace::of_helper("net", libc::CLONE_NEWNET)?;
            let other = File::open(&path).doing("open", &path)?;
            helper.run()?;
            let other = OwnedFd::from(other);
            let number = other.as_raw_fd();
            stage.scaffold().keep(other);
            veth(Some(number))
        },
    },
    Plant {
        name: "net-tap",
        needs: &["root", "tun"],
        what: "a persistent tap device, which needs no process to live",
        prepare: |_| planting(tap),
    },
    Plant {
        name: "net-dummy",
        needs: &["root", "dummy"],
        what: "a dummy interface",
        prepare: |_| {
            planting(|undo| {
                let name = interface("d");
                let link = new_link(&name, "dummy", |info| info);
                request(&Family::Route, [link]).during("make a dummy interface")?;
                interface_facts(undo, name)
            })
        },
    },
    Plant {
        name: "net-named-netns",
        needs: &["root"],
        what: "a network namespace with a name: an nsfs file bound in /run/netns, as `ip netns add` makes it",
        prepare: named_netns,
    },
    Plant {
        name: "net-nft-table",
        needs: &["root", "nft"],
        what: "an empty nftables table of the inet family",
        prepare: |_| planting(nft_table),
    },
    Plant {
        name: "net-nft-chain",
        needs: &["root", "nft"],
        what: "a chain in an nftables table that was there before",
        prepare: |stage| {
            nft_table(stage.scaffold())?;
            planting(nft_chain)
        },
    },
    Plant {
        name: "net-nft-rule",
        needs: &["root", "nft"],
        what: "a rule in an nftables chain that was there before",
        prepare: |stage| {
            nft_table(stage.scaffold())?;
            nft_chain(stage.scaffold())?;
            planting(nft_rule)
        },
    },
    Plant {
        name: "net-tcp-listen",
        needs: &[],
        what: "a TCP socket that listens on a port of the loopback address",
        prepare: |_| {
            planting(|undo| {
                let listener = TcpListener::bind(("127.0.0.1", 0)).during("listen on 127.0.0.1")?;
                let mut facts = facts::of_fd(&listener)?;
                facts["port"] = json!(listener.local_addr().during("getsockname")?.port());
                undo.keep(listener);
                Ok(facts)
            })
        },
    },
    Plant {
        name: "net-abstract-unix",
        needs: &[],
        what: "a unix socket that listens on an abstract name, without a file",
        prepare: |_| {
            planting(|undo| {
                let name = stage::name("abstract");
                let address = SocketAddr::from_abstract_name(&name).during("abstract name")?;
                let listener = UnixListener::bind_addr(&address).during("listen on an abstract name")?;
                let mut facts = facts::of_fd(&listener)?;
                facts["name"] = json!(format!("@{name}"));
                undo.keep(listener);
                Ok(facts)
            })
        },
    },
    // Last: a namespace in which lo is down can listen on 127.0.0.1 only as long as it has no table of local routes.
    Plant {
        name: "net-address",
        needs: &["root"],
        what: "an address of the loopback interface",
        prepare: |_| planting(|undo| routing(undo, "address", "127.77.0", [RTM_NEWADDR, RTM_DELADDR], address)),
    },
    Plant {
        name: "net-route",
        needs: &["root"],
        what: "a route that drops what goes to a network of the documentation",
        prepare: |_| planting(|undo| routing(undo, "route", "198.51.100", [RTM_NEWROUTE, RTM_DELROUTE], route)),
    },
    Plant {
        name: "net-rule",
        needs: &["root"],
        what: "a rule that sends packets of a network of the documentation to a table without routes",
        prepare: |_| planting(|undo| routing(undo, "rule", "203.0.113", [RTM_NEWRULE, RTM_DELRULE], rule)),
    },
];

/// At most 15 bytes (IFNAMSIZ), and a pid has up to 7 digits.
pub(super) fn interface(suffix: &str) -> String {
    format!("mkleak{}{suffix}", std::process::id())
}

pub(super) fn new_link(name: &str, kind: &str, data: impl FnOnce(Message) -> Message) -> Message {
    Message::acknowledged(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &IFINFOMSG)
        .string(IFLA_IFNAME, name)
        .nested(IFLA_LINKINFO, |info| data(info.string(IFLA_INFO_KIND, kind)))
}

fn veth(other: Option<i32>) -> Result<Planting> {
    planting(move |undo| {
        let (name, peer) = (interface("a"), interface("b"));
        let link = new_link(&name, "veth", |info| {
            info.nested(IFLA_INFO_DATA, |data| {
                data.nested(VETH_INFO_PEER, |end| {
                    let end = end.raw(&IFINFOMSG).string(IFLA_IFNAME, &peer);
                    match other {
                        Some(netns) => end.attribute(IFLA_NET_NS_FD, &netns.to_ne_bytes()),
                        None => end,
                    }
                })
            })
        });
        request(&Family::Route, [link]).during("make a veth pair")?;
        let mut facts = interface_facts(undo, name)?;
        facts["peer"] = json!(peer);
        Ok(facts)
    })
}

/// Pushes the removal of an interface (with its peer, if it has one), and returns its facts.
pub(super) fn interface_facts(undo: &mut Undo, name: String) -> Result<Value> {
    let removed = name.clone();
    undo.push(move || {
        let message = Message::acknowledged(RTM_DELLINK, 0, &IFINFOMSG).string(IFLA_IFNAME, &removed);
        request(&Family::Route, [message]).during(format_args!("delete the interface {removed}"))
    });
    let index = rustix::net::netdevice::name_to_index(
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, None).during("socket")?,
        &name,
    )
    .during(format_args!("index of {name}"))?;
    Ok(json!({"name": name, "ifindex": index}))
}

fn tap(undo: &mut Undo) -> Result<Value> {
    let path = Path::new("/dev/net/tun");
    let tun = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::Unavailable("no /dev/net/tun here".into()));
        }
        opened => opened.doing("open", path)?,
    };
    let name = interface("t");
    devices::make_tap(&tun, &name).doing("TUNSETIFF", path)?;
    devices::keep_tap(&tun).doing("TUNSETPERSIST", path)?;
    interface_facts(undo, name)
}

/// One of the 254 addresses of a network (RFC 5737), by our process id, so that others can plant theirs beside it.
pub(super) fn number() -> u8 {
    u8::try_from(std::process::id() % 254 + 1).unwrap_or(1)
}

/// Adds an object by the message that `with` makes, and pushes its removal by the same one.
fn routing(
    undo: &mut Undo,
    what: &'static str,
    network: &str,
    [new, delete]: [u16; 2],
    with: fn(u16, u16) -> Message,
) -> Result<Value> {
    let change = move |class, flags| request(&Family::Route, [with(class, flags)]);
    change(new, NLM_F_CREATE | NLM_F_EXCL).during(format_args!("add a {what}"))?;
    undo.push(move || change(delete, 0).during(format_args!("delete the {what}")));
    Ok(json!({"name": format!("{network}.{}/32", number())}))
}

/// 127.77.0.N/32 of the interface 1, which is lo in every network namespace.
fn address(class: u16, flags: u16) -> Message {
    // struct ifaddrmsg
    let fixed = [AF_INET, 32, 0, 0, 1, 0, 0, 0];
    Message::acknowledged(class, flags, &fixed).attribute(IFA_LOCAL, &[127, 77, 0, number()])
}

/// 198.51.100.N/32, of the type RTN_BLACKHOLE, in the main table, as by an administrator (RTPROT_STATIC).
fn route(class: u16, flags: u16) -> Message {
    // struct rtmsg
    let fixed = [AF_INET, 32, 0, 0, 254, 4, 0, 6, 0, 0, 0, 0];
    Message::acknowledged(class, flags, &fixed).attribute(RTA_DST, &[198, 51, 100, number()])
}

/// From 203.0.113.N/32, to a table that nobody uses.
fn rule(class: u16, flags: u16) -> Message {
    // struct fib_rule_hdr; the action is FR_ACT_TO_TBL
    let fixed = [AF_INET, 0, 32, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    Message::acknowledged(class, flags, &fixed)
        .attribute(FRA_SRC, &[203, 0, 113, number()])
        .attribute(FRA_PRIORITY, &30077_u32.to_ne_bytes())
        .attribute(FRA_TABLE, &70_077_u32.to_ne_bytes())
}

fn named_netns(stage: &mut Stage) -> Result<Planting> {
    let directory = Path::new("/run/netns");
    if !directory.exists() {
        make_directory(stage.scaffold(), directory)?;
    }
    let path = directory.join(stage::name("netns"));
    planting(move |undo| {
        fs::File::create_new(&path).doing("create", &path)?;
        undo.push(removal(&path));
        let mut facts = namespace::bound(undo, "net", libc::CLONE_NEWNET, &path)?;
        facts["name"] = json!(stage::name("netns"));
        Ok(facts)
    })
}

fn nft_table(undo: &mut Undo) -> Result<Value> {
    let name = stage::name("table");
    let named = |message: Message| message.string(NFTA_TABLE_NAME, &stage::name("table"));
    change_nftables(NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, named).during("make an nftables table")?;
    undo.push(move || change_nftables(NFT_MSG_DELTABLE, 0, named).during("delete the nftables table"));
    Ok(json!({"family": "inet", "name": name}))
}

/// In the table of [`nft_table`].
fn nft_chain(undo: &mut Undo) -> Result<Value> {
    let named = |message: Message| {
        message.string(NFTA_CHAIN_TABLE, &stage::name("table")).string(NFTA_CHAIN_NAME, &stage::name("chain"))
    };
    change_nftables(NFT_MSG_NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL, named).during("make an nftables chain")?;
    undo.push(move || change_nftables(NFT_MSG_DELCHAIN, 0, named).during("delete the nftables chain"));
    Ok(json!({"family": "inet", "table": stage::name("table"), "name": stage::name("chain")}))
}

/// In the chain of [`nft_chain`]; it matches everything and does nothing.
fn nft_rule(undo: &mut Undo) -> Result<Value> {
    let placed = |message: Message| {
        message.string(NFTA_RULE_TABLE, &stage::name("table")).string(NFTA_RULE_CHAIN, &stage::name("chain"))
    };
    change_nftables(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, placed).during("make an nftables rule")?;
    // Without a handle, this deletes all rules of the chain, which has only one.
    undo.push(move || change_nftables(NFT_MSG_DELRULE, 0, placed).during("delete the nftables rule"));
    Ok(json!({"family": "inet", "table": stage::name("table"), "name": stage::name("chain")}))
}

/// nftables accepts changes only in batches.
fn change_nftables(change: u16, flags: u16, what: impl FnOnce(Message) -> Message) -> io::Result<()> {
    // `struct nfgenmsg`: family, version, and the subsystem in network order for the batch's ends.
    let subsystem = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    let end = [0, 0, subsystem[0], subsystem[1]];
    request(
        &Family::Netfilter,
        [
            Message::new(NFNL_MSG_BATCH_BEGIN, 0, &end),
            what(Message::acknowledged(NFNL_SUBSYS_NFTABLES << 8 | change, flags, &[NFPROTO_INET, 0, 0, 0])),
            Message::new(NFNL_MSG_BATCH_END, 0, &end),
        ],
    )
}
