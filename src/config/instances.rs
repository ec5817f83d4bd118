//! The settings of instances: rate limits, host policies, and what may hang.

use std::time::Duration;

use super::Reader;
use crate::engine::{Amount, Device, HostPolicies, InstanceSettings, parse_cores};

pub(super) fn read(reader: &mut Reader) -> InstanceSettings {
    let limited = reader.text("rate-limit") == "execution_count";
    let amounts = reader.each("rate-limit-resource", amount);
    if !limited && !amounts.is_empty() {
        let origin = reader.typed.origin("rate-limit-resource");
        reader.mistake(&origin, "needs --rate-limit=execution_count");
    }
    for (at, amount) in amounts.iter().enumerate() {
        let same = |other: &Amount| other.name.eq_ignore_ascii_case(&amount.name) && other.device == amount.device;
        if amounts[..at].iter().any(same) {
            let origin = reader.typed.origin("rate-limit-resource");
            reader.mistake(&origin, format!("resource '{}' is given twice", amount.name));
        }
    }
    InstanceSettings {
        rate_limits: limited.then_some(amounts),
        host_policies: host_policies(reader),
        execution_time_max: match reader.number("execution-timeout-ms") {
            0 => None,
            time => Some(Duration::from_millis(time)),
        },
        lost_max: reader.number("lost-instances-max") as usize,
    }
}

/// `NAME:COUNT` or `NAME:COUNT:DEVICE`.
fn amount(text: &str) -> Result<Amount, String> {
    let form = || "is not NAME:COUNT or NAME:COUNT:DEVICE, where DEVICE is a number or cpu".to_owned();
    let mut parts = text.split(':');
    let (name, count, device) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let count = count.and_then(|count| count.parse().ok()).ok_or_else(form)?;
    let device = match device {
        None => None,
        Some("cpu") => Some(Device::Cpu),
        Some(index) => Some(Device::Cuda(index.parse().map_err(|_| form())?)),
    };
    if name.is_empty() || parts.next().is_some() {
        return Err(form());
    }
    Ok(Amount { name: name.to_owned(), count, device })
}

/// One setting of one policy.
enum PolicySetting {
    Node(u32),
    Cores(Vec<usize>),
}

fn host_policies(reader: &mut Reader) -> HostPolicies {
    let mut policies = HostPolicies::new();
    for (name, setting) in reader.each("host-policy", policy_setting) {
        let policy = policies.entry(name.clone()).or_default();
        let given = match setting {
            PolicySetting::Node(node) => policy.numa_node.replace(node).is_some(),
            PolicySetting::Cores(cores) => !std::mem::replace(&mut policy.cpu_cores, cores).is_empty(),
        };
        if given {
            let origin = reader.typed.origin("host-policy");
            reader.mistake(&origin, format!("the same setting of policy '{name}' is given twice"));
        }
    }
    policies
}

/// `NAME,numa-node=N` or `NAME,cpu-cores=FIRST-LAST`.
fn policy_setting(text: &str) -> Result<(String, PolicySetting), String> {
    let form = || "is not NAME,numa-node=NUMBER or NAME,cpu-cores=FIRST-LAST".to_owned();
    let (name, setting) = text.split_once(',').filter(|(name, _)| !name.is_empty()).ok_or_else(form)?;
    let setting = match setting.split_once('=').ok_or_else(form)? {
        ("numa-node", node) => PolicySetting::Node(node.parse().map_err(|_| form())?),
        ("cpu-cores", cores) => PolicySetting::Cores(parse_cores(cores).ok_or_else(form)?),
        _ => return Err(form()),
    };
    Ok((name.to_owned(), setting))
}

#[cfg(test)]
mod tests {
    use super::super::typed::Environment;
    use super::super::{Config, Mistakes};
    use super::*;

    fn read(line: &str) -> Result<InstanceSettings, Vec<String>> {
        let root = tempfile::tempdir().expect("a temporary directory");
        let mut args = vec![format!("--model-repository={}", root.path().display())];
        args.extend(line.split_whitespace().map(str::to_owned));
        Config::read(&args, &Environment::new(), None)
            .map(|config| config.instances)
            .map_err(|Mistakes(mistakes)| mistakes)
    }

    #[test]
    fn by_default_nothing_is_limited() {
        let settings = read("").expect("valid");
        assert_eq!(settings, InstanceSettings { lost_max: 3, ..InstanceSettings::default() });
    }

    #[test]
    fn resources_are_of_all_devices_or_of_one() {
        let line = "--rate-limit=execution_count --rate-limit-resource=R1:4 --rate-limit-resource=R1:2:1 \
                    --rate-limit-resource=R1:3:cpu";
        let amounts = read(line).expect("valid").rate_limits.expect("on");
        let amount = |count, device| Amount { name: "R1".to_owned(), count, device };
        assert_eq!(amounts, [amount(4, None), amount(2, Some(Device::Cuda(1))), amount(3, Some(Device::Cpu))]);
    }

    #[test]
    fn every_wrong_resource_is_told() {
        for text in ["R1", "R1:x", ":4", "R1:4:x", "R1:4:0:0"] {
            let mistakes = read(&format!("--rate-limit=execution_count --rate-limit-resource={text}"));
            let mistakes = mistakes.expect_err("it is no resource");
            assert!(
                mistakes[0].starts_with(&format!("--rate-limit-resource: '{text}' is not NAME:COUNT")),
                "{mistakes:?}"
            );
        }
        let twice = read("--rate-limit=execution_count --rate-limit-resource=a:1 --rate-limit-resource=A:2");
        assert_eq!(twice.expect_err("twice"), ["--rate-limit-resource: resource 'A' is given twice"]);
        let off = read("--rate-limit-resource=a:1").expect_err("nothing is limited");
        assert_eq!(off, ["--rate-limit-resource: needs --rate-limit=execution_count"]);
    }

    #[test]
    fn a_host_policy_has_a_node_or_processors_or_both() {
        let line = "--host-policy=a,cpu-cores=0-1,3 --host-policy=a,numa-node=1 --host-policy=gpu_0,numa-node=0";
        let policies = read(line).expect("valid").host_policies;
        assert_eq!((policies["a"].numa_node, policies["a"].cpu_cores.as_slice()), (Some(1), &[0, 1, 3][..]));
        assert_eq!((policies["gpu_0"].numa_node, policies["gpu_0"].cpu_cores.len()), (Some(0), 0));
        for text in ["a", "a,", ",numa-node=1", "a,numa-node=x", "a,cpu-cores=", "a,cpu-cores=3-1", "a,memory=1"] {
            let mistakes = read(&format!("--host-policy={text}")).expect_err("it is no policy");
            assert!(
                mistakes[0].starts_with(&format!("--host-policy: '{text}' is not NAME,numa-node=")),
                "{mistakes:?}"
            );
        }
        let twice = read("--host-policy=a,numa-node=1 --host-policy=a,numa-node=2").expect_err("twice");
        assert_eq!(twice, ["--host-policy: the same setting of policy 'a' is given twice"]);
    }
}
