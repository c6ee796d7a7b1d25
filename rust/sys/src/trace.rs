//! Tracing other processes (ptrace(2)) and the filter that decides at which calls they stop (seccomp(2)).

use std::io;
use std::mem::MaybeUninit;

use crate::check;
use crate::process::{Ended, wait4};

/// A change of state of a child or of a traced thread.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// It has exited and was reaped.
    Ended(Ended),
    /// The traced thread stopped.
    Stopped(i32, Stop),
}

/// Why a traced thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The filter stops it before a call.
    Call,
    /// It was to stop after its current call, which has returned; or at each call, and enters or leaves one.
    Return,
    /// It has created this process or thread.
    Clone,
    /// It has executed a program.
    Exec,
    /// It is about to end ([`follow`]).
    Exit,
    /// It is new, or was interrupted.
    Started,
    /// A signal stopped its whole process.
    Group,
    /// It is about to receive this signal.
    Signal(i32),
}

/// How a stopped thread continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Until the next stop; it receives this signal if it is not 0.
    Run(i32),
    /// Until the current call returns.
    ToReturn,
    /// As `Run`, and it stops when it enters or leaves any call, too.
    Calls(i32),
    /// It stays stopped with its process until SIGCONT.
    Listen,
}

/// A call of a traced thread.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The calling convention (`AUDIT_ARCH_*`).
    pub arch: u32,
    /// Its number in this convention.
    pub number: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// What is traced of every process, whether its filters hold or not.
const FOLLOW: i32 = libc::PTRACE_O_EXITKILL
    | libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC;

/// Starts to trace a process, and all processes and threads that it creates. They end with this process
/// (`PTRACE_O_EXITKILL`).
pub fn seize(pid: i32) -> io::Result<()> {
    let options = FOLLOW | libc::PTRACE_O_TRACESECCOMP;
    request(libc::PTRACE_SEIZE, pid, 0, options.unsigned_abs() as usize)
}

/// Continues a stopped thread. It may have been killed meanwhile (`ESRCH`).
pub fn resume(pid: i32, how: Resume) -> io::Result<()> {
    match how {
        Resume::Run(signal) => request(libc::PTRACE_CONT, pid, 0, signal.unsigned_abs() as usize),
        Resume::ToReturn => request(libc::PTRACE_SYSCALL, pid, 0, 0),
        Resume::Calls(signal) => request(libc::PTRACE_SYSCALL, pid, 0, signal.unsigned_abs() as usize),
        Resume::Listen => request(libc::PTRACE_LISTEN, pid, 0, 0),
    }
}

/// The message of an event: the new thread's id at [`Stop::Clone`], the thread's former id at [`Stop::Exec`].
pub fn event_message(pid: i32) -> io::Result<i32> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, pid, 0, (&raw mut message).expose_provenance())?;
    i32::try_from(message).map_err(io::Error::other)
}

/// The call before which a thread is stopped (`PTRACE_GET_SYSCALL_INFO`, Linux 5.3).
pub fn call(pid: i32) -> io::Result<Call> {
    let info = information(pid)?;
    let (number, arguments) = match info.op {
        // SAFETY: of the union, the kernel filled this member.
        libc::PTRACE_SYSCALL_INFO_SECCOMP => unsafe { (info.u.seccomp.nr, info.u.seccomp.args) },
        // SAFETY: of the union, the kernel filled this member.
        libc::PTRACE_SYSCALL_INFO_ENTRY => unsafe { (info.u.entry.nr, info.u.entry.args) },
        _ => return Err(io::Error::other("it is not stopped before a call")),
    };
    Ok(Call { arch: info.arch, number, arguments })
}

/// What the call returned after which a thread is stopped ([`Stop::Return`]): a value, or the negative number of an error.
pub fn result(pid: i32) -> io::Result<i64> {
    let info = information(pid)?;
    if info.op != libc::PTRACE_SYSCALL_INFO_EXIT {
        return Err(io::Error::other("it is not stopped after a call"));
    }
    // SAFETY: of the union, the kernel filled this member.
    Ok(unsafe { info.u.exit }.sval)
}

fn information(pid: i32) -> io::Result<libc::ptrace_syscall_info> {
    let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    request(
        libc::PTRACE_GET_SYSCALL_INFO,
        pid,
        size_of::<libc::ptrace_syscall_info>(),
        info.as_mut_ptr().expose_provenance(),
    )?;
    // SAFETY: zero is valid for all its fields, and the kernel wrote some of them.
    Ok(unsafe { info.assume_init() })
}

/// Replaces the result of the call at which a thread is stopped; with `instead`, the call does not happen.
pub fn set_result(pid: i32, result: i64, instead: bool) -> io::Result<()> {
    let mut registers = all_registers(pid)?;
    registers.rax = result.cast_unsigned();
    if instead {
        registers.orig_rax = u64::MAX;
    }
    set_registers(pid, &mut registers)
}

/// The registers by which a thread's stack is walked.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    /// `rip`.
    pub pc: u64,
    /// `rsp`.
    pub sp: u64,
    /// `rbp`.
    pub fp: u64,
}

/// These registers of a stopped thread; none if it executes 32-bit code, whose stack is another one.
pub fn registers(pid: i32) -> io::Result<Option<Registers>> {
    // `__USER32_CS` of the kernel.
    const CODE_32: u64 = 0x23;
    let all = all_registers(pid)?;
    Ok((all.cs != CODE_32).then_some(Registers { pc: all.rip, sp: all.rsp, fp: all.rbp }))
}

/// Replaces the first argument of the call at which a thread is stopped; `is_i386`: of that convention, not of x86-64's own.
pub fn set_first_argument(pid: i32, is_i386: bool, value: u64) -> io::Result<()> {
    let mut registers = all_registers(pid)?;
    *(if is_i386 { &mut registers.rbx } else { &mut registers.rdi }) = value;
    set_registers(pid, &mut registers)
}

fn all_registers(pid: i32) -> io::Result<libc::user_regs_struct> {
    let mut registers = MaybeUninit::<libc::user_regs_struct>::zeroed();
    request(libc::PTRACE_GETREGS, pid, 0, registers.as_mut_ptr().expose_provenance())?;
    // SAFETY: zero is valid for all its fields, and the kernel wrote them.
    Ok(unsafe { registers.assume_init() })
}

fn set_registers(pid: i32, registers: &mut libc::user_regs_struct) -> io::Result<()> {
    request(libc::PTRACE_SETREGS, pid, 0, (&raw mut *registers).expose_provenance())
}

/// Replaces eight bytes of a stopped thread's memory, also where it cannot write itself.
pub fn write_memory(pid: i32, address: u64, value: u64) -> io::Result<()> {
    let (at, value) = (usize::try_from(address), usize::try_from(value));
    request(libc::PTRACE_POKEDATA, pid, at.map_err(io::Error::other)?, value.map_err(io::Error::other)?)
}

/// Changes what is traced of a stopped thread, and of what it creates. With `unfiltered`, it runs without seccomp filters
/// (`PTRACE_O_SUSPEND_SECCOMP`, Linux 4.3; it needs CAP_SYS_ADMIN in the initial user namespace); with `exits`, it stops
/// before it ends.
pub fn follow(pid: i32, unfiltered: bool, exits: bool) -> io::Result<()> {
    const SUSPEND_SECCOMP: i32 = 1 << 21;
    let filters = if unfiltered { SUSPEND_SECCOMP } else { libc::PTRACE_O_TRACESECCOMP };
    let options = FOLLOW | filters | if exits { libc::PTRACE_O_TRACEEXIT } else { 0 };
    request(libc::PTRACE_SETOPTIONS, pid, 0, options.unsigned_abs() as usize)
}

fn request(what: libc::c_uint, pid: i32, address: usize, data: usize) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the callers pass what each request takes: numbers, or pointers to variables of their own that are large
    // enough for what the kernel writes.
    check(unsafe { libc::ptrace(what, pid, address, data) })
}

/// Returns the next change of a child or of a traced thread, if there is one.
pub fn next_change() -> Option<Change> {
    let ended = wait4(-1, libc::WNOHANG).ok().filter(|ended| ended.pid > 0)?;
    if !libc::WIFSTOPPED(ended.status) {
        return Some(Change::Ended(ended));
    }
    Some(Change::Stopped(ended.pid, stop_of(ended.status >> 8)))
}

/// Returns the next stop of a traced thread, if there is one; reaps nothing (waitid(2)).
pub fn next_stop() -> Option<(i32, Stop)> {
    // SAFETY: an all-zero siginfo is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WSTOPPED | libc::WNOHANG | libc::__WALL;
    // SAFETY: the pointer is to our own variable.
    check(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) }.into()).ok()?;
    // SAFETY: the kernel fills these fields for every child; they are zero without one.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    (pid > 0).then(|| (pid, stop_of(status)))
}

/// Why a thread stopped: the signal, and above it the event (ptrace(2)).
fn stop_of(code: i32) -> Stop {
    let signal = code & 0xff;
    match code >> 8 {
        libc::PTRACE_EVENT_SECCOMP => Stop::Call,
        libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK => Stop::Clone,
        libc::PTRACE_EVENT_EXEC => Stop::Exec,
        libc::PTRACE_EVENT_EXIT => Stop::Exit,
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Started,
        libc::PTRACE_EVENT_STOP => Stop::Group,
        _ if signal == libc::SIGTRAP | 0x80 => Stop::Return,
        _ => Stop::Signal(signal),
    }
}

/// Reads the memory of a traced process (process_vm_readv(2)) up to the first page that cannot be read; returns the number
/// of bytes.
pub fn read_memory(pid: i32, address: u64, to: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
    let there = usize::try_from(address).map_err(io::Error::other)?;
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(there), iov_len: to.len() };
    // SAFETY: the kernel writes only to `to`, and reads the other process's memory, whatever is there.
    let count = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// An instruction of a filter (`struct sock_filter`): operation, jumps if true and if false, constant.
pub type Instruction = (u16, u8, u8, u32);

/// Adds a filter to this process and to what it creates (seccomp(2)). Without `no_new_privs`, it needs CAP_SYS_ADMIN.
pub fn add_filter(program: &[Instruction]) -> io::Result<()> {
    seccomp(program, 0).map(drop)
}

pub(crate) fn seccomp(program: &[Instruction], flags: libc::c_ulong) -> io::Result<libc::c_long> {
    let mut program: Vec<libc::sock_filter> =
        program.iter().map(|(code, jt, jf, k)| libc::sock_filter { code: *code, jt: *jt, jf: *jf, k: *k }).collect();
    let filter =
        libc::sock_fprog { len: u16::try_from(program.len()).map_err(io::Error::other)?, filter: program.as_mut_ptr() };
    // The mitigation that a filter switches on otherwise makes every program slower.
    let flags = flags | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: the kernel copies the program, which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    check(result).map(|()| result)
}
