//! The real queue and plan under simulated load: arrivals, run times and the clock are numbers, nothing sleeps.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use super::queue::{Look, Queue, QueueSettings};
use super::{Limits, Pushed, SizeClass, Ticket};
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
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn simulate(scene: &Scene) -> Outcome {
    let limits = Limits { rows_max: scene.rows_max, budget: Some(scene.budget), ..Limits::single() };
    let settings = QueueSettings {
        requests_max: 100_000,
        limits,
        timeout: None,
        timeout_override: true,
        shapes_vary: false,
        instances: 1,
    };
    let queue = Queue::new(settings, Arc::new(ModelStats::default()));
    // What warm-up would have taught.
    let mut rows = 1;
    while rows <= scene.rows_max {
        (0..2).for_each(|_| queue.record_run(SizeClass::of_row(0), rows, (scene.run_time)(rows)));
        rows *= 2;
    }
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(scene.seconds);
    let mut outcome = Outcome::default();
    let mut give_ups: BinaryHeap<Reverse<(Instant, usize)>> = BinaryHeap::new();
    let mut tickets: BTreeMap<usize, Ticket> = BTreeMap::new();
    let mut receivers = Vec::new();
    let mut arrival = began;
    let mut running: Option<(Instant, Vec<Instant>, usize, Duration)> = None;
    loop {
        let give_up = give_ups.peek().map(|Reverse((at, _))| *at);
        let done = running.as_ref().map(|(at, ..)| *at);
        let Some(now) = [Some(arrival).filter(|at| *at < end), give_up, done].into_iter().flatten().min() else {
            break;
        };
        if done == Some(now) {
            let (_, arrivals, rows, took) = running.take().expect("it is done");
            queue.record_run(SizeClass::of_row(0), rows, took);
            let in_time = arrivals.iter().filter(|arrived| now - **arrived <= scene.budget).count();
            outcome.in_time += in_time;
            outcome.late += arrivals.len() - in_time;
        } else if give_up == Some(now) {
            let Some(Reverse((_, index))) = give_ups.pop() else { continue };
            outcome.given_up += usize::from(tickets.remove(&index).is_some_and(|ticket| queue.take_back(&ticket)));
        } else {
            let request =
                Pushed { member: Member { rows: 1, inputs: Vec::new() }, arrived: now, deadline: None, timeout: None };
            match queue.push(request, now) {
                Ok((ticket, receiver)) => {
                    if let Some(give_up) = ticket.give_up {
                        give_ups.push(Reverse((give_up.at, outcome.sent)));
                    }
                    tickets.insert(outcome.sent, ticket);
                    receivers.push(receiver);
                }
                Err(_) => outcome.refused_at_once += 1,
            }
            outcome.sent += 1;
            arrival = now + Duration::from_secs_f64(-(1.0 - numbers.next()).ln() / scene.rate);
        }
        while running.is_none() {
            match queue.look_at(0, now) {
                Look::Run(pulled) => {
                    let rows = pulled.entries.iter().map(|entry| entry.promise.rows).sum();
                    let vary = 1.0 + scene.jitter * (2.0 * numbers.next() - 1.0);
                    let took = (scene.run_time)(rows).mul_f64(vary);
                    let arrivals = pulled.entries.iter().map(|entry| entry.arrived).collect();
                    outcome.executions += 1;
                    running = Some((now + took, arrivals, rows, took));
                }
                Look::Again => {}
                Look::Wait(_) | Look::Closed => break,
            }
        }
    }
    let failures: u64 = queue.stats().snapshot().failures.values().sum();
    let refused_in_plan = failures as usize;
    let settled = outcome.in_time + outcome.late + outcome.refused_at_once + outcome.given_up + refused_in_plan;
    assert_eq!(outcome.sent, settled, "every request has one outcome: {outcome:?}");
    outcome
}

/// Requests per second with batches of the best size, back to back, each of at most half of the budget: who arrives
/// while one runs must still be in time with the next.
fn capacity(scene: &Scene) -> f64 {
    let rate = |rows: usize| rows as f64 / (scene.run_time)(rows).as_secs_f64();
    let short = |rows: &usize| (scene.run_time)(*rows) <= scene.budget / 2;
    (1..=scene.rows_max).filter(short).map(rate).fold(rate(1), f64::max)
}

fn check(scene: &Scene, goodput_min: f64) {
    let outcome = simulate(scene);
    let capacity = capacity(scene);
    let possible = capacity.min(scene.rate) * scene.seconds;
    let share = outcome.in_time as f64 / possible;
    println!("{share:.3} of {possible:.0}: {outcome:?}");
    assert!(share >= goodput_min, "goodput {share:.3} of what is possible: {outcome:?}");
    assert!(outcome.late as f64 <= 0.01 * (outcome.in_time as f64) + 1.0, "{outcome:?}");
}

const MS: Duration = Duration::from_millis(1);

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
        check(&Scene { rows_max: 8, budget: 200 * MS, run_time: flat, jitter: 0.05, rate, seconds: 60.0 }, 0.9);
    }
}

#[test]
fn overload_of_a_model_that_gains_nothing_by_batches_loses_little() {
    for rate in [80.0, 500.0] {
        check(&Scene { rows_max: 32, budget: 100 * MS, run_time: linear, jitter: 0.1, rate, seconds: 60.0 }, 0.85);
    }
}

#[test]
fn overload_of_an_ordinary_model_loses_little() {
    for rate in [400.0, 4000.0] {
        check(&Scene { rows_max: 16, budget: 150 * MS, run_time: mixed, jitter: 0.2, rate, seconds: 60.0 }, 0.85);
    }
}

#[test]
fn below_capacity_nearly_everything_is_answered_in_time() {
    check(&Scene { rows_max: 16, budget: 150 * MS, run_time: mixed, jitter: 0.1, rate: 250.0, seconds: 60.0 }, 0.98);
}
