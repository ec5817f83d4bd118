//! Keeps the threads of an instance on some of the host's processors.
//!
//! Threads that an instance starts itself, such as libtorch's, inherit this. Memory follows: the kernel takes it from
//! the node of the processor that first touches it.

use std::path::PathBuf;

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::error::{Error, Result};
use crate::model::{HostPolicy, parse_cores};

/// Keeps the calling thread on the processors that the policy of this name says.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if the host has no such node or processors.
pub(super) fn pin(name: &str, policy: &HostPolicy) -> Result<()> {
    let wrong = |why: String| Error::invalid(format!("host policy '{name}': {why}"));
    let cores = cores(policy).map_err(wrong)?;
    if cores.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    sched_setaffinity(None, &set).map_err(|error| wrong(format!("cannot use the processors {cores:?}: {error}")))
}

/// The processors of a policy; empty for any.
fn cores(policy: &HostPolicy) -> Result<Vec<usize>, String> {
    let Some(node) = policy.numa_node else { return Ok(policy.cpu_cores.clone()) };
    let path = PathBuf::from(format!("/sys/devices/system/node/node{node}/cpulist"));
    let text = std::fs::read_to_string(&path).map_err(|error| format!("there is no NUMA node {node}: {error}"))?;
    let of_node = parse_cores(&text).ok_or_else(|| format!("NUMA node {node} has no processors"))?;
    if policy.cpu_cores.is_empty() {
        return Ok(of_node);
    }
    let both: Vec<usize> = policy.cpu_cores.iter().copied().filter(|core| of_node.contains(core)).collect();
    if both.is_empty() {
        return Err(format!("none of the processors {:?} is on NUMA node {node}", policy.cpu_cores));
    }
    Ok(both)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The processors that the calling thread may use.
    fn allowed() -> Vec<usize> {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("Linux has it");
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("it is there");
        parse_cores(list).expect("the kernel's own form")
    }

    fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(work).join().expect("it does not panic"))
    }

    #[test]
    fn a_thread_stays_on_its_processors_and_so_do_those_that_it_starts() {
        let last = *allowed().last().expect("there is one");
        let policy = HostPolicy { numa_node: None, cpu_cores: vec![last] };
        let (own, inherited) = on_thread(|| {
            pin("p", &policy).expect("the processor is there");
            (allowed(), on_thread(allowed))
        });
        assert_eq!((own, inherited), (vec![last], vec![last]));
        assert!(on_thread(|| pin("p", &HostPolicy::default())).is_ok(), "no policy changes nothing");
    }

    #[test]
    fn what_the_host_has_not_is_told() {
        let wrong = |policy: HostPolicy| on_thread(|| pin("p", &policy)).expect_err("not there").to_string();
        let text = wrong(HostPolicy { numa_node: Some(4000), cpu_cores: vec![] });
        assert!(text.starts_with("host policy 'p': there is no NUMA node 4000"), "{text}");
        let text = wrong(HostPolicy { numa_node: None, cpu_cores: vec![1023] });
        assert!(text.starts_with("host policy 'p': cannot use the processors [1023]"), "{text}");
    }
}
