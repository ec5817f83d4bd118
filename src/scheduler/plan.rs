//! Decides what the next execution is: a pure function of what waits, the limits, the learned run times and `now`.
//!
//! Begin with [`plan`]. It knows no queue, no thread and no clock; all times are arguments.

use std::time::Duration;

use smallvec::SmallVec;

use super::estimate::KNEE_TOLERANCE;
use crate::infer::Instant;

/// One waiting request, as far as planning cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its size in the batch dimension.
    pub rows: usize,
    /// When it arrived.
    pub arrived: Instant,
    /// When its response is due; `None` for whenever.
    pub due: Option<Instant>,
}

/// What the configuration says about batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most rows of one execution; at least 1.
    pub rows_max: usize,
    /// Row counts worth stopping at, ascending; empty for `rows_max` only.
    pub preferred_rows: Vec<usize>,
    /// How long the oldest request may wait for others although an instance is idle.
    pub delay_max: Duration,
    /// The latency budget. With one, a batch stops growing where throughput no longer grows, and takes at most half of
    /// the budget, so that a request that arrives while it runs can still be in time with the next one.
    pub budget: Option<Duration>,
}

impl Limits {
    /// Every request runs alone.
    pub fn single() -> Self {
        Self { rows_max: 1, preferred_rows: Vec::new(), delay_max: Duration::ZERO, budget: None }
    }
}

/// Learned run times for requests of one size.
pub trait Curve {
    /// A cautious run time of an execution of `rows`; `None` if nothing is known.
    fn cautious(&self, rows: usize) -> Option<Duration>;

    /// The usual run time of an execution of `rows`; `None` if this row count was not seen often.
    fn usual(&self, rows: usize) -> Option<Duration>;
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Run the first `take` requests as one batch.
    Run {
        /// How many requests; at least 1.
        take: usize,
    },
    /// Nothing yet: the batch may still grow until then.
    Wait {
        /// When to look again at the latest.
        until: Instant,
    },
}

/// What a batch that waits to grow leaves of the time until it must run.
const GROW_RESERVE: Duration = Duration::from_millis(2);

/// Plans the next execution out of `waiting`, which is in the order of service and not empty.
///
/// The result never takes more than `limits.rows_max` rows (but always at least one request), never makes a batch
/// that is predicted to be late for one of its members if fewer members would be in time, and never takes more
/// members if taking fewer would keep more of the requests behind them in time.
/// Requests that would be late even if they ran alone now are the caller's to refuse, before.
pub fn plan(waiting: &[Waiting], limits: &Limits, curve: &dyn Curve, now: Instant) -> Plan {
    let fitting = fitting(waiting, limits.rows_max);
    let has_due = waiting.iter().any(|request| request.due.is_some());
    let take = if has_due { on_time(waiting, fitting, limits.rows_max, curve, now) } else { fitting };
    let take = limits.budget.map_or(take, |budget| knee(waiting, take, curve, budget / 2));
    let may_grow = take == fitting && fitting == waiting.len();
    match grow_until(waiting, limits, curve, now).filter(|_| may_grow) {
        Some(until) => Plan::Wait { until },
        None => Plan::Run { take: preferred(waiting, take, limits, now) },
    }
}

/// How many of the first requests fit into `rows_max`; at least 1.
fn fitting(waiting: &[Waiting], rows_max: usize) -> usize {
    let mut rows = 0;
    let count = waiting.iter().take_while(|request| {
        rows += request.rows;
        rows <= rows_max
    });
    count.count().max(1)
}

fn rows(waiting: &[Waiting]) -> usize {
    waiting.iter().map(|request| request.rows).sum()
}

/// The largest batch size among those that keep the most requests in time.
fn on_time(waiting: &[Waiting], fitting: usize, rows_max: usize, curve: &dyn Curve, now: Instant) -> usize {
    let rows_seen = rows_max.min(rows(waiting)).max(waiting[0].rows);
    let times: Vec<Option<Duration>> =
        std::iter::once(None).chain((1..=rows_seen).map(|rows| curve.cautious(rows))).collect();
    let behind = Behind { rows_max, times: &times };
    let mut best = (0, 1);
    let (mut total, mut first_due) = (0, None);
    let mut ends = Vec::with_capacity(fitting);
    for (index, request) in waiting[..fitting].iter().enumerate() {
        total += request.rows;
        let Some(time) = times[total] else { return fitting };
        first_due = earlier(first_due, request.due);
        if index > 0 && first_due.is_some_and(|due| now + time > due) {
            break;
        }
        ends.push(now + time);
    }
    // From the largest on: one that keeps all that could be kept needs no comparison.
    for take in (1..=ends.len()).rev() {
        let (kept, all) = behind.kept(&waiting[take..], ends[take - 1]);
        if take + kept > best.0 {
            best = (take + kept, take);
        }
        if all && take == ends.len() {
            return take;
        }
    }
    best.1
}

/// The batch after the one that is planned.
struct Behind<'a> {
    rows_max: usize,
    /// Cautious run times by rows.
    times: &'a [Option<Duration>],
}

impl Behind<'_> {
    /// How many of `waiting` are in time if the next batch, at `start`, is the longest prefix of them that is in time,
    /// and whether that is as many as fit into a batch.
    fn kept(&self, waiting: &[Waiting], start: Instant) -> (usize, bool) {
        let mut rows = 0;
        let mut first_due = None;
        for (index, request) in waiting.iter().enumerate() {
            rows += request.rows;
            if rows > self.rows_max && index > 0 {
                return (index, true);
            }
            first_due = earlier(first_due, request.due);
            let time = self.times.get(rows).copied().flatten();
            if time.is_none_or(|time| first_due.is_some_and(|due| start + time > due)) {
                return (index, false);
            }
        }
        (waiting.len(), true)
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    [one, other].into_iter().flatten().min()
}

/// The smallest batch up to `take` whose throughput is nearly that of the best among those of at most `time_max`;
/// row counts that were not seen often are worth a try.
fn knee(waiting: &[Waiting], take: usize, curve: &dyn Curve, time_max: Duration) -> usize {
    let sums = waiting[..take].iter().scan(0, |rows, request| {
        *rows += request.rows;
        Some(*rows)
    });
    let sums: SmallVec<[usize; 32]> = sums.collect();
    let short = |count: usize| curve.cautious(sums[count - 1]).is_none_or(|time| time <= time_max);
    let take = (1..=take).rev().find(|&count| short(count)).unwrap_or(1);
    let rate = |count: usize| {
        let rows = sums[count - 1];
        curve.usual(rows).map(|time| rows as f64 / time.as_secs_f64().max(1e-9))
    };
    if rate(take).is_none() {
        return take;
    }
    let best = (1..=take).filter_map(rate).fold(0.0, f64::max);
    (1..=take).find(|&count| rate(count).is_some_and(|rate| rate >= best * KNEE_TOLERANCE)).unwrap_or(take)
}

/// Until when the batch should wait to grow; `None` if it should run now.
fn grow_until(waiting: &[Waiting], limits: &Limits, curve: &dyn Curve, now: Instant) -> Option<Instant> {
    if limits.delay_max.is_zero() {
        return None;
    }
    let total = rows(waiting);
    let enough = limits.preferred_rows.first().copied().unwrap_or(limits.rows_max);
    if total >= enough.min(limits.rows_max) {
        return None;
    }
    let oldest = waiting.iter().map(|request| request.arrived).min()?;
    let mut until = oldest + limits.delay_max;
    if let Some(due) = waiting.iter().filter_map(|request| request.due).min() {
        let left = due.saturating_duration_since(now);
        // With some of the time to spare, or a request that waits for others would itself be late in the end.
        let time = curve.cautious(total).unwrap_or(left / 2);
        until = until.min(now + left.saturating_sub(time).saturating_sub(GROW_RESERVE.max(left / 8)));
    }
    (until > now).then_some(until)
}

/// Cuts the batch back to the largest preferred row count that it reaches exactly, unless its delay has run out.
fn preferred(waiting: &[Waiting], take: usize, limits: &Limits, now: Instant) -> usize {
    let oldest = waiting.iter().map(|request| request.arrived).min().unwrap_or(now);
    if limits.preferred_rows.is_empty() || now >= oldest + limits.delay_max {
        return take;
    }
    let mut rows = 0;
    let mut best = take;
    for (index, request) in waiting[..take].iter().enumerate() {
        rows += request.rows;
        if limits.preferred_rows.binary_search(&rows).is_ok() {
            best = index + 1;
        }
    }
    best
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
