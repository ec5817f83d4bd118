//! Sequence batching: requests of one sequence run one after the other, in one slot of one instance.
//!
//! [`Sequences`] is the scheduler. The table of sequences, slots and backlog is pure (`table`), and so are the two
//! decisions what to run next (`choice`): [`crate::scheduler::plan`] over the oldest requests, and `direct`, where each slot is a
//! row of the batch. `controls` are what the model file is told of a sequence, `states` what is kept of it in between.
//!
//! A sequence is whole or over: when one of its requests is given up while it waits, or its caller is gone while it
//! runs, the others that wait fail, and the slot is free. A request that is refused at once, or whose execution fails,
//! leaves the sequence as it was.
//!
//! With `iterative_sequence` one request is executed again and again, each time with the state that the time before
//! gave, until the model says that it is done; see `steps`. Other requests join its batch between two executions.

mod choice;
mod controls;
mod direct;
mod request;
#[cfg(test)]
mod resident_tests;
mod settings;
mod states;
mod steps;
mod table;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};
use std::time::Duration;

use smallvec::SmallVec;

pub use self::settings::SequenceSettings;

use self::request::{Ran, Request};
use self::states::Kept;
use self::table::{Arriving, Key, Ready, Seated, Table};
use super::entry::{Entry, LaneKey, Ticket};
use super::estimate::{Estimates, SizeClass};
use super::look::{Look, Want};
use super::plan::Curve as _;
use super::promise::{BUDGET_SHARE, Probes, Promise, late_error};
use super::reply::{self, Receiver};
use super::responses::given_up;
use super::sync::{Condvar, Mutex, MutexGuard};
use super::{Execution, Pushed, Refusal, Scheduler, Verdicts, queue_full, stopping};
use crate::error::{Error, Kind, Result};
use crate::infer::{CorrelationId, Instant, Sequence, round};
use crate::telemetry::metrics::{Slots, SlotsTold};
use crate::telemetry::stats::ModelStats;
use crate::tensor::{Batch, Forms};

/// The scheduler of one model version whose requests belong to sequences.
#[derive(Debug)]
pub struct Sequences {
    settings: SequenceSettings,
    stats: Arc<ModelStats>,
    /// Held for a few moves only and never across an await or an execution; requests and instances contend for it.
    state: Mutex<State>,
    itself: Weak<Self>,
}

/// Everything that the lock guards.
#[derive(Debug)]
struct State {
    table: Table<CorrelationId, Request, Option<Kept>>,
    estimates: Estimates,
    /// Executions under way, by instance.
    running: BTreeMap<usize, Running>,
    /// Requests that an execution is behind and another before, until they are brought back; by instance.
    between: BTreeMap<usize, Vec<Option<Ran>>>,
    /// Sequences whose caller has no room for another response, and since when.
    parked: BTreeMap<Key, Instant>,
    /// Where each instance waits, and whether it does.
    bells: Vec<(Arc<Condvar>, bool)>,
    /// Nothing runs yet.
    held: bool,
    probes: Probes,
    /// The last id that the server gave a sequence of one request.
    ids: u64,
    /// What later requests are refused with after an abort; otherwise they are given back.
    refusal: Option<Error>,
    /// What the metrics were told of the slots.
    slots: SlotsTold,
}

#[derive(Debug)]
struct Running {
    began: Instant,
    /// How long it is expected to take.
    expected: Duration,
    /// One for each member; none for a row that nobody waits for.
    members: Vec<Option<Ran>>,
}

/// Requests that are over, and why.
type Gone = Vec<(Entry, Error)>;

impl Wake for Sequences {
    fn wake(self: Arc<Self>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        // A caller may have taken a response.
        let gone = self.stalled(&mut state, now);
        ring(&mut state);
        drop(state);
        self.settle(gone, now);
    }
}

/// Tells the metrics which slots have a sequence.
fn tell(state: &mut State) {
    let State { table, slots, .. } = state;
    slots.tell(Slots { total: table.slots(), used: table.seated(), backlog: table.queued() });
}

/// Wakes each instance that sleeps and has something new to look at: one that waits for its batch to grow has looked.
fn ring(state: &mut State) {
    tell(state);
    let State { table, bells, .. } = state;
    for (instance, (bell, asleep)) in bells.iter_mut().enumerate() {
        if *asleep && (table.has_news(instance) || table.is_done(instance)) {
            *asleep = false;
            bell.notify_one();
        }
    }
}

impl Sequences {
    /// A scheduler without sequences.
    pub fn new(settings: SequenceSettings, stats: Arc<ModelStats>) -> Arc<Self> {
        let mut state = State {
            table: Table::new(settings.bounds),
            estimates: Estimates::default(),
            running: BTreeMap::new(),
            between: BTreeMap::new(),
            parked: BTreeMap::new(),
            bells: Vec::new(),
            held: settings.hold.queued > 0 || settings.hold.backlog > 0,
            probes: Probes::default(),
            ids: 0,
            refusal: None,
            slots: stats.slots(),
        };
        tell(&mut state);
        Arc::new_cyclic(|itself| Self { settings, stats, state: Mutex::new(state), itself: itself.clone() })
    }

    /// How many sequences have a slot.
    #[cfg(test)]
    fn seated(&self) -> usize {
        self.state.lock().table.seated()
    }

    /// What an instance that has nothing to do should do at `now`. The batch is taken out only if it is wanted.
    fn look_once(&self, state: &mut MutexGuard<'_, State>, instance: usize, now: Instant, want: Want) -> Look {
        state.running.remove(&instance);
        let gone = self.tidy(state, instance, now);
        if !gone.is_empty() {
            // Their waiters may run at once, so they are told without the lock.
            MutexGuard::unlocked(state, || self.settle(gone, now));
            return Look::Again;
        }
        if self.is_held(state) {
            return Look::Wait(None);
        }
        state.table.look(instance);
        let timers = [state.table.next_expiry(), self.next_stall(state)];
        let wait = match self.decide(state, instance, now) {
            Some(Ok(_)) if want == Want::Know => return Look::Ready,
            Some(Ok(choice)) => return Look::Run(self.take(state, instance, choice, now)),
            None if state.table.is_done(instance) => return Look::Closed,
            None => None,
            Some(Err(until)) => Some(until),
        };
        let wake = timers.into_iter().flatten().chain(wait).min();
        Look::Wait(wake.map(|wake| wake.saturating_duration_since(now)))
    }

    /// Ends what is over: sequences that are idle for too long, requests of this instance that would be late even if they
    /// ran now or that nobody waits for, and callers that take nothing.
    fn tidy(&self, state: &mut State, instance: usize, now: Instant) -> Gone {
        if state.table.expire(now) > 0 {
            tracing::debug!(model = &*self.settings.model, "idle sequences are ended");
        }
        let mut gone = self.stalled(state, now);
        let broken = |ready: Ready<'_, Request, Option<Kept>>| {
            let entry = &ready.seated.request.entry;
            if entry.reply.is_abandoned() {
                return Some((ready.key, given_up(entry.promise.deadline, now)));
            }
            entry.promise.broken(&state.estimates, now).map(|kind| (ready.key, late_error(kind)))
        };
        let broken: Vec<(Key, Error)> = state.table.ready(instance).filter_map(broken).collect();
        for (key, error) in broken {
            gone.extend(self.end(state, key, error));
        }
        ring(state);
        gone
    }

    /// Ends a sequence whose first waiting request fails for `error`; the others fail for that.
    fn end(&self, state: &mut State, key: Key, error: Error) -> Gone {
        let kind = error.kind();
        let ended = state.table.end(key);
        state.parked.remove(&key);
        self.stats.requests_left(ended.len());
        let mut errors = std::iter::once(error).chain(std::iter::repeat_with(|| of_others(kind)));
        ended.into_iter().filter_map(|seated| Some((seated.request.entry, errors.next()?))).collect()
    }

    /// Gives requests that were taken out their outcome.
    fn settle(&self, gone: Gone, now: Instant) {
        for (mut entry, error) in gone {
            if let Some(responses) = steps::responses(&mut entry, error.kind(), now) {
                self.stats.request_responded(&responses);
            }
            entry.refuse(&self.stats, error, now);
        }
    }

    fn is_held(&self, state: &mut State) -> bool {
        if state.held {
            let backlog = state.table.backlogged();
            let queued = state.table.waiting() - backlog;
            let full = state.table.waiting() >= self.settings.bounds.requests_max || state.table.is_closed();
            let enough = queued >= self.settings.hold.queued && backlog >= self.settings.hold.backlog;
            if full || enough {
                state.held = false;
                // Those that looked before and went to sleep.
                ring(state);
            }
        }
        state.held
    }

    fn promise(&self, request: &Pushed) -> Promise {
        let budget_end = self.settings.budget.map(|budget| request.arrived + budget.mul_f64(BUDGET_SHARE));
        let bytes = Batch::bytes_of(&request.member, self.settings.forms.as_deref());
        Promise {
            class: SizeClass::of_row(bytes),
            rows: 1,
            deadline: request.deadline,
            due: [request.deadline, budget_end].into_iter().flatten().min(),
            start_by: self.settings.queue.wait_max(request.timeout).map(|timeout| request.arrived + timeout),
            delay_at: None,
            probe: false,
        }
    }

    /// Refuses a request that is predicted to be late behind what runs and the others of its sequence.
    fn admit(&self, state: &mut State, promise: &mut Promise, id: &CorrelationId, now: Instant) -> Result<()> {
        if promise.due.is_none() {
            return Ok(());
        }
        let rows = (state.table.seated() / state.table.staffed().max(1)).clamp(1, self.settings.rows_max);
        let Some(each) = state.estimates.curve(promise.class).cautious(rows) else { return Ok(()) };
        let free_in = |running: &Running| (running.began + running.expected).saturating_duration_since(now);
        let busy = state.running.len() >= state.table.staffed();
        let until_free = state.running.values().map(free_in).min().filter(|_| busy).unwrap_or_default();
        let behind = u32::try_from(state.table.depth(id)).unwrap_or(u32::MAX);
        let late = match promise.in_time(now + until_free + each * behind.saturating_add(1), now) {
            Ok(()) => return Ok(()),
            Err(late) => late,
        };
        let idle = state.running.is_empty() && state.table.waiting() == 0;
        let State { probes, estimates, .. } = state;
        probes.admit(promise, (idle, late), estimates, now)
    }

    /// Which sequence a request belongs to; `None` in the first place for one that the server gives an id.
    fn sequence(&self, request: &Pushed) -> Result<(Option<CorrelationId>, bool, bool)> {
        let model = &self.settings.model;
        if request.member.rows > 1 {
            return Err(Error::invalid(format!(
                "inference request to model '{model}' must specify batch-size 1 due to requirements of sequence batcher"
            )));
        }
        match &request.sequence {
            Some(Sequence { id, start, end }) => {
                self.settings.controls.check(id)?;
                Ok((Some(id.clone()), *start, *end))
            }
            None if self.settings.iterations.is_some() => Ok((None, true, false)),
            None => Err(Error::invalid(format!(
                "inference request to model '{model}' must specify a non-zero or non-empty correlation ID"
            ))),
        }
    }

    fn refused(&self, why: table::Refusal, id: &CorrelationId) -> Error {
        match why {
            table::Refusal::Full => queue_full(),
            table::Refusal::Closed => stopping(),
            table::Refusal::NotStarted => Error::invalid(format!(
                "inference request for sequence {} to model '{}' must specify the START flag on the first request of \
                 the sequence",
                shown(id),
                self.settings.model
            )),
        }
    }

    fn sleep(&self, state: &mut MutexGuard<'_, State>, instance: usize, time: Option<Duration>) {
        while state.bells.len() <= instance {
            state.bells.push((Arc::new(Condvar::new()), false));
        }
        let (bell, asleep) = &mut state.bells[instance];
        *asleep = true;
        let bell = bell.clone();
        match time {
            None => bell.wait(state),
            Some(time) => {
                bell.wait_for(state, time);
            }
        }
        state.bells[instance].1 = false;
    }
}

impl Scheduler for Sequences {
    fn push(self: Arc<Self>, request: Pushed, now: Instant) -> Result<(Ticket, Receiver), Refusal> {
        let (id, start, end) = self.sequence(&request)?;
        let mut promise = self.promise(&request);
        let (reply, receiver) = reply::channel(self.settings.responses);
        let mut lane = LaneKey::new();
        if self.settings.shapes_vary {
            Forms::key(self.settings.forms.as_deref(), &request.member, &mut lane);
        }
        let mut state = self.state.lock();
        if state.table.is_closed() {
            return Err(state.refusal.clone().map_or_else(|| Refusal::Closed(Box::new(request)), Refusal::Error));
        }
        state.table.expire(now);
        let shown_id = id.clone().unwrap_or_else(|| {
            state.ids += 1;
            CorrelationId::Number(state.ids)
        });
        self.admit(&mut state, &mut promise, &shown_id, now)?;
        let give_up = promise.give_up(&state.estimates);
        let entry = Entry { member: request.member, arrived: request.arrived, promise, reply, seq: 0, steps: None };
        let request = Request { entry, id: shown_id.clone(), lane, steps: 0 };
        let pushed = match state.table.push(Arriving { id, start, end, request }) {
            Ok(pushed) => pushed,
            Err((why, _)) => return Err(self.refused(why, &shown_id).into()),
        };
        self.stats.request_waits();
        tell(&mut state);
        let asleep = state.bells.iter().any(|(_, asleep)| *asleep);
        // The end of a full round comes at once and takes the lock.
        drop(state);
        if asleep && !round::put_off(|| Waker::from(self.clone())) {
            ring(&mut self.state.lock());
        }
        if pushed.superseded {
            tracing::warn!(
                model = &*self.settings.model,
                "sequence {} has a conflict: the former sequence of this id did not end before this one started, and is \
                 ended early",
                shown(&shown_id)
            );
        }
        let lane = SmallVec::from_slice(&[pushed.key.number().cast_signed()]);
        Ok((Ticket { lane, level: 0, seq: pushed.number, promise, give_up }, receiver))
    }

    fn take_back(&self, ticket: &Ticket, why: Kind) -> bool {
        let Some(key) = ticket.lane.first().map(|number| Key::of_number(number.cast_unsigned())) else { return false };
        let mut state = self.state.lock();
        let Some(waits) = state.table.waits(key, ticket.seq) else { return false };
        // Once its first execution began in time, that is all that a queue timeout asks for.
        let begun = |seated: &Seated<Request>| seated.number == ticket.seq && seated.request.steps > 0;
        let has_begun = waits && state.table.head(key).is_some_and(begun);
        if has_begun && why == Kind::TimedOut || !waits && why != Kind::Cancelled {
            return false;
        }
        let ended = state.table.end(key);
        state.parked.remove(&key);
        self.stats.requests_left(ended.len());
        ring(&mut state);
        drop(state);
        self.taken_back(ended, (ticket.seq, why));
        waits
    }

    fn reckon(&self, ticket: &mut Ticket) {
        ticket.give_up = ticket.promise.give_up(&self.state.lock().estimates);
    }

    fn look(&self, instance: usize, want: Want, patient: bool) -> Look {
        let mut state = self.state.lock();
        loop {
            match self.look_once(&mut state, instance, Instant::now(), want) {
                Look::Again => {}
                Look::Wait(time) if patient => self.sleep(&mut state, instance, time),
                look => return look,
            }
        }
    }

    fn dismiss(&self, instance: usize) {
        let mut state = self.state.lock();
        state.table.withdraw(instance);
        ring(&mut state);
    }

    fn deserted(&self, instance: usize, why: &Error) {
        self.dismiss(instance);
        let mut state = self.state.lock();
        let mut gone = Gone::new();
        for key in state.table.seated_at(instance) {
            gone.extend(self.end(&mut state, key, why.clone()));
        }
        state.running.remove(&instance);
        state.between.remove(&instance);
        ring(&mut state);
        drop(state);
        self.settle(gone, Instant::now());
    }

    fn joins(&self, instance: usize) {
        let mut state = self.state.lock();
        state.table.join(instance);
        ring(&mut state);
    }

    fn staffed(&self, _instances: usize) {
        // Which they are counts here, and that is told one by one.
    }

    fn executed(&self, execution: Execution<'_>) -> Verdicts {
        self.step(execution)
    }

    fn again(&self, instance: usize, requests: Vec<(usize, Entry)>) {
        self.bring_back(instance, requests);
    }

    fn record_run(&self, class: SizeClass, rows: usize, took: Duration) {
        // That of a model that sends responses while it runs depends on how fast its callers take them.
        if self.settings.responses.is_none() || self.settings.iterations.is_some() {
            self.state.lock().estimates.record(class, rows, took);
        }
    }

    fn release(&self) {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.held) {
            ring(&mut state);
        }
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.table.close();
        for (bell, asleep) in &mut state.bells {
            *asleep = false;
            bell.notify_all();
        }
    }

    fn abort_for(&self, why: Error) {
        // In one go, so that no instance looks in between and goes back to sleep.
        let mut state = self.state.lock();
        state.table.close();
        state.refusal = Some(why.clone());
        let ended = state.table.clear();
        state.parked.clear();
        ring(&mut state);
        self.stats.requests_left(ended.len());
        drop(state);
        let gone = ended.into_iter().map(|seated| (seated.request.entry, why.clone())).collect();
        self.settle(gone, Instant::now());
    }

    fn forms(&self) -> Option<&Arc<Forms>> {
        self.settings.forms.as_ref()
    }

    fn waiting(&self) -> usize {
        self.state.lock().table.waiting()
    }

    fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.table.is_empty() && state.running.is_empty()
    }

    fn stats(&self) -> &Arc<ModelStats> {
        &self.stats
    }
}

impl Sequences {
    /// Settles what waited in a sequence of which one request was taken back, but not that request itself.
    fn taken_back(&self, ended: Vec<Seated<Request>>, (own, why): (u64, Kind)) {
        let now = Instant::now();
        let mut gone = Gone::new();
        for seated in ended {
            let Seated { number, request: Request { mut entry, .. }, .. } = seated;
            if number != own {
                gone.push((entry, of_others(why)));
            } else if let Some(responses) = steps::responses(&mut entry, why, now) {
                self.stats.request_responded(&responses);
            }
        }
        self.settle(gone, now);
    }
}

/// Why the other requests of a sequence fail of which one is given up.
fn of_others(why: Kind) -> Error {
    match why {
        Kind::TimedOut => Error::new(Kind::TimedOut, "timeout of the corresponding sequence has been expired"),
        _ => Error::new(Kind::Cancelled, "the sequence is cancelled, as another of its requests is given up"),
    }
}

/// An id as messages show it.
fn shown(id: &CorrelationId) -> String {
    match id {
        CorrelationId::Number(number) => number.to_string(),
        CorrelationId::Text(text) => text.to_string(),
    }
}
