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
    /// Row counts worth stopping at, ascending, as far as no deadline is missed for it; empty for `rows_max` only.
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
/// members if taking fewer would keep more rows of the requests behind them in time.
/// Requests that would be late even if they ran alone now are the caller's to refuse, before, and so are those that
/// [`shed`] finds.
pub fn plan(waiting: &[Waiting], limits: &Limits, curve: &dyn Curve, now: Instant) -> Plan {
    let fitting = fitting(waiting, limits.rows_max);
    let has_due = waiting.iter().any(|request| request.due.is_some());
    let times = has_due.then(|| Times::new(waiting, limits.rows_max, curve));
    let take = times.as_ref().map_or(fitting, |times| times.on_time(waiting, fitting, now).1);
    let take = limits.budget.map_or(take, |budget| knee(waiting, take, curve, budget / 2));
    let may_grow = take == fitting && fitting == waiting.len();
    match grow_until(waiting, limits, curve, now).filter(|_| may_grow) {
        Some(until) => Plan::Wait { until },
        None => {
            let cut = preferred(waiting, take, limits, now);
            let worse = |times: &Times| times.kept_by(waiting, cut, now) < times.kept_by(waiting, take, now);
            Plan::Run { take: if cut < take && times.as_ref().is_some_and(worse) { take } else { cut } }
        }
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

/// How many of the first of `waiting` should be given up, although they could be in time, because more rows of the others
/// are in time then. A request that is never late is not given up, and none behind it.
///
/// Where more is asked for than can be done, a queue ends up full of requests with just the time that they need: a batch
/// of them is as small as the first one's hurry demands, takes nearly as long as a large one, and leaves the next in the
/// same state. All of `waiting` must have the same claim to be served.
pub fn shed(waiting: &[Waiting], rows_max: usize, curve: &dyn Curve, now: Instant) -> usize {
    let most = waiting.iter().take_while(|request| request.due.is_some()).count();
    if most == 0 {
        return 0;
    }
    let times = Times::new(waiting, rows_max, curve);
    let (mut best, mut next, mut rows_left) = ((0, 0), 0, rows(waiting));
    // In growing steps, as long as the rest could be better than the best.
    while rows_left > best.0 {
        let rest = &waiting[next..];
        let kept = times.on_time(rest, fitting(rest, rows_max), now).0;
        if kept > best.0 {
            best = (kept, next);
        }
        let skipped = next.max(1).min(most - next);
        if skipped == 0 {
            break;
        }
        rows_left -= rows(&rest[..skipped]);
        next += skipped;
    }
    best.1
}

/// Cautious run times by rows, as far as waiting requests may need them.
struct Times {
    rows_max: usize,
    by_rows: Vec<Option<Duration>>,
}

impl Times {
    fn new(waiting: &[Waiting], rows_max: usize, curve: &dyn Curve) -> Self {
        let largest = waiting.iter().map(|request| request.rows).max().unwrap_or(1);
        let rows_seen = rows_max.min(rows(waiting)).max(largest);
        Self {
            rows_max,
            by_rows: std::iter::once(None).chain((1..=rows_seen).map(|rows| curve.cautious(rows))).collect(),
        }
    }

    /// The most rows that this batch and the next can keep in time, and the largest batch with which they do.
    fn on_time(&self, waiting: &[Waiting], fitting: usize, now: Instant) -> (usize, usize) {
        let (mut total, mut first_due) = (0, None);
        let mut batches: SmallVec<[(usize, Instant); 32]> = SmallVec::new();
        for (index, request) in waiting[..fitting].iter().enumerate() {
            total += request.rows;
            let Some(time) = self.by_rows[total] else { return (rows(waiting), fitting) };
            first_due = earlier(first_due, request.due);
            if index > 0 && first_due.is_some_and(|due| now + time > due) {
                break;
            }
            batches.push((total, now + time));
        }
        let mut best = (0, 1);
        // From the largest on: one that keeps all that could be kept needs no comparison.
        for (index, &(rows, end)) in batches.iter().enumerate().rev() {
            let take = index + 1;
            let (kept, all) = self.kept(&waiting[take..], end);
            if rows + kept > best.0 {
                best = (rows + kept, take);
            }
            if all && take == batches.len() {
                break;
            }
        }
        best
    }

    /// How many rows are in time if the first `take` requests run now.
    fn kept_by(&self, waiting: &[Waiting], take: usize, now: Instant) -> usize {
        let taken = rows(&waiting[..take]);
        self.by_rows[taken].map_or(rows(waiting), |time| taken + self.kept(&waiting[take..], now + time).0)
    }

    /// How many rows of `waiting` are in time if the next batch, at `start`, is the longest prefix of them that is in
    /// time, and whether that is as much as fits into a batch.
    fn kept(&self, waiting: &[Waiting], start: Instant) -> (usize, bool) {
        let mut rows = 0;
        let mut first_due = None;
        for (index, request) in waiting.iter().enumerate() {
            let before = rows;
            rows += request.rows;
            if rows > self.rows_max && index > 0 {
                return (before, true);
            }
            first_due = earlier(first_due, request.due);
            let time = self.by_rows.get(rows).copied().flatten();
            if time.is_none_or(|time| first_due.is_some_and(|due| start + time > due)) {
                return (before, false);
            }
        }
        (rows, true)
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

/// Cuts the batch back to the largest preferred row count that it reaches exactly, or if there is none, to what fits into
/// the largest one; unless it had to wait for as long as it may. Without a delay nothing waits, and every batch is cut.
fn preferred(waiting: &[Waiting], take: usize, limits: &Limits, now: Instant) -> usize {
    let Some(&largest) = limits.preferred_rows.last() else { return take };
    let oldest = waiting.iter().map(|request| request.arrived).min().unwrap_or(now);
    if !limits.delay_max.is_zero() && now >= oldest + limits.delay_max {
        return take;
    }
    let (mut rows, mut reached, mut within) = (0, None, 1);
    for (index, request) in waiting[..take].iter().enumerate() {
        rows += request.rows;
        if rows <= largest {
            within = index + 1;
        }
        if limits.preferred_rows.binary_search(&rows).is_ok() {
            reached = Some(index + 1);
        }
    }
    reached.unwrap_or(within)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
