//! Instance groups: where and how often a model runs.

use super::Check;
use crate::model::schema::ModelInstanceGroup;
use crate::model::schema::model_instance_group::Kind;

/// More instances of one group on one device than this would only be threads that wait for each other.
const COUNT_MAX: i32 = 1024;

pub(super) fn check(check: &mut Check<'_>) {
    let config = check.config;
    let uses_cuda = check.facts.backend(&config.backend).is_none_or(|backend| backend.uses_cuda);
    for (index, group) in config.instance_group.iter().enumerate() {
        let key = format!("instance_group[{index}]");
        if group.count < 0 || group.count > COUNT_MAX {
            let message = format!("'count' must be in range [1, {COUNT_MAX}], got {}", group.count);
            check.mistake(format!("{key}.count"), message);
        }
        let taken =
            config.instance_group[..index].iter().any(|other| !other.name.is_empty() && other.name == group.name);
        if taken {
            check.mistake(format!("{key}.name"), format!("instance group '{}' is given more than once", group.name));
        }
        devices(check, &key, group, uses_cuda);
        without_effect(check, &key, group);
    }
    if !config.instance_group.is_empty() && config.instance_group.iter().all(|group| group.passive) {
        check.mistake("instance_group", "all instance groups are passive, so that nothing would run");
    }
}

fn devices(check: &mut Check<'_>, key: &str, group: &ModelInstanceGroup, uses_cuda: bool) {
    let known = check.facts.cuda_devices.clone();
    let on_gpu = match group.kind() {
        Kind::Gpu => true,
        Kind::Auto => !group.gpus.is_empty(),
        kind @ (Kind::Cpu | Kind::Model) => {
            if !group.gpus.is_empty() {
                let message = format!("instance group of kind {} must not list 'gpus'", kind.as_str_name());
                check.mistake(format!("{key}.gpus"), message);
            }
            false
        }
    };
    if !on_gpu {
        return;
    }
    let at = if group.kind() == Kind::Gpu { format!("{key}.kind") } else { format!("{key}.gpus") };
    if !uses_cuda {
        check.mistake(at, format!("backend '{}' does not run on a GPU", check.config.backend));
    } else if known.is_empty() {
        check.mistake(at, "instance group is to run on a GPU, but this server has no usable GPU");
    } else {
        for (index, gpu) in group.gpus.iter().enumerate() {
            if !u32::try_from(*gpu).is_ok_and(|gpu| known.contains(&gpu)) {
                let good: Vec<_> = known.iter().map(u32::to_string).collect();
                let message = format!("unknown gpu id {gpu}, the usable ones are: {}", good.join(", "));
                check.mistake(format!("{key}.gpus[{index}]"), message);
            } else if group.gpus[..index].contains(gpu) {
                check.mistake(format!("{key}.gpus[{index}]"), format!("gpu id {gpu} is listed twice"));
            }
        }
    }
}

fn without_effect(check: &mut Check<'_>, key: &str, group: &ModelInstanceGroup) {
    if !group.profile.is_empty() {
        check.warn(format!("{key}.profile"), "'profile' is for TensorRT models only and has no effect");
    }
    if !group.host_policy.is_empty() {
        check.warn(format!("{key}.host_policy"), "'host_policy' has no effect in this server version");
    }
    if !group.secondary_devices.is_empty() {
        check.warn(format!("{key}.secondary_devices"), "'secondary_devices' has no effect in this server version");
    }
}
