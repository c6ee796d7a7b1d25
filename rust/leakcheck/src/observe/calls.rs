//! Which keys, BPF objects and loop devices an arena's processes made: recorded on return from the system call, for
//! every process of the arena and every system call table.
//!
//! One BPF program of this process is attached to the tracepoint `sys_exit` (raw tracepoints: Linux 4.17;
//! `bpf_probe_read_kernel()`: 5.5). It checks the number of the call, and only for the few relevant calls the cgroup of
//! the task. A process of an arena cannot leave the arena's cgroup, so none of its calls is missed, and no other
//! process is mistaken for it. The kernel removes the program when our descriptors are closed.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::bpf;
use super::proc_root::read_file;
use crate::error::in_words;
use crate::membership::Membership;
use crate::resource::{BpfClass, Resource};

/// Maximum number of arenas recorded at a time, and of records of all arenas. A record that does not fit is counted as
/// lost.
const ARENAS: u32 = 1024;
const RECORDS: u32 = 16384;
/// `PROC_CGROUP_INIT_INO` (include/linux/proc_ns.h): in other cgroup namespaces a path does not tell the depth of a
/// cgroup.
const INITIAL_CGROUP_NS: u64 = 0xEFFF_FFFB;

const KEY: u32 = 1;
const LOOP: u32 = 2;
const OBJECT: u32 = 3;

/// Key types that only add_key(2), request_key(2) and keyctl(2) create; the kernel creates others on behalf of a
/// process.
const TYPES: &[&[u8]] = &[b"user", b"logon", b"keyring", b"big_key", b"encrypted", b"trusted", b"asymmetric"];

/// The program of this process, by the depth of the arenas' cgroups. It is attached while a view of an arena exists:
/// during that time, every system call on the machine takes the slower path through its tracepoints.
static PROGRAMS: Mutex<Vec<Arc<Program>>> = Mutex::new(Vec::new());

struct Program {
    level: u32,
    arenas: OwnedFd,
    records: OwnedFd,
    program: OwnedFd,
    link: Mutex<Option<OwnedFd>>,
    /// The number of views of each arena, by the id of its cgroup.
    views: Mutex<HashMap<u64, usize>>,
}

/// What one arena's processes did.
pub(crate) struct Calls {
    program: Arc<Program>,
    cgroup: u64,
}

/// The descriptors of this process that are the recorder's.
pub(crate) fn own_fds() -> Vec<i32> {
    let programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    let fds = programs.iter().flat_map(|p| [p.arenas.as_raw_fd(), p.records.as_raw_fd(), p.program.as_raw_fd()]);
    fds.chain(programs.iter().filter_map(|p| p.link().as_ref().map(AsRawFd::as_raw_fd))).collect()
}

/// The recorder's BPF objects, which are never leaks.
pub(super) fn own_objects() -> Vec<(BpfClass, u32)> {
    let programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut own = Vec::new();
    for p in programs.iter() {
        let held = [(BpfClass::Map, &p.arenas), (BpfClass::Map, &p.records), (BpfClass::Prog, &p.program)];
        own.extend(held.into_iter().filter_map(|(class, fd)| Some((class, bpf::id_of(fd)?))));
        own.extend(p.link().as_ref().and_then(bpf::id_of).map(|id| (BpfClass::Link, id)));
    }
    own
}

impl Calls {
    /// Records the calls of processes in the arena with these cgroups and this `/proc/1/cgroup`.
    ///
    /// # Errors
    /// Why nothing can be recorded here: a missing privilege, kernel feature or v2 hierarchy.
    pub(crate) fn of(cgroups: &[(String, PathBuf)], of_init: &[u8]) -> Result<Self, String> {
        let (_, dir) = cgroups.iter().find(|(name, _)| name == "v2").ok_or("the arena has no v2 cgroup")?;
        let initial = std::fs::metadata("/proc/self/ns/cgroup").map(|ns| ns.ino() == INITIAL_CGROUP_NS);
        if !initial.unwrap_or(false) {
            return Err("leakcheck runs in a cgroup namespace".to_owned());
        }
        let path = of_init.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"0::/"));
        let name = dir.file_name().map(OsStrExt::as_bytes);
        let at = path.and_then(|path| path.split(|b| *b == b'/').position(|part| Some(part) == name));
        let level = at.and_then(|at| u32::try_from(at + 1).ok()).ok_or("PID 1 of the arena is in another cgroup")?;
        // The inode of a cgroup directory is its id (cgroup_id(), where ino_t has 64 bits).
        let cgroup =
            std::fs::metadata(dir).map_err(|e| format!("cannot stat {}: {}", dir.display(), in_words(e)))?.ino();
        let program =
            Program::at(level).map_err(|e| format!("cannot record system calls with BPF: {}", in_words(e)))?;
        let mut views = program.views.lock().unwrap_or_else(PoisonError::into_inner);
        let attached = match views.get(&cgroup) {
            Some(_) => Ok(()),
            None => bpf::update(&program.arenas, &[cgroup], 0).and_then(|()| program.attach()),
        };
        attached.map_err(|e| format!("cannot record system calls with BPF: {}", in_words(e)))?;
        *views.entry(cgroup).or_default() += 1;
        drop(views);
        Ok(Calls { program, cgroup })
    }

    /// Whether the arena made it.
    pub(crate) fn made(&self, resource: &Resource) -> Membership {
        match resource {
            Resource::Key(key) if self.has(KEY, key.serial) => Membership::Run,
            // A request that failed may have left a negative key, which no call returned.
            Resource::Key(key) if self.lost() || self.has(KEY, 0) || !TYPES.contains(&key.key_type.as_ref()) => {
                Membership::Unknown
            }
            Resource::Key(_) => Membership::Stranger,
            Resource::Loop(_) => self.any(LOOP),
            Resource::Bpf(_) => self.any(OBJECT),
            _ => Membership::Unknown,
        }
    }

    /// Whether it made or asked for any key.
    pub(crate) fn keys(&self) -> bool {
        self.lost()
            || bpf::keys(&self.program.records)
                .iter()
                .any(|[cgroup, rest]| *cgroup == self.cgroup && *rest as u32 == KEY)
    }

    fn any(&self, what: u32) -> Membership {
        match (self.has(what, 0), self.lost()) {
            (true, _) => Membership::Run,
            (false, true) => Membership::Unknown,
            (false, false) => Membership::Stranger,
        }
    }

    fn has(&self, what: u32, serial: u32) -> bool {
        bpf::lookup(&self.program.records, &record(self.cgroup, what, serial)).is_some()
    }

    fn lost(&self) -> bool {
        bpf::lookup(&self.program.arenas, &[self.cgroup]) != Some(0)
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        let mut views = self.program.views.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = views.get_mut(&self.cgroup) else { return };
        *count -= 1;
        if *count == 0 {
            views.remove(&self.cgroup);
            bpf::delete(&self.program.arenas, &[self.cgroup]);
            for key in bpf::keys(&self.program.records).iter().filter(|[cgroup, _]| *cgroup == self.cgroup) {
                bpf::delete(&self.program.records, key);
            }
        }
        if views.is_empty() {
            self.program.link().take();
        }
    }
}

/// `struct { u64 cgroup; u32 what; u32 serial; }`
fn record(cgroup: u64, what: u32, serial: u32) -> [u64; 2] {
    let [a, b, c, d] = what.to_ne_bytes();
    let [e, f, g, h] = serial.to_ne_bytes();
    [cgroup, u64::from_ne_bytes([a, b, c, d, e, f, g, h])]
}

impl Program {
    fn at(level: u32) -> Result<Arc<Self>, Errno> {
        let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = programs.iter().find(|p| p.level == level) {
            return Ok(Arc::clone(program));
        }
        if !cfg!(target_arch = "x86_64") {
            return Err(Errno::NOSYS);
        }
        let (arenas, records) = (bpf::create_hash(8, ARENAS)?, bpf::create_hash(16, RECORDS)?);
        let code = assemble(level, arenas.as_raw_fd(), records.as_raw_fd());
        let program = bpf::load_raw_tracepoint(&code)?;
        let (link, views) = Default::default();
        let program = Arc::new(Program { level, arenas, records, program, link, views });
        programs.push(Arc::clone(&program));
        Ok(program)
    }

    fn link(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attach(&self) -> Result<(), Errno> {
        let mut link = self.link();
        if link.is_none() {
            *link = Some(bpf::open_raw_tracepoint(SYS_EXIT, &self.program)?);
        }
        Ok(())
    }
}

const SYS_EXIT: &CStr = c"sys_exit";

/// `struct bpf_insn`: code, registers, offset, immediate (linux/bpf.h).
fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    let ([o0, o1], [i0, i1, i2, i3]) = (off.to_ne_bytes(), imm.to_ne_bytes());
    u64::from_ne_bytes([code, src << 4 | dst, o0, o1, i0, i1, i2, i3])
}

/// A program under construction: jumps lead forward to labels.
#[derive(Default)]
struct Assembler {
    code: Vec<u64>,
    labels: HashMap<&'static str, usize>,
    jumps: Vec<(usize, u8, u8, i32, &'static str)>,
}

impl Assembler {
    fn put(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) {
        self.code.push(insn(code, dst, src, off, imm));
    }

    fn label(&mut self, name: &'static str) {
        self.labels.insert(name, self.code.len());
    }

    fn jump(&mut self, code: u8, dst: u8, imm: i32, to: &'static str) {
        self.jumps.push((self.code.len(), code, dst, imm, to));
        self.code.push(0);
    }

    /// r8 = the field of `struct pt_regs` at this offset.
    fn load_register(&mut self, offset: i32) {
        self.put(MOV, 1, 10, 0, 0);
        self.put(ADD_K, 1, 0, 0, -8);
        self.put(MOV_K, 2, 0, 0, 8);
        self.put(MOV, 3, 6, 0, 0);
        self.put(ADD_K, 3, 0, 0, offset);
        self.put(CALL, 0, 0, 0, PROBE_READ_KERNEL);
        self.put(LOAD, 8, 10, -8, 0);
    }

    /// r1 = the map.
    fn load_map(&mut self, fd: i32) {
        self.put(LOAD_MAP, 1, 1, 0, fd);
        self.code.push(0);
    }

    /// A register = the stack at this offset.
    fn stack(&mut self, register: u8, offset: i32) {
        self.put(MOV, register, 10, 0, 0);
        self.put(ADD_K, register, 0, 0, offset);
    }

    fn finish(mut self) -> Vec<u64> {
        for (at, code, dst, imm, to) in self.jumps {
            let target = self.labels.get(to).copied().unwrap_or_default() as i64;
            // No program here is longer than a jump.
            let offset = i16::try_from(target - at as i64 - 1).unwrap_or_default();
            self.code[at] = insn(code, dst, 0, offset, imm);
        }
        self.code
    }
}

// Instructions (Documentation/bpf/standardization/instruction-set.rst).
const MOV: u8 = 0xbf;
const MOV32: u8 = 0xbc;
const MOV_K: u8 = 0xb7;
const ADD_K: u8 = 0x07;
const AND_K: u8 = 0x57;
const LOAD: u8 = 0x79;
const LOAD_MAP: u8 = 0x18;
const STORE: u8 = 0x7b;
const STORE32: u8 = 0x63;
const STORE_K: u8 = 0x7a;
const JUMP: u8 = 0x05;
const IF_EQUAL: u8 = 0x15;
const IF_ABOVE: u8 = 0x65;
const IF_BELOW: u8 = 0xc5;
const IF_AT_MOST: u8 = 0xd5;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
// Helpers (bpf-helpers(7)).
const MAP_LOOKUP: i32 = 1;
const MAP_UPDATE: i32 = 2;
const PROBE_READ_KERNEL: i32 = 113;
const ANCESTOR_CGROUP: i32 = 123;
// Offsets of x86-64's `struct pt_regs` (asm/ptrace.h).
const BX: i32 = 40;
const CX: i32 = 88;
const SI: i32 = 104;
const DI: i32 = 112;
const ORIG_AX: i32 = 120;

/// Numbers of calls of x86-64 and, where a program enters by `int 0x80`, of i386. The number alone does not tell which
/// table was used; the other checked values do: a serial is not a descriptor number, and no command of setsockopt(2) is
/// an address.
fn assemble(level: u32, arenas: i32, records: i32) -> Vec<u64> {
    let mut a = Assembler::default();
    // Context: the registers, and what the call returns.
    a.put(LOAD, 6, 1, 0, 0);
    a.put(LOAD, 7, 1, 8, 0);
    a.load_register(ORIG_AX);
    // x32 has the same numbers with a bit (asm/unistd_x32.h).
    a.put(AND_K, 8, 0, 0, !0x4000_0000);
    for (numbers, to) in [
        // add_key, keyctl
        (&[248, 250, 286, 288][..], "key"),
        (&[249, 287], "request_key"),
        // x32 has its own number.
        (&[16, 54, 514], "ioctl"),
        (&[321], "bpf"),
        (&[357], "bpf of i386"),
    ] {
        numbers.iter().for_each(|number| a.jump(IF_EQUAL, 8, *number, to));
    }
    a.label("out");
    a.put(MOV_K, 0, 0, 0, 0);
    a.put(EXIT, 0, 0, 0, 0);
    a.label("ioctl");
    a.jump(IF_BELOW, 7, 0, "none");
    for command in [SI, CX] {
        a.load_register(command);
        a.put(MOV32, 8, 8, 0, 0);
        // LOOP_SET_FD, LOOP_CHANGE_FD, LOOP_CONFIGURE (linux/loop.h)
        [0x4c00, 0x4c06, 0x4c0a].into_iter().for_each(|number| a.jump(IF_EQUAL, 8, number, "loop"));
    }
    a.jump(JUMP, 0, 0, "none");
    a.label("loop");
    a.put(MOV_K, 7, 0, 0, 0);
    a.put(MOV_K, 9, 0, 0, LOOP as i32);
    a.jump(JUMP, 0, 0, "record");
    a.label("bpf");
    a.load_register(DI);
    a.jump(JUMP, 0, 0, "command");
    a.label("bpf of i386");
    a.load_register(BX);
    a.label("command");
    a.jump(IF_BELOW, 7, 0, "none");
    a.put(MOV32, 8, 8, 0, 0);
    // BPF_MAP_CREATE, PROG_LOAD, RAW_TRACEPOINT_OPEN, LINK_CREATE (linux/bpf.h)
    [0, 5, 17, 28].into_iter().for_each(|number| a.jump(IF_EQUAL, 8, number, "object"));
    a.jump(JUMP, 0, 0, "none");
    a.label("object");
    a.put(MOV_K, 7, 0, 0, 0);
    a.put(MOV_K, 9, 0, 0, OBJECT as i32);
    a.jump(JUMP, 0, 0, "record");
    a.label("request_key");
    a.jump(IF_ABOVE, 7, 0, "key");
    a.put(MOV_K, 7, 0, 0, 0);
    a.put(MOV_K, 9, 0, 0, KEY as i32);
    a.jump(JUMP, 0, 0, "record");
    a.label("key");
    a.jump(IF_AT_MOST, 7, 0, "none");
    a.put(MOV_K, 9, 0, 0, KEY as i32);
    a.label("record");
    a.put(STORE32, 10, 9, -16, 0);
    a.put(STORE32, 10, 7, -12, 0);
    a.put(MOV_K, 1, 0, 0, level as i32);
    a.put(CALL, 0, 0, 0, ANCESTOR_CGROUP);
    a.put(STORE, 10, 0, -24, 0);
    a.load_map(arenas);
    a.stack(2, -24);
    a.put(CALL, 0, 0, 0, MAP_LOOKUP);
    a.jump(IF_EQUAL, 0, 0, "none");
    a.put(MOV, 9, 0, 0, 0);
    a.put(STORE_K, 10, 0, -32, 1);
    a.load_map(records);
    a.stack(2, -24);
    a.stack(3, -32);
    a.put(MOV_K, 4, 0, 0, 0);
    a.put(CALL, 0, 0, 0, MAP_UPDATE);
    a.jump(IF_EQUAL, 0, 0, "none");
    // No room: an object without a record may still have been created.
    a.put(STORE_K, 9, 0, 0, 1);
    a.label("none");
    a.put(MOV_K, 0, 0, 0, 0);
    a.put(EXIT, 0, 0, 0, 0);
    a.finish()
}

/// The cgroups of an arena's PID 1.
pub(crate) fn cgroups_of_init(proc: &OwnedFd) -> Vec<u8> {
    read_file(format!("/proc/self/fd/{}/1/cgroup", proc.as_raw_fd())).unwrap_or_default()
}
