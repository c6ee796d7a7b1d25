//! BPF programs, maps and links by their ids (bpf(2), linux/bpf.h).

use std::fmt::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::error::in_words;
use crate::kind::Kind;
use crate::resource::{Bpf, BpfClass};
use crate::snapshot::{Gap, Level, Snapshot, Unseen};
use crate::text::Text;

const CLASSES: [BpfClass; 3] = [BpfClass::Prog, BpfClass::Map, BpfClass::Link];

/// Limit of one listing: ids are assigned cyclically, so a process that keeps loading programs could extend it forever.
const MAX_OBJECTS: usize = 1 << 20;

const OBJ_GET_INFO_BY_FD: u32 = 15;

/// Appends every BPF object of the machine. Listing them needs CAP_SYS_ADMIN in the initial user namespace
/// (`bpf_obj_get_next_id()`; CAP_BPF is not enough). Without it, coverage is none.
///
/// `own` are the observer's.
pub(super) fn collect(own: &[(BpfClass, u32)], out: &mut Snapshot) {
    collect_all(out);
    out.bpf.retain(|object| !own.contains(&(object.class, object.id)));
}

fn collect_all(out: &mut Snapshot) {
    for class in CLASSES {
        if let Err(errno) = list(class, out) {
            match errno {
                // Built without CONFIG_BPF_SYSCALL: no BPF object can exist.
                Errno::NOSYS => {}
                Errno::PERM | Errno::ACCESS => {
                    let reason = "listing BPF objects needs CAP_SYS_ADMIN".to_owned();
                    let gap = Gap { kind: Kind::Bpf, level: Level::None, reason, place: Unseen::Bpf };
                    return out.gaps.push(gap);
                }
                Errno::INVAL => {
                    let why = format!("this kernel cannot list BPF {}s: needs Linux 4.13, for links 5.8", name(class));
                    out.coverage.lower(Kind::Bpf, Level::Partial, why);
                }
                other => {
                    out.coverage.lower(
                        Kind::Bpf,
                        Level::Partial,
                        format!("cannot list BPF {}s: {}", name(class), in_words(other)),
                    );
                }
            }
        }
    }
}

fn list(class: BpfClass, out: &mut Snapshot) -> Result<(), Errno> {
    let mut id = 0;
    for _ in 0..MAX_OBJECTS {
        // struct { __u32 start_id; __u32 next_id; __u32 open_flags; }
        let mut attr = Attr::default();
        attr.set_u32(0, id);
        match bpf(next_id_command(class), &mut attr) {
            Ok(_) => id = attr.u32(1),
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        }
        out.bpf.push(Bpf { class, id });
    }
    Err(Errno::OVERFLOW)
}

/// Describes an object for a report: its type, name, owner and age, as far as the kernel reports them. None if it is
/// gone or cannot be opened.
pub(crate) fn describe(class: BpfClass, id: u32) -> Option<String> {
    let info = info(class, id)?;
    let number = |at: usize| u32::from_ne_bytes(info[at..at + 4].try_into().expect("four bytes"));
    let text = |at: usize| Text::from(info[at..at + 16].split(|byte| *byte == 0).next().unwrap_or_default());
    let mut line = String::new();
    // The offsets of struct bpf_prog_info, bpf_map_info and bpf_link_info; older kernels leave the rest zero.
    let written = match class {
        BpfClass::Prog => {
            let load_time = u64::from_ne_bytes(info[40..48].try_into().expect("eight bytes"));
            let kind = type_name(PROG_TYPES, number(0));
            let age = load_time / 1_000_000_000;
            write!(line, "{kind} program \"{}\", uid {}, loaded {age} s after boot", text(64), number(48))
        }
        BpfClass::Map => {
            let kind = type_name(MAP_TYPES, number(0));
            let (key, value, entries) = (number(8), number(12), number(16));
            write!(line, "{kind} map \"{}\", {entries} entries of {key} + {value} bytes", text(24))
        }
        BpfClass::Link => write!(line, "{} link to program {}", type_name(LINK_TYPES, number(0)), number(8)),
    };
    written.ok().map(|()| line)
}

fn info(class: BpfClass, id: u32) -> Option<[u8; 128]> {
    // struct { __u32 id; __u32 next_id; __u32 open_flags; }
    let mut attr = Attr::default();
    attr.set_u32(0, id);
    let fd = bpf(fd_by_id_command(class), &mut attr).ok()?;
    #[allow(unsafe_code)]
    // SAFETY: BPF_*_GET_FD_BY_ID succeeded, hence it returned a new descriptor, which nothing else owns.
    let object = unsafe { OwnedFd::from_raw_fd(fd) };
    // A newer kernel truncates its longer struct to this length; an older kernel's shorter struct fits.
    let mut info = [0_u8; 128];
    // struct { __u32 bpf_fd; __u32 info_len; __aligned_u64 info; }
    let mut attr = Attr::default();
    attr.set_u32(0, u32::try_from(object.as_raw_fd()).ok()?);
    attr.set_u32(1, info.len() as u32);
    attr.0[1] = info.as_mut_ptr().expose_provenance() as u64;
    bpf(OBJ_GET_INFO_BY_FD, &mut attr).ok()?;
    Some(info)
}

/// The id of an object that a descriptor of ours holds.
pub(super) fn id_of(fd: &OwnedFd) -> Option<u32> {
    let mut info = [0_u8; 128];
    let mut attr = Attr::default();
    attr.set_u32(0, u32::try_from(fd.as_raw_fd()).ok()?);
    attr.set_u32(1, info.len() as u32);
    attr.0[1] = info.as_mut_ptr().expose_provenance() as u64;
    bpf(OBJ_GET_INFO_BY_FD, &mut attr).ok()?;
    // The info of all three classes begins with a type and the id.
    Some(u32::from_ne_bytes(info[4..8].try_into().ok()?))
}

/// A hash map with keys of this many bytes and values of eight bytes.
pub(super) fn create_hash(key: u32, entries: u32) -> Result<OwnedFd, Errno> {
    // struct { __u32 map_type, key_size, value_size, max_entries, map_flags; }; 1 is BPF_MAP_TYPE_HASH
    let mut attr = Attr::default();
    [1, key, 8, entries].into_iter().enumerate().for_each(|(at, number)| attr.set_u32(at, number));
    bpf(0, &mut attr).map(owned)
}

/// Loads a program of type BPF_PROG_TYPE_RAW_TRACEPOINT.
pub(super) fn load_raw_tracepoint(code: &[u64]) -> Result<OwnedFd, Errno> {
    let license = c"GPL";
    // struct { __u32 prog_type, insn_cnt; __aligned_u64 insns, license; … }
    let mut attr = Attr::default();
    attr.set_u32(0, 17);
    attr.set_u32(1, u32::try_from(code.len()).map_err(|_| Errno::TOOBIG)?);
    attr.0[1] = code.as_ptr().expose_provenance() as u64;
    attr.0[2] = license.as_ptr().expose_provenance() as u64;
    bpf(5, &mut attr).map(owned)
}

/// Attaches it, as long as the returned descriptor is open.
pub(super) fn open_raw_tracepoint(name: &std::ffi::CStr, program: &OwnedFd) -> Result<OwnedFd, Errno> {
    // struct { __u64 name; __u32 prog_fd; }
    let mut attr = Attr::default();
    attr.0[0] = name.as_ptr().expose_provenance() as u64;
    attr.set_u32(2, program.as_raw_fd() as u32);
    bpf(17, &mut attr).map(owned)
}

/// `struct { __u32 map_fd; __aligned_u64 key; __aligned_u64 value; __u64 flags; }`
fn element(map: &OwnedFd, key: &[u64], value: u64) -> Attr {
    let mut attr = Attr::default();
    attr.set_u32(0, map.as_raw_fd() as u32);
    attr.0[1] = if key.is_empty() { 0 } else { key.as_ptr().expose_provenance() as u64 };
    attr.0[2] = value;
    attr
}

/// The value of a key; the key has the length of the map's keys.
pub(super) fn lookup(map: &OwnedFd, key: &[u64]) -> Option<u64> {
    let mut value = 0_u64;
    let at = (&raw mut value).expose_provenance() as u64;
    bpf(1, &mut element(map, key, at)).ok().map(|_| value)
}

/// Sets the value of a key.
pub(super) fn update(map: &OwnedFd, key: &[u64], value: u64) -> Result<(), Errno> {
    let at = (&raw const value).expose_provenance() as u64;
    bpf(2, &mut element(map, key, at)).map(drop)
}

/// Removes a key, if it is there.
pub(super) fn delete(map: &OwnedFd, key: &[u64]) {
    let _ = bpf(3, &mut element(map, key, 0));
}

/// The keys of a map whose keys have 16 bytes.
pub(super) fn keys(map: &OwnedFd) -> Vec<[u64; 2]> {
    let mut found: Vec<[u64; 2]> = Vec::new();
    // Bounded, since other processes may add keys during the loop.
    for _ in 0..1 << 16 {
        let mut next = [0_u64; 2];
        let at = next.as_mut_ptr().expose_provenance() as u64;
        let last: &[u64] = found.last().map_or(&[], |key| key);
        if bpf(4, &mut element(map, last, at)).is_err() {
            break;
        }
        found.push(next);
    }
    found
}

#[allow(unsafe_code)]
fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the commands whose result comes here return a new descriptor, which nothing else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// `union bpf_attr`, as far as the commands here use it.
#[derive(Default)]
#[repr(C, align(8))]
struct Attr([u64; 6]);

impl Attr {
    fn set_u32(&mut self, index: usize, value: u32) {
        let mut pair = self.0[index / 2].to_ne_bytes();
        pair[index % 2 * 4..][..4].copy_from_slice(&value.to_ne_bytes());
        self.0[index / 2] = u64::from_ne_bytes(pair);
    }

    fn u32(&self, index: usize) -> u32 {
        let pair = self.0[index / 2].to_ne_bytes();
        u32::from_ne_bytes(pair[index % 2 * 4..][..4].try_into().expect("four bytes"))
    }
}

/// bpf(2), which libc does not wrap. Returns what the command returns: a descriptor or 0.
#[allow(unsafe_code)]
fn bpf(command: u32, attr: &mut Attr) -> Result<i32, Errno> {
    // SAFETY: `attr` is a live, exclusive buffer of the length that is passed. The commands of this module read and write nothing
    // but `attr` and what it points to, which outlives the call and is as long as the command says: `info_len` bytes, `insn_cnt`
    // instructions, a string, or a key and a value of the map's sizes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<Attr>()) };
    if result < 0 {
        let errno = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&errno).unwrap_or(Errno::IO));
    }
    Ok(result as i32)
}

fn next_id_command(class: BpfClass) -> u32 {
    match class {
        BpfClass::Prog => 11,
        BpfClass::Map => 12,
        BpfClass::Link => 31,
    }
}

fn fd_by_id_command(class: BpfClass) -> u32 {
    match class {
        BpfClass::Prog => 13,
        BpfClass::Map => 14,
        BpfClass::Link => 30,
    }
}

fn name(class: BpfClass) -> &'static str {
    match class {
        BpfClass::Prog => "program",
        BpfClass::Map => "map",
        BpfClass::Link => "link",
    }
}

fn type_name(names: &str, number: u32) -> String {
    let name = usize::try_from(number).ok().and_then(|number| names.split_whitespace().nth(number));
    name.map_or_else(|| format!("type {number}"), str::to_owned)
}

/// `enum bpf_prog_type`, in its order.
const PROG_TYPES: &str = "unspec socket_filter kprobe sched_cls sched_act tracepoint xdp perf_event cgroup_skb \
    cgroup_sock lwt_in lwt_out lwt_xmit sock_ops sk_skb cgroup_device sk_msg raw_tracepoint cgroup_sock_addr \
    lwt_seg6local lirc_mode2 sk_reuseport flow_dissector cgroup_sysctl raw_tracepoint_writable cgroup_sockopt \
    tracing struct_ops ext lsm sk_lookup syscall netfilter";

/// `enum bpf_map_type`, in its order.
const MAP_TYPES: &str = "unspec hash array prog_array perf_event_array percpu_hash percpu_array stack_trace \
    cgroup_array lru_hash lru_percpu_hash lpm_trie array_of_maps hash_of_maps devmap sockmap cpumap xskmap sockhash \
    cgroup_storage reuseport_sockarray percpu_cgroup_storage queue stack sk_storage devmap_hash struct_ops ringbuf \
    inode_storage task_storage bloom_filter user_ringbuf cgrp_storage arena";

/// `enum bpf_link_type`, in its order.
const LINK_TYPES: &str = "unspec raw_tracepoint tracing cgroup iter netns xdp perf_event kprobe_multi struct_ops netfilter tcx \
    uprobe_multi netkit sockmap";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::KindSet;
    use crate::scope::Scope;

    fn see() -> Snapshot {
        let mut out = Snapshot::empty(Scope::Host, KindSet::all());
        collect(&[], &mut out);
        out
    }

    /// An array map of one entry, named as BPF_MAP_CREATE allows; none where bpf(2) refuses.
    fn create_map(name: &[u8; 16]) -> Option<OwnedFd> {
        #[repr(C)]
        struct Create {
            numbers: [u32; 7],
            name: [u8; 16],
        }
        let create = Create { numbers: [2, 4, 8, 1, 0, 0, 0], name: *name };
        #[allow(unsafe_code)]
        // SAFETY: the kernel reads `create`, of the length that is passed; on success the descriptor is new.
        unsafe {
            let fd = libc::syscall(libc::SYS_bpf, 0, &raw const create, size_of::<Create>());
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as i32))
        }
    }

    #[test]
    fn sees_a_map_until_its_last_descriptor_is_closed() {
        let before = see();
        let Some(map) = create_map(b"leakcheck_map\0\0\0") else {
            assert_eq!(before.coverage.0[&Kind::Bpf].level, Level::None, "who may not create may not list");
            return;
        };
        assert_eq!(before.coverage.0[&Kind::Bpf].level, Level::Full, "{:?}", before.coverage);
        let fdinfo = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).unwrap();
        let id = fdinfo.lines().find_map(|line| line.strip_prefix("map_id:")).expect("map_id").trim().parse().unwrap();
        let planted = Bpf { class: BpfClass::Map, id };
        assert!(!before.bpf.contains(&planted));
        assert!(see().bpf.contains(&planted));
        let described = describe(BpfClass::Map, id);
        assert_eq!(described.as_deref(), Some("array map \"leakcheck_map\", 1 entries of 4 + 8 bytes"));
        drop(map);
        // The kernel may finish from a work queue.
        let began = std::time::Instant::now();
        while see().bpf.contains(&planted) {
            assert!(began.elapsed().as_secs() < 60, "the map is gone");
            std::thread::yield_now();
        }
        assert_eq!(describe(BpfClass::Map, id), None);
    }

    #[test]
    fn without_privilege_it_sees_none_and_says_so() {
        let unprivileged = || {
            let none = rustix::thread::CapabilitySet::empty();
            let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
            rustix::thread::set_capabilities(None, sets).expect("capabilities can be dropped");
            see()
        };
        let found = std::thread::scope(|scope| scope.spawn(unprivileged).join().unwrap());
        assert!(found.bpf.is_empty());
        let [gap] = found.gaps.as_slice() else { panic!("{:?}", found.gaps) };
        assert_eq!((gap.level, gap.reason.as_str()), (Level::None, "listing BPF objects needs CAP_SYS_ADMIN"));
    }

    #[test]
    fn a_type_that_is_newer_than_this_list_is_shown_by_its_number() {
        assert_eq!(type_name(PROG_TYPES, 32), "netfilter");
        assert_eq!(type_name(MAP_TYPES, 33), "arena");
        assert_eq!(type_name(LINK_TYPES, 14), "sockmap");
        assert_eq!(type_name(LINK_TYPES, 99), "type 99");
    }
}
