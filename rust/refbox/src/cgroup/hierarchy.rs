//! Which cgroup hierarchies there are, and our own cgroup in each (cgroups(7)); text in, records out.

use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) version: Version,
    /// Of v1 only: v2 lists its own in `cgroup.controllers`.
    pub(crate) controllers: Vec<String>,
    /// The directory of our own cgroup.
    pub(crate) own: PathBuf,
}

/// The hierarchies, from `/proc/self/cgroup` and `/proc/self/mountinfo`.
pub(crate) fn parse(cgroup: &str, mountinfo: &str) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let version = if number == "0" { Version::V2 } else { Version::V1 };
        let own =
            mountinfo.lines().filter_map(|line| mount_of(line, version, controllers)).find_map(|(root, mount)| {
                // Mounted from another root (a container's), it may not show our cgroup at all.
                let below = path.strip_prefix(root.trim_end_matches('/'))?;
                (below.is_empty() || below.starts_with('/')).then(|| mount.join(below.trim_start_matches('/')))
            });
        if let Some(own) = own.filter(|own| !own.components().any(|c| c.as_os_str() == "..")) {
            let controllers = controllers.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect();
            found.push(Hierarchy { version, controllers, own });
        }
    }
    found
}

fn mount_of(line: &str, version: Version, controllers: &str) -> Option<(String, PathBuf)> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    let (fs_type, options) = (right.next()?, right.nth(1)?);
    let fits = match fs_type {
        "cgroup2" => version == Version::V2,
        "cgroup" => {
            version == Version::V1 && controllers.split(',').all(|c| options.split(',').any(|option| option == c))
        }
        _ => false,
    };
    let mut fields = left.split(' ').skip(3);
    let (root, mount) = (fields.next()?, fields.next()?);
    fits.then(|| (unescape(root), Path::new(&unescape(mount)).to_owned()))
}

fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(version: Version, controllers: &[&str], own: &str) -> Hierarchy {
        Hierarchy { version, controllers: controllers.iter().map(|c| (*c).to_owned()).collect(), own: own.into() }
    }

    #[test]
    fn a_hybrid_host_has_both_kinds() {
        let cgroup = "4:memory:/a/b\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/c\n";
        let mounts = "37 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      38 31 0:34 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let expected = [
            hierarchy(Version::V1, &["memory"], "/sys/fs/cgroup/memory/a/b"),
            hierarchy(Version::V1, &["cpu", "cpuacct"], "/sys/fs/cgroup/cpu,cpuacct/"),
            hierarchy(Version::V2, &[], "/sys/fs/cgroup/unified/c"),
        ];
        assert_eq!(parse(cgroup, mounts), expected);
    }

    #[test]
    fn a_mount_that_does_not_show_our_cgroup_is_left_out() {
        let mounts = "41 31 0:38 /box /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(parse("0::/box/inner\n", mounts), [hierarchy(Version::V2, &[], "/sys/fs/cgroup/inner")]);
        assert_eq!(parse("0::/boxes\n", mounts), []);
        assert_eq!(parse("0::/../other\n", "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"), []);
    }
}
