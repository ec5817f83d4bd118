//! How much memory the host gives this process: what the machine has, or less where a control group bounds it.
//!
//! Linux shows both as files: `MemTotal` of `/proc/meminfo`, and `memory.max` (version 2) or `memory.limit_in_bytes`
//! (version 1) of the process's group and of every group around it; see `cgroups(7)`.

use std::fs;
use std::path::Path;

/// The bytes of host memory that this process may use; `None` where the system does not say.
pub(super) fn memory_total() -> Option<u64> {
    total_below(Path::new("/"))
}

/// The same of the files below `root`.
fn total_below(root: &Path) -> Option<u64> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let machine = machine_total(&read("proc/meminfo"))?;
    let groups = read("proc/self/cgroup");
    let bounds = groups.lines().filter_map(|line| bound(root, line));
    Some(bounds.chain([machine]).min().unwrap_or(machine))
}

fn machine_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The smallest bound of the group in a line `NUMBER:CONTROLLERS:PATH` and of those around it.
fn bound(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (folder, file) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max"),
        _ if controllers.split(',').any(|each| each == "memory") => ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return None,
    };
    // In a container the path may be the host's, of which only the innermost group is mounted, at the root.
    let groups = Path::new(path.trim_start_matches('/')).ancestors();
    // The word `max` is no number, and no bound.
    let bounds = groups.filter_map(|group| {
        let text = fs::read_to_string(root.join(folder).join(group).join(file)).ok()?;
        text.trim().parse().ok()
    });
    bounds.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("it is below the root")).expect("there is room");
        fs::write(path, text).expect("there is room");
    }

    #[test]
    fn the_tightest_group_around_the_process_counts() {
        let root = tempfile::tempdir().expect("there is room");
        let root = root.path();
        assert_eq!(total_below(root), None);
        write(root, "proc/meminfo", "MemTotal:       4096 kB\nMemFree: 1 kB\n");
        assert_eq!(total_below(root), Some(4 << 20));
        write(root, "proc/self/cgroup", "0::/a/b\n");
        write(root, "sys/fs/cgroup/a/b/memory.max", "max\n");
        assert_eq!(total_below(root), Some(4 << 20));
        write(root, "sys/fs/cgroup/a/memory.max", "1000\n");
        write(root, "sys/fs/cgroup/memory.max", "2000\n");
        assert_eq!(total_below(root), Some(1000));
    }

    #[test]
    fn the_first_version_of_groups_counts_too() {
        let root = tempfile::tempdir().expect("there is room");
        let root = root.path();
        write(root, "proc/meminfo", "MemTotal: 4096 kB\n");
        write(root, "proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/x\n");
        write(root, "sys/fs/cgroup/memory/x/memory.limit_in_bytes", "3000\n");
        assert_eq!(total_below(root), Some(3000));
        // No bound is written as a number that no machine has.
        write(root, "sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(total_below(root), Some(4 << 20));
    }
}
