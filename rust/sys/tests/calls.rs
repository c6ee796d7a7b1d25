//! The calls, in a program of one thread: it has no test harness.

use std::ffi::CString;
use std::fs::read_dir;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use leakcheck_sys as sys;
use leakcheck_sys::{Child, Shared};
use rustix::process::{Signal, getpid, kill_process};

const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    let tests: [(&str, fn()); 8] = [
        ("a forked child is waited for by its descriptor and reaped once", child_is_reaped_once),
        ("a living child is not reaped", living_child_is_not_reaped),
        ("only kept descriptors stay open", only_kept_descriptors_stay_open),
        ("a shared number is seen on both sides", shared_number),
        ("a sibling is a child of its parent's parent, and its number is reported", sibling),
        ("blocked signals arrive through the descriptor", signals),
        ("no process is opened by a number of at most 1", no_low_number),
        ("a failed exec returns its error", failed_exec),
    ];
    for (name, test) in tests {
        println!("{name}");
        test();
    }
}

/// Runs `life` in a child, which ends with its result.
fn child(life: impl FnOnce() -> i32) -> Child {
    match sys::fork(0, None).unwrap() {
        Some(child) => child,
        None => sys::exit(life()),
    }
}

fn code(child: &Child) -> Option<i32> {
    let ended = sys::wait(Some(child.pid)).unwrap();
    assert_eq!(ended.pid, child.pid);
    libc_exit_code(ended.status)
}

fn libc_exit_code(status: i32) -> Option<i32> {
    libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status))
}

fn child_is_reaped_once() {
    let child = child(|| 7);
    assert!(child.pid > 1);
    assert!(sys::wait_until(&[child.pidfd.as_fd()], PATIENCE).unwrap());
    assert_eq!(code(&child), Some(7));
    assert_eq!(sys::wait(Some(child.pid)).unwrap_err().raw_os_error(), Some(libc::ECHILD));
}

fn living_child_is_not_reaped() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let child = child(|| i32::from(rustix::io::read(&reader, &mut [0u8; 1]) != Ok(1)));
    assert!(!sys::wait_until(&[child.pidfd.as_fd()], Duration::from_millis(1)).unwrap());
    assert!(sys::reap().is_none());
    writer.write_all(b".").unwrap();
    assert!(sys::wait_until(&[child.pidfd.as_fd()], PATIENCE).unwrap());
    let ended = sys::reap().unwrap();
    assert_eq!((ended.pid, libc_exit_code(ended.status)), (child.pid, Some(0)));
    assert!(ended.peak > 0);
    assert!(sys::reap().is_none());
}

fn only_kept_descriptors_stay_open() {
    let files: Vec<_> = (0..6).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    let kept = [files[4].as_fd(), files[1].as_fd()];
    let child = child(|| {
        if sys::close_all_but(&kept).is_err() {
            return 100;
        }
        let open: Vec<i32> = read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .filter(|fd| *fd > 2 && read_dir(format!("/proc/self/fd/{fd}")).is_err())
            .collect();
        i32::from(open != [files[1].as_raw_fd(), files[4].as_raw_fd()])
    });
    assert_eq!(code(&child), Some(0));
}

fn shared_number() {
    let number = Shared::new().unwrap();
    assert_eq!(number.get(), 0);
    let child = child(|| {
        number.set(41);
        0
    });
    assert_eq!(code(&child), Some(0));
    assert_eq!(number.get(), 41);
}

fn sibling() {
    let pid = Shared::new().unwrap();
    let child = child(|| match sys::fork_sibling(&pid).unwrap() {
        Some(()) => 0,
        None => {
            let (program, none): (CString, [CString; 0]) = (c"true".into(), []);
            sys::exec_by_path(&[program], &none);
            127
        }
    });
    assert_eq!(code(&child), Some(0));
    let ended = sys::wait(Some(pid.get())).unwrap();
    assert_eq!(libc_exit_code(ended.status), Some(0));
}

fn signals() {
    let child = child(|| {
        let fd = sys::signal_fd(&[libc::SIGUSR1]).unwrap();
        let none = sys::next_signal(&fd);
        kill_process(getpid(), Signal::USR1).unwrap();
        let told = sys::next_signal(&fd);
        kill_process(getpid(), Signal::USR1).unwrap();
        sys::drain(&fd);
        let drained = sys::next_signal(&fd);
        if (none, told, drained) != (None, Some(libc::SIGUSR1), None) {
            return 1;
        }
        sys::default_signals();
        kill_process(getpid(), Signal::USR1).unwrap();
        2
    });
    let ended = sys::wait(Some(child.pid)).unwrap();
    assert!(libc::WIFSIGNALED(ended.status), "{:#x}", ended.status);
    assert_eq!(libc::WTERMSIG(ended.status), libc::SIGUSR1);
}

fn no_low_number() {
    for pid in [i32::MIN, -1, 0, 1] {
        assert_eq!(sys::open_pidfd(pid).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let own = getpid().as_raw_nonzero().get();
    assert!(sys::open_pidfd(own).is_ok());
}

fn failed_exec() {
    let absent: CString = c"/nonexistent/program".into();
    let none: [CString; 0] = [];
    assert_eq!(sys::exec(&[&absent], &none).kind(), ErrorKind::NotFound);
    assert_eq!(sys::exec_by_path(&[&absent], &none).kind(), ErrorKind::NotFound);
    assert_eq!(sys::exec_by_path(&none, &none).kind(), ErrorKind::InvalidInput);
    assert!(sys::exec(&none, &none).raw_os_error().is_some());
}
