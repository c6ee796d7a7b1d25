//! Kernel text of every format, and every parser behind one signature.
//!
//! Pasted from Linux 6.18, with names that were chosen to hurt: `mkdir`, `prctl(PR_SET_NAME)`, `memfd_create` …

use std::borrow::Borrow;
use std::fmt;
use std::hint::black_box;
use std::time::Duration;

use leakcheck_parse::*;
use rustix::time::{ClockId, clock_gettime};

/// A format: its name, its parser with the result thrown away (true if it parsed), and a sample that it accepts.
pub(crate) struct Case {
    format: &'static str,
    parse: fn(&[u8]) -> bool,
    pub(crate) sample: &'static [u8],
}

impl Case {
    /// Parses under a bound on CPU time (a busy machine costs none) that only super-linear work can exceed.
    pub(crate) fn run(&self, input: &[u8]) -> bool {
        let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
        let start = now();
        let parsed = (self.parse)(input);
        let spent = now() - start;
        assert!(spent < Duration::from_millis(500), "{} took {spent:?} for {} bytes", self.format, input.len());
        parsed
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.format)
    }
}

fn ok<T, E: Borrow<ParseError>>(parsed: std::result::Result<T, E>) -> bool {
    match black_box(parsed) {
        Ok(_) => true,
        Err(error) => {
            // An error is shown, so showing it is part of surviving.
            let shown = error.borrow().to_string();
            assert!(shown.len() < 1024 && !shown.contains(char::is_control), "{shown:?}");
            false
        }
    }
}

/// Walks an iterator to its end; nested attributes one level deep.
fn all<T>(items: impl Iterator<Item = Result<T>>) -> bool {
    items.filter(|item| !ok(item.as_ref())).count() == 0
}

fn netlink(datagram: &[u8]) -> bool {
    all(netlink::messages(datagram).inspect(|message| {
        for attribute in message.iter().flat_map(|message| netlink::attributes(message.payload)).flatten() {
            black_box((attribute.u32(), attribute.u64(), attribute.string()));
            all(netlink::attributes(attribute.payload));
        }
    }))
}

pub(crate) const CASES: &[Case] = &[
    Case {
        format: "stat",
        parse: |input| ok(stat::parse(input)),
        sample: b"43 () (\n R 1 2) Z 1 0 0 0 -1 4227148 219 0 0 0 0 0 0 0 20 0 1 0 78225 0 0 18446744073709551615 0 0 0\n",
    },
    Case {
        format: "fdinfo",
        parse: |input| fdinfo::parse(input).malformed.is_none(),
        sample: b"pos:\t0\nflags:\t02100002\nmnt_id:\t43\nino:\t9978125\nlock:\t1: OFDLCK ADVISORY  WRITE -1 fe:00:9978125 0 EOF\n\
eventfd-count:                3\neventfd-id: 1\ntfd:        8 events:       19 data:                8  pos:0 ino:40e sdev:10\n\
inotify wd:1 ino:98410c sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:0c419800aca61736\n\
clockid: 1\nsigmask:\t0000000000000200\nPid:\t42\nNSpid:\t42\t1\nmap_id:\t25\nprog_id:\t97\nlink_id:\t2\nbtf_id:\t3\nscm_fds: 2\n\
SqMask:\t0x3\nUserFiles:\t0\n",
    },
    Case {
        format: "locks",
        parse: |input| ok(locks::parse(input)),
        sample: b"1: LEASE  ACTIVE    READ 1 fe:00:9978129 0 EOF\n2: LEASE  BREAKING  READ 1 fe:00:9978128 0 EOF\n\
3: OFDLCK ADVISORY  WRITE -1 fe:00:9978127 0 EOF\n4: POSIX  ADVISORY  READ 1 fe:00:9978126 5 14\n\
5: FLOCK  ADVISORY  WRITE 1 fe:00:9978125 0 EOF\n5: -> FLOCK  ADVISORY  WRITE 42 fe:00:9978125 0 EOF\n\
6: LEASE  BREAKER   WRITE 0 <none>:0 0 EOF\n",
    },
    Case {
        format: "mountinfo",
        parse: |input| ok(mountinfo::parse(input)),
        sample: b"43 42 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
70 43 0:46 / /tmp/t/a\\040-\\040b rw,relatime - tmpfs a\\040-\\040b rw,size=4k\n\
72 43 0:48 / /tmp/t/empty rw,relatime shared:1 - tmpfs  rw,size=4k\n\
75 43 0:48 / /tmp/t/u\xff\\012\\134 rw shared:2 master:1 propagate_from:3 - tmpfs h\\043x rw\n\
76 43 0:51 / /tmp/t/unb rw,relatime unbindable - tmpfs x rw\n",
    },
    Case {
        format: "cgroup",
        parse: |input| ok(cgroup::parse(input)),
        sample: b"9:name=systemd:/\n4:memory:/sandbox/af84\n2:cpu,cpuacct:/../a\n0::/a:b/c\xff (deleted)\n",
    },
    Case {
        format: "cgroups",
        parse: |input| ok(cgroup::parse_controllers(input)),
        sample: b"#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t3\t1\t1\nmemory\t4\t15\t1\n",
    },
    Case {
        format: "flat keyed file",
        parse: |input| {
            black_box(cgroup::keyed_value(input, b"frozen").ok());
            ok(cgroup::parse_keyed(input))
        },
        sample: b"populated 1\nfrozen 0\n",
    },
    Case {
        format: "sysvipc/shm",
        parse: |input| ok(sysvipc::parse_shm(input)),
        sample: b"       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n      4660          0   600                  5000     1     0      0     0     0     0     0          0          0 1795226056                     0                     0\n",
    },
    Case {
        format: "sysvipc/sem",
        parse: |input| ok(sysvipc::parse_sem(input)),
        sample: b"       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n2004318071          0   640          3     0     0     0     0          0 1795226056\n         0          1   640          3     0     0     0     0          0 1795226056\n",
    },
    Case {
        format: "sysvipc/msg",
        parse: |input| ok(sysvipc::parse_msg(input)),
        sample: b"       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      rtime      ctime\n     -4096          0   600           0          0     0     0     0     0     0     0          0          0 1795226056\n",
    },
    Case {
        format: "sockstat",
        parse: |input| {
            black_box(sockstat::in_use(input, "TCP"));
            true
        },
        sample: b"sockets: used 139\nTCP: inuse 12 orphan 0 tw 1 alloc 14 mem 151\nUDP: inuse 0 mem 0\n",
    },
    Case {
        format: "maps",
        parse: |input| {
            for line in input.split(|byte| *byte == b'\n') {
                black_box(maps::parse_line(line).is_ok());
            }
            all(maps::deleted(input))
        },
        sample: b"55645bc94000-55645bc96000 r--p 00000000 fe:00 247278                     /usr/bin/head\n\
7f1998c24000-7f1998c27000 rw-p 00000000 00:00 0 \n\
7fc55e623000-7fc55e624000 rw-s 00000000 00:01 1024                       /memfd:a b\\012(x) (deleted)\n\
7fc55e624000-7fc55e625000 rw-s 00000000 fe:00 9978130                    /tmp/t/a\\012b \\ (deleted)\xff (deleted)\n",
    },
    Case {
        format: "keys",
        parse: |input| ok(keys::parse(input)),
        sample: b"03d9dcdd I--Q---     1 perm 1f3f0000     0 65534 keyring   _uid_ses.0: 1\n\
2ab41a57 I--Q--i   100   3d 3f010000 -1294967296    -1 dns_resol  a\nb: c\n\nx: 7\n\
3c77bcd6 I------     1 expd 1f030000     0     0 user      : 0\n",
    },
    Case {
        format: "key-users",
        parse: |input| ok(keys::parse_key_users(input)),
        sample: b"    0:     9 8/8 3/1000000 40/25000000\n",
    },
    Case { format: "namespace link", parse: |input| ok(nslink::parse(input)), sample: b"mnt:[4026531832]" },
    Case {
        format: "fd link",
        parse: |input| {
            black_box(fdlink::parse(input));
            true
        },
        sample: b"/memfd:a b\n(x) (deleted)",
    },
    Case {
        format: "status",
        parse: |input| ok(status::parse(input)),
        sample: b"Name:\t) (\\n R 1 2\nState:\tZ (zombie)\nTgid:\t43\nPid:\t43\nPPid:\t1\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n\
Groups:\t \nNSpid:\t43\t7\nThreads:\t1\nSigQ:\t1/96365\n",
    },
    Case {
        format: "netlink",
        parse: netlink,
        // RTM_NEWLINK in an x86's order, with IFLA_IFNAME and a nested attribute; then NLMSG_DONE.
        sample: b"\x24\0\0\0\x10\0\x02\0\x01\0\0\0\0\0\0\0\x07\0\x03\0lo\0\0\x0c\0\x12\x80\x08\0\x01\0\x02\0\0\0\
\x14\0\0\0\x03\0\x02\0\x01\0\0\0\0\0\0\0\0\0\0\0",
    },
];
