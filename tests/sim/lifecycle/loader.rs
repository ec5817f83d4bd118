//! Loads as the loader threads do them, without threads: real directories, configurations and decisions, and puppets
//! instead of models.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use nereid::engine::Key;
use nereid::engine::models::{Job, Loaded, Origin};
use nereid::engine::order::outdated_load;
use nereid::engine::reconcile;
use nereid::error::{Error, Result};
use nereid::model::{ModelConfig, Scheduling, Version};
use nereid::repository::{self, ModelDir, Source};
use tokio::time::sleep;

use super::World;
use super::copy::{Copy, Identity, Serving};

/// Waits for its turn, tries, and tries again, as an attempt of the server does.
pub async fn attempt(world: &Rc<World>, job: &Job<Serving>) -> Result<Loaded<Serving>> {
    let overtaken = &job.progress.overtaken;
    let mut failures = 0;
    loop {
        let permit = tokio::select! {
            biased;
            () = overtaken.cancelled() => return Err(outdated_load()),
            permit = world.permits.acquire() => permit.expect("nobody closes it"),
        };
        job.progress.begin();
        let result = load(world, job).await;
        drop(permit);
        match result {
            Err(_) if failures < world.scene.retries && !overtaken.is_cancelled() => {
                failures += 1;
                job.progress.wait();
                tokio::select! {
                    () = overtaken.cancelled() => return Err(outdated_load()),
                    () = sleep(world.ms(10, 50)) => {}
                }
            }
            result => return result,
        }
    }
}

async fn load(world: &Rc<World>, job: &Job<Serving>) -> Result<Loaded<Serving>> {
    sleep(world.ms(0, 5)).await;
    let dir = world.repositories.find(&job.key, &mut Vec::new())?.dir;
    let served = job.served.as_ref().map(|(origin, _)| origin);
    let is_served = served.is_some_and(|origin| !origin.config_overridden && origin.stamp == dir.stamp);
    if job.overrides.is_empty() && !job.again && is_served {
        return Ok(Loaded::Unchanged);
    }
    let (config, versions) = configure(world, job, &dir)?;
    sleep(world.ms(0, 5)).await;
    let members = members(&config, &job.key);
    if !job.members_tried && members.iter().any(|member| world.fitting(member).is_none()) {
        return Ok(Loaded::Needs(members));
    }
    let fit: Option<Vec<(Key, u64)>> =
        members.iter().map(|member| Some((member.clone(), world.fitting(member)?))).collect();
    let fit = fit.ok_or_else(|| Error::invalid("it contains models that are not available"))?;
    world.resolved(job, &versions);
    let origin = Origin {
        stamp: dir.stamp,
        config: Arc::new(config),
        config_overridden: job.overrides.config.is_some(),
        files_overridden: false,
    };
    let kept = kept(job, &origin, versions.iter().copied().collect());
    let mut servings = BTreeMap::new();
    for version in versions.into_iter().filter(|version| !kept.contains(version)) {
        let opened = match job.progress.overtaken.is_cancelled() {
            true => Err(outdated_load()),
            false => open(world, job, &origin, (version, &fit)).await,
        };
        match opened {
            Ok(serving) => _ = servings.insert(version, serving),
            Err(error) => {
                for Serving { copy, .. } in servings.into_values() {
                    copy.retire(world.clone()).await;
                }
                return Err(error);
            }
        }
    }
    servings.extend(adapt(world, job, &origin, &kept));
    Ok(Loaded::New { origin: Some(origin), versions: servings, kept, members })
}

fn configure(world: &World, job: &Job<Serving>, dir: &ModelDir) -> Result<(ModelConfig, Vec<Version>)> {
    let source = job.overrides.config.as_ref().map_or(Source::File, |text| Source::Text(text.as_bytes()));
    let written = repository::read(dir, source, &world.facts)?;
    let versions = written.versions(&dir.versions)?.versions;
    Ok((written.finish(&world.facts)?.config, versions))
}

/// The models that an ensemble is made of.
fn members(config: &ModelConfig, key: &Key) -> Vec<Key> {
    let Scheduling::Ensemble(ensemble) = &config.scheduling else { return Vec::new() };
    let names: BTreeSet<&str> = ensemble.steps.iter().map(|step| &*step.model).collect();
    names.into_iter().map(|name| Key::within(&key.namespace, name)).collect()
}

fn kept(job: &Job<Serving>, after: &Origin, wanted: BTreeSet<Version>) -> BTreeSet<Version> {
    match &job.served {
        Some((before, served)) if !job.again => reconcile::kept(before, after, served.keys().copied(), &wanted),
        _ => BTreeSet::new(),
    }
}

async fn open(
    world: &Rc<World>,
    job: &Job<Serving>,
    origin: &Origin,
    (version, fit): (Version, &[(Key, u64)]),
) -> Result<Serving> {
    let time = if world.one_in(0.05) { world.ms(200, 2000) } else { world.ms(0, 20) };
    sleep(time).await;
    if world.one_in(world.scene.fails) {
        return Err(Error::unavailable("the puppet cannot be opened"));
    }
    let number = world.count_load();
    let bytes = origin.stamp.bytes(version);
    let identity = Identity { key: job.key.clone(), version, number, bytes, members: fit.to_vec() };
    let copy = Copy::start(world, identity, instances(&origin.config));
    Ok(Serving { copy, config: origin.config.clone() })
}

/// The versions that go on, with the instances of the new configuration.
fn adapt(
    world: &Rc<World>,
    job: &Job<Serving>,
    origin: &Origin,
    kept: &BTreeSet<Version>,
) -> BTreeMap<Version, Serving> {
    let served = job.served.iter().flat_map(|(_, served)| served);
    let stay = served.filter(|(version, _)| kept.contains(version)).map(|(version, Serving { copy, .. })| {
        copy.resize(world, instances(&origin.config));
        (*version, Serving { copy: copy.clone(), config: origin.config.clone() })
    });
    stay.collect()
}

fn instances(config: &ModelConfig) -> usize {
    config.instances.iter().map(|group| group.count).sum()
}
