"""The errors that the manual gives for each operation: the sections ERRORS of man-pages 6.9, chapter 2."""

__all__ = ["ALLOWED", "USUAL"]

_PATH = "EACCES ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR EFAULT"
_MAKE = f"{_PATH} EBADF EDQUOT EEXIST EINVAL ENOSPC EPERM EROFS"
_ATTRIBUTE = f"{_PATH} EBADF EINVAL EIO EPERM EROFS"

_PAGES = {
    # Operation: errors, in umount(2), rmdir(2), unlink(2), kill(2) and pidfd_send_signal(2), wait(2), close(2), …
    "umount": "EAGAIN EBUSY EFAULT EINVAL ENAMETOOLONG ENOENT ENOMEM EPERM",
    "rmdir": f"{_PATH} EBADF EBUSY EINVAL ENOTEMPTY EPERM EROFS",
    "unlink": f"{_PATH} EBADF EBUSY EINVAL EIO EISDIR EPERM EROFS",
    "kill": "EBADF EINVAL EPERM ESRCH",
    "wait": "EAGAIN ECHILD EINTR EINVAL ESRCH",
    "close": "EBADF EDQUOT EINTR EIO ENOSPC",
    "rename": f"{_PATH} EBADF EBUSY EDQUOT EEXIST EINVAL EISDIR EMLINK ENOSPC ENOTEMPTY EPERM EROFS EXDEV",
    "mkdir": f"{_MAKE} EMLINK",
    "mknod": _MAKE,
    "symlink": f"{_MAKE} EIO",
    "link": f"{_MAKE} EIO EMLINK EXDEV",
    "open": f"{_MAKE} EBUSY EFBIG EINTR EISDIR EMFILE ENFILE ENODEV ENXIO EOPNOTSUPP EOVERFLOW ETXTBSY EWOULDBLOCK",
    "write": "EAGAIN EBADF EDESTADDRREQ EDQUOT EFAULT EFBIG EINTR EINVAL EIO ENOSPC EPERM EPIPE",
    "sync": "EBADF EDQUOT EINTR EINVAL EIO ENOMEM ENOSPC EROFS",
    "truncate": f"{_PATH} EBADF EFBIG EINTR EINVAL EIO EISDIR EPERM EROFS ETXTBSY",
    "fallocate": "EBADF EFBIG EINTR EINVAL EIO ENODEV ENOSPC ENOSYS EOPNOTSUPP EPERM ESPIPE ETXTBSY",
    "chmod": _ATTRIBUTE,
    "chown": _ATTRIBUTE,
    "lock": "EACCES EAGAIN EBADF EDEADLK EINTR EINVAL ENOLCK",
    "mount": f"{_PATH} EBUSY EINVAL EMFILE ENODEV ENOTBLK ENXIO EPERM EROFS",
    "pivot_root": "EBUSY EINVAL ENOTDIR EPERM",
    "move_mount": f"{_PATH} EBADF EBUSY EINVAL EPERM",
    "clone": "EAGAIN EBUSY EEXIST EINVAL ENOMEM ENOSPC EOPNOTSUPP EPERM EUSERS",
    "unshare": "EINVAL ENOMEM ENOSPC EPERM EUSERS",
    "setns": "EBADF EINVAL ENOMEM EPERM ESRCH",
    "execve": f"{_PATH} E2BIG EAGAIN EINVAL EIO EISDIR ELIBBAD EMFILE ENFILE ENOEXEC EPERM ETXTBSY",
    "connect": "EACCES EADDRINUSE EAGAIN EALREADY EBADF ECONNREFUSED EFAULT EINTR EISCONN ENETUNREACH ENOTSOCK EPERM",
    "send": "EACCES EAGAIN EBADF ECONNRESET EFAULT EINTR EINVAL EMSGSIZE ENOBUFS ENOMEM ENOTCONN ENOTSOCK EPIPE",
}
ALLOWED = {operation: frozenset(names.split()) for operation, names in _PAGES.items()}
"""Operation → errors that its manual page gives. For other operations, any error has to be asked for."""

USUAL = {
    "umount": ("EBUSY", "ENOMEM", "EPERM"),
    "rmdir": ("EBUSY", "EACCES", "ENOMEM", "ENOTEMPTY", "EPERM", "EROFS"),
    "unlink": ("EBUSY", "EACCES", "EIO", "ENOMEM", "EPERM", "EROFS"),
    "kill": ("EPERM",),
    "wait": ("ECHILD",),
    "close": ("EIO", "EINTR", "ENOSPC", "EDQUOT"),
}
"""Operation → errors that a clean-up step meets in practice: none that blames its arguments, and none that says that
there is nothing to release, which would be a lie. An EINTR of wait comes with a signal only."""
