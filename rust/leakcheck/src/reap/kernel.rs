//! Removes kernel objects that have an id and no file: SysV IPC, message queues, interfaces, loop devices, keys.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::action::{Outcome, Status, Verb};
use super::mount::own_namespace;
use super::now::Now;
use super::sys;
use crate::observe::detail::quote;
use crate::resource::{Bpf, Ipc, IpcClass, Key, LoopDevice, Net, NetClass, Resource, Sysctl};

/// The result of `now`: nothing to do, or verified to exist.
fn present(resource: &Resource, verb: Verb, now: &Now) -> Result<(), Outcome> {
    match now.has(resource) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Outcome::gone(verb)),
        Err(why) => Err(Outcome::skipped(verb, why)),
    }
}

/// SysV IPC (`IPC_RMID`) and POSIX message queues (mq_unlink(3)) of the caller's own namespace.
pub(super) fn ipc(object: &Ipc, resource: &Resource, now: &Now, apply: bool) -> Outcome {
    try_ipc(object, resource, now, apply).unwrap_or_else(|outcome| outcome)
}

fn try_ipc(object: &Ipc, resource: &Resource, now: &Now, apply: bool) -> Result<Outcome, Outcome> {
    let verb = Verb::Remove;
    if Some(object.ns) != own_namespace("ipc") {
        present(resource, Verb::None, now)?;
        return Err(Outcome::skipped(
            Verb::None,
            format!("belongs to IPC namespace {}, not to ours: it goes with that namespace", object.ns),
        ));
    }
    if object.class == IpcClass::Mqueue {
        present(resource, verb, now)?;
        let same =
            |i: &&Ipc| i.class == object.class && i.ns == object.ns && i.id == object.id && i.name == object.name;
        let name = object.name.as_bytes().rsplit(|b| *b == b'/').next().unwrap_or_default();
        return match now.snapshot.ipc.iter().find(same) {
            Some(_) => Ok(Outcome::act(verb, apply, "mq_unlink", || sys::mq_unlink(name))),
            None => Err(Outcome::replaced(verb)),
        };
    }
    let id = i32::try_from(object.id).map_err(|_| Outcome::gone(verb))?;
    let key = object.name.to_string();
    let key = key.strip_prefix("key 0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
    match sys::ipc_stat(object.class, id) {
        // The id holds a sequence number; key and owner only confirm it. IPC_PRIVATE is key 0 for all.
        Ok((now_key, uid)) if Some(now_key) == key && uid == object.uid => {}
        Ok(_) => return Err(Outcome::replaced(verb)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EIDRM)) => return Err(Outcome::gone(verb)),
        // It cannot be read, but perhaps it can be removed: the owner can do that (ipc(2)).
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => {}
        Err(e) => return Err(Outcome::failed(verb, "IPC_STAT", e)),
    }
    let mut outcome = Outcome::act(verb, apply, "IPC_RMID", || sys::ipc_remove(object.class, id));
    let users = now.snapshot.ipc.iter().find(|i| i.class == object.class && i.id == object.id && i.ns == object.ns);
    if let Some(n) = users.map(|i| i.attached).filter(|n| *n > 0 && outcome.leaves_nothing()) {
        outcome.why = format!("the memory is freed when its {n} users detach");
    }
    Ok(outcome)
}

/// Interfaces of the caller's own network namespace. A socket goes with its descriptor, a table is removed by nft(8).
pub(super) fn net(net: &Net, resource: &Resource, now: &Now, apply: bool) -> Outcome {
    try_net(net, resource, now, apply).unwrap_or_else(|outcome| outcome)
}

fn try_net(net: &Net, resource: &Resource, now: &Now, apply: bool) -> Result<Outcome, Outcome> {
    let own = Some(net.netns) == own_namespace("net");
    match net.class {
        NetClass::Interface if own => {
            present(resource, Verb::Remove, now)?;
            let same = |n: &&Net| n.class == net.class && n.netns == net.netns && n.number == net.number;
            let index = u32::try_from(net.number).ok();
            match (now.snapshot.net.iter().find(same), index) {
                (Some(seen), Some(index)) if seen.name == net.name => {
                    Ok(Outcome::act(Verb::Remove, apply, "RTM_DELLINK", || sys::delete_link(index)))
                }
                (_, _) => Err(Outcome::replaced(Verb::Remove)),
            }
        }
        class if own && class.is_nftables() => {
            present(resource, Verb::None, now)?;
            Err(Outcome::skipped(Verb::None, format!("remove it with: {}", nft_delete(net))))
        }
        class if own && class.is_configuration() => {
            present(resource, Verb::None, now)?;
            Err(Outcome::skipped(
                Verb::None,
                "remove it with ip(8), bridge(8), tc(8), iptables(8) or ipset(8)".to_owned(),
            ))
        }
        class if class == NetClass::Interface || class.is_nftables() || class.is_configuration() => {
            present(resource, Verb::None, now)?;
            Err(Outcome::skipped(
                Verb::None,
                format!("belongs to network namespace {}, not to ours: it goes with that namespace", net.netns),
            ))
        }
        _ => Ok(now.held(resource, "")),
    }
}

/// The nft(8) command. Names contain a space only if they are meant to mislead.
fn nft_delete(net: &Net) -> String {
    let (what, words, parts) = match net.class {
        NetClass::NftChain => ("chain", net.name.as_bytes(), 3),
        // `scope` is family, table and chain.
        NetClass::NftRule => ("rule", net.scope.as_bytes(), 3),
        NetClass::NftSet => ("set", net.name.as_bytes(), 3),
        // nft(8) deletes it by its type (counter, quota …), which the list shows.
        NetClass::NftObject => return "nft delete, with the name that nft list ruleset shows".to_owned(),
        // Its name is shown in another way than nft(8) takes it.
        NetClass::NftElement => {
            return "nft delete element, with the set and element that nft list ruleset shows".to_owned();
        }
        NetClass::NftFlowtable => ("flowtable", net.name.as_bytes(), 3),
        _ => ("table", net.scope.as_bytes(), 2),
    };
    let words: Vec<String> = words.splitn(parts, |b| *b == b' ').map(quote).collect();
    let handle = if net.class == NetClass::NftRule { format!(" handle {}", net.number) } else { String::new() };
    format!("nft delete {what} {}{handle}", words.join(" "))
}

/// Detaches the backing file. The open descriptor keeps the disk sequence number that was compared (loop(4)).
pub(super) fn loop_device(device: &LoopDevice, apply: bool) -> Outcome {
    try_loop_device(device, apply).unwrap_or_else(|outcome| outcome)
}

fn try_loop_device(device: &LoopDevice, apply: bool) -> Result<Outcome, Outcome> {
    let verb = Verb::Detach;
    let name = device.device.as_path();
    let plain = name.components().count() == 1 && device.device.as_bytes().starts_with(b"loop");
    if !plain {
        return Err(Outcome::new(verb, Status::Failed, "its name in the report is not a loop device name"));
    }
    let backing = || -> io::Result<Vec<u8>> {
        let mut text = std::fs::read(Path::new("/sys/block").join(name).join("loop/backing_file"))?;
        text.pop_if(|last| *last == b'\n');
        Ok(text)
    };
    match backing() {
        // The name gets a suffix when the file is deleted, which does not change the identity.
        Ok(text)
            if text == device.backing.as_bytes() || text == [device.backing.as_bytes(), b" (deleted)"].concat() => {}
        Ok(_) => return Err(Outcome::replaced(verb)),
        Err(_) => return Err(Outcome::gone(verb)),
    }
    let open = || {
        let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
        OpenOptions::new().read(true).custom_flags(flags).open(Path::new("/dev").join(name))
    };
    let failed = |e| Outcome::failed(verb, "open", e);
    let file = open().map_err(failed)?;
    if !file.metadata().map_err(failed)?.file_type().is_block_device() {
        return Err(Outcome::replaced(verb));
    }
    match sys::disk_sequence(file.as_fd()) {
        Ok(now) if now == device.diskseq => {}
        Ok(_) => return Err(Outcome::replaced(verb)),
        // Before Linux 5.15 there is none, and only the backing file is compared.
        Err(_) if device.diskseq == 0 => {}
        Err(e) => return Err(Outcome::failed(verb, "BLKGETDISKSEQ", e)),
    }
    let mut outcome = Outcome::act(verb, apply, "LOOP_CLR_FD", || sys::loop_detach(file.as_fd()));
    drop(file);
    if outcome.status == Status::Done && backing().is_ok() {
        outcome.why = "it is detached when its last user closes it".to_owned();
    }
    Ok(outcome)
}

/// Unlinks a key from the caller's own keyrings; the kernel frees it when no keyring contains it (keyrings(7)).
pub(super) fn key(key: &Key, resource: &Resource, now: &Now, apply: bool) -> Outcome {
    if let Err(outcome) = present(resource, Verb::Remove, now) {
        return outcome;
    }
    if !apply {
        return Outcome::new(Verb::Remove, Status::Would, "if one of our own keyrings holds it");
    }
    match sys::unlink_key(key.serial) {
        Ok(true) => Outcome::new(Verb::Remove, Status::Done, ""),
        Ok(false) => {
            let why = format!(
                "is not in our own keyrings: its owner, uid {}, can run keyctl invalidate {}",
                key.uid, key.serial
            );
            Outcome::skipped(Verb::Remove, why)
        }
        Err(e) => Outcome::failed(Verb::Remove, "KEYCTL_UNLINK", e),
    }
}

/// The old value may be unwanted, and others may rely on the new one: people must decide.
pub(super) fn sysctl_advice(setting: &Sysctl) -> String {
    setting.restore().map_or_else(String::new, |command| format!("restore it with: {command}"))
}

/// A BPF object lives as long as a descriptor, a pin in a bpf file system or an attachment does.
pub(super) fn bpf_advice(object: &Bpf) -> String {
    let class = format!("{:?}", object.class).to_lowercase();
    format!("a descriptor, a pin or an attachment; find it with: bpftool {class} show id {}", object.id)
}
