//! Whose residue is it, and why is it still there: tables on canned data.

mod canned;

use canned::*;
use leakcheck::judge::attribute::Membership::{self, Run, Stranger};
use leakcheck::judge::attribute::{Attribution, Attributor, Owner};
use leakcheck::judge::class::{Class, classify};
use leakcheck::parse::nslink::NsType;
use leakcheck::resource::*;
use leakcheck::{Kind, KindSet, Scope, Snapshot};

const MINE: u32 = 50;
const THEIRS: u32 = 60;
const NOBODYS: u32 = 70;
/// There before the run.
const OLD: u32 = 40;
const OLD_MNT: u64 = 100;
const OLD_NS: u64 = 101;
const NEW_NS: u64 = 200;

/// Processes whose membership is known as their names say.
fn known() -> Known {
    Known { processes: vec![(MINE, Run), (THEIRS, Stranger)], ..Known::default() }
}

fn before() -> Snapshot {
    let old = |ns_type, ino| namespace(ns_type, ino, vec![NsHolder::Process(OLD, 1)]).into();
    let namespaces = [(NsType::Mnt, OLD_MNT), (NsType::Ipc, OLD_NS), (NsType::Net, OLD_NS)];
    with(host(), namespaces.map(|(t, ino)| old(t, ino)).into_iter().chain([process(OLD, 1).into()]))
}

fn owner_in(observation: Snapshot, known: &Known, resource: &Resource) -> Owner {
    let observation =
        with(observation, [OLD, MINE, THEIRS, NOBODYS].map(|pid| process(pid, if pid == OLD { 1 } else { 10 }).into()));
    let before = before();
    Attributor::new(&before, &observation, known, None).owner(resource)
}

fn owner(resource: impl Into<Resource>) -> Owner {
    let resource = resource.into();
    owner_in(with(host(), [resource.clone()]), &known(), &resource)
}

const HOLDER: Owner = Owner::Run(Attribution::Holder);
const CREATOR: Owner = Owner::Run(Attribution::Creator);

/// What a fact about the maker makes of the owner.
fn by_maker(known: impl Fn(Membership) -> Known, resource: &Resource) -> [Owner; 3] {
    [Run, Stranger, Membership::Unknown].map(|m| owner_in(with(host(), [resource.clone()]), &known(m), resource))
}

#[test]
fn a_bpf_object_is_a_strangers_if_the_run_made_none_or_if_its_holder_made_as_many_as_it_holds() {
    let map: Resource = bpf(BpfClass::Map, 4).into();
    let held = |pid| with(host(), [Fd { serial: Some(4), ..fd(pid, 3, "anon_inode:bpf-map") }.into(), map.clone()]);
    let unheld = || with(host(), [map.clone()]);
    let made = |made, makers: &[u32]| Known { made: Some(made), makers: makers.to_vec(), ..known() };
    for (observation, expected) in [(unheld(), Owner::Stranger), (held(THEIRS), Owner::Stranger), (held(MINE), HOLDER)]
    {
        assert_eq!(owner_in(observation, &made(Stranger, &[]), &map), expected);
    }
    assert_eq!(owner_in(unheld(), &made(Run, &[THEIRS]), &map), Owner::Unknown, "pinned by either");
    assert_eq!(owner_in(held(THEIRS), &made(Run, &[]), &map), Owner::Unknown, "the run may have handed it over");
    assert_eq!(owner_in(held(THEIRS), &made(Run, &[THEIRS]), &map), Owner::Stranger);
    assert_eq!(owner_in(unheld(), &made(Membership::Unknown, &[]), &map), Owner::Unknown);
    let mut two = held(THEIRS);
    two.fds.push(Fd { serial: Some(5), ..fd(THEIRS, 4, "anon_inode:bpf-map") });
    two.bpf.push(bpf(BpfClass::Map, 5));
    assert_eq!(owner_in(two.clone(), &made(Run, &[THEIRS, THEIRS]), &map), Owner::Stranger);
    assert_eq!(owner_in(two, &made(Run, &[THEIRS]), &map), Owner::Unknown, "one of them may have been handed over");
}

#[test]
fn keys_and_loop_devices_of_processes_that_are_not_the_runs_are_strangers() {
    for resource in [Resource::from(key()), loop_device().into()] {
        let of = |made| owner_in(with(host(), []), &Known { made: Some(made), ..known() }, &resource);
        assert_eq!(of(Stranger), Owner::Stranger, "{resource:?}");
        assert_eq!(of(Membership::Unknown), Owner::Unknown, "{resource:?}");
    }
}

#[test]
fn a_process_is_the_runs_by_descent_then_by_token() {
    assert_eq!(owner(process(MINE, 10)), Owner::Run(Attribution::Descent));
    assert_eq!(owner(process(THEIRS, 10)), Owner::Stranger);
    assert_eq!(owner(process(NOBODYS, 10)), Owner::Unknown);
    assert_eq!(owner(process(OLD, 1)), Owner::Stranger, "what was there before is not the run's");
    let marked = Known { tokens: vec![THEIRS, NOBODYS], ..known() };
    for pid in [THEIRS, NOBODYS] {
        assert_eq!(owner_in(host(), &marked, &process(pid, 10).into()), Owner::Run(Attribution::Token));
    }
}

#[test]
fn a_process_of_unknown_descent_is_the_runs_in_a_cgroup_that_the_run_made() {
    let observation = || with(host(), [cgroup(9, "/box").into()]);
    let made = |m| Known {
        creators: vec![("/sys/fs/cgroup/box", m)],
        cgroups: vec![(NOBODYS, "/box"), (THEIRS, "/box")],
        ..known()
    };
    assert_eq!(owner_in(observation(), &made(Run), &process(NOBODYS, 10).into()), Owner::Run(Attribution::Cgroup));
    assert_eq!(owner_in(observation(), &made(Run), &process(THEIRS, 10).into()), Owner::Stranger, "descent says more");
    assert_eq!(owner_in(observation(), &made(Stranger), &process(NOBODYS, 10).into()), Owner::Unknown);
}

#[test]
fn what_a_process_holds_is_its_owners() {
    for (pid, expected) in [(MINE, HOLDER), (THEIRS, Owner::Stranger), (NOBODYS, Owner::Unknown), (99, Owner::Unknown)]
    {
        assert_eq!(owner(fd(pid, 3, "pipe:[1]")), expected, "fd of {pid}");
        let mapped = File { mapped_by: Some((pid, 10)), ..file("/tmp/x", 3) };
        assert_eq!(owner(mapped), expected, "mapped by {pid}");
        assert_eq!(owner(namespace(NsType::Net, NEW_NS, vec![NsHolder::Process(pid, 10)])), expected);
        assert_eq!(owner(namespace(NsType::Net, NEW_NS, vec![NsHolder::Fd(pid, 10, 3)])), expected);
        let detached = Mount { ns: 0, holder: format!("cwd of {pid}"), ..mount(0, 9, "") };
        assert_eq!(owner(detached), expected, "detached mount pinned by {pid}");
        let socket = with(host(), [fd(pid, 3, "socket:[77]").into()]);
        assert_eq!(
            owner_in(socket, &known(), &net(OLD_NS, NetClass::Listener, 77).into()),
            expected,
            "socket of {pid}"
        );
        let object = with(host(), [Fd { serial: Some(4), ..fd(pid, 3, "anon_inode:bpf-map") }.into()]);
        assert_eq!(owner_in(object, &known(), &bpf(BpfClass::Map, 4).into()), expected, "bpf map of {pid}");
    }
}

#[test]
fn one_holder_of_the_run_among_strangers_is_enough() {
    let shared =
        |pids: &[u32]| owner(namespace(NsType::Net, NEW_NS, pids.iter().map(|p| NsHolder::Process(*p, 10)).collect()));
    assert_eq!(shared(&[THEIRS, NOBODYS, MINE]), HOLDER);
    assert_eq!(shared(&[THEIRS, OLD]), Owner::Stranger);
    assert_eq!(shared(&[THEIRS, NOBODYS]), Owner::Unknown);
    assert_eq!(shared(&[NOBODYS, THEIRS]), Owner::Unknown);
}

#[test]
fn a_lock_is_its_takers_or_that_of_whoever_has_the_file_open() {
    for (pid, expected) in [(MINE, HOLDER), (THEIRS, Owner::Stranger), (NOBODYS, Owner::Unknown)] {
        assert_eq!(owner(lock("posix", 3, pid.into())), expected, "posix lock of {pid}");
        let opened = || with(host(), [fd_on(pid, 7, 3).into()]);
        for class in ["flock", "ofd"] {
            assert_eq!(owner_in(opened(), &known(), &lock(class, 3, -1).into()), expected, "{class} through {pid}");
            assert_eq!(owner_in(opened(), &known(), &lock(class, 3, 4711).into()), expected, "its taker is dead");
        }
    }
    let neighbour = with(host(), [fd_on(MINE, 7, 3).into()]);
    let theirs = owner_in(neighbour, &known(), &lock("posix", 3, THEIRS.into()).into());
    assert_eq!(theirs, Owner::Stranger, "to have the file open is not to have its POSIX lock");
    let other_device = with(host(), [fd_on(MINE, 8, 3).into(), fd_on(THEIRS, 7, 3).into()]);
    assert_eq!(owner_in(other_device, &known(), &lock("flock", 3, -1).into()), Owner::Stranger, "inodes recur");
    let overlay = with(host(), [fd_on(MINE, 8, 3).into()]);
    assert_eq!(owner_in(overlay, &known(), &lock("flock", 3, -1).into()), HOLDER, "no descriptor on the lock's device");
    assert_eq!(owner(lock("flock", 3, -1)), Owner::Unknown);
}

#[test]
fn what_somebody_made_is_its_makers() {
    let expected = [CREATOR, Owner::Stranger, Owner::Unknown];
    let files = |m| Known { creators: vec![("/tmp/f", m), ("/dev/shm/x", m), ("/sys/fs/cgroup/a", m)], ..known() };
    assert_eq!(by_maker(files, &file("/tmp/f", 3).into()), expected);
    assert_eq!(by_maker(files, &lock_file("/tmp/f", LockFileState::Stale).into()), expected);
    assert_eq!(by_maker(files, &cgroup(6, "/a").into()), expected);
    assert_eq!(by_maker(files, &ipc(0, IpcClass::PosixShm, 0).into()), expected);
    let mounts = |m| Known { mounts: vec![(5, m)], ..known() };
    assert_eq!(by_maker(mounts, &mount(OLD_MNT, 5, "/mnt").into())[..2], expected[..2]);
    let shm = |m| Known { ever: vec![(4711, m)], ..known() };
    assert_eq!(by_maker(shm, &ipc(OLD_NS, IpcClass::Shm, 4711).into()), expected);
}

#[test]
fn what_only_shows_that_the_run_had_a_hand_in_it_never_makes_it_a_strangers() {
    let expected = [CREATOR, Owner::Unknown, Owner::Unknown];
    let sender = |m| Known { ever: vec![(4711, m)], ..known() };
    assert_eq!(by_maker(sender, &ipc(OLD_NS, IpcClass::Msg, 4711).into()), expected);
    let backing = |m| Known { creators: vec![("/img", m)], ..known() };
    assert_eq!(by_maker(backing, &loop_device().into()), expected);
}

#[test]
fn a_stale_lock_file_of_unknown_making_is_the_runs_when_it_names_a_process_of_the_run() {
    let names = |m| Known { ever: vec![(4711, m)], ..known() };
    let stale = LockFile { pid: Some(4711), ..lock_file("/run/l", LockFileState::Stale) };
    assert_eq!(by_maker(names, &stale.into()), [CREATOR, Owner::Unknown, Owner::Unknown]);
}

#[test]
fn kinds_that_nothing_attributes_are_unknown() {
    for resource in [
        Resource::from(key()),
        ipc(OLD_NS, IpcClass::Sem, 0).into(),
        ipc(OLD_NS, IpcClass::Mqueue, 0).into(),
        net(OLD_NS, NetClass::Interface, 2).into(),
        net(OLD_NS, NetClass::NftTable, 2).into(),
        bpf(BpfClass::Prog, 3).into(),
    ] {
        assert_eq!(owner(resource.clone()), Owner::Unknown, "{resource:?}");
    }
}

#[test]
fn what_is_inside_a_new_namespace_is_its_holders() {
    for (pid, expected) in
        [(MINE, Owner::Run(Attribution::Namespace)), (THEIRS, Owner::Stranger), (NOBODYS, Owner::Unknown)]
    {
        let inside = |ns_type: NsType, resource: Resource| {
            let ns = namespace(ns_type, NEW_NS, vec![NsHolder::Process(pid, 10)]);
            owner_in(with(host(), [ns.into(), resource.clone()]), &known(), &resource)
        };
        assert_eq!(inside(NsType::Net, net(NEW_NS, NetClass::Interface, 2).into()), expected);
        assert_eq!(inside(NsType::Net, net(NEW_NS, NetClass::Listener, 2).into()), expected);
        assert_eq!(inside(NsType::Mnt, mount(NEW_NS, 9, "/x").into()), expected);
        assert_eq!(inside(NsType::Ipc, ipc(NEW_NS, IpcClass::Sem, 0).into()), expected);
    }
}

#[test]
fn a_namespace_that_the_run_bound_is_the_runs_whoever_is_inside() {
    let bound = |m, pid| {
        let ns = namespace(NsType::Net, NEW_NS, vec![NsHolder::Process(pid, 10), NsHolder::Bind(text("/run/netns/a"))]);
        let observation = with(host(), [mount(OLD_MNT, 5, "/run/netns/a").into(), ns.clone().into()]);
        owner_in(observation, &Known { mounts: vec![(5, m)], ..known() }, &ns.into())
    };
    assert_eq!(bound(Run, THEIRS), CREATOR);
    assert_eq!(bound(Stranger, MINE), HOLDER);
    assert_eq!(bound(Stranger, THEIRS), Owner::Stranger);
}

/// Whose a mount on `/x` is, in an old namespace of strangers where its parent is mounted with this propagation.
fn in_old_namespace(propagation: &str, elsewhere: &str, known: &Known) -> Owner {
    let at = |ns, id, propagation: &str| Mount { propagation: text(propagation), ..mount(ns, id, "/") };
    let baseline = with(before(), [at(OLD_MNT, 1, propagation).into(), at(OLD_NS, 2, elsewhere).into()]);
    let holder = namespace(NsType::Mnt, OLD_MNT, vec![NsHolder::Process(OLD, 1)]);
    let lasting = with(host(), [holder.clone().into(), process(OLD, 1).into(), at(OLD_MNT, 1, propagation).into()]);
    let reused = with(host(), [holder.into(), process(OLD, 1).into(), at(OLD_MNT, 8, propagation).into()]);
    let [lasting, reused] = [lasting, reused].map(|observation| {
        Attributor::new(&baseline, &observation, known, None).owner(&mount(OLD_MNT, 9, "/x").into())
    });
    if known.mounts.is_empty() {
        assert_eq!(reused, Owner::Stranger, "of another namespace, which took the inode of one that ended");
    }
    lasting
}

#[test]
fn a_mount_in_a_namespace_that_strangers_alone_are_in_is_theirs_unless_it_may_have_come_in() {
    for (propagation, elsewhere) in [("", "shared:1"), ("unbindable", ""), ("shared:1", "shared:11"), ("shared:1", "")]
    {
        assert_eq!(in_old_namespace(propagation, elsewhere, &known()), Owner::Stranger, "{propagation}");
    }
    for (propagation, elsewhere) in [("master:1", "shared:1"), ("shared:1", "shared:1"), ("shared:2 master:1", "")] {
        assert_eq!(in_old_namespace(propagation, elsewhere, &known()), Owner::Unknown, "{propagation}");
        let told = |m| in_old_namespace(propagation, elsewhere, &Known { mounts: vec![(9, m)], ..known() });
        assert_eq!([told(Run), told(Stranger)], [CREATOR, Owner::Stranger]);
        let watched = Known { watched_mounts: vec![OLD_MNT], ..known() };
        assert_eq!(in_old_namespace(propagation, elsewhere, &watched), Owner::Stranger, "before the run began");
    }
}

#[test]
fn in_the_observers_own_namespace_anybody_may_mount() {
    let mut observation = with(host(), [namespace(NsType::Mnt, OLD_MNT, vec![NsHolder::Process(OLD, 1)]).into()]);
    observation.own_ns.insert(NsType::Mnt, OLD_MNT);
    assert_eq!(owner_in(observation, &known(), &mount(OLD_MNT, 9, "/x").into()), Owner::Unknown);
}

#[test]
fn a_copy_of_an_old_mount_in_a_new_namespace_is_recognised() {
    let baseline = with(before(), [mount(OLD_MNT, 1, "/data").into()]);
    let observation = with(host(), [mount(NEW_NS, 8, "/data").into(), mount(NEW_NS, 9, "/new").into()]);
    let known = known();
    let attributor = Attributor::new(&baseline, &observation, &known, None);
    assert!(attributor.is_copy(&observation.mounts[0]) && !attributor.is_copy(&observation.mounts[1]));
    assert!(!attributor.is_copy(&mount(OLD_MNT, 10, "/data")), "a second mount over it is new");
}

#[test]
fn a_namespace_is_new_only_against_a_baseline_that_looked_for_it() {
    let only = |kind: Kind, mut s: Snapshot| {
        s.kinds = [kind].into_iter().collect::<KindSet>();
        s
    };
    let known = known();
    let observation = with(host(), [mount(NEW_NS, 8, "/data").into()]);
    let blind = only(Kind::Process, host());
    assert!(!Attributor::new(&blind, &observation, &known, None).fresh_ns(NEW_NS));
    let mounts = only(Kind::Mount, with(host(), [mount(OLD_MNT, 1, "/data").into()]));
    let by_mounts = Attributor::new(&mounts, &observation, &known, None);
    assert!(by_mounts.fresh_ns(NEW_NS) && !by_mounts.fresh_ns(OLD_MNT) && !by_mounts.fresh_ns(0));
    assert!(!by_mounts.fresh_ns(300), "of an IPC namespace the mounts tell nothing");
}

#[test]
fn in_a_scope_everything_is_the_runs() {
    for scope in [Scope::Tree(OLD), Scope::Cgroup("/box".into())] {
        let baseline = with(scoped(scope.clone()), [process(OLD, 1).into()]);
        let observation = with(scoped(scope), [OLD, THEIRS].map(|p| process(p, if p == OLD { 1 } else { 10 }).into()));
        let known = known();
        let attributor = Attributor::new(&baseline, &observation, &known, None);
        let others = one_of_each().into_iter().filter(|r| r.kind() != Kind::Process);
        for resource in others.chain([process(THEIRS, 10).into()]) {
            assert_eq!(attributor.owner(&resource), Owner::Run(Attribution::Scope), "{resource:?}");
        }
        assert_eq!(attributor.alive(), (true, false), "the new process lives");
        let same = Attributor::new(&baseline, &baseline, &known, None);
        assert_eq!(same.alive(), (false, false), "what was there before is no survivor");
    }
}

#[test]
fn the_own_process_owns_what_it_opens_but_is_no_survivor() {
    let baseline = with(host(), [process(OLD, 1).into()]);
    let observation = with(host(), [process(OLD, 1).into(), fd(OLD, 3, "pipe:[1]").into()]);
    let known = known();
    let own = Attributor::new(&baseline, &observation, &known, Some(OLD));
    assert_eq!(own.owner(&observation.fds[0].clone().into()), Owner::Run(Attribution::Own));
    assert_eq!(own.alive(), (false, false));
    assert_eq!(
        Attributor::new(&baseline, &observation, &known, None).owner(&observation.fds[0].clone().into()),
        Owner::Stranger
    );
}

#[test]
fn who_of_the_run_lives_and_runs() {
    let alive = |pid: u32, state: char| {
        let observation = with(host(), [Process { state, ..process(pid, 10) }.into()]);
        Attributor::new(&before(), &observation, &known(), None).alive()
    };
    assert_eq!(alive(MINE, 'S'), (true, false));
    assert_eq!(alive(MINE, 'R'), (true, true));
    assert_eq!(alive(MINE, 'D'), (true, true));
    assert_eq!(alive(MINE, 'Z'), (false, true), "init has yet to reap it");
    let zombie = Process { state: 'Z', ppid: MINE, ..process(MINE + 1, 10) };
    let observation = with(host(), [process(MINE, 10), zombie].map(Resource::from));
    let of_run = Known { processes: vec![(MINE, Run), (MINE + 1, Run)], ..Known::default() };
    assert_eq!(
        Attributor::new(&before(), &observation, &of_run, None).alive(),
        (true, false),
        "its parent does not reap it"
    );
    assert_eq!(alive(NOBODYS, 'R'), (true, true), "it may be the run's");
    assert_eq!(alive(THEIRS, 'R'), (false, false));
}

#[test]
fn each_residue_has_its_class() {
    use Class::{Dying, Held, Orphaned};
    let zombie = |ppid| Process { state: 'Z', ppid, ..process(MINE, 10) };
    let observation =
        with(host(), [process(OLD, 1).into(), Fd { serial: Some(4), ..fd(OLD, 3, "anon_inode:bpf-map") }.into()]);
    let table: Vec<(Resource, Class)> = vec![
        (process(MINE, 10).into(), Orphaned),
        (Process { ppid: OLD, ..process(MINE, 10) }.into(), Held),
        (Process { ppid: 1, ..process(MINE, 10) }.into(), Orphaned),
        (Process { ppid: MINE, ..process(MINE + 1, 10) }.into(), Orphaned),
        (zombie(OLD).into(), Held),
        (zombie(4711).into(), Dying),
        (Process { state: 'X', ..process(MINE, 10) }.into(), Dying),
        (fd(MINE, 3, "pipe:[1]").into(), Held),
        (lock("flock", 3, 1).into(), Held),
        (mount(OLD_MNT, 1, "/m").into(), Orphaned),
        (mount(NEW_NS, 1, "/m").into(), Held),
        (mount(0, 1, "").into(), Held),
        (cgroup(6, "/empty").into(), Orphaned),
        (cgroup(6, "/populated").into(), Held),
        (lock_file("/l", LockFileState::Held).into(), Held),
        (lock_file("/l", LockFileState::Stale).into(), Orphaned),
        (lock_file("/l", LockFileState::Corrupt).into(), Orphaned),
        (file("/tmp/f", 1).into(), Orphaned),
        (File { mapped_by: Some((MINE, 10)), ..file("/tmp/f", 1) }.into(), Held),
        (ipc(OLD_NS, IpcClass::Sem, 0).into(), Orphaned),
        (ipc(NEW_NS, IpcClass::Sem, 0).into(), Held),
        (Ipc { attached: 1, ..ipc(OLD_NS, IpcClass::Shm, 0) }.into(), Held),
        (namespace(NsType::Net, NEW_NS, vec![NsHolder::Process(MINE, 10)]).into(), Held),
        (namespace(NsType::Net, NEW_NS, vec![NsHolder::Bind(text("/b")), NsHolder::Fd(MINE, 10, 3)]).into(), Held),
        (namespace(NsType::Net, NEW_NS, vec![NsHolder::Bind(text("/b"))]).into(), Orphaned),
        (net(OLD_NS, NetClass::Listener, 1).into(), Held),
        (net(OLD_NS, NetClass::Unix, 1).into(), Held),
        (net(OLD_NS, NetClass::NamedNetns, 1).into(), Orphaned),
        (net(OLD_NS, NetClass::Interface, 1).into(), Orphaned),
        (net(NEW_NS, NetClass::NftTable, 1).into(), Held),
        (bpf(BpfClass::Map, 4).into(), Held),
        (bpf(BpfClass::Map, 5).into(), Orphaned),
        (loop_device().into(), Orphaned),
        (key().into(), Orphaned),
    ];
    for (resource, class) in table {
        let populated = |c: &Cgroup| c.path.as_ref() == b"/populated";
        assert_eq!(classify(&resource, &observation, Some(OLD), |ns| ns == NEW_NS, populated), class, "{resource:?}");
    }
}

#[test]
fn a_process_of_unknown_descent_is_the_runs_in_a_new_namespace_that_the_run_is_in() {
    let shared = |ino, pids: &[u32]| {
        let holders = pids.iter().map(|pid| NsHolder::Process(*pid, 10)).collect();
        with(host(), [namespace(NsType::Mnt, ino, holders).into()])
    };
    let who = |observation, pid| owner_in(observation, &known(), &process(pid, 10).into());
    assert_eq!(who(shared(NEW_NS, &[MINE, NOBODYS]), NOBODYS), Owner::Run(Attribution::Namespace));
    assert_eq!(who(shared(OLD_MNT, &[MINE, NOBODYS]), NOBODYS), Owner::Unknown, "everybody may be in an old one");
    assert_eq!(who(shared(NEW_NS, &[THEIRS, NOBODYS]), NOBODYS), Owner::Unknown);
    assert_eq!(who(shared(NEW_NS, &[MINE, THEIRS]), THEIRS), Owner::Stranger, "descent says more");
}

#[test]
fn what_a_user_of_the_run_alone_owns_is_the_runs_when_nothing_else_tells() {
    let key = |uid| -> Resource { Key { serial: 7, key_type: text("user"), description: text("k"), uid }.into() };
    let judge = 4_000;
    let with_uids = |uids: &[(u32, u32)]| Known { uids: uids.to_vec(), ..known() };
    let who = |known: &Known, uid| owner_in(with(host(), [key(uid)]), known, &key(uid));
    assert_eq!(who(&with_uids(&[(MINE, judge), (THEIRS, 33)]), judge), Owner::Run(Attribution::Uid));
    assert_eq!(who(&with_uids(&[(MINE, judge), (THEIRS, judge)]), judge), Owner::Unknown, "others have it as well");
    assert_eq!(who(&with_uids(&[(MINE, 0)]), 0), Owner::Unknown, "root is nobody's alone");
    assert_eq!(who(&with_uids(&[(MINE, judge)]), 33), Owner::Unknown);
}
