//! Makes room for a load: reserves what it will take, before anything is opened; has idle models leave if that is what it
//! takes, and waits for memory that is given back.
//!
//! Runs on loader threads, and blocks. Begin with [`Loader::reserve`]; what leaves is decided in `evict.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::MutexGuard;

use super::evict::{Candidate, Verdict, evict_with_paged};
use super::hanging::Claim;
use super::loader::Loader;
use super::manager::Event;
use super::memory::ledger::{Ahead, Holder, Ledger, excess};
use super::memory::{LOOK_AGAIN, Lack, Lease};
use super::models::Job;
use super::order::{Because, Unload, What, outdated_load};
use super::permits::Permit;
use super::serving::Serving;
use super::{Handle, Key};
use crate::backend::Model;
use crate::error::{Error, Result};
use crate::infer::Instant;
use crate::model::{Device, Footprint, ModelConfig, Residency, Scheduling, Version, VersionFiles};

/// How often a load opens a model that takes more memory than there was for it. Twice is usual where others share its
/// weights and leave meanwhile.
const OPENS_MAX: usize = 4;

/// A load as far as memory is concerned.
#[derive(Clone, Copy)]
pub(super) struct Need<'a> {
    pub(super) job: &'a Job<Serving>,
    pub(super) claim: &'a Claim,
    pub(super) config: &'a ModelConfig,
}

impl Need<'_> {
    /// # Errors
    /// If nobody waits for this load any more.
    fn check(&self) -> Result<()> {
        match self.job.progress.overtaken.is_cancelled() || self.claim.is_taken() {
            true => Err(outdated_load()),
            false => Ok(()),
        }
    }
}

/// What a load may read a file by, as a whole.
#[derive(Default)]
pub(super) struct Brief<'a> {
    /// The memory for it.
    _lease: Option<Lease>,
    /// Without memory of its own, one load at a time does so.
    _only_one: Option<MutexGuard<'a, ()>>,
}

/// What a load does that cannot have its memory.
enum Choice {
    /// These leave for it, perhaps none.
    Leave(Vec<Key>),
    /// It goes before those who came earlier: they wait for what stays until it has ended.
    GoFirst,
}

/// A model that is served, as far as memory is concerned.
struct Present {
    key: Key,
    versions: Vec<Arc<Handle>>,
    /// Whether it has to stay for now, requests or not.
    stays: bool,
}

impl Present {
    /// How long it was not used; `None` if it is used now.
    fn unused(&self, now: Instant) -> Option<Duration> {
        let is_idle = !self.stays && self.versions.iter().all(|version| version.is_idle());
        let unused = self.versions.iter().map(|version| version.usage.unused(now)).min();
        unused.filter(|_| is_idle)
    }

    /// Whether requests to it need the model of this name.
    fn has_step(&self, name: &str) -> bool {
        self.versions.iter().any(|version| match &version.config.scheduling {
            Scheduling::Ensemble(ensemble) => ensemble.steps.iter().any(|step| step.model == name),
            _ => false,
        })
    }
}

impl Loader {
    /// Reserves what these versions will take, all of it or nothing. Has other models leave for them, and waits until
    /// memory is given back.
    ///
    /// # Errors
    /// [`crate::error::Kind::Unavailable`] with who is in the way, or that nobody waits for the load any more.
    pub(super) fn reserve(
        &self,
        need: Need<'_>,
        files: &[(Version, VersionFiles)],
    ) -> Result<BTreeMap<Version, Lease>> {
        let of_file = need.config.of_file();
        let estimate = |files: &VersionFiles| {
            // What cannot be read cannot be opened either, and says so then.
            let backend = self.backend(&need.config.backend).ok();
            backend.and_then(|backend| backend.estimate(files, &of_file).ok()).unwrap_or_default()
        };
        let parts = files.iter().map(|(version, files)| (holder(need, *version), estimate(files)));
        let leases = self.line_up(need, parts.collect())?;
        Ok(leases.into_iter().map(|lease| (lease.holder().version, lease)).collect())
    }

    /// Takes so much of the host's memory for a moment: what is dropped before the load reserves anything else, so that
    /// others wait for it and are not refused because of it. A load that may not open anything in the end has nobody leave
    /// for it, and does not wait: if there is no room, it goes on as the only one.
    ///
    /// # Errors
    /// As of [`Loader::reserve`]; what has more than the whole limit is always refused.
    pub(super) fn reserve_briefly(&self, need: Need<'_>, (version, bytes): (Version, u64)) -> Result<Brief<'_>> {
        let job = need.job;
        let parts = vec![(holder(need, version), Footprint::on(Device::Cpu, bytes))];
        if bytes == 0 {
            return Ok(Brief::default());
        }
        self.memory.find_out(Device::Cpu);
        let may_open_nothing = job.is_reload() || self.sleeps(job, need.config);
        if !may_open_nothing || bytes > self.memory.read(|ledger| ledger.limit_of(Device::Cpu)) {
            let lease = self.line_up(need, parts)?.pop();
            return Ok(Brief { _lease: lease.inspect(Lease::leave), _only_one: None });
        }
        let reserved = self.memory.line_up((&job.key, need.config.residency), parts).reserve();
        Ok(match reserved {
            Ok(mut leases) => Brief { _lease: leases.pop().inspect(Lease::leave), _only_one: None },
            Err(_) => loop {
                if let Some(only_one) = self.completing.try_lock_for(LOOK_AGAIN) {
                    break Brief { _lease: None, _only_one: Some(only_one) };
                }
                need.check()?;
            },
        })
    }

    /// Opens a model in the memory that is reserved for it, and corrects that by what was measured. What takes more than
    /// was expected, and than is free, is closed, and opened again once there is room for all of it: two loads that kept
    /// what they have while they wait for more could wait for each other.
    ///
    /// It may take more again then, as what it shared with another model is its own once that has left.
    ///
    /// # Errors
    /// As of [`Loader::reserve`], and those of `open`.
    pub(super) fn open_within(
        &self,
        need: Need<'_>,
        lease: Lease,
        open: impl Fn() -> Result<Arc<dyn Model>>,
    ) -> Result<(Arc<dyn Model>, Lease)> {
        let (holder, mut needed) = (lease.holder().clone(), lease.bytes());
        let mut first = Some(lease);
        for _ in 0..OPENS_MAX {
            let lease = match first.take() {
                Some(lease) => lease,
                None => self.line_up(need, vec![(holder.clone(), needed.clone())])?.remove(0),
            };
            let model = open()?;
            let measured = model.footprint();
            if lease.commit(&measured) {
                return Ok((model, lease));
            }
            needed.add(&excess(&measured, &needed));
            drop(model);
            drop(lease);
        }
        let name = &need.config.name;
        Err(Error::unavailable(format!(
            "model '{name}' took more memory each time that it was opened, {OPENS_MAX} times in all"
        )))
    }

    /// Stands in line with these parts, and waits until all of them are reserved.
    ///
    /// # Errors
    /// As of [`Loader::reserve`].
    pub(super) fn line_up(&self, need: Need<'_>, parts: Vec<(Holder, Footprint)>) -> Result<Vec<Lease>> {
        let (mut went_first, began) = (false, Instant::now());
        let line = self.memory.line_up((&need.job.key, need.config.residency), parts);
        let permit = need.claim.permit.as_ref();
        loop {
            // Whoever takes memory runs, so that few hold what they have reserved and not measured yet.
            let leaving = match permit.is_none_or(Permit::may_run) {
                false => Vec::new(),
                true => {
                    // Two loads must not choose the same models.
                    let _choosing = self.choosing.lock();
                    match line.reserve() {
                        Ok(leases) => {
                            permit.iter().for_each(|permit| permit.runs());
                            return Ok(leases);
                        }
                        Err(lack) => match self.choose(need, &lack)? {
                            Choice::Leave(leaving) => leaving,
                            // Others that went first since are in its way as it is in theirs: one of them gives up.
                            Choice::GoFirst if went_first && !lack.why.is_empty() => {
                                return Err(cannot_fit(need, &lack));
                            }
                            Choice::GoFirst => {
                                line.go_first();
                                went_first = true;
                                continue;
                            }
                        },
                    }
                }
            };
            for key in leaving {
                self.unload(key);
            }
            need.check()?;
            if let Some(permit) = permit {
                permit.has_to_wait();
                permit.step_aside(began.elapsed());
            }
            line.wait();
            need.check()?;
        }
    }

    /// The models that leave for this load, and are known to leave from now on.
    fn choose(&self, need: Need<'_>, lack: &Lack) -> Result<Choice> {
        if lack.bytes.bytes.is_empty() && !lack.is_behind {
            // So much is given back soon.
            return Ok(Choice::Leave(Vec::new()));
        }
        let present = self.present();
        let hanging = self.memory.hanging();
        let mut candidates = self.candidates(&present);
        let paged = self.paged();
        candidates.extend(self.memory.read(|ledger| being_loaded(ledger, &present, &paged)));
        candidates.retain(|candidate| !hanging.contains(&candidate.key));
        // What is lacking, if all of these models stay.
        let verdict = |lacking: &Footprint, by: Residency, kept: &BTreeSet<Key>| {
            let kept = with_parts(kept, &present);
            let can_go = candidates.iter().filter(|candidate| !kept.contains(&candidate.key));
            let limit = |device| self.memory.read(|ledger| ledger.limit_of(device));
            evict_with_paged((lacking, by), &can_go.cloned().collect::<Vec<_>>(), &paged, limit)
        };
        let kept = self.demand.kept_by(&need.job.key);
        match verdict(&lack.bytes, need.config.residency, &kept) {
            Verdict::Evict(mut keys) if !keys.is_empty() => {
                // What is paged out holds little and does nothing: it is dropped at once.
                keys.retain(|key| !self.pages.forget(key));
                keys.retain(|key| self.put_to_sleep(key, &present));
                Ok(Choice::Leave(keys))
            }
            _ if lack.is_behind => {
                let can_have = |ahead: &Ahead, kept: &BTreeSet<Key>| {
                    let lacking = ahead.lacking.as_ref();
                    lacking.is_none_or(|lacking| verdict(lacking, ahead.residency, kept) != Verdict::Never)
                };
                let others = lack.ahead.iter().flat_map(|ahead| self.demand.kept_by(&ahead.key)).collect();
                let all = &others | &kept;
                let is_in_the_way = |ahead: &Ahead| !can_have(ahead, &all) && can_have(ahead, &others);
                if lack.ahead.iter().any(is_in_the_way) && self.memory.is_as_of(lack) {
                    return Ok(Choice::GoFirst);
                }
                // Whoever comes first may need less in the end.
                Ok(Choice::Leave(Vec::new()))
            }
            Verdict::Evict(_) | Verdict::Wait => Ok(Choice::Leave(Vec::new())),
            // What is lacking and who holds it were not read in the same moment.
            Verdict::Never if !self.memory.is_as_of(lack) => Ok(Choice::Leave(Vec::new())),
            Verdict::Never => Err(cannot_fit(need, lack)),
        }
    }

    fn present(&self) -> Vec<Present> {
        let served = self.catalog.served().into_iter();
        let present = |(key, versions, is_loading): (Key, _, bool)| {
            let stays = is_loading || self.demand.is_needed(&key);
            Present { key, versions, stays }
        };
        served.map(present).collect()
    }

    /// The models that hold memory, each with what it takes along: what is made of it cannot be served without it.
    fn candidates(&self, present: &[Present]) -> Vec<Candidate<Key>> {
        let now = Instant::now();
        let candidate = |model: &Present| {
            let bytes = self.memory.read(|ledger| ledger.held_by(&model.key));
            let concerned = with_users(model, present);
            let versions = concerned.iter().flat_map(|model| &model.versions);
            let residency = versions.map(|version| version.config.residency).max().unwrap_or_default();
            let unused: Option<Vec<_>> = concerned.iter().map(|model| model.unused(now)).collect();
            Candidate {
                key: model.key.clone(),
                residency,
                reload: self.reload(model, &bytes),
                bytes,
                unused: unused.and_then(|unused| unused.into_iter().min()),
            }
        };
        present.iter().map(candidate).filter(|candidate| !candidate.bytes.bytes.is_empty()).collect()
    }

    /// What it would cost to have a model back, which holds so much.
    fn reload(&self, model: &Present, bytes: &Footprint) -> Duration {
        let load = model.versions.iter().map(|version| version.usage.load_time()).sum();
        if model.versions.iter().any(|version| version.usage.is_dropped()) {
            return load;
        }
        self.pages.way_back(bytes).map_or(load, |back| back.min(load))
    }

    /// The models that are paged out, of which something stays.
    fn paged(&self) -> Vec<Candidate<Key>> {
        let mut paged = self.pages.candidates(|key| self.memory.read(|ledger| ledger.held_by(key)), Instant::now());
        paged.retain(|candidate| !self.demand.is_needed(&candidate.key));
        paged
    }

    /// A model is chosen to leave. Its next request has it loaded again, and what is made of it. `false` if somebody
    /// needs it since it was chosen.
    fn put_to_sleep(&self, key: &Key, present: &[Present]) -> bool {
        let Some(model) = present.iter().find(|model| model.key == *key) else { return false };
        let asleep = |model: &Present| {
            let versions = model.versions.iter().map(|version| (version.version, version.asleep()));
            (model.key.clone(), versions.collect())
        };
        if !self.demand.evicted(with_users(model, present).into_iter().map(asleep).collect()) {
            return false;
        }
        self.memory.leave(key);
        self.demand.metrics.evicted();
        tracing::info!(model = %key, "model leaves: a load needs its memory");
        true
    }

    fn unload(&self, key: Key) {
        let what = What::Unload(Unload { dependents: false, because: Some(Because::Evicted) });
        if let Some(events) = self.events.get().and_then(|events| events.upgrade()) {
            let _ = events.blocking_send(Event::Ask { key, what, callers: Vec::new() });
        }
    }
}

fn cannot_fit(need: Need<'_>, lack: &Lack) -> Error {
    Error::unavailable(format!("model '{}' {}", need.config.name, lack.why))
}

/// What stays as long as all of these stay: these, and what they are made of.
fn with_parts(kept: &BTreeSet<Key>, present: &[Present]) -> BTreeSet<Key> {
    let (mut all, mut unseen): (_, Vec<Key>) = (kept.clone(), kept.iter().cloned().collect());
    while let Some(key) = unseen.pop() {
        let Some(user) = present.iter().find(|model| model.key == key) else { continue };
        let parts = present.iter().filter(|part| user.has_step(&part.key.name)).map(|part| &part.key);
        unseen.extend(parts.filter(|part| all.insert((*part).clone())).cloned());
    }
    all
}

fn holder(need: Need<'_>, version: Version) -> Holder {
    Holder { key: need.job.key.clone(), version, residency: need.config.residency }
}

/// What is being loaded, or is loaded and not yet shown to readers, or about to come back: it may leave later.
fn being_loaded(ledger: &Ledger, present: &[Present], paged: &[Candidate<Key>]) -> Vec<Candidate<Key>> {
    let is_known = |key: &Key| {
        present.iter().any(|model| model.key == *key) || paged.iter().any(|candidate| candidate.key == *key)
    };
    let loading = ledger.staying().filter(|(holder, _, is_filled)| *is_filled || !is_known(&holder.key));
    let candidate = |(holder, bytes, _): (&Holder, &Footprint, bool)| Candidate {
        key: holder.key.clone(),
        residency: holder.residency,
        bytes: bytes.clone(),
        reload: Duration::ZERO,
        unused: None,
    };
    loading.map(candidate).collect()
}

/// A model and all that is made of it, perhaps by way of others.
fn with_users<'a>(model: &'a Present, present: &'a [Present]) -> Vec<&'a Present> {
    let mut concerned = vec![model];
    let mut seen = 0;
    while let Some(part) = concerned.get(seen).copied() {
        seen += 1;
        let users = present.iter().filter(|user| user.has_step(&part.key.name));
        let new: Vec<_> = users.filter(|user| !concerned.iter().any(|known| known.key == user.key)).collect();
        concerned.extend(new);
    }
    concerned
}
