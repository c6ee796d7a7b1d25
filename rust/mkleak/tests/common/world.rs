//! Everything that a plant can change, read in the simplest way: as lines of text.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType};

/// One observation. Each line starts with its kind: `process`, `fd`, `mount` …
pub(crate) type World = BTreeSet<String>;

/// What to observe.
pub(crate) struct Place<'a> {
    /// mkleak's pid.
    pub(crate) pid: u32,
    /// The directory for file-like plants.
    pub(crate) dir: &'a Path,
    /// Whether to read the machine's settings, which plants of other tests may change meanwhile.
    pub(crate) settings: bool,
}

impl Place<'_> {
    pub(crate) fn look(&self) -> World {
        let mut world = World::new();
        self.processes(&mut world);
        self.own(&mut world);
        for root in [self.dir, Path::new("/dev/shm"), Path::new("/run")] {
            files(root, &mut world);
        }
        for class in ["shm", "sem", "msg"] {
            lines(&format!("/proc/sysvipc/{class}"), "sysvipc", &mut world, |_| true);
        }
        message_queues(&mut world);
        networks(&mut world);
        self.machine_wide(&mut world);
        world
    }

    /// Processes with their state, namespaces and locks.
    fn processes(&self, world: &mut World) {
        for process in numbered("/proc") {
            let Ok(stat) = fs::read(process.join("stat")) else {
                continue;
            };
            let stat = String::from_utf8_lossy(&stat);
            let (comm, rest) = stat.rsplit_once(") ").unwrap_or_default();
            // A process alternates between running and sleeping.
            let state = rest.chars().next().filter(|state| "ZT".contains(*state)).unwrap_or('-');
            world.insert(format!("process {comm:?} {state}"));
            for namespace in entries(&process.join("ns")) {
                if let Ok(link) = fs::read_link(&namespace) {
                    world.insert(format!("ns {link:?}"));
                }
            }
            for info in entries(&process.join("fdinfo")) {
                let text = fs::read_to_string(&info).unwrap_or_default();
                for line in text.lines().filter(|line| line.starts_with("lock:")) {
                    world.insert(format!("lock {info:?} {line}"));
                }
            }
        }
    }

    /// What belongs to mkleak itself: its threads' FDs, its deleted mappings, its working directory, its mounts.
    fn own(&self, world: &mut World) {
        let own = PathBuf::from(format!("/proc/{}", self.pid));
        for task in numbered(own.join("task")) {
            for fd in entries(&task.join("fd")) {
                let Ok(link) = fs::read_link(&fd) else {
                    continue;
                };
                world.insert(format!("fd {fd:?} {link:?}"));
                let info = fs::read_to_string(task.join("fdinfo").join(fd.file_name().expect("a number")));
                let info = info.unwrap_or_default();
                for line in info.lines().filter(|line| line.starts_with("scm_fds:") && !line.ends_with(" 0")) {
                    world.insert(format!("flight {fd:?} {line}"));
                }
            }
        }
        let maps = own.join("maps");
        lines(maps.to_str().expect("ASCII"), "maps", world, |line| line.ends_with("(deleted)"));
        if let Ok(cwd) = fs::metadata(own.join("cwd")) {
            world.insert(format!("cwd {}:{}", cwd.st_dev(), cwd.st_ino()));
        }
        lines(own.join("mountinfo").to_str().expect("ASCII"), "mount", world, |_| true);
    }

    /// The tag in the names that mkleak uses: its pid, and the pid namespace unless that is the initial one.
    fn tag(&self) -> String {
        let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let inode: String = link.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
        match inode.as_str() {
            "4026531836" => format!("leakcheck-mkleak-{}", self.pid),
            inode => format!("leakcheck-mkleak-{}.{inode}", self.pid),
        }
    }

    /// What no namespace isolates: only objects with mkleak's tag, since other tests may run too.
    fn machine_wide(&self, world: &mut World) {
        let own = self.tag();
        lines("/proc/keys", "key", world, |line| line.contains(&own));
        for device in entries(Path::new("/sys/block")) {
            let backing = fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
            if backing.contains(self.dir.to_str().expect("ASCII")) {
                world.insert(format!("loop {device:?} {backing:?}"));
            }
        }
        for path in
            ["/proc/sys/vm/stat_interval", "/sys/kernel/mm/ksm/sleep_millisecs"].iter().filter(|_| self.settings)
        {
            lines(path, &format!("sysctl {path}"), world, |_| true);
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for mount in mounts.lines().filter(|line| line.contains(" cgroup")) {
            let point = mount.split(' ').nth(1).expect("a mount point");
            for top in entries(Path::new(point)) {
                if name(&top).starts_with("leakcheck-mkleak-") {
                    cgroups(&top, &own, world);
                }
            }
        }
    }
}

fn cgroups(path: &Path, own: &str, world: &mut World) {
    if path.to_string_lossy().contains(own) {
        let populated = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        world.insert(format!("cgroup {path:?} {populated:?}"));
    }
    for below in entries(path).into_iter().filter(|below| below.is_dir()) {
        cgroups(&below, own, world);
    }
}

fn files(path: &Path, world: &mut World) {
    for entry in entries(path) {
        let Ok(status) = entry.symlink_metadata() else {
            continue;
        };
        world.insert(format!("file {entry:?} {:o}", status.st_mode() & 0o170_000));
        if status.is_dir() {
            files(&entry, world);
        }
    }
}

fn networks(world: &mut World) {
    lines("/proc/net/dev", "interface", world, |line| line.contains("mkleak"));
    lines("/proc/net/tcp", "tcp", world, |line| line.split_ascii_whitespace().nth(3) == Some("0A"));
    lines("/proc/net/unix", "unix", world, |line| line.contains("leakcheck-mkleak-"));
    // NFT_MSG_GETTABLE, GETCHAIN and GETRULE, of which the last two name their table too.
    for message in [1, 4, 7] {
        let Ok(answer) = listed(Some(netlink::NETFILTER), 10_u16 << 8 | message, &[1, 0, 0, 0]) else { continue };
        let text = String::from_utf8_lossy(&answer);
        for named in text.split('\0').filter_map(|part| Some(&part[part.find("leakcheck-mkleak-")?..])) {
            world.insert(format!("nft {message} {named}"));
        }
    }
    // RTM_GETADDR, GETROUTE and GETRULE of IPv4, each with the network in which mkleak makes its own.
    for (message, about, network) in
        [(22, "address", [127, 77, 0]), (26, "route", [198, 51, 100]), (34, "rule", [203, 0, 113])]
    {
        let answer = listed(None, message, &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap_or_default();
        let hosts = answer.windows(4).filter(|bytes| bytes.starts_with(&network)).map(|bytes| bytes[3]);
        for host in hosts.collect::<BTreeSet<u8>>() {
            world.insert(format!("{about} {}.{}.{}.{host}/32", network[0], network[1], network[2]));
        }
    }
    packets(world);
}

/// What decides about packets, each as mkleak makes it: proxies, filters of lo, policies, sets, rules of iptables.
fn packets(world: &mut World) {
    // RTM_GETNEIGH with NTF_PROXY; XFRM_MSG_GETPOLICY
    let proxies = listed(None, 30, &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0]);
    let policies = listed(Some(netlink::XFRM), 0x15, &[]);
    for (about, answer, network) in [("neighbour", proxies, [203, 0, 113]), ("policy", policies, [198, 51, 100])] {
        let answer = answer.unwrap_or_default();
        for [a, b, c, d] in answer.windows(4).filter_map(|bytes| bytes.first_chunk().copied()) {
            if [a, b, c] == network {
                world.insert(format!("{about} {a}.{b}.{c}.{d}"));
            }
        }
    }
    // RTM_GETTFILTER of lo's ingress: struct nlmsghdr, struct tcmsg with the priority in the last two bytes
    let ingress = 0xffff_fff2_u32.to_ne_bytes();
    let filters = listed(None, 46, &[&[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], &ingress[..], &[0; 4]].concat());
    let filters = filters.unwrap_or_default();
    let mut rest = filters.as_slice();
    while let Some(length) = rest.first_chunk().map(|length| u32::from_ne_bytes(*length) as usize) {
        if let Some([_, _, low, high]) = rest.get(32..).and_then(<[u8]>::first_chunk)
            && rest.get(4..6) == Some(&44_u16.to_ne_bytes())
        {
            world.insert(format!("filter pref {}", u16::from_ne_bytes([*low, *high])));
        }
        rest = rest.get(length.max(16)..).unwrap_or_default();
    }
    // IPSET_CMD_LIST, IPSET_ATTR_PROTOCOL
    let sets = listed(Some(netlink::NETFILTER), 6 << 8 | 7, &[0, 0, 0, 0, 5, 0, 1, 0, 6, 0, 0, 0]).unwrap_or_default();
    let text = String::from_utf8_lossy(&sets);
    for set in text.split('\0').filter(|part| part.starts_with("mkleak")) {
        world.insert(format!("set {set}"));
    }
    for [a, b, c, d] in sets.windows(4).filter_map(|bytes| bytes.first_chunk().copied()) {
        if [a, b, c] == [198, 51, 100] {
            world.insert(format!("element {a}.{b}.{c}.{d}"));
        }
    }
    // RTM_GETNEIGH of AF_BRIDGE
    let entries = listed(None, 30, &[7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap_or_default();
    for address in entries.windows(6).filter(|bytes| bytes.starts_with(&[0x02, 0x6d, 0x6b, 0x6c, 0x6b])) {
        let address: String = address.iter().map(|byte| format!("{byte:02x}")).collect();
        world.insert(format!("forwarding {address}"));
    }
    let mut rules = std::process::Command::new("iptables-legacy");
    rules.args(["--wait", "--list-rules"]).env("XTABLES_LOCKFILE", "/dev/null");
    let rules = rules.output().map(|output| output.stdout).unwrap_or_default();
    for rule in String::from_utf8_lossy(&rules).lines().filter(|line| line.contains("203.0.113.")) {
        world.insert(format!("iptables {rule}"));
    }
}

/// The kernel's raw list of one type of object (NLM_F_DUMP).
fn listed(protocol: Option<rustix::net::Protocol>, message: u16, fixed: &[u8]) -> io::Result<Vec<u8>> {
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, protocol)?;
    rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    let mut request = Vec::new();
    request.extend((16 + fixed.len() as u32).to_ne_bytes());
    request.extend(message.to_ne_bytes());
    request.extend(0x301_u16.to_ne_bytes());
    request.extend([0; 8]);
    request.extend(fixed);
    rustix::net::send(&socket, &request, SendFlags::empty())?;
    let mut answer = vec![0; 65536];
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
    answer.truncate(length);
    Ok(answer)
}

/// Message queues are files of a file system that need not be mounted, and `/proc/PID/fd` does not show closed ones.
fn message_queues(world: &mut World) {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    let Ok(context) = fsopen("mqueue", FsOpenFlags::FSOPEN_CLOEXEC) else {
        return;
    };
    let Ok(()) = fsconfig_create(&context) else {
        return;
    };
    let Ok(tree) = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()) else {
        return;
    };
    for queue in entries(Path::new(&format!("/proc/self/fd/{}", tree.as_raw_fd()))) {
        world.insert(format!("mqueue {:?}", name(&queue)));
    }
}

fn lines(path: &str, about: &str, world: &mut World, wanted: impl Fn(&str) -> bool) {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    // The byte counts of an interface do not count as a difference.
    let first = if about == "interface" { 1 } else { usize::MAX };
    for line in text.lines().filter(|line| wanted(line)) {
        let kept: Vec<_> = line.split_ascii_whitespace().take(first).collect();
        world.insert(format!("{about} {}", kept.join(" ")));
    }
}

fn entries(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn numbered(path: impl AsRef<Path>) -> Vec<PathBuf> {
    let mut found = entries(path.as_ref());
    found.retain(|path| name(path).bytes().all(|byte| byte.is_ascii_digit()));
    found
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
