//! One version's part of the memory, and the version's model with it: nobody can hold the one and have dropped the other.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Memory;
use super::ledger::{EntryId, Holder};
use crate::backend::{Instance, Model, Replies};
use crate::error::Result;
use crate::model::{Device, Footprint, ModelConfig};
use crate::telemetry::metrics::HeldBytes;
use crate::tensor::Batch;

/// A part of the memory; dropping it gives it back.
pub(in crate::engine) struct Lease {
    memory: Arc<Memory>,
    id: EntryId,
    holder: Holder,
    /// What the version's metrics show, once it was measured.
    told: Vec<(Device, HeldBytes)>,
    watch: Option<Arc<Watch>>,
}

/// A model whose memory may change without it: what it shares with another one is the other's until that is unloaded.
pub(super) struct Watch {
    model: Weak<dyn Model>,
    told: Mutex<Vec<(Device, HeldBytes)>>,
}

impl Watch {
    /// What the model holds now; `None` if it is gone. Its metrics show it.
    pub(super) fn measure(&self) -> Option<Footprint> {
        let measured = self.model.upgrade()?.footprint();
        for (device, told) in self.told.lock().iter_mut() {
            told.set(measured.of(*device));
        }
        Some(measured)
    }
}

impl Lease {
    pub(super) fn new(memory: &Arc<Memory>, id: EntryId, holder: &Holder) -> Self {
        Self { memory: memory.clone(), id, holder: holder.clone(), told: Vec::new(), watch: None }
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
    pub(in crate::engine) fn commit(&mut self, measured: &Footprint, config: &ModelConfig) -> bool {
        let committed = self.memory.commit(self.id, measured);
        if committed {
            let metrics = &self.memory.metrics;
            let tell = |(device, bytes): (&Device, &u64)| {
                (*device, metrics.held(config, self.holder.version, &device.to_string(), *bytes))
            };
            self.told = measured.bytes.iter().map(tell).collect();
        }
        committed
    }

    /// From now on it is what this model holds, measured again whenever another lease is given back.
    pub(in crate::engine) fn watch(&mut self, model: &Arc<dyn Model>) {
        let told = Mutex::new(std::mem::take(&mut self.told));
        let watch = Arc::new(Watch { model: Arc::downgrade(model), told });
        self.memory.books.lock().watches.insert(self.id, Arc::downgrade(&watch));
        self.watch = Some(watch);
    }

    /// Takes over another lease of the same load.
    pub(in crate::engine) fn join(&mut self, other: Lease) {
        // The other's entry is gone when it is dropped, and nothing is released.
        self.memory.write(|ledger| ledger.join(self.id, other.id));
    }

    /// It is given back soon: the version takes no more requests.
    pub(in crate::engine) fn leave(&self) {
        self.memory.write(|ledger| ledger.leave(self.id));
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

    fn warms_up(&self) -> bool {
        self.model.warms_up()
    }

    fn keeps_outputs(&self) -> bool {
        self.model.keeps_outputs()
    }

    fn instance(&self, device: Device) -> Result<Box<dyn Instance>> {
        let instance = self.model.instance(device)?;
        Ok(Box::new(LeasedInstance { instance, _lease: self.lease.clone() }))
    }
}

struct LeasedInstance {
    instance: Box<dyn Instance>,
    _lease: Arc<Lease>,
}

impl Instance for LeasedInstance {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        self.instance.run(batch, replies)
    }
}
