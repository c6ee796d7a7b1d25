//! The system calls that a payload must not make: those that reach beyond the box, and those with a history of
//! vulnerabilities.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

use crate::error::{Doing, Result};

/// Denied with EPERM, whatever their arguments.
const DENIED: &[i64] = &[
    // Mounts and roots.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    // Namespaces.
    libc::SYS_unshare,
    libc::SYS_setns,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // What outlives the box or is global: keys, clocks, names, accounting, logs.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_reboot,
    // The kernel itself.
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fanotify_init,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_personality,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Namespaces that clone(2) could create.
const NEW: [i32; 8] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWTIME,
];
/// Terminal controls that inject input into a terminal.
const IOCTLS: [u64; 2] = [libc::TIOCSTI, libc::TIOCLINUX];

/// The numbers of x32 calls start here (`__X32_SYSCALL_BIT`); no list of x86-64 numbers stops them.
const X32: u32 = 0x4000_0000;
const RETURN_ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

const BUILD: &str = "build seccomp filter";

/// The program for this architecture; calls of another one (`int 0x80`) kill the payload.
pub(crate) fn program() -> Result<BpfProgram> {
    let any = |argument: u8, values: &[u64], op: fn(u64) -> SeccompCmpOp| {
        let one = |value: &u64| {
            let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op(*value), *value)?;
            SeccompRule::new(vec![condition])
        };
        values.iter().map(one).collect::<Result<Vec<SeccompRule>, _>>()
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    let new = NEW.map(|flag| u64::from(flag.cast_unsigned()));
    rules.insert(libc::SYS_clone, any(0, &new, SeccompCmpOp::MaskedEq).map_err(io::Error::other).during(BUILD)?);
    rules.insert(libc::SYS_ioctl, any(1, &IOCTLS, |_| SeccompCmpOp::Eq).map_err(io::Error::other).during(BUILD)?);
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other).during(BUILD)?;
    let errno = SeccompAction::Errno(libc::EPERM as u32);
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, errno, arch).map_err(io::Error::other).during(BUILD)?;
    let program: BpfProgram = filter.try_into().map_err(io::Error::other).during(BUILD)?;
    Ok(prelude().into_iter().chain(program).collect())
}

/// clone3 has its flags in memory, where a filter cannot see them: without it, C libraries use clone.
fn prelude() -> [sock_filter; 4] {
    let instruction = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    [
        // The call's number is the first field of seccomp_data.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, libc::SYS_clone3 as u32),
        instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, RETURN_ENOSYS),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_built_and_short_enough_for_the_kernel() {
        let program = program().unwrap();
        assert!(program.len() < 4096, "{}", program.len());
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut calls = DENIED.to_vec();
        calls.sort_unstable();
        calls.dedup();
        assert_eq!(calls.len(), DENIED.len());
    }
}
