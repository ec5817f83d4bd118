//! A request while it belongs to a sequence, and how it becomes a member of a batch.

use super::controls::Told;
use super::settings::SequenceSettings;
use super::states::zeros;
use super::table::Seated;
use crate::infer::{CorrelationId, Instant};
use crate::scheduler::entry::{Entry, LaneKey};
use crate::scheduler::estimate::SizeClass;
use crate::scheduler::promise::Promise;
use crate::scheduler::reply::Reply;
use crate::tensor::{Member, Tensor};

/// One request in the table.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) entry: Entry,
    pub(super) id: CorrelationId,
    /// Its shapes, where shapes vary.
    pub(super) lane: LaneKey,
    /// How often it was executed.
    pub(super) steps: u32,
}

/// A request that runs; what is needed to run it again.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) key: super::table::Key,
    pub(super) number: u64,
    id: CorrelationId,
    lane: LaneKey,
    pub(super) steps: u32,
    /// As its caller made it.
    member: Member,
}

impl Request {
    /// What the request should be run with: its own inputs, the controls, the states.
    pub(super) fn prepare(
        seated: Seated<Self>,
        key: super::table::Key,
        kept: Option<&[Tensor]>,
        settings: &SequenceSettings,
    ) -> (Entry, Ran) {
        let Seated { number, start, end, request } = seated;
        let Request { mut entry, id, lane, steps } = request;
        let repeats = settings.iterations.is_some();
        let member = if repeats { entry.member.clone() } else { Member::default() };
        settings.controls.append(Some(Told { start, end, id: &id }), &mut entry.member.inputs);
        settings.states.append(kept, &mut entry.member.inputs);
        entry.member.keep = settings.kept(entry.member.keep);
        (entry, Ran { key, number, id, lane, steps: steps + 1, member })
    }
}

impl Ran {
    /// The request as it waits for its next execution; its queue timeout is kept already.
    pub(super) fn again(self, mut entry: Entry) -> Seated<Request> {
        entry.member = self.member;
        entry.promise.start_by = None;
        let request = Request { entry, id: self.id, lane: self.lane, steps: self.steps };
        Seated { number: self.number, start: false, end: false, request }
    }
}

/// A row that keeps others in their places: zeros in the shapes of a member that is ready to run.
pub(super) fn filler(like: &Member, settings: &SequenceSettings, now: Instant) -> Entry {
    let zeroed = |tensor: &Tensor| {
        let data = zeros(tensor.dtype, &tensor.shape, isize::MAX as usize).unwrap_or_default();
        Tensor::new(tensor.dtype, tensor.shape.clone(), data)
    };
    let mut inputs: Vec<Tensor> = like.inputs.iter().take(settings.inputs).map(zeroed).collect();
    settings.controls.append(None, &mut inputs);
    let states: Vec<Tensor> = like.inputs.iter().skip(inputs.len()).map(zeroed).collect();
    inputs.extend(states);
    let promise = Promise {
        class: SizeClass::default(),
        rows: 1,
        deadline: None,
        due: None,
        start_by: None,
        delay_at: None,
        probe: true,
    };
    Entry { member: Member::new(1, inputs), arrived: now, promise, reply: Reply::Nobody, seq: 0, steps: None }
}
