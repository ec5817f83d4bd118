//! What waits for one model version, and the two ends of it: requests are pushed, instances pull.
//!
//! Requests that may share a batch stand in one lane: same types and shapes but for the batch dimension. A request
//! leaves the queue once, by whoever takes it out under the lock: an instance that runs it, its waiter when time is
//! up or the caller is gone, or the planner when it cannot be in time any more. Who takes it out settles its outcome.

mod lending;

use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

use smallvec::SmallVec;

use super::capacity::Capacity;
use super::entry::{Entry, LaneKey, Pulled, Ticket};
use super::estimate::{Estimates, SizeClass};
use super::lanes::{Lanes, Pick, Picks};
use super::lent::Lent;
use super::levels::rows_ahead;
use super::look::{Look, Next, Want};
use super::order::Order;
use super::plan::{Curve as _, Limits, Plan, Waiting, plan, shed};
use super::promise::{Ahead, BUDGET_SHARE, Probes, Promise, late_error};
use super::reply::{self, Receiver};
use super::settings::QueueSettings;
use super::sync::{Condvar, Mutex, MutexGuard};
use super::turns::{Tally, Turns};
use super::{Execution, Pushed, Refusal, Scheduler, Verdicts, queue_full};
use crate::error::{Error, Kind, Result};
use crate::infer::{Instant, round};
use crate::model::TimeoutAction;
use crate::telemetry::stats::ModelStats;
use crate::tensor::{Batch, Forms, Member};

/// Everything that the lock guards.
#[derive(Debug, Default)]
struct State {
    lanes: Lanes,
    tally: Tally,
    /// Whether nothing runs yet, because too few wait.
    held: bool,
    next_seq: u64,
    /// Instances that sleep until something is pushed.
    sleepers: usize,
    /// Instances that others may run while their threads sleep.
    lent: SmallVec<[Lent; 1]>,
    /// How many of them others run now: their threads sleep, and have nothing to wake up for.
    lent_out: usize,
    /// Executions under way.
    running: SmallVec<[Running; 4]>,
    estimates: Estimates,
    capacity: Capacity,
    probes: Probes,
    plans: u64,
    closed: bool,
    /// What later requests are refused with after an abort; otherwise they are given back.
    refusal: Option<Error>,
    /// How many instances pull.
    instances: usize,
    /// Instances that are to end, until their numbers join again.
    dismissed: SmallVec<[usize; 2]>,
}

/// An execution under way.
#[derive(Clone, Copy, Debug)]
struct Running {
    instance: usize,
    began: Instant,
    /// How long it is expected to take.
    expected: Duration,
}

/// What is to be done with the requests of one lane.
struct Planned {
    plan: Plan,
    /// The requests in their order of service.
    picks: Picks,
    /// How many of the first are to be given up if the plan is to run some of the others.
    shed: usize,
}

/// The queue of one model version.
#[derive(Debug)]
pub struct Queue {
    settings: QueueSettings,
    stats: Arc<ModelStats>,
    /// The order of the answers, if it is preserved.
    order: Option<Arc<Order>>,
    /// Held for a few moves only and never across an await or an execution; requests and instances contend for it.
    state: Mutex<State>,
    pushed: Condvar,
}

/// Every so many plans the budget does not limit the batch, so that a row count that once looked slow is measured again.
const EXPLORE_EVERY: u64 = 64;

impl State {
    /// An instance executes nothing.
    fn idles(&mut self, instance: usize) {
        self.running.retain(|running| running.instance != instance);
    }

    /// Whether there is something to do, and an instance that sleeps and could do it.
    fn could_wake(&self) -> bool {
        self.lanes.requests() > 0 && self.sleepers > self.lent_out
    }
}

impl Wake for Queue {
    fn wake(self: Arc<Self>) {
        self.wake_or_run();
    }
}

impl Queue {
    /// An empty queue.
    pub fn new(settings: QueueSettings, stats: Arc<ModelStats>) -> Self {
        let order = settings.preserve_order.then(|| Arc::new(Order::new(stats.clone())));
        let state = State { instances: settings.instances, held: settings.hold > 0, ..State::default() };
        Self { settings, stats, order, state: Mutex::new(state), pushed: Condvar::new() }
    }

    /// The limits.
    pub fn settings(&self) -> &QueueSettings {
        &self.settings
    }

    /// Wakes an instance if one sleeps and there is something for it to do.
    fn wake_one(&self, state: &mut State) {
        if state.could_wake() && self.pushed.notify_one() {
            state.sleepers -= 1;
        }
    }

    /// Sleeps until something is pushed, or for this time.
    fn sleep(&self, state: &mut MutexGuard<'_, State>, time: Option<Duration>) {
        state.sleepers += 1;
        match time {
            None => self.pushed.wait(state),
            Some(time) => {
                if self.pushed.wait_for(state, time).timed_out() {
                    state.sleepers = state.sleepers.saturating_sub(1);
                }
            }
        }
    }

    /// Wakes all instances that sleep. One whose time was up just now counts itself.
    fn wake_all(&self, state: &mut State) {
        state.sleepers = state.sleepers.saturating_sub(self.pushed.notify_all());
    }

    /// Holds nothing back any more.
    fn let_go(&self, state: &mut State) {
        if std::mem::take(&mut state.held) {
            self.wake_one(state);
        }
    }

    /// What an instance that has nothing to do should do at `now`; requests that are late by then are refused. The batch
    /// is taken out only if it is wanted.
    fn look_once(&self, state: &mut MutexGuard<'_, State>, instance: usize, now: Instant, want: Want) -> Look {
        state.idles(instance);
        if state.dismissed.contains(&instance) {
            // It may have been woken for what another one has to do now.
            self.wake_one(state);
            return Look::Closed;
        }
        let (late, next) = self.next(state, now, want);
        let refused = !late.is_empty();
        if refused {
            // Their waiters may run at once, so they are told without the lock.
            MutexGuard::unlocked(state, || self.refuse_late(late, now));
        }
        match next {
            Some(Next::Run(pulled)) => {
                let rows = pulled.entries.iter().map(|entry| entry.promise.rows).sum();
                let expected = state.estimates.curve(pulled.class).cautious(rows).unwrap_or_default();
                state.running.push(Running { instance, began: now, expected });
                // What is left may be ready to run although another instance still waits for it to grow.
                if state.could_wake() && self.pushed.notify_one() {
                    state.sleepers -= 1;
                }
                Look::Run(pulled)
            }
            Some(Next::Ready) => {
                self.wake_one(state);
                Look::Ready
            }
            // Something may have been pushed while the lock was open.
            _ if refused => Look::Again,
            Some(Next::Wait(until)) => Look::Wait(Some(until - now)),
            None if state.closed => Look::Closed,
            None => Look::Wait(None),
        }
    }

    /// Whether an instance sleeps until something is pushed.
    #[cfg(test)]
    pub(super) fn has_sleepers(&self) -> bool {
        self.state.lock().sleepers > 0
    }

    /// How many instances it reckons with.
    #[cfg(test)]
    pub(super) fn staff(&self) -> usize {
        self.state.lock().instances
    }

    /// Whether no run time was recorded.
    #[cfg(test)]
    pub(super) fn has_learned_nothing(&self) -> bool {
        self.state.lock().estimates.is_empty()
    }

    /// Notices whose time is up, as a push does.
    #[cfg(test)]
    pub(super) fn delay_until(&self, now: Instant) {
        self.state.lock().lanes.delay(now);
    }

    /// Looks once, at `now`, without waiting; for simulations.
    #[cfg(test)]
    pub(super) fn look_at(&self, instance: usize, now: Instant) -> Look {
        self.look_once(&mut self.state.lock(), instance, now, Want::Take)
    }

    fn lane_key(&self, member: &Member) -> LaneKey {
        let mut key = LaneKey::new();
        if self.settings.shapes_vary && self.settings.limits.rows_max > 1 {
            Forms::key(self.settings.forms.as_deref(), member, &mut key);
        }
        key
    }

    fn promise(&self, request: &Pushed, level: u64) -> Promise {
        let budget_end = self.settings.limits.budget.map(|budget| request.arrived + budget.mul_f64(BUDGET_SHARE));
        let policy = self.settings.levels.policy(level);
        let time_is_up = policy.wait_max(request.timeout).map(|timeout| request.arrived + timeout);
        let (start_by, delay_at) = match policy.timeout_action {
            TimeoutAction::Reject => (time_is_up, None),
            TimeoutAction::Delay => (None, time_is_up),
        };
        Promise {
            class: size_class(&request.member, self.settings.forms.as_deref()),
            rows: request.member.rows,
            deadline: request.deadline,
            due: [request.deadline, budget_end].into_iter().flatten().min(),
            start_by,
            delay_at,
            probe: false,
        }
    }

    /// What is ahead of a request of this level.
    fn ahead(&self, state: &State, level: u64, now: Instant) -> Ahead {
        let busy = state.running.len() >= state.instances;
        let free_in = |running: &Running| (running.began + running.expected).saturating_duration_since(now);
        let first_free = state.running.iter().map(free_in).min().filter(|_| busy);
        Ahead {
            until_free: first_free.unwrap_or_default(),
            idle: !busy && state.lanes.requests() == 0,
            rows: rows_ahead(self.settings.levels.priorities(), state.lanes.levels(), level),
            instances: state.instances,
        }
    }

    /// Whether another request of this level has no room. Answers that wait for their turn take room, too.
    fn is_full(&self, state: &State, level: u64) -> bool {
        let held = self.order.as_ref().map_or(0, |order| order.held());
        state.lanes.requests() + held >= self.settings.requests_max
            || state.lanes.requests_of(level) >= self.settings.levels.policy(level).requests_max
    }

    /// What an idle instance should do now, and the requests that cannot be in time any more, already taken out.
    fn next(&self, state: &mut State, now: Instant, want: Want) -> (Vec<(Entry, Kind)>, Option<Next>) {
        let mut late = Vec::new();
        let mut wait: Option<Instant> = None;
        state.held &= state.lanes.requests() < self.settings.hold.min(self.settings.requests_max);
        if state.held {
            return (late, None);
        }
        if self.settings.levels.delay() {
            state.lanes.delay(now);
        }
        let order = state.lanes.in_turn(&self.turns(state, now));
        for (_, key) in order {
            self.take_late(state, &key, now, &mut late);
            let Some(Planned { plan, picks, shed }) = self.plan_lane(state, &key, now) else { continue };
            match plan {
                Plan::Run { take } => {
                    let next = match want {
                        Want::Take => {
                            let mut pulled = self.take(state, &key, &picks[..picks.len().min(shed + take)], now);
                            late.extend(pulled.entries.drain(..shed).map(|entry| {
                                let kind = entry.promise.due_kind();
                                (entry, kind)
                            }));
                            Next::Run(pulled)
                        }
                        Want::Know => Next::Ready,
                    };
                    return (late, Some(next));
                }
                Plan::Wait { until } => wait = Some(wait.map_or(until, |other| other.min(until))),
            }
        }
        (late, wait.map(Next::Wait))
    }

    fn turns(&self, state: &State, now: Instant) -> Turns<'_> {
        Turns::new(self.settings.levels.priorities(), &state.tally, now)
    }

    fn plan_lane(&self, state: &mut State, key: &LaneKey, now: Instant) -> Option<Planned> {
        state.plans += 1;
        let lane = state.lanes.lane(key)?;
        let mut rows = 0;
        let mut waiting: SmallVec<[Waiting; 16]> = SmallVec::new();
        let picks = lane.in_turn(&mut self.turns(state, now), |entry| {
            let within = rows <= 2 * self.settings.limits.rows_max;
            rows += entry.promise.rows;
            if within {
                waiting.push(Waiting { rows: entry.promise.rows, arrived: entry.arrived, due: entry.promise.due });
            }
            within
        });
        if waiting.is_empty() {
            return None;
        }
        let curve = state.estimates.curve(lane.class);
        let rows_max = state.capacity.rows_max(lane.class).min(self.settings.limits.rows_max);
        // Those of the first one's level only: no request makes room for a less urgent one.
        let equals = picks.iter().take_while(|&pick| *pick == picks[0]).count();
        let shed = shed(&waiting[..equals], rows_max, &curve, now);
        let waiting = &waiting[shed..];
        let explores = self.settings.limits.budget.is_some() && state.plans.is_multiple_of(EXPLORE_EVERY);
        let plan = if explores || rows_max < self.settings.limits.rows_max {
            let budget = self.settings.limits.budget.filter(|_| !explores);
            let limits = Limits { budget, rows_max, ..self.settings.limits.clone() };
            plan(waiting, &limits, &curve, now)
        } else {
            plan(waiting, &self.settings.limits, &curve, now)
        };
        Some(Planned { plan, picks, shed })
    }

    /// Takes out the requests of a lane that would be late even if they ran alone now, as far as the plan looks: the
    /// others have waiters.
    fn take_late(&self, state: &mut State, key: &LaneKey, now: Instant, late: &mut Vec<(Entry, Kind)>) {
        let before = late.len();
        state.lanes.take_late((key, 2 * self.settings.limits.rows_max), &state.estimates, now, late);
        if late.len() > before {
            self.stats.requests_left(late.len() - before);
        }
    }

    fn refuse_late(&self, late: Vec<(Entry, Kind)>, now: Instant) {
        for (entry, kind) in late {
            entry.refuse(&self.stats, late_error(kind), now);
        }
    }

    /// Takes the requests that are picked, which are the first in the order of service.
    fn take(&self, state: &mut State, key: &LaneKey, picks: &[Pick], now: Instant) -> Pulled {
        let class = state.lanes.lane(key).map(|lane| lane.class).unwrap_or_default();
        let mut turns = self.turns(state, now);
        if turns.is_weighted()
            && let Some(lane) = state.lanes.lane(key)
        {
            let mut seen = 0;
            lane.in_turn(&mut turns, |_| {
                seen += 1;
                seen <= picks.len()
            });
            state.tally = turns.into_tally();
        }
        let entries = state.lanes.take(key, picks);
        self.stats.requests_left(entries.len());
        Pulled { entries, class }
    }
}

impl Scheduler for Queue {
    fn push(self: Arc<Self>, request: Pushed, now: Instant) -> Result<(Ticket, Receiver), Refusal> {
        let (reply, receiver) = reply::channel(self.settings.responses);
        let key = self.lane_key(&request.member);
        let level = self.settings.levels.level(request.priority);
        let mut promise = self.promise(&request, level);
        let mut state = self.state.lock();
        if state.closed {
            return Err(state.refusal.clone().map_or_else(|| Refusal::Closed(Box::new(request)), Refusal::Error));
        }
        if self.is_full(&state, level) {
            // What is waited for cannot come any more.
            self.let_go(&mut state);
            return Err(queue_full().into());
        }
        if self.settings.levels.delay() {
            state.lanes.delay(now);
        }
        let ahead = self.ahead(&state, level, now);
        if let Err(late) = promise.admit(&state.estimates, ahead, now) {
            let State { probes, estimates, .. } = &mut *state;
            probes.admit(&mut promise, (ahead.idle, late), estimates, now)?;
        }
        let seq = state.next_seq;
        state.next_seq += 1;
        self.stats.request_waits();
        let give_up = promise.give_up(&state.estimates);
        let reply = match &self.order {
            Some(order) => reply.in_turn(order),
            None => reply,
        };
        let entry = Entry { member: request.member, arrived: request.arrived, promise, reply, seq, steps: None };
        state.lanes.push(key.clone(), level, entry);
        let sleep = state.sleepers > 0;
        // The end of a full round comes at once and takes the lock.
        drop(state);
        if sleep && !round::put_off(|| Waker::from(self.clone())) {
            self.wake_one(&mut self.state.lock());
        }
        Ok((Ticket { lane: key, level, seq, promise, give_up }, receiver))
    }

    fn take_back(&self, ticket: &Ticket, _why: Kind) -> bool {
        let mut state = self.state.lock();
        let Some(entry) = state.lanes.take_back(ticket) else { return false };
        self.stats.requests_left(1);
        // The tensors are freed only after the lock is released.
        drop(state);
        drop(entry);
        true
    }

    fn reckon(&self, ticket: &mut Ticket) {
        ticket.give_up = ticket.promise.give_up(&self.state.lock().estimates);
    }

    fn look(&self, instance: usize, want: Want, patient: bool) -> Look {
        let mut state = self.state.lock();
        loop {
            match self.look_once(&mut state, instance, Instant::now(), want) {
                Look::Again => {}
                Look::Wait(time) if patient => self.sleep(&mut state, time),
                look => return look,
            }
        }
    }

    fn pull_lending(&self, lent: Lent) -> Option<(Option<Pulled>, Lent)> {
        self.pull_or_lend(lent)
    }

    fn joins(&self, instance: usize) {
        self.state.lock().dismissed.retain(|dismissed| *dismissed != instance);
    }

    fn dismiss(&self, instance: usize) {
        let mut state = self.state.lock();
        if !state.dismissed.contains(&instance) {
            state.dismissed.push(instance);
        }
        self.wake_all(&mut state);
    }

    fn deserted(&self, instance: usize, _why: &Error) {
        self.state.lock().idles(instance);
    }

    fn staffed(&self, instances: usize) {
        self.state.lock().instances = instances;
    }

    fn executed(&self, execution: Execution<'_>) -> Verdicts {
        if !execution.failed {
            self.record_run(execution.class, execution.rows, execution.took);
        }
        Verdicts::new()
    }

    fn again(&self, _instance: usize, requests: Vec<(usize, Entry)>) {
        debug_assert!(requests.is_empty(), "a queue runs each request once");
    }

    fn record_run(&self, class: SizeClass, rows: usize, took: Duration) {
        // That of a decoupled model tells nothing: it depends on how many responses a request has, and on how fast its
        // caller takes them.
        if self.settings.responses.is_some() {
            return;
        }
        let mut state = self.state.lock();
        state.estimates.record(class, rows, took);
        state.capacity.fitted(class, rows);
    }

    fn ran_out(&self, class: SizeClass, rows: usize) -> bool {
        self.state.lock().capacity.ran_out(class, rows);
        true
    }

    fn release(&self) {
        self.let_go(&mut self.state.lock());
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.held = false;
        self.wake_all(&mut state);
    }

    fn abort_for(&self, why: Error) {
        self.close();
        let mut state = self.state.lock();
        state.refusal = Some(why.clone());
        let entries = state.lanes.take_all();
        drop(state);
        self.stats.requests_left(entries.len());
        let now = Instant::now();
        for entry in entries {
            entry.refuse(&self.stats, why.clone(), now);
        }
    }

    fn waiting(&self) -> usize {
        self.state.lock().lanes.requests()
    }

    fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.lanes.requests() == 0 && state.running.is_empty()
    }

    fn forms(&self) -> Option<&Arc<Forms>> {
        self.settings.forms.as_ref()
    }

    fn stats(&self) -> &Arc<ModelStats> {
        &self.stats
    }
}

fn size_class(member: &Member, forms: Option<&Forms>) -> SizeClass {
    SizeClass::of_row(Batch::bytes_of(member, forms) / member.rows.max(1))
}
