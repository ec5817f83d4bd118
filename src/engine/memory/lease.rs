//! One version's part of the memory, and the version's model with it: nobody can hold the one and have dropped the other.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::thread::ThreadId;

use parking_lot::Mutex;

use super::Memory;
use super::ledger::{EntryId, Holder};
use crate::backend::{Instance, Model, Paged, Replies, Spill};
use crate::error::Result;
use crate::model::{Device, Footprint, Instances, ModelConfig, Version};
use crate::scheduler::Crew;
use crate::telemetry::metrics::{HeldBytes, Metrics};
use crate::tensor::Batch;

/// A part of the memory; dropping it gives it back.
pub(in crate::engine) struct Lease {
    memory: Arc<Memory>,
    id: EntryId,
    holder: Holder,
    watch: Option<Arc<Watch>>,
    users: Arc<Users>,
}

/// The instances that use a lease.
#[derive(Default)]
struct Users {
    /// How many each thread has or makes, those included that were given up. One that replaces its own has two.
    instances: Mutex<HashMap<ThreadId, usize>>,
    /// Whose they are. Locked for a move.
    crew: Mutex<Weak<Crew>>,
}

/// A model whose memory may change without it: what it shares with another one is the other's until that is unloaded.
pub(super) struct Watch {
    model: Weak<dyn Model>,
    config: Arc<ModelConfig>,
    version: Version,
    users: Arc<Users>,
    /// What the version's metrics show.
    told: Mutex<BTreeMap<Device, HeldBytes>>,
}

impl Watch {
    /// What the model holds now; `None` if it is gone. Its metrics show it.
    pub(super) fn measure(&self, metrics: &Metrics) -> Option<Footprint> {
        let measured = self.model.upgrade()?.footprint();
        let mut told = self.told.lock();
        for &device in measured.bytes.keys() {
            told.entry(device).or_insert_with(|| metrics.held(&self.config, self.version, &device.to_string(), 0));
        }
        told.iter_mut().for_each(|(device, told)| told.set(measured.of(*device)));
        Some(measured)
    }

    /// Whether instances that were given up have not ended.
    pub(super) fn hangs(&self) -> bool {
        // Counted first: who begins meanwhile is one of the crew before.
        let threads = self.users.instances.lock().len();
        let crew = self.users.crew.lock().upgrade();
        crew.is_some_and(|crew| threads > crew.threads())
    }
}

impl Lease {
    pub(super) fn new(memory: &Arc<Memory>, id: EntryId, holder: &Holder) -> Self {
        Self { memory: memory.clone(), id, holder: holder.clone(), watch: None, users: Arc::default() }
    }

    /// Who has it.
    pub(in crate::engine) fn holder(&self) -> &Holder {
        &self.holder
    }

    /// How much it is.
    pub(in crate::engine) fn bytes(&self) -> Footprint {
        self.memory.books.lock().ledger.of(self.id)
    }

    /// Holds what was measured from now on. `false`, and nothing has changed, if that is more than there is.
    pub(in crate::engine) fn commit(&self, measured: &Footprint) -> bool {
        self.memory.commit(self.id, measured)
    }

    /// From now on it is what this model holds, measured again whenever another lease is given back.
    pub(in crate::engine) fn watch(&mut self, model: &Arc<dyn Model>, config: &Arc<ModelConfig>) {
        let (config, version) = (config.clone(), self.holder.version);
        let (model, users) = (Arc::downgrade(model), self.users.clone());
        let watch = Arc::new(Watch { model, config, version, users, told: Mutex::default() });
        self.memory.watch(self.id, &watch);
        self.watch = Some(watch);
    }

    /// Takes over another lease of the same load.
    pub(in crate::engine) fn join(&self, other: Lease) {
        // The other's entry is gone when it is dropped, and nothing is released.
        self.memory.write(|ledger| ledger.join(self.id, other.id));
    }

    /// It is given back soon: the version takes no more requests.
    pub(in crate::engine) fn leave(&self) {
        self.memory.write(|ledger| ledger.leave(self.id));
    }

    /// It is not given back soon after all.
    pub(in crate::engine) fn stay(&self) {
        self.memory.write(|ledger| ledger.settle(self.id));
    }

    /// These instances use it from now on.
    pub(in crate::engine) fn used_by(&self, crew: &Arc<Crew>) {
        *self.users.crew.lock() = Arc::downgrade(crew);
    }

    /// Its instances have ended, but for those that were given up: what these use may never be given back.
    pub(in crate::engine) fn retired(&self) {
        if self.is_in_use() {
            self.memory.write(|ledger| ledger.stick(self.id));
        }
    }

    /// Whether an instance uses it, perhaps one that was given up.
    pub(in crate::engine) fn is_in_use(&self) -> bool {
        !self.users.instances.lock().is_empty()
    }

    /// Makes room for what its model will hold in another place. `false`, and nothing has changed, if there is none.
    pub(in crate::engine) fn grow(&self, measured: &Footprint) -> bool {
        self.memory.grow(self.id, measured)
    }

    /// Its model has changed places: everybody who shares with it is measured again. It does not leave any more.
    pub(in crate::engine) fn settle(&self) {
        self.memory.settle(self.id);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.memory.release(self.id);
    }
}

/// A model whose memory is leased. It and its instances share the lease, so that also a thread that was given up has it.
pub(in crate::engine) struct Leased {
    // Dropped first: memory is given back before the books say so.
    model: Arc<dyn Model>,
    lease: Arc<Lease>,
}
impl Leased {
    pub(in crate::engine) fn new(model: Arc<dyn Model>, lease: Arc<Lease>) -> Self {
        Self { model, lease }
    }
}

impl Model for Leased {
    fn footprint(&self) -> Footprint {
        self.model.footprint()
    }

    fn can_have(&self, instances: &[Instances]) -> bool {
        self.model.can_have(instances)
    }

    fn warms_up(&self) -> bool {
        self.model.warms_up()
    }

    fn keeps_outputs(&self) -> bool {
        self.model.keeps_outputs()
    }

    fn paged(&self) -> Option<Paged> {
        self.model.paged()
    }

    fn page_out(&self, spill: Option<&Arc<Spill>>) -> Result<()> {
        self.model.page_out(spill)
    }

    fn page_in(&self) -> Result<()> {
        self.model.page_in()
    }

    fn lent(&self) -> Option<Box<dyn Instance + Send>> {
        let instance = self.model.lent()?;
        // It is the same thread's that has one already.
        Some(Box::new(LeasedInstance { instance, _used: None, _lease: self.lease.clone() }))
    }

    fn instance(&self, device: Device) -> Result<Box<dyn Instance>> {
        // First, as this may be what hangs.
        let used = Used::of(&self.lease.users);
        let instance = self.model.instance(device)?;
        Ok(Box::new(LeasedInstance { instance, _used: Some(used), _lease: self.lease.clone() }))
    }
}

struct LeasedInstance<I: ?Sized> {
    // Dropped first, as above.
    instance: Box<I>,
    _used: Option<Used>,
    _lease: Arc<Lease>,
}

/// Counts an instance, which one thread makes and has.
struct Used(Arc<Users>, ThreadId);

impl Used {
    fn of(users: &Arc<Users>) -> Self {
        let thread = std::thread::current().id();
        *users.instances.lock().entry(thread).or_default() += 1;
        Self(users.clone(), thread)
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        let mut instances = self.0.instances.lock();
        if let Some(count) = instances.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                instances.remove(&self.1);
            }
        }
    }
}

impl<I: Instance + ?Sized> Instance for LeasedInstance<I> {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        self.instance.run(batch, replies)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::engine::Key;
    use crate::error::Error;
    use crate::model::Residency;

    /// A model that looks whether its lease is in use while it makes an instance; the second cannot be made.
    #[derive(Default)]
    struct Looking {
        lease: OnceLock<Weak<Lease>>,
        asked: AtomicUsize,
    }

    struct Nothing;

    impl Model for Arc<Looking> {
        fn footprint(&self) -> Footprint {
            Footprint::default()
        }

        fn instance(&self, _device: Device) -> Result<Box<dyn Instance>> {
            let lease = self.lease.get().and_then(Weak::upgrade).expect("the lease is there");
            assert!(lease.is_in_use());
            assert_eq!(lease.users.instances.lock().len(), 1, "one thread uses it");
            match self.asked.fetch_add(1, Ordering::SeqCst) {
                0 => Ok(Box::new(Nothing)),
                _ => Err(Error::internal("told to")),
            }
        }
    }

    impl Instance for Nothing {
        fn run(&mut self, _batch: &Batch, _replies: &mut dyn Replies) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_makes_an_instance_uses_the_lease() {
        let (memory, key) = (Memory::new(BTreeMap::new(), &Metrics::new()), Key::of("m"));
        let parts = vec![(Holder { key: key.clone(), version: 1, residency: Residency::Pinned }, Footprint::default())];
        let mut leases = memory.line_up((&key, Residency::Pinned), parts).reserve().ok().expect("it needs nothing");
        let lease = Arc::new(leases.remove(0));
        let looking = Arc::new(Looking::default());
        looking.lease.set(Arc::downgrade(&lease)).expect("it is the first");
        let leased = Leased::new(Arc::new(looking.clone()), lease.clone());
        assert!(!lease.is_in_use());
        let instance = leased.instance(Device::Cpu).expect("it is made");
        leased.instance(Device::Cpu).err().expect("another one cannot take its place");
        assert!(lease.is_in_use());
        drop(instance);
        assert!(!lease.is_in_use());
        assert_eq!(looking.asked.load(Ordering::SeqCst), 2);
    }
}
