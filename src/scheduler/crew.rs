//! The instances of one version: starts, dismisses, replaces and retires them; [`Change`] makes them others.
//!
//! Where executions are bounded, a task looks after them. An instance that does not come back in time is lost: its
//! requests are failed at once, another takes its place, and nobody waits for its thread any more. Begin with
//! [`Crew::start`]; `watch` is what the task looks at.

mod change;

use std::fmt;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

pub use self::change::Change;
use super::Scheduler;
use super::instance::{Extras, Starting, start_with};
use super::limiter::Limiter;
use super::warm_up::{Warmup, brief};
use super::watch::{Charge, Sight, Watch};
use crate::backend::Model;
use crate::error::{Error, Kind, Result};
use crate::infer::Instant;
use crate::model::{Device, HostPolicies, Instances, RateLimit, host_policy};
use crate::telemetry::metrics::InstancesMetrics;

/// What the instances of one version have in common.
pub struct CrewSettings {
    /// `MODEL/VERSION`, for the names of threads and for messages.
    pub name: String,
    /// Where they pull from.
    pub scheduler: Arc<dyn Scheduler>,
    /// What they run.
    pub model: Arc<dyn Model>,
    /// What the first on each device runs before it serves; the others run less.
    pub warmup: Arc<[Warmup]>,
    /// What they ask for resources; `None` if nothing is limited.
    pub limiter: Option<Arc<Limiter>>,
    /// Where their threads stay.
    pub host_policies: Arc<HostPolicies>,
    /// What an execution may take; `None` for any time.
    pub execution_time_max: Option<Duration>,
    /// How many are replaced after they did not come back in that time.
    pub lost_max: usize,
    /// Whether nobody waits for them, so that their warm-up gives way to those that serve.
    pub in_background: bool,
    /// Where they are counted.
    pub metrics: InstancesMetrics,
    /// Hears why no instance is left, once; [`Crew::lost`] tells it before.
    pub failed: Box<dyn Fn(Error) + Send + Sync>,
}

/// The instances of one version.
pub struct Crew {
    settings: CrewSettings,
    own: Weak<Crew>,
    /// Never held while an instance is waited for.
    state: Mutex<State>,
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew").field("name", &self.settings.name).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    members: Vec<Member>,
    /// Whether all that it began with were ready; before, one that is lost fails the start.
    serving: bool,
    retiring: bool,
    lost: usize,
    /// Why no instance is left that could serve.
    deserted: Option<Error>,
    /// Numbers of instances that were dismissed and may never look: nobody else gets them.
    burnt: Vec<usize>,
    supervisor: Option<AbortHandle>,
}

struct Member {
    index: usize,
    seat: Seat,
    watch: Arc<Watch>,
    thread: JoinHandle<()>,
    /// Tells why it never served; for one that nobody waits for.
    ready: Option<oneshot::Receiver<Result<()>>>,
    /// Whether its change is not made yet, which decides what becomes of it; until then nobody counts on it.
    pending: bool,
    /// Whether it was ready, so that it serves as long as it is one of them.
    joined: bool,
    /// Whether it was dismissed.
    leaves: bool,
}

/// An instance that is not ready yet: its number, what it does, and the way on which it tells that it is.
type Begun = (usize, Arc<Watch>, oneshot::Receiver<Result<()>>);

/// Where an instance runs and what it needs; instances of equal seats can stand in for each other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seat {
    group: String,
    device: Device,
    rate_limit: RateLimit,
    host_policy: String,
}

impl Crew {
    /// Starts these instances and waits until all are ready; all or none. Blocking.
    ///
    /// # Errors
    /// Why one of them could not be started.
    pub fn start(settings: CrewSettings, groups: &[Instances]) -> Result<Arc<Self>> {
        let crew = Arc::new_cyclic(|own| Self { settings, own: own.clone(), state: Mutex::default() });
        if let (Some(time_max), Ok(runtime)) = (crew.settings.execution_time_max, tokio::runtime::Handle::try_current())
        {
            let supervisor = runtime.spawn(supervise(Arc::downgrade(&crew), time_max));
            crew.state.lock().supervisor = Some(supervisor.abort_handle());
        }
        let mut change = crew.change(groups);
        if let Err(error) = change.wait() {
            drop(change);
            crew.retire();
            return Err(error);
        }
        change.make();
        crew.state.lock().serving = true;
        Ok(crew)
    }

    /// Refuses new requests, serves what waits, and waits until the instances have ended, but not for lost ones: those
    /// are replaced as ever while something waits. Blocking.
    pub fn retire(&self) {
        {
            // In one go: while they retire nothing may come any more.
            let mut state = self.state.lock();
            state.retiring = true;
            self.settings.scheduler.close();
        }
        loop {
            let Some((index, watch)) = self.state.lock().members.first().map(|it| (it.index, it.watch.clone())) else {
                break;
            };
            let ended = watch.wait_until_over();
            let Some(member) = self.state.lock().take(index, &watch) else { continue };
            if !member.leaves {
                self.settings.metrics.left();
            }
            if ended && member.thread.join().is_err() {
                tracing::error!(model = self.settings.name, "an instance thread panicked");
            }
        }
        if let Some(supervisor) = self.state.lock().supervisor.take() {
            supervisor.abort();
        }
    }

    /// How many instances serve.
    pub fn len(&self) -> usize {
        self.state.lock().serving()
    }

    /// How many there are, with those that were dismissed and have not ended.
    pub fn threads(&self) -> usize {
        let mut state = self.state.lock();
        state.forget_ended();
        state.members.len()
    }

    /// Whether no instance serves.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Why nobody serves any more, if all instances are gone that should.
    pub fn lost(&self) -> Option<Error> {
        self.state.lock().deserted.clone()
    }

    /// Starts one instance, under the smallest number that is free.
    fn begin(&self, seat: Seat) -> Result<Begun> {
        let mut state = self.state.lock();
        let free =
            |index: &usize| !state.burnt.contains(index) && state.members.iter().all(|member| member.index != *index);
        let index = (0..).find(free).unwrap_or_default();
        let is_first = state.members.iter().all(|member| member.seat.device != seat.device);
        let warmup = if is_first { self.settings.warmup.clone() } else { brief(&self.settings.warmup) };
        let (member, ready) = self.member(index, seat, warmup)?;
        let watch = member.watch.clone();
        state.members.push(member);
        self.settings.metrics.joined();
        Ok((index, watch, ready))
    }

    fn member(
        &self,
        index: usize,
        seat: Seat,
        warmup: Arc<[Warmup]>,
    ) -> Result<(Member, oneshot::Receiver<Result<()>>)> {
        let settings = &self.settings;
        let claim = match &settings.limiter {
            Some(limiter) => limiter.claim(seat.device, &seat.rate_limit)?,
            None => None,
        };
        let policy = host_policy(&settings.host_policies, &seat.host_policy, seat.device);
        let extras = Extras {
            claim,
            host_policy: policy.map(|(name, policy)| (name.to_owned(), policy.clone())),
            bounded: settings.execution_time_max.is_some(),
            in_background: settings.in_background,
            crew: self.own.clone(),
            busy: Some(settings.metrics.busy(index, &seat.device.to_string())),
        };
        let starting = Starting {
            scheduler: settings.scheduler.clone(),
            model: settings.model.clone(),
            device: seat.device,
            index,
            thread_name: format!("{}/{index}", settings.name),
            warmup,
        };
        let started = start_with(starting, extras)?;
        let (watch, thread) = (started.watch, started.thread);
        let member = Member { index, seat, watch, thread, ready: None, pending: true, joined: false, leaves: false };
        Ok((member, started.ready))
    }

    /// Forgets a new one that will never serve.
    fn forget(&self, index: usize, watch: &Arc<Watch>) {
        if self.state.lock().take(index, watch).is_some() {
            self.settings.metrics.left();
        }
    }

    /// Forgets one that has yet to tell whether it is ready, and does not serve any more. `None` if it has told.
    fn give_up(&self, index: usize, watch: &Arc<Watch>) -> Option<JoinHandle<()>> {
        // Held all the time, so that nobody lets another take its place.
        let mut state = self.state.lock();
        if !watch.report(Error::unavailable("nobody waits for the instance any more")) {
            return None;
        }
        let member = state.take(index, watch)?;
        // It may hang: who retires the crew does not wait for it either.
        watch.written_off();
        self.settings.metrics.left();
        Some(member.thread)
    }

    fn dismiss(&self, state: &mut State, index: usize) {
        if let Some(member) = state.members.iter_mut().find(|member| member.index == index && !member.leaves) {
            member.leaves = true;
            self.settings.metrics.left();
            self.settings.scheduler.dismiss(index);
        }
    }

    /// Writes off whose execution should have ended by `now`; tells when to look again.
    fn look(&self, now: Instant, time_max: Duration) -> Instant {
        let mut next = now + time_max;
        let watches: Vec<(usize, Arc<Watch>)> =
            self.state.lock().members.iter().map(|member| (member.index, member.watch.clone())).collect();
        for (index, watch) in watches {
            match watch.look(now, time_max) {
                Sight::Until(until) => next = next.min(until),
                Sight::Idle => {}
                Sight::Overdue(charge) => self.write_off((index, &watch), charge, now),
                Sight::Ended => self.vacate(index, &watch),
            }
        }
        next
    }

    /// Settles what a lost instance had, and replaces it.
    fn write_off(&self, (index, watch): (usize, &Arc<Watch>), charge: Charge, now: Instant) {
        let settings = &self.settings;
        let time_max = settings.execution_time_max.unwrap_or_default();
        let seconds = time_max.as_secs_f64();
        let error = Error::new(
            Kind::Backend,
            format!(
                "the execution did not end within {seconds} s, its instance {}/{index} was given up",
                settings.name
            ),
        );
        // If it had yet to say whether it is ready, who waits for that hears this, and decides what follows.
        let is_new = watch.report(error.clone());
        settings.metrics.lost();
        tracing::error!(
            instance = format!("{}/{index}", settings.name),
            seconds,
            requests = charge.entries.len(),
            "an execution did not end in its time, its instance is given up"
        );
        charge.fail(&*settings.scheduler, (index, time_max), &error, now);
        if !is_new || self.is_replacement(watch) {
            self.replace((index, watch), &error);
        }
        watch.written_off();
    }

    /// An instance is ready. One that was dismissed before that, as it took the place of another, gets nothing new.
    pub(super) fn joins(&self, index: usize, watch: &Arc<Watch>) {
        let mut state = self.state.lock();
        if let Some(member) = state.members.iter_mut().find(|member| Arc::ptr_eq(&member.watch, watch)) {
            member.joined = true;
            if member.leaves {
                return;
            }
        }
        self.settings.scheduler.joins(index);
    }

    /// An instance's thread has panicked outside of an execution: what it had taken by then is lost with it.
    pub(super) fn panicked(&self, (index, watch): (usize, &Arc<Watch>), error: &Error) {
        // Its index is another's by now if it was given up before.
        if self.state.lock().members.iter().any(|member| Arc::ptr_eq(&member.watch, watch)) {
            self.settings.scheduler.deserted(index, error);
            self.broken((index, watch), error);
        }
    }

    /// An instance has found that it can run nothing any more, and ends; its requests have heard so.
    pub(super) fn broken(&self, (index, watch): (usize, &Arc<Watch>), error: &Error) {
        let instance = format!("{}/{index}", self.settings.name);
        tracing::error!(instance, %error, "an instance can run nothing any more, it is given up");
        self.settings.metrics.lost();
        self.replace((index, watch), error);
    }

    /// An instance could not begin. Whoever waits for it has heard why; for one that takes another's place nobody does.
    pub(super) fn not_ready(&self, index: usize, watch: &Arc<Watch>) {
        if self.is_replacement(watch) {
            self.vacate(index, watch);
        }
    }

    /// Whether an instance takes another's place, so that nobody waits until it is ready.
    fn is_replacement(&self, watch: &Arc<Watch>) -> bool {
        let takes_place = |member: &Member| Arc::ptr_eq(&member.watch, watch) && member.ready.is_some();
        self.state.lock().members.iter().any(takes_place)
    }

    /// Lets another instance take the place of one that was given up, unless there were too many.
    fn replace(&self, (index, watch): (usize, &Arc<Watch>), error: &Error) {
        let settings = &self.settings;
        let mut state = self.state.lock();
        let Some(member) = state.take(index, watch) else { return };
        state.lost += 1;
        let (lost, serving) = (state.lost, state.serving);
        if !member.leaves {
            settings.metrics.left();
        }
        // While they retire nothing comes, but what waits must be served.
        let is_missed = !member.leaves && (!state.retiring || settings.scheduler.waiting() > 0);
        if !is_missed {
            state.burnt.push(index);
            drop(state);
            // It may have had sequences that it would have served to their end.
            settings.scheduler.deserted(index, error);
            return;
        }
        if !serving {
            return;
        }
        if lost <= settings.lost_max {
            match self.member(index, member.seat, brief(&self.settings.warmup)) {
                Ok((fresh, ready)) => {
                    settings.metrics.joined();
                    state.members.push(Member { ready: Some(ready), pending: member.pending, ..fresh });
                    return;
                }
                Err(error) => tracing::error!(%error, "an instance that was given up cannot be replaced"),
            }
        }
        self.go_without(index, state, || format!("{lost} instances were given up because {error}"));
    }

    /// Forgets an instance that has ended although nobody told it to.
    fn vacate(&self, index: usize, watch: &Arc<Watch>) {
        let mut state = self.state.lock();
        let (serving, retiring) = (state.serving, state.retiring);
        // Who waits until a new one is ready hears why it is not, and decides what follows.
        let is_awaited = |member: &Member| member.pending && member.ready.is_none();
        let own = |member: &&mut Member| Arc::ptr_eq(&member.watch, watch) && !member.leaves && !is_awaited(member);
        let Some(member) = state.members.iter_mut().find(own).filter(|_| serving) else { return };
        let why = match member.ready.as_mut().map(oneshot::Receiver::try_recv) {
            // It was to serve what waits, even if the others retire.
            Some(Ok(Err(error))) => error.message().to_owned(),
            _ if retiring => return,
            _ => "its thread ended".to_owned(),
        };
        state.take(index, watch);
        self.settings.metrics.left();
        tracing::error!(instance = format!("{}/{index}", self.settings.name), why, "an instance has ended");
        self.go_without(index, state, || format!("the last instance has ended: {why}"));
    }

    /// Nobody takes the place of this instance. When nobody is left at all, everything is refused and the reason told.
    fn go_without(&self, index: usize, mut state: MutexGuard<'_, State>, why: impl FnOnce() -> String) {
        let (left, error) = (state.serving(), Error::unavailable(why()));
        let was_deserted = state.deserted.is_some();
        state.burnt.push(index);
        if left == 0 && !was_deserted {
            state.deserted = Some(error.clone());
        }
        if left > 0 {
            // Before anybody else counts them.
            self.settings.scheduler.staffed(left);
        }
        drop(state);
        self.settings.scheduler.deserted(index, &error);
        if left > 0 || was_deserted {
            return;
        }
        self.settings.scheduler.abort_for(error.clone());
        (self.settings.failed)(error);
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        if let Some(supervisor) = self.state.get_mut().supervisor.take() {
            supervisor.abort();
        }
    }
}

impl State {
    /// Those that serve, or will when they are ready.
    fn staff(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !member.pending && !member.leaves)
    }

    /// How many these are.
    fn serving(&self) -> usize {
        self.staff().count()
    }

    fn take(&mut self, index: usize, watch: &Arc<Watch>) -> Option<Member> {
        let own = |member: &Member| member.index == index && Arc::ptr_eq(&member.watch, watch);
        self.members.iter().position(own).map(|at| self.members.swap_remove(at))
    }

    /// Those that were dismissed and have ended since.
    fn forget_ended(&mut self) {
        self.members.retain(|member| !(member.leaves && member.thread.is_finished()));
    }
}

/// Looks after the instances of one version until it is gone.
async fn supervise(crew: Weak<Crew>, time_max: Duration) {
    loop {
        let Some(next) = crew.upgrade().map(|crew| crew.look(Instant::now(), time_max)) else { return };
        tokio::time::sleep_until(next).await;
    }
}

/// A seat for each instance.
fn seats(groups: &[Instances]) -> Vec<Seat> {
    let seat = |group: &Instances| Seat {
        group: group.group.clone(),
        device: group.device,
        rate_limit: group.rate_limit.clone(),
        host_policy: group.host_policy.clone(),
    };
    groups.iter().flat_map(|group| std::iter::repeat_n(seat(group), group.count)).collect()
}

#[cfg(test)]
mod tests;
