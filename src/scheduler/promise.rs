//! When a request must be answered, whether that can be kept, and when to give it up. Pure.

use std::time::Duration;

use super::estimate::{Estimates, SizeClass};
use super::plan::Curve as _;
use crate::error::{Error, Kind, Result};
use crate::infer::Instant;

/// The share of a latency budget that is planned with; the rest is for what no run time tells: the hand-over between
/// threads and the way to the socket.
pub(super) const BUDGET_SHARE: f64 = 0.95;

/// An idle model takes one request in this time although it cannot be expected to be in time: predictions change by
/// executions only, and one that was wrong would otherwise refuse everything for ever.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// The requests of a model that were taken although they cannot be expected to be in time.
#[derive(Debug, Default)]
pub(super) struct Probes {
    last: Option<Instant>,
}

impl Probes {
    /// Lets a request run that may be `late`, whatever is predicted from now on, if nothing else would run meanwhile:
    /// caution spares the time of others only. One that would be late on the average runs once in a while.
    ///
    /// # Errors
    /// `late`.
    pub(super) fn admit(
        &mut self,
        promise: &mut Promise,
        (idle, late): (bool, Error),
        estimates: &Estimates,
        now: Instant,
    ) -> Result<()> {
        if !idle {
            return Err(late);
        }
        let usually = estimates.curve(promise.class).mean(promise.rows).unwrap_or_default();
        if promise.due.is_some_and(|due| now + usually > due) {
            if self.last.is_some_and(|last| now.saturating_duration_since(last) < PROBE_EVERY) {
                return Err(late);
            }
            self.last = Some(now);
        }
        promise.probe = true;
        Ok(())
    }
}

/// What a request asks of the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise {
    pub(super) class: SizeClass,
    pub(super) rows: usize,
    /// When the caller stops waiting.
    pub(super) deadline: Option<Instant>,
    /// When the response is due: the earlier of the caller's deadline and the end of the latency budget.
    pub(super) due: Option<Instant>,
    /// When the queue timeout passes and the request is refused.
    pub(super) start_by: Option<Instant>,
    /// When the queue timeout passes and the request goes behind all that are in time.
    pub(super) delay_at: Option<Instant>,
    /// It runs whatever is predicted, so that a prediction that was wrong can be corrected.
    pub(super) probe: bool,
}

/// What is ahead of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ahead {
    /// Until the first instance is free.
    pub(super) until_free: Duration,
    /// Whether an instance is free and nothing waits.
    pub(super) idle: bool,
    /// Rows that wait.
    pub(super) rows: usize,
    /// Instances that work them off.
    pub(super) instances: usize,
}

/// When and why a waiting request is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GiveUp {
    /// The moment.
    pub(super) at: Instant,
    /// What it is refused for.
    pub(super) kind: Kind,
}

impl Promise {
    /// Whether the caller's own deadline is what makes the request due.
    pub(super) fn due_kind(&self) -> Kind {
        if self.due == self.deadline { Kind::DeadlineExceeded } else { Kind::BudgetExceeded }
    }

    /// Refuses a request that is predicted to be late behind what runs and waits.
    ///
    /// # Errors
    /// [`Kind::DeadlineExceeded`] or [`Kind::BudgetExceeded`], with by how much.
    pub(super) fn admit(&self, estimates: &Estimates, ahead: Ahead, now: Instant) -> Result<()> {
        let Some(due) = self.due else { return Ok(()) };
        let curve = estimates.curve(self.class);
        let Some(best_rows) = curve.best_rows(due.saturating_duration_since(now) / 2) else { return Ok(()) };
        // What waits is worked off in batches of the best size, and the request itself runs with what is left of it: no
        // batch grows at the price of who is in it.
        let instances = ahead.instances.max(1);
        let (batches, rest) = (ahead.rows / (best_rows * instances), ahead.rows % (best_rows * instances));
        let each = curve.cautious(best_rows).unwrap_or_default();
        let own = curve.cautious(self.rows + rest / instances).unwrap_or_default();
        self.in_time(now + ahead.until_free + each * u32::try_from(batches).unwrap_or(u32::MAX) + own, now)
    }

    /// Refuses a request that is predicted to be answered at `end` if that is too late.
    ///
    /// # Errors
    /// [`Kind::DeadlineExceeded`] or [`Kind::BudgetExceeded`], with by how much.
    pub(super) fn in_time(&self, end: Instant, now: Instant) -> Result<()> {
        let Some(due) = self.due.filter(|due| end > *due) else { return Ok(()) };
        let kind = self.due_kind();
        let limit = if kind == Kind::DeadlineExceeded { "deadline" } else { "latency budget" };
        let (takes, left) = ((end - now).as_secs_f64() * 1e3, due.saturating_duration_since(now).as_secs_f64() * 1e3);
        Err(Error::new(
            kind,
            format!("request refused: it is predicted to take {takes:.1} ms, and {left:.1} ms are left of its {limit}"),
        ))
    }

    /// The cautious run time of the request alone; nothing for a probe.
    fn own(&self, estimates: &Estimates) -> Duration {
        if self.probe {
            return Duration::ZERO;
        }
        estimates.curve(self.class).cautious(self.rows).unwrap_or_default()
    }

    /// When a request that still waits should be given up: when it could not be in time any more.
    pub(super) fn give_up(&self, estimates: &Estimates) -> Option<GiveUp> {
        let latest = self
            .due
            .map(|due| GiveUp { at: due.checked_sub(self.own(estimates)).unwrap_or(due), kind: self.due_kind() });
        let timeout = self.start_by.map(|at| GiveUp { at, kind: Kind::TimedOut });
        [latest, timeout].into_iter().flatten().min_by_key(|give_up| give_up.at)
    }

    /// Why a request cannot be in time even if it ran alone now; `None` if it can.
    pub(super) fn broken(&self, estimates: &Estimates, now: Instant) -> Option<Kind> {
        if self.start_by.is_some_and(|start_by| now > start_by) {
            return Some(Kind::TimedOut);
        }
        let due = self.due?;
        (now + self.own(estimates) > due).then(|| self.due_kind())
    }
}

/// The refusal of a request whose time is up while it waits.
pub(super) fn late_error(kind: Kind) -> Error {
    Error::new(
        kind,
        match kind {
            Kind::TimedOut => "Request timeout expired",
            Kind::DeadlineExceeded => "request refused: its deadline cannot be met any more",
            _ => "request refused: the model's latency budget cannot be met any more",
        },
    )
}
