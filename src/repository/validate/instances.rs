//! Instance groups: where and how often a model runs.

use super::super::normalise;
use super::super::tree::shorten;
use super::Check;
use crate::model::schema::model_instance_group::Kind;
use crate::model::schema::{ModelInstanceGroup, ModelRateLimiter};
use crate::model::{Amount, Device, Place};

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
        if let Some(limiter) = &group.rate_limiter {
            let mut group = group.clone();
            normalise::devices(&mut group, uses_cuda, check.facts);
            resources(check, &format!("{key}.rate_limiter"), &group, limiter);
        }
        without_effect(check, &key, group);
    }
    if !config.instance_group.is_empty() && config.instance_group.iter().all(|group| group.passive) {
        check.mistake("instance_group", "all instance groups are passive, so that nothing would run");
    }
}

fn devices(check: &mut Check<'_>, key: &str, group: &ModelInstanceGroup, uses_cuda: bool) {
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
        return;
    }
    let known = check.facts.cuda_devices.indices();
    if known.is_empty() {
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

/// What an instance needs of the rate limiter.
fn resources(check: &mut Check<'_>, key: &str, group: &ModelInstanceGroup, limiter: &ModelRateLimiter) {
    let facts = check.facts;
    let Some(amounts) = &facts.rate_limits else {
        return check
            .warn(key, "'rate_limiter' has no effect unless the server runs with --rate-limit execution_count");
    };
    for (index, resource) in limiter.resources.iter().enumerate() {
        let (key, name) = (format!("{key}.resources[{index}]"), shorten(&resource.name));
        if name.is_empty() {
            check.mistake(&key, "a resource needs a 'name'");
            continue;
        }
        let others = &limiter.resources[..index];
        if others.iter().any(|other| other.name.eq_ignore_ascii_case(&resource.name)) {
            check.mistake(format!("{key}.name"), format!("resource '{name}' is listed twice"));
        }
        if resource.count == 0 {
            check.warn(&key, format!("an instance that needs nothing of resource '{name}' is not limited by it"));
        }
        let gpus = group.gpus.iter().filter_map(|gpu| Some(Place::On(Device::Cuda(u32::try_from(*gpu).ok()?))));
        let places: Vec<Place> = match (resource.global, group.kind()) {
            (true, _) => vec![Place::Global],
            (false, Kind::Gpu) => gpus.collect(),
            (false, _) => vec![Place::On(Device::Cpu)],
        };
        for place in places {
            let amount = Amount::find(amounts, &resource.name, place).filter(|amount| *amount < resource.count);
            let Some(amount) = amount else { continue };
            check.mistake(
                format!("{key}.count"),
                format!(
                    "Resource count for \"{name}\" is limited to {amount} ({place}) which will prevent scheduling of one \
                     or more model instances, the minimum required count is {}",
                    resource.count
                ),
            );
        }
    }
}

fn without_effect(check: &mut Check<'_>, key: &str, group: &ModelInstanceGroup) {
    if !group.profile.is_empty() {
        check.warn(format!("{key}.profile"), "'profile' is for TensorRT models only and has no effect");
    }
    if !group.host_policy.is_empty() && !check.facts.host_policies.contains(&group.host_policy) {
        let name = shorten(&group.host_policy);
        check.warn(
            format!("{key}.host_policy"),
            format!("'{name}' has no effect: the server has no --host-policy of this name"),
        );
    }
    if !group.secondary_devices.is_empty() {
        check.warn(format!("{key}.secondary_devices"), "'secondary_devices' has no effect in this server version");
    }
}
