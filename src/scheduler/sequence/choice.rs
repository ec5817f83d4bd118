//! What an instance runs next: which of its sequences' requests make a batch, and that batch.
//!
//! The decision is that of two pure functions, [`plan`] over the oldest requests or [`seat`], where each slot is a row.

use std::time::Duration;

use smallvec::SmallVec;

use super::direct::{Candidate, DirectLimits, Seating, seat};
use super::request::{Ran, Request, filler};
use super::settings::Strategy;
use super::states::Kept;
use super::table::{Key, Ready};
use super::{Running, Sequences, State};
use crate::infer::Instant;
use crate::scheduler::entry::{Entry, Pulled};
use crate::scheduler::estimate::SizeClass;
use crate::scheduler::plan::{Curve as _, Limits, Plan, Waiting, plan};

/// What to run: for each row a sequence, or none for one that only keeps others in their places.
pub(super) struct Choice {
    rows: SmallVec<[Option<Key>; 8]>,
    /// The oldest.
    first: Key,
    class: SizeClass,
}

impl Sequences {
    /// What this instance should run now, or until when it should wait; `None` if it has nothing to run.
    pub(super) fn decide(&self, state: &State, instance: usize, now: Instant) -> Option<Result<Choice, Instant>> {
        let mut ready = state.table.ready(instance).peekable();
        let first = ready.peek()?;
        let (lane, kept) = (&first.seated.request.lane, first.state.as_deref());
        let fits = |other: &Ready<'_, Request, Option<Kept>>| {
            other.seated.request.lane == *lane && self.settings.states.alike(other.state.as_deref(), kept)
        };
        let (first, class) = (first.key, first.seated.request.entry.promise.class);
        let rows = match &self.settings.strategy {
            Strategy::Direct(limits) => {
                let (keys, candidates): (Vec<Key>, Vec<Candidate>) = ready
                    .map(|ready| {
                        let Entry { arrived, promise, .. } = &ready.seated.request.entry;
                        let fits = fits(&ready);
                        (ready.key, Candidate { slot: ready.slot, arrived: *arrived, due: promise.due, fits })
                    })
                    .unzip();
                let limits = match state.table.is_closed() {
                    true => DirectLimits { delay_max: Duration::ZERO, ..*limits },
                    false => *limits,
                };
                let curve = state.estimates.curve(class);
                match seat(&candidates, &limits, |rows| curve.cautious(rows), now) {
                    Seating::Wait(until) => return Some(Err(until)),
                    Seating::Run(places) => places.iter().map(|place| place.map(|index| keys[index])).collect(),
                }
            }
            Strategy::Oldest(limits) => {
                let ready = ready.filter(|ready| fits(ready)).take(2 * limits.rows_max);
                match oldest(ready, limits, state, (class, now)) {
                    Ok(keys) => keys,
                    Err(until) => return Some(Err(until)),
                }
            }
        };
        Some(Ok(Choice { rows, first, class }))
    }

    /// Takes what was chosen out of the table.
    pub(super) fn take(&self, state: &mut State, instance: usize, choice: Choice, now: Instant) -> Pulled {
        let count = choice.rows.len();
        let mut taken: Vec<Option<(Entry, Ran)>> = Vec::with_capacity(count);
        let mut model = None;
        for key in &choice.rows {
            let seated = key.and_then(|key| state.table.take(key).map(|seated| (key, seated)));
            let prepared = seated.map(|(key, seated)| {
                let kept = state.table.state(key).and_then(|kept| kept.as_deref());
                Request::prepare(seated, key, kept, &self.settings)
            });
            if *key == Some(choice.first) {
                model = prepared.as_ref().map(|(entry, _)| entry.member.clone());
            }
            taken.push(prepared);
        }
        self.stats.requests_left(taken.iter().flatten().count());
        let model = model.unwrap_or_default();
        let (mut entries, mut members) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for prepared in taken {
            let (entry, ran) =
                prepared.map_or_else(|| (filler(&model, &self.settings, now), None), |(entry, ran)| (entry, Some(ran)));
            entries.push(entry);
            members.push(ran);
        }
        let expected = state.estimates.curve(choice.class).cautious(count).unwrap_or_default();
        state.running.insert(instance, Running { began: now, expected, members });
        Pulled { entries, class: choice.class }
    }
}

/// The oldest requests to run now, or until when to wait.
fn oldest<'a>(
    ready: impl Iterator<Item = Ready<'a, Request, Option<Kept>>>,
    limits: &Limits,
    state: &State,
    (class, now): (SizeClass, Instant),
) -> Result<SmallVec<[Option<Key>; 8]>, Instant> {
    let (keys, waiting): (SmallVec<[Key; 16]>, SmallVec<[Waiting; 16]>) = ready
        .map(|ready| {
            let Entry { arrived, promise, .. } = &ready.seated.request.entry;
            (ready.key, Waiting { rows: 1, arrived: *arrived, due: promise.due })
        })
        .unzip();
    let at_once = state.table.is_closed().then(|| Limits { delay_max: Duration::ZERO, ..limits.clone() });
    match plan(&waiting, at_once.as_ref().unwrap_or(limits), &state.estimates.curve(class), now) {
        Plan::Run { take } => Ok(keys.into_iter().take(take).map(Some).collect()),
        Plan::Wait { until } => Err(until),
    }
}
