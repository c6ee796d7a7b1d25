//! The BPF program that records the calls, in the kernel's instructions.

use std::collections::HashMap;

/// What a record is about.
pub(super) const KEY: u32 = 1;
pub(super) const LOOP: u32 = 2;
pub(super) const PROGRAM: u32 = 3;
pub(super) const MAP: u32 = 4;
pub(super) const LINK: u32 = 5;
/// A BPF program that calls bpf_sys_bpf() was run: BPF objects of any class.
pub(super) const OBJECTS: u32 = 6;

/// To whom a call is attributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// An arena, by its cgroup at this depth.
    Arena(u32),
    /// The process that calls, by its id in the initial pid namespace.
    Process,
}

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
const RIGHT_SHIFT_K: u8 = 0x77;
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
const KTIME_GET_NS: i32 = 5;
const PROBE_READ_KERNEL: i32 = 113;
const CURRENT_PID_TGID: i32 = 14;
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
pub(super) fn assemble(subject: Subject, lost: i32, records: i32) -> Vec<u64> {
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
    // BPF_MAP_CREATE, PROG_LOAD, PROG_RUN, RAW_TRACEPOINT_OPEN, LINK_CREATE (linux/bpf.h)
    for (command, to) in [(0, "map"), (5, "program"), (10, "objects"), (17, "link"), (28, "link")] {
        a.jump(IF_EQUAL, 8, command, to);
    }
    a.jump(JUMP, 0, 0, "none");
    for (label, class) in [("map", MAP), ("program", PROGRAM), ("objects", OBJECTS), ("link", LINK)] {
        a.label(label);
        match subject {
            Subject::Arena(_) => a.put(MOV_K, 7, 0, 0, 0),
            // A record of its own for each: its time also gives the order.
            Subject::Process => {
                a.put(CALL, 0, 0, 0, KTIME_GET_NS);
                a.put(MOV, 7, 0, 0, 0);
            }
        }
        a.put(MOV_K, 9, 0, 0, class as i32);
        a.jump(JUMP, 0, 0, "record");
    }
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
    match subject {
        Subject::Arena(level) => {
            a.put(MOV_K, 1, 0, 0, level as i32);
            a.put(CALL, 0, 0, 0, ANCESTOR_CGROUP);
            a.put(STORE, 10, 0, -24, 0);
            a.stack(2, -24);
        }
        Subject::Process => {
            a.put(CALL, 0, 0, 0, CURRENT_PID_TGID);
            a.put(RIGHT_SHIFT_K, 0, 0, 0, 32);
            a.put(STORE, 10, 0, -24, 0);
            a.put(STORE_K, 10, 0, -40, 0);
            a.stack(2, -40);
        }
    }
    a.load_map(lost);
    a.put(CALL, 0, 0, 0, MAP_LOOKUP);
    a.jump(IF_EQUAL, 0, 0, "none");
    a.put(MOV, 9, 0, 0, 0);
    // The value is what the key has the lower half of: of a BPF object on the host, the time.
    a.put(STORE, 10, 7, -32, 0);
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
