//! Laws of the comparison, of merging and of saving, for arbitrary snapshots full of hostile bytes.

mod canned;

use std::collections::BTreeSet;
use std::path::Path;

use canned::add;
use leakcheck::judge::diff::diff;
use leakcheck::parse::nslink::NsType;
use leakcheck::resource::*;
use leakcheck::snapshot::{Coverage, CoverageMap, Level, Unreadable};
use leakcheck::text::Text;
use leakcheck::{Kind, KindSet, Scope, Snapshot, Verdict};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// Bytes as an attacker would choose them, and often the same ones.
fn text() -> impl Strategy<Value = Text> {
    let nasty = select(vec![
        &b""[..],
        b"a",
        b"b:c",
        b"1:2",
        b"a\\n",
        b"a\n",
        b"\xff\xfe",
        b"\x1b[31m",
        b"<b>&\"'",
        b"#1@2 (x)",
    ]);
    prop_oneof![3 => nasty.prop_map(Text::from), 1 => vec(any::<u8>(), 0..12).prop_map(Text::from)]
}

/// Small numbers collide, large ones overflow.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..4u64, 1 => any::<u64>()]
}

fn small() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0..4u32, 1 => any::<u32>()]
}

fn process() -> impl Strategy<Value = Resource> {
    (small(), number(), small(), any::<char>(), any::<i32>(), text()).prop_map(
        |(pid, start, ppid, state, pgrp, comm)| Process { pid, start, ppid, state, pgrp, session: pgrp, comm }.into(),
    )
}

fn fd() -> impl Strategy<Value = Resource> {
    let ids = (small(), number(), small(), small());
    (ids, number(), number(), proptest::option::of(number()), text(), small()).prop_map(
        |((pid, start, table, fd), dev, ino, serial, target, in_flight)| {
            // Only a file with a path has a device and an inode.
            let dev = if ino == 0 { 0 } else { dev };
            let target = Text::from([b"pipe:", target.as_bytes()].concat());
            Fd { pid, start, table, fd, dev, ino, serial, target, mount: serial, in_flight }.into()
        },
    )
}

fn mount() -> impl Strategy<Value = Resource> {
    let tuple = |n, point| MountId::Tuple(Text::from(format!("{n} 1 0:{n} / {point} tmpfs none").as_bytes()));
    let id = prop_oneof![number().prop_map(MountId::Unique), (number(), text()).prop_map(move |(n, p)| tuple(n, p))];
    (number(), id, text(), text(), number(), ".*").prop_map(|(ns, id, target, root, dev, holder)| {
        let (fs_type, source, propagation) = (root.clone(), target.clone(), target.clone());
        Mount { ns, id, target, root, fs_type, source, dev, propagation, holder }.into()
    })
}

fn cgroup() -> impl Strategy<Value = Resource> {
    (text(), number(), text())
        .prop_map(|(hierarchy, ino, path)| Cgroup { hierarchy, ino, dir: path.clone(), path }.into())
}

fn lock() -> impl Strategy<Value = Resource> {
    let class = select(vec!["flock", "posix", "ofd", "lease"]);
    let range = (number(), proptest::option::of(number()));
    (class, number(), number(), range, -1..4i64, 0..3u32).prop_map(|(class, dev, ino, (start, end), pid, nth)| {
        Lock { class: class.to_owned(), dev, ino, start, end, pid, nth, access: "read".to_owned(), waiters: nth }.into()
    })
}

fn lock_file() -> impl Strategy<Value = Resource> {
    use LockFileState::{Corrupt, Free, Held, Stale};
    (text(), number(), number(), select(vec![Free, Held, Stale, Corrupt]), proptest::option::of(small()))
        .prop_map(|(path, dev, ino, state, pid)| LockFile { path, dev, ino, state, pid }.into())
}

fn file() -> impl Strategy<Value = Resource> {
    let mapped = proptest::option::of((small(), number()));
    (number(), number(), proptest::option::of(any::<i64>()), small(), mapped, text()).prop_map(
        |(dev, ino, birth, link, mapped_by, path)| {
            let (class, state, version) =
                ("fifo".to_owned(), birth.map(|_| FileState::Changed), birth.map(|b| b as u64));
            File { dev, ino, birth, link, mapped_by, path, class, mode: link, uid: link, size: ino, state, version }
                .into()
        },
    )
}

fn ipc() -> impl Strategy<Value = Resource> {
    let class = select(vec![IpcClass::Shm, IpcClass::Sem, IpcClass::Msg, IpcClass::PosixShm, IpcClass::Mqueue]);
    (number(), class, number(), proptest::option::of(any::<i64>()), text()).prop_map(|(ns, class, id, birth, name)| {
        Ipc { ns, class, id, birth, name, uid: 0, size: id, creator: 0, attached: ns }.into()
    })
}

fn namespace() -> impl Strategy<Value = Resource> {
    let holder = prop_oneof![
        (small(), number()).prop_map(|(pid, start)| NsHolder::Process(pid, start)),
        (small(), number(), small()).prop_map(|(pid, start, fd)| NsHolder::Fd(pid, start, fd)),
        text().prop_map(NsHolder::Bind),
    ];
    (select(NsType::ALL.to_vec()), number(), proptest::option::of(number()), vec(holder, 0..3))
        .prop_map(|(ns_type, ino, id, holders)| Namespace { ns_type, ino, id, holders }.into())
}

fn net() -> impl Strategy<Value = Resource> {
    use NetClass::{Interface, Listener, NamedNetns, NftTable, Unix};
    (number(), select(vec![Interface, NamedNetns, Listener, Unix, NftTable]), number(), text(), text())
        .prop_map(|(netns, class, number, scope, name)| Net { netns, class, number, scope, name, uid: None }.into())
}

fn loop_device() -> impl Strategy<Value = Resource> {
    let device = select(vec!["loop0", "loop1"]).prop_map(|name| Text::from(name.as_bytes()));
    (device, number(), text()).prop_map(|(device, diskseq, backing)| LoopDevice { device, diskseq, backing }.into())
}

fn key() -> impl Strategy<Value = Resource> {
    let key_type = select(vec!["user", "keyring", ".request_key_auth"]).prop_map(|name| Text::from(name.as_bytes()));
    (small(), key_type, text())
        .prop_map(|(serial, key_type, description)| Key { serial, key_type, description, uid: serial }.into())
}

fn bpf() -> impl Strategy<Value = Resource> {
    (select(vec![BpfClass::Prog, BpfClass::Map, BpfClass::Link]), small())
        .prop_map(|(class, id)| Bpf { class, id }.into())
}

fn sysctl() -> impl Strategy<Value = Resource> {
    let path = select(vec!["/proc/sys/vm/swappiness", "/sys/kernel/mm/ksm/run"]);
    (path, text()).prop_map(|(path, value)| Sysctl { path: path.as_bytes().into(), value, before: None }.into())
}

fn of_kind(kind: Kind) -> BoxedStrategy<Resource> {
    match kind {
        Kind::Process => process().boxed(),
        Kind::Fd => fd().boxed(),
        Kind::Mount => mount().boxed(),
        Kind::Cgroup => cgroup().boxed(),
        Kind::Lock => lock().boxed(),
        Kind::Lockfile => lock_file().boxed(),
        Kind::File => file().boxed(),
        Kind::Ipc => ipc().boxed(),
        Kind::Namespace => namespace().boxed(),
        Kind::Net => net().boxed(),
        Kind::Loop => loop_device().boxed(),
        Kind::Key => key().boxed(),
        Kind::Bpf => bpf().boxed(),
        Kind::Sysctl => sysctl().boxed(),
    }
}

fn resource() -> impl Strategy<Value = Resource> {
    select(Kind::ALL.to_vec()).prop_flat_map(of_kind)
}

fn pair_of_one_kind() -> impl Strategy<Value = (Resource, Resource)> {
    select(Kind::ALL.to_vec()).prop_flat_map(|kind| (of_kind(kind), of_kind(kind)))
}

fn coverage() -> impl Strategy<Value = CoverageMap> {
    let level = select(vec![Level::None, Level::Partial, Level::Full]);
    let entry = (level, select(vec!["a", "b", "c"])).prop_map(|(level, why)| match level {
        Level::Full => Coverage::full(),
        Level::None | Level::Partial => Coverage { level, reason: why.to_owned() },
    });
    proptest::collection::btree_map(select(Kind::ALL.to_vec()), entry, 0..6).prop_map(CoverageMap)
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    let unreadable =
        (small(), number(), ".*").prop_map(|(pid, start, what)| Unreadable { pid, start, what, hides: KindSet::EMPTY });
    let gauges = proptest::collection::btree_map(".*", any::<i64>(), 0..3);
    let own = proptest::collection::btree_map(select(NsType::ALL.to_vec()), number(), 0..4);
    (vec(resource(), 0..40), coverage(), vec(unreadable, 0..3), gauges, own, any::<i64>(), any::<u64>()).prop_map(
        |(resources, coverage, unreadable, gauges, own_ns, taken_ns, took_ns)| {
            let empty = Snapshot {
                boot_id: "boot".to_owned(),
                coverage,
                unreadable,
                gauges,
                own_ns,
                taken_ns,
                took_ns,
                ..Snapshot::empty(Scope::Host, KindSet::all())
            };
            let mut snapshot = canned::with(empty, resources);
            snapshot.normalise();
            snapshot
        },
    )
}

fn keys(resources: &[Resource]) -> Vec<String> {
    resources.iter().map(Resource::key).collect()
}

fn all(snapshot: &Snapshot) -> BTreeSet<String> {
    let whole = diff(&Snapshot { kinds: snapshot.kinds, ..canned::host() }, snapshot).expect("comparable");
    keys(&whole.appeared).into_iter().collect()
}

fn remove(snapshot: &mut Snapshot, gone: &BTreeSet<String>) {
    macro_rules! drop_gone {
        ($($field:ident),+) => { $(snapshot.$field.retain(|r| !gone.contains(&Resource::from(r.clone()).key()));)+ };
    }
    drop_gone!(
        processes, fds, mounts, cgroups, locks, lock_files, files, ipc, namespaces, net, loops, keys, bpf, sysctls
    );
}

/// The identity as data, apart from its text.
fn same_identity(a: &Resource, b: &Resource) -> bool {
    macro_rules! compare {
        ($($variant:ident),+) => {
            match (a, b) {
                $((Resource::$variant(x), Resource::$variant(y)) => x.id() == y.id(),)+
                _ => false,
            }
        };
    }
    compare!(Process, Fd, Mount, Cgroup, Lock, Lockfile, File, Ipc, Namespace, Net, Loop, Key, Bpf, Sysctl)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_snapshot_does_not_differ_from_itself(a in snapshot()) {
        prop_assert!(diff(&a, &a).unwrap().is_empty());
    }

    #[test]
    fn what_appears_one_way_vanishes_the_other_way(a in snapshot(), b in snapshot()) {
        let (there, back) = (diff(&a, &b).unwrap(), diff(&b, &a).unwrap());
        prop_assert_eq!(keys(&there.appeared), keys(&back.vanished));
        prop_assert_eq!(keys(&there.vanished), keys(&back.appeared));
    }

    #[test]
    fn a_difference_applied_to_the_first_gives_the_second(a in snapshot(), b in snapshot()) {
        let d = diff(&a, &b).unwrap();
        let mut patched = a;
        remove(&mut patched, &keys(&d.vanished).into_iter().collect());
        for resource in d.appeared {
            add(&mut patched, resource);
        }
        prop_assert_eq!(all(&patched), all(&b));
    }

    #[test]
    fn a_snapshot_reads_back_as_it_was_saved(a in snapshot()) {
        let json = a.to_json().unwrap();
        let back = Snapshot::from_json(&json, Path::new("x")).unwrap();
        prop_assert_eq!(back.to_json().unwrap(), json);
        prop_assert_eq!(format!("{back:?}"), format!("{a:?}"));
    }

    #[test]
    fn keys_are_equal_exactly_when_identities_are((a, b) in pair_of_one_kind()) {
        prop_assert_eq!(a.key() == b.key(), same_identity(&a, &b), "{:?}\n{:?}", a, b);
        prop_assert!(!a.key().chars().any(char::is_control), "{}", a.key());
    }

    #[test]
    fn a_resource_reads_back_as_it_was_written(a in resource()) {
        let json = serde_json::to_value(&a).unwrap();
        prop_assert_eq!(&json["kind"], a.kind().as_str());
        prop_assert_eq!(serde_json::from_value::<Resource>(json).unwrap(), a);
    }

    #[test]
    fn coverage_merges_by_worst_in_any_order_and_any_number_of_times(a in coverage(), b in coverage(), c in coverage()) {
        let merged = |parts: &[&CoverageMap]| {
            let mut out = CoverageMap::default();
            parts.iter().for_each(|p| out.merge(p));
            out
        };
        let levels = |map: &CoverageMap| map.0.iter().map(|(k, c)| (*k, c.level)).collect::<Vec<_>>();
        let whole = merged(&[&a, &b, &c]);
        for other in [merged(&[&c, &a, &b]), merged(&[&a, &merged(&[&b, &c])]), merged(&[&merged(&[&a, &b]), &c])] {
            prop_assert_eq!(levels(&whole), levels(&other));
        }
        prop_assert_eq!(merged(&[&whole, &whole]), merged(&[&whole]), "again changes nothing");
        for (kind, coverage) in &whole.0 {
            let worst = [&a, &b, &c].iter().filter_map(|m| m.0.get(kind)).map(|c| c.level).min();
            prop_assert_eq!(Some(coverage.level), worst);
            prop_assert_eq!(coverage.reason.is_empty(), coverage.level == Level::Full);
        }
        prop_assert_eq!(Verdict::of(0, &whole) == Verdict::Clean, whole.0.values().all(|c| c.level == Level::Full) && !whole.0.is_empty());
    }
}
