//! The tensors of one request on their way through the graph: cheap views, each kept until its last taker has it.
//!
//! A decoupled step gives a tensor any number of times. So each stands under the number of the response that it came
//! with, and what comes of it keeps that number. Knows nothing of steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use smallvec::SmallVec;

use crate::tensor::Tensor;

/// A tensor of the graph, as it came with one response.
#[derive(Clone, Debug)]
pub(super) struct Value {
    /// The tensor; `None` if whoever should give it left it out.
    pub(super) tensor: Option<Tensor>,
    /// Its rows if it has a first dimension for the batch.
    pub(super) rows: Option<usize>,
    /// How long the request has waited in queues until here.
    pub(super) queued: Duration,
    /// The response of a decoupled step that it comes of.
    pub(super) lineage: Option<Arc<Lineage>>,
}

/// What comes of one response of a decoupled step: as long as anything does, the response counts as under way.
#[derive(Debug)]
pub(super) struct Lineage {
    under_way: Arc<AtomicUsize>,
    /// The response of a step before, which this one comes of.
    _before: Option<Arc<Lineage>>,
}

impl Lineage {
    /// One more response under way.
    pub(super) fn new(under_way: &Arc<AtomicUsize>, before: Option<Arc<Lineage>>) -> Arc<Self> {
        under_way.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { under_way: under_way.clone(), _before: before })
    }
}

impl Drop for Lineage {
    fn drop(&mut self) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A value, and how many have yet to take it.
#[derive(Debug)]
struct Kept {
    number: u64,
    value: Value,
    takers: usize,
}

/// All tensors of one request.
#[derive(Debug)]
pub(super) struct Values {
    kept: Vec<SmallVec<[Kept; 1]>>,
    /// By tensor, how many take each of its values.
    takers: Vec<usize>,
}

impl Values {
    /// No values yet; `takers` says how often each tensor will be taken.
    pub(super) fn new(takers: Vec<usize>) -> Self {
        Self { kept: takers.iter().map(|_| SmallVec::new()).collect(), takers }
    }

    /// Keeps a value for those who take it, if anybody does.
    pub(super) fn put(&mut self, tensor: usize, number: u64, value: Value) {
        let takers = self.takers[tensor];
        if takers > 0 {
            self.kept[tensor].push(Kept { number, value, takers });
        }
    }

    /// Whether there is a value of this number.
    pub(super) fn has(&self, tensor: usize, number: u64) -> bool {
        self.kept[tensor].iter().any(|kept| kept.number == number)
    }

    /// A value for one of its takers; the last one leaves nothing behind.
    pub(super) fn take(&mut self, tensor: usize, number: u64) -> Option<Value> {
        let kept = &mut self.kept[tensor];
        let index = kept.iter().position(|kept| kept.number == number)?;
        if kept[index].takers == 1 {
            return Some(kept.swap_remove(index).value);
        }
        kept[index].takers -= 1;
        Some(kept[index].value.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(lineage: Option<Arc<Lineage>>) -> Value {
        Value { tensor: None, rows: None, queued: Duration::ZERO, lineage }
    }

    #[test]
    fn a_value_is_kept_until_its_last_taker_has_it() {
        let mut values = Values::new(vec![2, 0]);
        values.put(0, 7, value(None));
        values.put(1, 7, value(None));
        assert!(values.has(0, 7) && !values.has(0, 8) && !values.has(1, 7));
        assert!(values.take(0, 7).is_some() && values.take(0, 7).is_some() && values.take(0, 7).is_none());
    }

    #[test]
    fn a_response_is_under_way_as_long_as_anything_comes_of_it() {
        let (first, second) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let lineage = Lineage::new(&second, Some(Lineage::new(&first, None)));
        let mut values = Values::new(vec![1]);
        values.put(0, 0, value(Some(lineage)));
        let taken = values.take(0, 0);
        let under_way = || (first.load(Ordering::Relaxed), second.load(Ordering::Relaxed));
        assert_eq!(under_way(), (1, 1));
        drop(taken);
        assert_eq!(under_way(), (0, 0));
    }
}
