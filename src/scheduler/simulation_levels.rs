//! The real queue under simulated load of several levels: arrivals, run times, deadlines, cancellations and the clock are
//! numbers, and after every step it is checked that nothing is lost, late, out of order or counted twice.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::instance::execute;
use super::look::Look;
use super::promise::GiveUp;
use super::queue_tests::{Doer, seqs};
use super::simulation::Numbers;
use super::tests::{MS, policy, settings};
use super::*;
use crate::error::Kind;
use crate::model::{Priorities, QueuePolicy, TimeoutAction};

/// A model, and the load on it.
struct Scene {
    settings: QueueSettings,
    /// Run time of a batch of so many rows, on average.
    run_time: fn(usize) -> Duration,
    /// Requests per second of each level.
    rates: Vec<f64>,
    /// The share of requests that are cancelled, that have a deadline, and of executions that fail.
    faults: f64,
    seconds: f64,
}

/// What became of one level's requests.
#[derive(Clone, Debug, Default)]
struct Level {
    sent: usize,
    answered: usize,
    refused: usize,
    /// The longest that one waited until it ran.
    waited: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Done(usize),
    GiveUp(u64),
    Cancel(u64),
    Arrive(usize),
}

/// A request that has no outcome yet.
struct Open {
    level: usize,
    arrived: Duration,
    ticket: Ticket,
    receiver: Receiver,
    deadline: Option<Instant>,
    delay_at: Option<Instant>,
}

struct Simulation {
    scene: Scene,
    queue: Arc<Queue>,
    began: Instant,
    numbers: Numbers,
    events: BinaryHeap<Reverse<(Duration, Event)>>,
    open: BTreeMap<u64, Open>,
    waiting: BTreeSet<u64>,
    running: BTreeMap<usize, Pulled>,
    /// The last that heard what an instance gave it.
    heard: Option<u64>,
    next_seq: u64,
    levels: Vec<Level>,
}

impl Simulation {
    fn new(scene: Scene, seed: u64) -> Self {
        let queue = Arc::new(Queue::new(scene.settings.clone(), Arc::new(ModelStats::default())));
        let levels = vec![Level::default(); scene.rates.len()];
        let events = (0..levels.len()).map(|level| Reverse((Duration::ZERO, Event::Arrive(level)))).collect();
        Self {
            scene,
            queue,
            began: Instant::now(),
            numbers: Numbers(seed),
            events,
            open: BTreeMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeMap::new(),
            heard: None,
            next_seq: 0,
            levels,
        }
    }

    fn run(mut self) -> Vec<Level> {
        while let Some(Reverse((now, event))) = self.events.pop() {
            match event {
                Event::Done(instance) => self.finish(instance),
                Event::GiveUp(seq) => self.give_up(seq, now),
                Event::Cancel(seq) => self.cancel(seq),
                Event::Arrive(level) => self.arrive(level, now),
            }
            (0..self.scene.settings.instances).for_each(|instance| self.pull(instance, now));
            self.hear();
            assert_eq!(self.queue.waiting(), self.waiting.len());
            assert!(self.queue.waiting() <= self.scene.settings.requests_max);
        }
        assert!(self.open.is_empty() && self.running.is_empty() && self.waiting.is_empty(), "nobody is left over");
        let stats = self.queue.stats().snapshot();
        let sent: usize = self.levels.iter().map(|level| level.sent - level.refused).sum();
        assert_eq!(stats.success.count + stats.fail.count, sent as u64, "each accepted request counts once");
        let answered: usize = self.levels.iter().map(|level| level.answered).sum();
        assert_eq!(stats.success.count, answered as u64);
        self.levels
    }

    fn arrive(&mut self, level: usize, now: Duration) {
        let gap = -(1.0 - self.numbers.next()).ln() / self.scene.rates[level];
        if now.as_secs_f64() + gap < self.scene.seconds {
            self.events.push(Reverse((now + Duration::from_secs_f64(gap), Event::Arrive(level))));
        }
        self.levels[level].sent += 1;
        let at = self.began + now;
        let rows = 1 + (self.numbers.next() * 2.0) as usize;
        let deadline =
            (self.numbers.next() < self.scene.faults).then(|| at + Duration::from_secs_f64(self.numbers.next() * 0.3));
        let pushed = Pushed { priority: level as u64 + 1, deadline, ..Pushed::new(Member::new(rows, Vec::new()), at) };
        let Ok((ticket, receiver)) = self.queue.clone().push(pushed, at) else {
            self.levels[level].refused += 1;
            return;
        };
        let seq = self.next_seq;
        self.next_seq += 1;
        if let Some(GiveUp { at, .. }) = ticket.give_up {
            self.events.push(Reverse(((at - self.began).max(now), Event::GiveUp(seq))));
        }
        if self.numbers.next() < self.scene.faults {
            let after = Duration::from_secs_f64(self.numbers.next() * 0.2);
            self.events.push(Reverse((now + after, Event::Cancel(seq))));
        }
        let policy = self.scene.settings.levels.policy(level as u64 + 1);
        let delays = policy.timeout_action == TimeoutAction::Delay;
        let delay_at = policy.timeout.filter(|_| delays).map(|timeout| at + timeout);
        self.open.insert(seq, Open { level, arrived: now, ticket, receiver, deadline, delay_at });
        self.waiting.insert(seq);
    }

    /// As the waiter does: takes the request back or, if it runs, waits on until its deadline.
    fn give_up(&mut self, seq: u64, now: Duration) {
        let Some(open) = self.open.get(&seq) else { return };
        if self.waiting.remove(&seq) {
            let kind = open.ticket.give_up.map_or(Kind::Cancelled, |give_up| give_up.kind);
            assert!(self.queue.take_back(&open.ticket, kind), "it waits");
            self.queue.stats().request_failed(kind, now - open.arrived);
            self.open.remove(&seq);
            return;
        }
        match open.deadline {
            Some(deadline) if deadline > self.began + now => {
                self.events.push(Reverse((deadline - self.began, Event::GiveUp(seq))));
            }
            Some(_) => drop(self.open.remove(&seq)),
            None => {}
        }
    }

    fn cancel(&mut self, seq: u64) {
        let Some(open) = self.open.remove(&seq) else { return };
        let waits = self.waiting.remove(&seq);
        assert_eq!(self.queue.take_back(&open.ticket, Kind::Cancelled), waits);
        if waits {
            self.queue.stats().request_failed(Kind::Cancelled, Duration::ZERO);
        }
    }

    fn pull(&mut self, instance: usize, now: Duration) {
        while !self.running.contains_key(&instance) {
            match self.queue.look_at(instance, self.began + now) {
                Look::Run(pulled) => {
                    self.forget_refused(&seqs(&pulled));
                    self.check(&pulled, now);
                    let rows = pulled.entries.iter().map(|entry| entry.promise.rows).sum();
                    let took = (self.scene.run_time)(rows).mul_f64(0.5 + self.numbers.next());
                    self.events.push(Reverse((now + took, Event::Done(instance))));
                    self.running.insert(instance, pulled);
                }
                // What it refused by itself, hears so.
                Look::Again | Look::Ready => self.forget_refused(&[]),
                Look::Wait(_) | Look::Closed => break,
            }
        }
    }

    /// The batch is within its limits, in time, and before everything else that waits.
    fn check(&mut self, pulled: &Pulled, now: Duration) {
        let at = self.began + now;
        let strict = {
            let priorities = self.scene.settings.levels.priorities();
            priorities.weights.is_empty() && priorities.ageing.is_none()
        };
        let place = |seq: u64, open: &Open| (open.level, open.delay_at.filter(|up| at > *up), seq);
        let mut last = None;
        for seq in seqs(pulled) {
            assert!(self.waiting.remove(&seq), "{seq} ran already, or had its outcome");
            let Some(open) = self.open.get(&seq) else { panic!("{seq} is gone") };
            assert!(open.deadline.is_none_or(|deadline| deadline >= at), "nothing runs after its deadline");
            let level = &mut self.levels[open.level];
            level.waited = level.waited.max(now - open.arrived);
            let here = place(seq, open);
            assert!(!strict || last.is_none_or(|before| before < here), "{last:?} before {here:?}");
            last = Some(here);
        }
        let rows: usize = pulled.entries.iter().map(|entry| entry.promise.rows).sum();
        assert!(rows <= self.scene.settings.limits.rows_max);
        let next = self.waiting.iter().filter_map(|seq| Some(place(*seq, self.open.get(seq)?))).min();
        assert!(!strict || next.zip(last).is_none_or(|(next, last)| last < next), "{next:?} should have been served");
    }

    fn finish(&mut self, instance: usize) {
        let Some(pulled) = self.running.remove(&instance) else { return };
        let fails = self.numbers.next() < self.scene.faults / 2.0;
        execute(&*self.queue, instance, &mut Doer { fails }, pulled);
    }

    /// Takes what was answered; in order, if that is preserved.
    fn hear(&mut self) {
        let mut ctx = Context::from_waker(std::task::Waker::noop());
        let order = self.scene.settings.preserve_order;
        let (heard, levels, waiting) = (&mut self.heard, &mut self.levels, &self.waiting);
        self.open.retain(|seq, open| match open.receiver.poll(&mut ctx) {
            Poll::Pending => true,
            Poll::Ready(outcome) => {
                assert!(!waiting.contains(seq), "{seq} waits");
                assert!(!order || heard.is_none_or(|before| before < *seq), "{heard:?} before {seq}");
                *heard = Some(*seq);
                levels[open.level].answered += usize::from(outcome.is_some_and(|outcome| outcome.is_ok()));
                false
            }
        });
    }

    /// Takes the refusals that the queue gave by itself; `run` are those that it did not refuse.
    fn forget_refused(&mut self, run: &[u64]) {
        let mut ctx = Context::from_waker(std::task::Waker::noop());
        let waiting = &mut self.waiting;
        self.open.retain(|seq, open| {
            let refused = waiting.contains(seq) && !run.contains(seq) && open.receiver.poll(&mut ctx).is_ready();
            if refused {
                waiting.remove(seq);
            }
            !refused
        });
    }
}

fn run_time(rows: usize) -> Duration {
    4 * MS + MS * rows as u32
}

fn priorities(count: u64, policies: &[(u64, QueuePolicy)]) -> Priorities {
    let policies = policies.iter().cloned().collect();
    Priorities { levels: count, default_level: 1, policies, ..Priorities::default() }
}

/// A model of 8 rows and two instances, which answers about 900 requests of 1.5 rows a second.
fn scene(levels: Levels, rates: &[f64]) -> Scene {
    let settings = QueueSettings { levels, instances: 2, shapes_vary: false, requests_max: 300, ..settings(8) };
    Scene { settings, run_time, rates: rates.to_vec(), faults: 0.1, seconds: 5.0 }
}

fn timeout(action: TimeoutAction, millis: u32) -> QueuePolicy {
    QueuePolicy { timeout_action: action, timeout: Some(millis * MS), ..policy(100) }
}

#[test]
fn strict_levels_with_delay_and_refusals_lose_nothing_and_serve_in_order() {
    for seed in 1..=4 {
        let policies = [(1, timeout(TimeoutAction::Reject, 60)), (2, timeout(TimeoutAction::Delay, 30))];
        let levels = Levels::new(priorities(3, &policies), policy(100));
        let levels = Simulation::new(scene(levels, &[400.0, 300.0, 400.0]), seed).run();
        assert!(levels[0].waited <= 61 * MS, "{levels:?}");
    }
}

#[test]
fn what_strict_priority_starves_gets_its_share_by_weights_and_its_turn_by_age() {
    let rates = [1500.0, 400.0];
    let run = |priorities| Simulation::new(scene(Levels::new(priorities, policy(100)), &rates), 7).run();
    let strict = run(priorities(2, &[]));
    assert!(strict[1].answered * 20 < strict[0].answered, "{strict:?}");
    let shared = run(Priorities { weights: vec![3, 1], ..priorities(2, &[]) });
    let share = shared[1].answered as f64 / (shared[0].answered + shared[1].answered) as f64;
    assert!((0.22..0.28).contains(&share), "{share}: {shared:?}");
    let aged = run(Priorities { ageing: Some(100 * MS), ..priorities(2, &[]) });
    assert!(aged[1].waited < 400 * MS && aged[1].answered * 10 > aged[0].answered, "{aged:?}");
}

#[test]
fn order_is_preserved_whatever_fails_is_cancelled_or_late() {
    for seed in 1..=4 {
        let mut scene = scene(Levels::one(timeout(TimeoutAction::Reject, 80)), &[1000.0]);
        scene.settings.preserve_order = true;
        scene.settings.instances = 3;
        Simulation::new(scene, seed).run();
    }
}
