//! Loop devices (loop(4)) and tap interfaces (Documentation/networking/tuntap.rst).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::check;
use crate::kernel::interface_request;

// linux/loop.h; the libc crate lacks them on some targets.
const LOOP_SET_FD: libc::c_ulong = 0x4C00;
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
// linux/if_tun.h
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const IFF_TAP: libc::c_short = 2;
const IFF_NO_PI: libc::c_short = 0x1000;

/// The number of a loop device that was free; `control` is `/dev/loop-control`.
pub fn free_loop(control: impl AsFd) -> io::Result<i32> {
    number_ioctl(control.as_fd(), LOOP_CTL_GET_FREE, 0)
}

/// Attaches a file to a loop device.
pub fn attach_loop(device: impl AsFd, file: impl AsFd) -> io::Result<()> {
    number_ioctl(device.as_fd(), LOOP_SET_FD, file.as_fd().as_raw_fd()).map(drop)
}

/// Detaches the file of a loop device, at once or when the last process has closed the device.
pub fn detach_loop(device: impl AsFd) -> io::Result<()> {
    number_ioctl(device.as_fd(), LOOP_CLR_FD, 0).map(drop)
}

/// Makes a tap interface that lasts as long as `tun`, an open `/dev/net/tun`.
pub fn make_tap(tun: impl AsFd, name: &str) -> io::Result<()> {
    let mut request = interface_request(name);
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), TUNSETIFF as libc::Ioctl, &raw mut request) }.into())
}

/// Lets the tap interface of `tun` outlive the descriptor.
pub fn keep_tap(tun: impl AsFd) -> io::Result<()> {
    number_ioctl(tun.as_fd(), TUNSETPERSIST, 1).map(drop)
}

/// A request above that takes a number and no address.
fn number_ioctl(file: BorrowedFd<'_>, request: libc::c_ulong, argument: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: the request touches no memory of this process.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, libc::c_long::from(argument)) };
    check(result.into()).map(|()| result)
}
