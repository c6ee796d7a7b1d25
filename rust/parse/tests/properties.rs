//! What must hold for all input: no panic, and what was rendered as the kernel does comes back.

mod samples;

use std::borrow::Cow;

use leakcheck_parse::cgroup::{self, CgroupEntry};
use leakcheck_parse::fdlink::{self, FdLink};
use leakcheck_parse::locks::{self, Access, Lock, LockKind};
use leakcheck_parse::mountinfo::{self, Mount, Propagation};
use leakcheck_parse::stat::{self, Stat};
use leakcheck_parse::text::Text;
use leakcheck_parse::{Device, fdinfo, keys, maps, netlink, nslink::NsType, status, sysvipc};
use proptest::collection::vec;
use proptest::prelude::*;

/// Bytes as an attacker picks them: any, but those that grammars are made of more often.
fn hostile(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    let byte =
        prop_oneof![any::<u8>(), proptest::sample::select(b" \n\t\r:()[]-/\\#01x\x1b\x7f\xff\xc2\x9b".as_slice()),];
    vec(byte, length)
}

/// A file name's bytes: no NUL, no slash.
fn name() -> impl Strategy<Value = Vec<u8>> {
    hostile(1..40).prop_map(|mut bytes| {
        bytes.retain(|byte| !matches!(byte, 0 | b'/'));
        bytes.push(b'n');
        bytes
    })
}

/// As `mangle()` and `seq_path()` in the kernel's `fs/seq_file.c` do it.
fn mangle(bytes: &[u8], escaped: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in bytes {
        if escaped.contains(byte) {
            out.extend(format!("\\{byte:03o}").bytes());
        } else {
            out.push(*byte);
        }
    }
    out
}

fn line(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

proptest! {
    #[test]
    fn no_parser_panics_on_any_bytes(input in hostile(0..400)) {
        for case in samples::CASES {
            case.run(&input);
        }
    }

    #[test]
    fn no_parser_panics_on_any_bytes_after_a_valid_beginning(at in any::<prop::sample::Index>(), input in hostile(0..80)) {
        for case in samples::CASES {
            let head = &case.sample[..at.index(case.sample.len())];
            case.run(&[head, &input].concat());
        }
    }

    #[test]
    fn text_comes_back_from_its_escaped_form(bytes in hostile(0..200)) {
        let text = Text::from(bytes);
        let shown = text.to_string();
        prop_assert!(!shown.contains(char::is_control), "{shown:?}");
        prop_assert_eq!(&Text::parse(&shown).unwrap(), &text);
        let json = serde_json::to_string(&text).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Text>(&json).unwrap(), &text);
    }

    #[test]
    fn text_of_any_unicode_comes_back_and_hides_nothing(string in any::<String>()) {
        let text = Text::from(string.as_bytes());
        let shown = text.to_string();
        let hidden = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        prop_assert!(!shown.contains(|c: char| c.is_control() || hidden(c)), "{shown:?}");
        prop_assert_eq!(Text::parse(&shown).unwrap(), text);
    }

    #[test]
    fn different_texts_look_different(a in hostile(0..12), b in hostile(0..12)) {
        prop_assert_eq!(a == b, Text::from(a).to_string() == Text::from(b).to_string());
    }

    #[test]
    fn unescaping_never_panics_and_is_idempotent(escaped in any::<String>()) {
        if let Ok(text) = Text::parse(&escaped) {
            prop_assert_eq!(Text::parse(&text.to_string()).unwrap(), text);
        }
    }

    #[test]
    fn a_stat_comes_back_whatever_its_comm(
        comm in hostile(0..64),
        ids in any::<[i32; 5]>(),
        flags in any::<u32>(),
        times in any::<[u64; 3]>(),
        minflt in any::<u64>(),
        num_threads in any::<u32>(),
        state in b'A'..=b'z',
        skipped in any::<u64>(),
    ) {
        let [pid, ppid, pgrp, session, tty_nr] = ids;
        let [utime, stime, start_time] = times;
        let head = format!("{pid} (");
        let tail = format!(
            ") {} {ppid} {pgrp} {session} {tty_nr} -1 {flags} {minflt} 0 0 0 {utime} {stime} 0 0 -20 19 {num_threads} 0 {start_time} {skipped} 0\n",
            char::from(state),
        );
        let text = line(&[head.as_bytes(), &comm, tail.as_bytes()]);
        let expected = Stat { pid, comm: &comm, state, ppid, pgrp, session, tty_nr, flags, minflt, utime, stime, num_threads, start_time };
        prop_assert_eq!(stat::parse(&text).unwrap(), expected);
    }

    #[test]
    fn a_mount_comes_back_with_every_escaped_byte(
        ids in any::<[u32; 4]>(),
        root in name(),
        point in name(),
        source in hostile(0..30),
        groups in any::<(Option<u32>, Option<u32>, Option<u32>, bool)>(),
    ) {
        let [id, parent_id, major, minor] = ids;
        let (shared, master, propagate_from, unbindable) = groups;
        let root = line(&[b"/", &root]);
        let point = line(&[b"/", &point]);
        let mut optional = String::new();
        for (tag, value) in [("shared", shared), ("master", master), ("propagate_from", propagate_from)] {
            if let Some(value) = value {
                optional += &format!(" {tag}:{value}");
            }
        }
        if unbindable {
            optional += " unbindable";
        }
        let text = line(&[
            format!("{id} {parent_id} {major}:{minor} ").as_bytes(),
            &mangle(&root, b" \t\n\\"),
            b" ",
            &mangle(&point, b" \t\n\\"),
            b" rw,relatime",
            optional.as_bytes(),
            b" - fuse.x ",
            &mangle(&source, b" \t\n\\#"),
            b" rw,a=b\n",
        ]);
        let expected = Mount {
            id,
            parent_id,
            major,
            minor,
            root: Cow::Owned(root),
            mount_point: Cow::Owned(point),
            options: Cow::Borrowed(b"rw,relatime"),
            propagation: Propagation { shared, master, propagate_from, unbindable },
            fs_type: Cow::Borrowed(b"fuse.x"),
            source: Cow::Owned(source),
            super_options: Cow::Borrowed(b"rw,a=b"),
        };
        let twice = text.repeat(2);
        prop_assert_eq!(mountinfo::parse(&twice).unwrap(), [expected.clone(), expected]);
    }

    #[test]
    fn a_lock_comes_back_from_proc_locks_and_from_fdinfo(
        (id, start, end) in (any::<u32>(), any::<u64>(), any::<Option<u64>>()),
        kind in proptest::sample::select([LockKind::Flock, LockKind::Posix, LockKind::Ofd].as_slice()),
        access in proptest::sample::select([(Access::Read, "READ "), (Access::Write, "WRITE"), (Access::Unlocked, "UNLCK")].as_slice()),
        (blocked, mandatory) in any::<(bool, bool)>(),
        pid in any::<i32>(),
        dev in any::<(u32, u32)>(),
        inode in any::<u64>(),
    ) {
        let dev = Device { major: dev.0, minor: dev.1 };
        let lock = Lock { id: id.into(), blocked, kind, mandatory, lease: None, access: access.0, pid, dev: Some(dev), inode, start, end };
        let text = format!(
            "{id}: {}{:<6} {} {} {pid} {:02x}:{:02x}:{inode} {start} {}\n",
            if blocked { "-> " } else { "" },
            kind.as_str(),
            if mandatory { "MANDATORY" } else { "ADVISORY " },
            access.1,
            dev.major,
            dev.minor,
            end.map_or("EOF".to_owned(), |end| end.to_string()),
        );
        prop_assert_eq!(locks::parse(text.as_bytes()).unwrap(), [lock]);
        prop_assert_eq!(fdinfo::parse(format!("lock:\t{text}").as_bytes()).locks, [lock]);
    }

    #[test]
    fn a_cgroup_comes_back_whatever_its_name(hierarchy in any::<u32>(), name in name(), deleted in any::<bool>()) {
        let mut path = line(&[b"/", &name]);
        path.retain(|byte| *byte != b'\n');
        let text = line(&[format!("{hierarchy}:cpu,name=x:").as_bytes(), &path, if deleted { b" (deleted)" } else { b"" }, b"\n"]);
        let expected = CgroupEntry { hierarchy, controllers: b"cpu,name=x", path: &path, deleted };
        prop_assert_eq!(cgroup::parse(&text).unwrap(), [expected]);
    }

    #[test]
    fn a_deleted_mapping_is_found_among_any_others(name in name(), inode in any::<u64>(), dev in any::<(u32, u32)>(), before in 0..5_usize) {
        let path = mangle(&line(&[b"/", &name]), b"\n");
        let dev = Device { major: dev.0, minor: dev.1 };
        let other: &[u8] = b"7f00-7f01 rw-p 00000000 00:00 0 \n7f00-7f01 r--p 00000000 fe:00 9          /x (deleted)y\n";
        let mapping = format!("7f00-7f01 r--p 00000000 {:02x}:{:02x} {inode} ", dev.major, dev.minor);
        let text = line(&[&other.repeat(before), mapping.as_bytes(), b"         ", &path, b" (deleted)\n", other]);
        let found: Vec<_> = maps::deleted(&text).map(|mapping| mapping.unwrap()).collect();
        prop_assert_eq!(found, [maps::DeletedMapping { dev, inode, path: &path }]);
    }

    #[test]
    fn a_link_of_a_real_file_is_a_path_and_nothing_else(name in name()) {
        let link = line(&[b"/d/", &name]);
        let FdLink::Path { path, deleted } = fdlink::parse(&link) else {
            return Err(TestCaseError::fail("no path"));
        };
        prop_assert_eq!(line(&[path, if deleted { b" (deleted)" } else { b"" }]), link);
    }

    #[test]
    fn a_namespace_link_comes_back(at in 0..8_usize, inode in any::<u64>()) {
        let link = format!("{}:[{inode}]", NsType::ALL[at]);
        prop_assert_eq!(fdlink::parse(link.as_bytes()), FdLink::Namespace(NsType::ALL[at], inode));
    }

    #[test]
    fn a_key_keeps_its_description_up_to_the_next_key(name in hostile(0..40), serial in any::<u32>(), uid in any::<u32>()) {
        let head = format!("{serial:08x} I--Q--i {:5} {:>4} {:08x} {:5} {:5} {:<9} ", 7, "12h", 0x3f01_0000, uid.cast_signed(), -1, "user");
        let text = line(&[head.as_bytes(), &name, b": 3\n"]);
        let found = keys::parse(&text).unwrap();
        prop_assert_eq!((found.len(), found[0].serial, found[0].uid, found[0].gid), (1, serial, uid, u32::MAX));
        prop_assert_eq!(found[0].description, line(&[&name, b": 3"]));
        let two = text.repeat(2);
        let found = keys::parse(&two).unwrap();
        prop_assert_eq!(found.len(), 2);
        prop_assert_eq!(found[0], found[1]);
    }

    #[test]
    fn a_status_comes_back(ids in any::<[i32; 3]>(), users in any::<[u32; 4]>(), pids in vec(any::<i32>(), 1..33), threads in any::<u32>()) {
        let [tgid, pid, ppid] = ids;
        let list = pids.iter().map(|pid| format!("\t{pid}")).collect::<String>();
        let [a, b, c, d] = users;
        let text = format!("Name:\tx\nState:\tS (sleeping)\nTgid:\t{tgid}\nPid:\t{pid}\nPPid:\t{ppid}\nUid:\t{a}\t{b}\t{c}\t{d}\nNSpid:{list}\nThreads:\t{threads}\n");
        let expected = status::Status {
            state: Some(b'S'), tgid: Some(tgid), pid: Some(pid), ppid: Some(ppid), uid: Some(users), gid: None, ns_pids: pids, threads: Some(threads), voluntary_switches: None,
        };
        prop_assert_eq!(status::parse(text.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn a_semaphore_set_comes_back(key in any::<i32>(), id in any::<i32>(), perms in 0..0o7777_u32, owners in any::<[u32; 4]>(), times in any::<[i64; 2]>(), nsems in any::<u64>()) {
        let [uid, gid, cuid, cgid] = owners;
        let [otime, ctime] = times;
        let text = format!("       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n{key:10} {id:10}  {perms:4o} {nsems:10} {uid:5} {gid:5} {cuid:5} {cgid:5} {otime:10} {ctime:10}\n");
        let expected = sysvipc::Sem { key, id, perms, nsems, uid, gid, cuid, cgid, otime, ctime };
        prop_assert_eq!(sysvipc::parse_sem(text.as_bytes()).unwrap(), [expected]);
    }

    #[test]
    fn netlink_messages_and_attributes_come_back(messages in vec((any::<u16>(), any::<u32>(), vec((0..0x4000_u16, hostile(0..9)), 0..4)), 0..4)) {
        let mut datagram = Vec::new();
        for (kind, seq, attributes) in &messages {
            let mut payload = Vec::new();
            for (kind, value) in attributes {
                payload.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
                payload.extend((kind | 0x8000).to_ne_bytes());
                payload.extend(value);
                payload.resize(payload.len().next_multiple_of(4), 0);
            }
            datagram.extend(u32::try_from(16 + payload.len()).unwrap().to_ne_bytes());
            datagram.extend([kind.to_ne_bytes(), [0, 0]].concat());
            datagram.extend([seq.to_ne_bytes(), [0; 4]].concat());
            datagram.extend(payload);
        }
        let found: Vec<_> = netlink::messages(&datagram).map(|message| message.unwrap()).map(|message| {
            let attributes = netlink::attributes(message.payload).map(|attribute| attribute.unwrap());
            (message.kind, message.seq, attributes.map(|attribute| (attribute.kind, attribute.payload.to_vec())).collect::<Vec<_>>())
        }).collect();
        prop_assert_eq!(found, messages);
    }
}
