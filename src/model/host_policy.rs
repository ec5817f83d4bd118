//! Where on the host the threads of an instance run.

use std::collections::BTreeMap;

use super::Device;

/// What an operator says about the threads of some instances (`--host-policy`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPolicy {
    /// The NUMA node whose processors they use.
    pub numa_node: Option<u32>,
    /// The processors that they use; empty for all, or all of the node.
    pub cpu_cores: Vec<usize>,
}

/// The policies by their names.
pub type HostPolicies = BTreeMap<String, HostPolicy>;

/// The policy of instances on this device whose configuration names `named`; an empty name stands for the device's own,
/// as for the reference server: `cpu`, `gpu_0`, `gpu_1`, …
pub fn host_policy<'a>(policies: &'a HostPolicies, named: &str, device: Device) -> Option<(&'a str, &'a HostPolicy)> {
    let name = match (named, device) {
        ("", Device::Cpu) => "cpu".to_owned(),
        ("", Device::Cuda(index)) => format!("gpu_{index}"),
        (named, _) => named.to_owned(),
    };
    policies.get_key_value(&name).map(|(name, policy)| (name.as_str(), policy))
}

/// The numbers that a text such as `0-3,8` lists, ascending; `None` if it is no such text.
pub fn parse_cores(text: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<usize>().ok().filter(|core| *core < CORES_MAX);
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        cores.extend(first..=last);
    }
    cores.sort_unstable();
    cores.dedup();
    Some(cores)
}

/// No system has a processor of this number: the size of the kernel's own sets.
const CORES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_cores("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse_cores("5"), Some(vec![5]));
        assert_eq!(parse_cores("1,0-1"), Some(vec![0, 1]));
        for wrong in ["", "a", "3-1", "0-", "-1", "0,,1", "0-1024"] {
            assert_eq!(parse_cores(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn instances_that_name_no_policy_have_their_devices() {
        let names = ["cpu", "gpu_1", "own"];
        let policies: HostPolicies = names.into_iter().map(|name| (name.to_owned(), HostPolicy::default())).collect();
        let found = |named, device| host_policy(&policies, named, device).map(|(name, _)| name);
        assert_eq!(found("", Device::Cpu), Some("cpu"));
        assert_eq!(found("", Device::Cuda(1)), Some("gpu_1"));
        assert_eq!(found("", Device::Cuda(0)), None);
        assert_eq!(found("own", Device::Cuda(0)), Some("own"));
        assert_eq!(found("other", Device::Cpu), None);
    }
}
