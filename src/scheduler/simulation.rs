//! The real queue and plan under simulated load: arrivals, run times and the clock are numbers, nothing sleeps.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use super::look::Look;
use super::queue::Queue;
use super::tests::{policy, settings};
use super::{Levels, Limits, Pushed, QueueSettings, Receiver, Scheduler as _, SizeClass, Ticket};
use crate::error::Kind;
use crate::infer::Instant;
use crate::telemetry::stats::ModelStats;
use crate::tensor::Member;

/// A model, and the load on it.
struct Scene {
    rows_max: usize,
    budget: Duration,
    /// Run time of a batch of so many rows, and by how much it varies (0.1: from 90 % to 110 %).
    run_time: fn(usize) -> Duration,
    jitter: f64,
    /// Requests per second; the times between them are exponential.
    rate: f64,
    seconds: f64,
    /// Whether the budget is the callers' deadline, not the model's own.
    by_deadline: bool,
    /// The part of the executions that take up to twice as long, as on a machine that others use.
    spikes: f64,
    /// How the rate changes within the time.
    factor: fn(f64) -> f64,
}

#[derive(Debug, Default)]
struct Outcome {
    sent: usize,
    in_time: usize,
    late: usize,
    refused_at_once: usize,
    given_up: usize,
    executions: usize,
}

/// A small generator of numbers in [0, 1), the same at each run.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// What the one instance runs: until when, whose requests, and what the queue is told of it.
struct Running {
    until: Instant,
    arrivals: Vec<Instant>,
    took: Duration,
}

struct Simulation<'a> {
    scene: &'a Scene,
    queue: Arc<Queue>,
    numbers: Numbers,
    outcome: Outcome,
    give_ups: BinaryHeap<Reverse<(Instant, usize)>>,
    tickets: BTreeMap<usize, Ticket>,
    /// Kept, because a request whose receiver is gone counts as cancelled.
    receivers: Vec<Receiver>,
    running: Option<Running>,
}

impl<'a> Simulation<'a> {
    fn new(scene: &'a Scene) -> Self {
        let settings = QueueSettings {
            requests_max: 100_000,
            limits: Limits {
                rows_max: scene.rows_max,
                budget: (!scene.by_deadline).then_some(scene.budget),
                ..Limits::single()
            },
            levels: Levels::one(policy(100_000)),
            shapes_vary: false,
            ..settings(scene.rows_max)
        };
        let queue = Arc::new(Queue::new(settings, Arc::new(ModelStats::default())));
        // What warm-up would have taught.
        for rows in std::iter::successors(Some(1), |rows| Some(rows * 2)).take_while(|rows| *rows <= scene.rows_max) {
            (0..2).for_each(|_| queue.record_run(SizeClass::of_row(0), rows, (scene.run_time)(rows)));
        }
        Self {
            scene,
            queue,
            numbers: Numbers(0x2545_f491_4f6c_dd1d),
            outcome: Outcome::default(),
            give_ups: BinaryHeap::new(),
            tickets: BTreeMap::new(),
            receivers: Vec::new(),
            running: None,
        }
    }

    fn run(mut self) -> Outcome {
        let began = Instant::now();
        let end = began + Duration::from_secs_f64(self.scene.seconds);
        let mut arrival = began;
        loop {
            let give_up = self.give_ups.peek().map(|Reverse((at, _))| *at);
            let done = self.running.as_ref().map(|running| running.until);
            let arrives = Some(arrival).filter(|at| *at < end);
            let Some(now) = [arrives, give_up, done].into_iter().flatten().min() else { break };
            if done == Some(now) {
                self.finish(now);
            } else if give_up == Some(now) {
                self.give_up();
            } else {
                self.arrive(now);
                let part = (now - began).as_secs_f64() / self.scene.seconds;
                let gap = -(1.0 - self.numbers.next()).ln() / (self.scene.rate * (self.scene.factor)(part));
                arrival = now + Duration::from_secs_f64(gap);
            }
            self.pull(now);
        }
        let failures: u64 = self.queue.stats().snapshot().failures.values().sum();
        let outcome = self.outcome;
        let settled = outcome.in_time + outcome.late + outcome.refused_at_once + outcome.given_up;
        assert_eq!(outcome.sent, settled + failures as usize, "every request has one outcome: {outcome:?}");
        outcome
    }

    fn finish(&mut self, now: Instant) {
        let Some(running) = self.running.take() else { return };
        let rows = running.arrivals.len();
        self.queue.record_run(SizeClass::of_row(0), rows, running.took);
        let in_time = running.arrivals.iter().filter(|arrived| now - **arrived <= self.scene.budget).count();
        self.outcome.in_time += in_time;
        self.outcome.late += rows - in_time;
    }

    fn give_up(&mut self) {
        let Some(Reverse((_, index))) = self.give_ups.pop() else { return };
        let taken =
            self.tickets.remove(&index).is_some_and(|ticket| self.queue.take_back(&ticket, Kind::DeadlineExceeded));
        self.outcome.given_up += usize::from(taken);
    }

    fn arrive(&mut self, now: Instant) {
        let member = Member::new(1, Vec::new());
        let mut request = Pushed::new(member, now);
        request.deadline = self.scene.by_deadline.then(|| now + self.scene.budget);
        match self.queue.clone().push(request, now) {
            Ok((ticket, receiver)) => {
                if let Some(give_up) = ticket.give_up {
                    self.give_ups.push(Reverse((give_up.at, self.outcome.sent)));
                }
                self.tickets.insert(self.outcome.sent, ticket);
                self.receivers.push(receiver);
            }
            Err(_) => self.outcome.refused_at_once += 1,
        }
        self.outcome.sent += 1;
    }

    fn pull(&mut self, now: Instant) {
        while self.running.is_none() {
            match self.queue.look_at(0, now) {
                Look::Run(pulled) => {
                    let mut vary = 1.0 + self.scene.jitter * (2.0 * self.numbers.next() - 1.0);
                    if self.numbers.next() < self.scene.spikes {
                        vary += self.numbers.next();
                    }
                    let took = (self.scene.run_time)(pulled.entries.len()).mul_f64(vary);
                    let arrivals = pulled.entries.iter().map(|entry| entry.arrived).collect();
                    self.outcome.executions += 1;
                    self.running = Some(Running { until: now + took, arrivals, took });
                }
                Look::Again => {}
                Look::Ready | Look::Wait(_) | Look::Closed => break,
            }
        }
    }
}

/// Requests per second with batches of the best size, back to back, each of at most half of the budget: who arrives
/// while one runs must still be in time with the next.
fn capacity(scene: &Scene) -> f64 {
    let rate = |rows: usize| rows as f64 / (scene.run_time)(rows).as_secs_f64();
    let short = |rows: &usize| (scene.run_time)(*rows) <= scene.budget / 2;
    (1..=scene.rows_max).filter(short).map(rate).fold(rate(1), f64::max)
}

fn check(scene: &Scene, goodput_min: f64) {
    let outcome = Simulation::new(scene).run();
    let capacity = capacity(scene);
    let possible = capacity.min(scene.rate) * scene.seconds;
    let share = outcome.in_time as f64 / possible;
    println!("{share:.3} of {possible:.0}: {outcome:?}");
    assert!(share >= goodput_min, "goodput {share:.3} of what is possible: {outcome:?}");
    assert!(outcome.late as f64 <= 0.01 * (outcome.in_time as f64) + 1.0, "{outcome:?}");
}

const MS: Duration = Duration::from_millis(1);

/// Exponential arrivals at one rate, within the model's own budget.
fn steady() -> Scene {
    Scene {
        rows_max: 1,
        budget: Duration::ZERO,
        run_time: flat,
        jitter: 0.0,
        rate: 0.0,
        seconds: 0.0,
        by_deadline: false,
        spikes: 0.0,
        factor: |_| 1.0,
    }
}

fn flat(_rows: usize) -> Duration {
    40 * MS
}

fn linear(rows: usize) -> Duration {
    2 * MS + 18 * MS * rows as u32
}

fn mixed(rows: usize) -> Duration {
    10 * MS + 2 * MS * rows as u32
}

#[test]
fn overload_of_a_model_whose_batches_are_free_loses_little() {
    for rate in [300.0, 2000.0] {
        check(
            &Scene { rows_max: 8, budget: 200 * MS, run_time: flat, jitter: 0.05, rate, seconds: 60.0, ..steady() },
            0.9,
        );
    }
}

#[test]
fn overload_of_a_model_that_gains_nothing_by_batches_loses_little() {
    for rate in [80.0, 500.0] {
        check(
            &Scene { rows_max: 32, budget: 100 * MS, run_time: linear, jitter: 0.1, rate, seconds: 60.0, ..steady() },
            0.85,
        );
    }
}

#[test]
fn overload_of_an_ordinary_model_loses_little() {
    for rate in [400.0, 4000.0] {
        check(
            &Scene { rows_max: 16, budget: 150 * MS, run_time: mixed, jitter: 0.2, rate, seconds: 60.0, ..steady() },
            0.85,
        );
    }
}

#[test]
fn below_capacity_nearly_everything_is_answered_in_time() {
    check(
        &Scene { rows_max: 16, budget: 150 * MS, run_time: mixed, jitter: 0.1, rate: 250.0, seconds: 60.0, ..steady() },
        0.98,
    );
}

/// A request that nobody waits in front of needs no more than its own time, though larger batches would do more.
#[test]
fn run_times_that_vary_refuse_little_below_capacity() {
    let scene = Scene {
        rows_max: 32,
        budget: 97 * MS,
        run_time: |rows| 7 * MS + 15 * MS * rows as u32,
        jitter: 0.5,
        spikes: 0.2,
        rate: 39.0,
        seconds: 60.0,
        by_deadline: true,
        ..steady()
    };
    let outcome = Simulation::new(&scene).run();
    assert!(outcome.in_time as f64 >= 0.81 * outcome.sent as f64, "{outcome:?}");
    assert!(outcome.late <= outcome.sent / 100, "{outcome:?}");
}

/// Twice the rate for the first quarter of each second, as in `examples/load`.
fn bursts(part: f64) -> f64 {
    if (part * 60.0).fract() < 0.25 { 2.0 } else { 2.0 / 3.0 }
}

fn step(part: f64) -> f64 {
    if part < 0.5 { 0.5 } else { 1.5 }
}

/// At one and a half times what a model can do whose run time varies, with an execution in ten that takes half as long
/// again.
fn overload(model: Scene, factor: fn(f64) -> f64, goodput_min: f64) {
    let capacity = model.rows_max as f64 / (model.run_time)(model.rows_max).as_secs_f64() / 1.05;
    let scene = Scene { rate: 1.5 * capacity, spikes: 0.1, by_deadline: true, factor, seconds: 60.0, ..model };
    let outcome = Simulation::new(&scene).run();
    let share = outcome.in_time as f64 / 60.0 / capacity;
    assert!(share >= goodput_min, "{share:.3} of the capacity: {outcome:?}");
    assert!(outcome.late <= outcome.sent / 50, "{outcome:?}");
}

/// An encoder on two processors that others use, too.
#[test]
fn overload_of_callers_with_deadlines_loses_little_however_they_arrive() {
    let run_time = |rows: usize| 1500 * (MS / 1000) + 17 * MS * rows as u32;
    for (factor, goodput_min) in [(steady().factor, 0.88), (bursts, 0.82), (step, 0.78)] {
        overload(Scene { rows_max: 32, budget: 97 * MS, run_time, jitter: 0.1, ..steady() }, factor, goodput_min);
        overload(
            Scene { rows_max: 32, budget: 97 * MS, run_time, jitter: 0.3, ..steady() },
            factor,
            goodput_min - 0.03,
        );
    }
}

/// A model that does a large batch nearly as fast as one row, as on a GPU. Its queue is full of requests with just the time
/// that they need; were none of them given up for others, batches would stay as small as the first one's hurry demands.
#[test]
fn overload_keeps_the_batches_large_that_a_model_needs() {
    let run_time = |rows: usize| 5 * MS + 300 * (MS / 1000) * rows as u32;
    for (factor, goodput_min) in [(steady().factor, 0.93), (bursts, 0.93), (step, 0.84)] {
        overload(Scene { rows_max: 32, budget: 50 * MS, run_time, jitter: 0.3, ..steady() }, factor, goodput_min);
    }
}
