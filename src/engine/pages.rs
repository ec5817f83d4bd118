//! Models that have left and can come back soon: their weights are paged out, and all else of them is kept.
//!
//! What leaves for others' memory comes here if it can ([`Pages::page_out`]), else it is dropped. The next load takes it
//! from here ([`Pages::take`]) unless its files have changed; whoever unloads the model drops it. Where there is no room,
//! those go that were not used for longest. How a load brings one back stands in `paging.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::Key;
use super::evict::Candidate;
use super::handle::Served;
use super::memory::Lease;
use super::models::Origin;
use super::serving::Serving;
use crate::backend::libtorch;
use crate::backend::{Model, Spill};
use crate::error::{Error, Result};
use crate::infer::Instant;
use crate::model::{Device, Footprint, ModelConfig, Version};
use crate::repository::Files;
use crate::telemetry::metrics::{Metrics, PageMetrics};

/// The models that are paged out.
pub(super) struct Pages {
    /// Where weights of the host go; `None` if they do not leave.
    spill: Option<Arc<Spill>>,
    /// Those that were not used for longest come first. Locked for a few moves.
    shelf: Mutex<Vec<Page>>,
    /// What it takes to bring a byte back, as was seen. Locked for a multiplication.
    seconds_per_byte: Mutex<f64>,
    pub(super) metrics: PageMetrics,
}

/// What it takes before any has come back: what a disk of today reads.
const SECONDS_PER_BYTE: f64 = 1e-9;

/// The weight of the newest way back.
const WEIGHT: f64 = 1.0 / 8.0;

/// A model that is paged out, with all of its versions.
pub(super) struct Page {
    pub(super) key: Key,
    /// Where it came from.
    pub(super) origin: Origin,
    pub(super) versions: BTreeMap<Version, Paged>,
    used: Instant,
}

/// One version of it. Dropping it gives its memory back.
pub(super) struct Paged {
    pub(super) config: Arc<ModelConfig>,
    pub(super) model: Arc<dyn Model>,
    pub(super) lease: Arc<Lease>,
    pub(super) files: Arc<Files>,
    /// What it holds at most once its weights are back.
    pub(super) resident: Footprint,
    /// What it has in the spill at most.
    pub(super) spilled: u64,
    /// What its load took.
    pub(super) load_time: Duration,
}

impl Page {
    /// The bytes of its weights.
    pub(super) fn bytes(&self) -> u64 {
        self.versions.values().flat_map(|version| version.resident.bytes.values()).sum()
    }
}

impl Pages {
    pub(super) fn new(spill: Option<Arc<Spill>>, metrics: &Metrics) -> Arc<Self> {
        let seconds_per_byte = Mutex::new(SECONDS_PER_BYTE);
        Arc::new(Self { spill, shelf: Mutex::default(), seconds_per_byte, metrics: metrics.pages() })
    }

    /// What it would take to bring so much back, once it was paged out; `None` if it has nowhere to go.
    pub(super) fn way_back(&self, bytes: &Footprint) -> Option<Duration> {
        if bytes.of(Device::Cpu) > 0 && self.spill.is_none() {
            return None;
        }
        let sum: u64 = bytes.bytes.values().sum();
        Some(Duration::from_secs_f64(sum as f64 * *self.seconds_per_byte.lock()))
    }

    /// So many bytes came back.
    pub(super) fn came_back(&self, took: Duration, bytes: u64) {
        let mut usual = self.seconds_per_byte.lock();
        *usual += (took.as_secs_f64() / bytes.max(1) as f64 - *usual) * WEIGHT;
        drop(usual);
        self.metrics.paged_in(took, bytes);
    }

    /// Finishes what waits for these versions, ends their instances, and pages them out, all or none; those are dropped.
    /// Blocking.
    pub(super) fn page_out(&self, key: &Key, origin: Origin, servings: Vec<Serving>) {
        servings.iter().for_each(Serving::drain);
        let used = servings.iter().map(|serving| serving.handle.usage.last()).max();
        let began = Instant::now();
        let versions: Result<BTreeMap<Version, Paged>, Stays> =
            servings.iter().map(|serving| Ok((serving.handle.version, self.move_out(serving)?))).collect();
        match versions {
            Ok(versions) => {
                let used = used.unwrap_or_else(Instant::now);
                let (page, took) = (Page { key: key.clone(), origin, versions, used }, began.elapsed());
                self.metrics.paged_out(took, page.bytes());
                tracing::info!(model = %key, seconds = took.as_secs_f64(), "model is paged out");
                self.put(page);
            }
            Err(Stays::Fails(error)) => {
                self.metrics.failed();
                tracing::warn!(model = %key, %error, "weights cannot be paged out; the model is dropped");
            }
            Err(Stays::Cannot) => servings.iter().for_each(|serving| serving.handle.usage.dropped()),
        }
        drop(servings);
        libtorch::release_unused();
    }

    fn move_out(&self, serving: &Serving) -> Result<Paged, Stays> {
        let (Some(lease), Served::Instances { model, .. }) = (&serving.lease, &serving.handle.served) else {
            return Err(Stays::Cannot);
        };
        if lease.is_in_use() {
            return Err(Error::unavailable("an instance has not ended").into());
        }
        let paged = model.paged().ok_or(Stays::Cannot)?;
        let spill = self.spill.as_ref();
        if paged.spilled > 0 {
            self.make_room(spill.ok_or(Stays::Cannot)?, paged.spilled);
        }
        if !lease.grow(&paged.footprint) {
            return Err(Error::unavailable("there is no host memory for what stays").into());
        }
        model.page_out(spill)?;
        lease.settle();
        let handle = &serving.handle;
        Ok(Paged {
            config: handle.config.clone(),
            model: model.clone(),
            lease: lease.clone(),
            files: serving.files.clone(),
            resident: paged.resident,
            spilled: paged.spilled,
            load_time: handle.usage.load_time(),
        })
    }

    /// Drops models until so many bytes have room in the spill, if dropping all of them is enough for that.
    fn make_room(&self, spill: &Spill, bytes: u64) {
        while spill.could_hold(bytes) {
            let oldest = {
                let mut shelf = self.shelf.lock();
                let spilled = shelf.iter().map(|page| page.versions.values().map(|version| version.spilled).sum());
                next_to_drop(&spilled.collect::<Vec<_>>(), bytes, |bytes| spill.has_room(bytes))
                    .map(|at| shelf.remove(at))
            };
            let Some(oldest) = oldest else { break };
            tracing::info!(model = %oldest.key, "paged out model is dropped: others need its room");
        }
        self.tell();
    }

    /// Keeps a model.
    pub(super) fn put(&self, page: Page) {
        {
            let mut shelf = self.shelf.lock();
            let at = shelf.partition_point(|other| other.used <= page.used);
            shelf.insert(at, page);
        }
        self.tell();
    }

    /// Gives a model away, if it is here.
    pub(super) fn take(&self, key: &Key) -> Option<Page> {
        let page = {
            let mut shelf = self.shelf.lock();
            let at = shelf.iter().position(|page| page.key == *key);
            at.map(|at| shelf.remove(at))
        };
        self.tell();
        page
    }

    /// Drops a model; `false` if it is not here.
    pub(super) fn forget(&self, key: &Key) -> bool {
        let page = self.take(key);
        let was_here = page.is_some();
        drop(page);
        self.tell();
        was_here
    }

    /// Whether a model is here.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.shelf.lock().iter().any(|page| page.key == *key)
    }

    /// All models here as those that may go for others' memory: what each holds, and what its load took.
    pub(super) fn candidates(&self, held_by: impl Fn(&Key) -> Footprint, now: Instant) -> Vec<Candidate<Key>> {
        let shelf = self.shelf.lock();
        let candidate = |page: &Page| Candidate {
            key: page.key.clone(),
            residency: page.origin.config.residency,
            bytes: held_by(&page.key),
            reload: page.versions.values().map(|version| version.load_time).sum(),
            unused: Some(now.saturating_duration_since(page.used)),
        };
        shelf.iter().map(candidate).filter(|candidate| !candidate.bytes.bytes.is_empty()).collect()
    }

    /// Shows what there is.
    pub(super) fn tell(&self) {
        let models = self.shelf.lock().len();
        self.metrics.holds(models, self.spill.as_ref().map_or(0, |spill| spill.used()));
    }
}

/// Which model to drop next so that so many bytes have room, of those that hold so many each; `None` if there is room, or
/// there will be none whatever is dropped.
fn next_to_drop(spilled: &[u64], bytes: u64, has_room: impl Fn(u64) -> bool) -> Option<usize> {
    let is_enough = has_room(bytes.saturating_sub(spilled.iter().sum()));
    spilled.iter().position(|spilled| *spilled > 0).filter(|_| is_enough && !has_room(bytes))
}

/// Why a version is not paged out.
enum Stays {
    /// Its kind is not, or there is no place for that.
    Cannot,
    /// It should have been.
    Fails(Error),
}

impl From<Error> for Stays {
    fn from(error: Error) -> Self {
        Self::Fails(error)
    }
}

#[cfg(test)]
mod tests {
    use super::next_to_drop;

    #[test]
    fn what_frees_nothing_stays_and_nothing_is_dropped_in_vain() {
        let within = |free: u64| move |bytes| bytes <= free;
        assert_eq!(next_to_drop(&[0, 4, 4], 5, within(1)), Some(1), "those of a device hold nothing here");
        assert_eq!(next_to_drop(&[0, 4], 5, within(1)), Some(1));
        assert_eq!(next_to_drop(&[0, 4], 6, within(1)), None, "it would not be enough");
        assert_eq!(next_to_drop(&[0, 4], 5, within(5)), None, "there is room");
        assert_eq!(next_to_drop(&[0, 0], 5, within(1)), None);
    }
}
