//! The hand-over of a request between its waiter and an instance, in the orders that threads can take.
//!
//! Shuttle runs each test many times and decides at every lock which thread goes on, at random from a seed that it
//! prints if a run fails. A thread that is never woken is a deadlock, which fails the run. What is checked at the end
//! is always the same: each request had exactly one outcome, and its waiter heard the one that was counted.
//! `cargo test --features shuttle --lib handover`

use std::sync::Arc;

use futures_util::StreamExt as _;
use shuttle::future::block_on;
use shuttle::thread;

use super::instance::Afterwards;
use super::responses::ResponseLimits;
use super::tests::{Asked, respond};
use super::*;
use crate::backend::{Instance, Replies};
use crate::error::{Error, Kind};
use crate::infer::{CorrelationId, round};
use crate::model::{Device, Instances, ModelConfig, SequenceBatching};
use crate::tensor::{Batch, DataType, Shape};

/// So many orders of each test.
const ORDERS: usize = 20_000;

/// Answers each member with its inputs; fails every batch if told so.
struct Puppet {
    fails: bool,
    /// Responses before the last one, for a decoupled model.
    more: usize,
}

impl Instance for Puppet {
    fn run(&mut self, batch: &Batch, replies: &mut dyn Replies) -> Result<()> {
        if self.fails {
            return Err(Error::new(Kind::Backend, "told to fail"));
        }
        for (index, member) in batch.members.iter().enumerate() {
            for _ in 0..self.more {
                replies.send(index, member.inputs.clone())?;
            }
            replies.member(index, member.inputs.clone())?;
        }
        Ok(())
    }
}

struct Scene {
    queue: Arc<Queue>,
    stats: Arc<ModelStats>,
}

impl Scene {
    fn new(instances: usize, responses: Option<ResponseLimits>) -> Self {
        let stats = Arc::new(ModelStats::default());
        // Requests of a decoupled model never share a batch.
        let rows_max = if responses.is_some() { 1 } else { 4 };
        let settings = QueueSettings { instances, responses, ..tests::settings(rows_max) };
        Self { queue: Arc::new(Queue::new(settings, stats.clone())), stats }
    }

    fn push(&self) -> Option<Asked> {
        push(&self.queue).ok()
    }

    /// An instance's thread, until the queue is closed.
    fn instance(&self, index: usize, mut puppet: Puppet) -> thread::JoinHandle<()> {
        let queue = self.queue.clone();
        thread::spawn(move || {
            while let Some(pulled) = queue.pull(index) {
                instance::execute(&*queue, index, &mut puppet, pulled);
            }
        })
    }

    /// The same of one that others run while it has nothing to do.
    fn lends(&self, index: usize) -> thread::JoinHandle<()> {
        let queue = self.queue.clone();
        thread::spawn(move || {
            let (instance, state) = (Box::new(puppet()), Afterwards::Usable);
            let mut lent = Lent { index, instance, on_host: true, watch: None, busy: None, state };
            while let Some((pulled, mut own)) = queue.pull_lending(lent) {
                if let Some(pulled) = pulled {
                    own.execute(&*queue, pulled);
                }
                lent = own;
            }
        })
    }

    /// A network thread that brings two requests in one round.
    fn round(&self) -> thread::JoinHandle<()> {
        let queue = self.queue.clone();
        thread::spawn(move || {
            round::begin();
            let waiters = [push(&queue), push(&queue)].map(|waiter| waiter.expect("there is room"));
            round::end();
            waiters.into_iter().for_each(|waiter| assert_eq!(wait(waiter), Ok(())));
        })
    }

    /// How many were answered and how many were not.
    fn counted(&self) -> (u64, u64) {
        let now = self.stats.snapshot();
        (now.success.count, now.failures.values().sum())
    }
}

fn push(queue: &Arc<Queue>) -> Result<Asked, Refusal> {
    let now = Instant::now();
    let tensor = Tensor::new(DataType::Uint8, Shape::new(&[1, 1]), vec![7].into());
    let member = Member::new(1, vec![tensor]);
    let waiting = queue.clone().push(Pushed::new(member, now), now)?;
    Ok(Waiter::new(queue.clone(), waiting, (now, None), respond()))
}

fn puppet() -> Puppet {
    Puppet { fails: false, more: 0 }
}

/// What a waiter heard last.
fn wait(mut waiter: Asked) -> Result<()> {
    let mut last = Err(Error::internal("nothing"));
    block_on(async {
        while let Some(response) = waiter.next().await {
            last = response.map(|_| ());
        }
    });
    last
}

#[test]
fn a_request_is_answered_whoever_comes_first() {
    shuttle::check_random(
        || {
            let scene = Scene::new(1, None);
            let thread = scene.instance(0, puppet());
            assert_eq!(wait(scene.push().expect("there is room")), Ok(()));
            scene.queue.close();
            thread.join().expect("the instance ends");
            assert_eq!(scene.counted(), (1, 0));
        },
        ORDERS,
    );
}

#[test]
fn who_runs_a_lent_instance_leaves_no_request_behind() {
    shuttle::check_random(
        || {
            let scene = Scene::new(2, None);
            let instances = [scene.lends(0), scene.lends(1)];
            let rounds = [scene.round(), scene.round()];
            // Not of a network thread: somebody who is awake must see it.
            assert_eq!(wait(scene.push().expect("there is room")), Ok(()));
            rounds.into_iter().for_each(|thread| thread.join().expect("the round ends"));
            scene.queue.close();
            instances.into_iter().for_each(|thread| thread.join().expect("the instance ends"));
            assert_eq!(scene.counted(), (5, 0));
        },
        ORDERS,
    );
}

#[test]
fn a_stop_while_somebody_runs_a_lent_instance_answers_or_refuses_everything() {
    shuttle::check_random(
        || {
            let scene = Scene::new(1, None);
            let instance = scene.lends(0);
            let queue = scene.queue.clone();
            let round = thread::spawn(move || {
                round::begin();
                let waiters: Vec<_> = (0..2).filter_map(|_| push(&queue).ok()).collect();
                round::end();
                waiters.into_iter().map(wait).fold((0, 0), |(answered, failed), heard| match heard {
                    Ok(()) => (answered + 1, failed),
                    Err(_) => (answered, failed + 1),
                })
            });
            scene.queue.abort();
            let heard = round.join().expect("the round ends");
            instance.join().expect("the instance ends");
            assert_eq!(scene.counted(), heard);
        },
        ORDERS,
    );
}

#[test]
fn a_request_that_is_cancelled_while_an_instance_reaches_for_it_has_one_outcome() {
    shuttle::check_random(
        || {
            let scene = Scene::new(2, None);
            let threads = [scene.instance(0, puppet()), scene.instance(1, puppet())];
            let stays = scene.push().expect("there is room");
            let goes = scene.push().expect("there is room");
            let gone = thread::spawn(move || drop(goes));
            assert_eq!(wait(stays), Ok(()));
            gone.join().expect("the drop ends");
            scene.queue.close();
            threads.into_iter().for_each(|thread| thread.join().expect("the instance ends"));
            let (answered, failed) = scene.counted();
            assert_eq!(answered + failed, 2);
            assert!(answered >= 1);
        },
        ORDERS,
    );
}

#[test]
fn a_timeout_and_an_answer_at_once_are_one_outcome_and_the_waiter_hears_that_one() {
    shuttle::check_random(
        || {
            let scene = Scene::new(1, None);
            let thread = scene.instance(0, puppet());
            let mut waiter = scene.push().expect("there is room");
            // The first time it is taken back if it still waits, the second time, if it runs, nobody waits any more.
            let outcome = waiter.time_is_up().or_else(|| waiter.time_is_up()).expect("the second is an outcome");
            drop(waiter);
            scene.queue.close();
            thread.join().expect("the instance ends");
            let expected = if outcome.is_ok() { (1, 0) } else { (0, 1) };
            assert_eq!(scene.counted(), expected);
        },
        ORDERS,
    );
}

#[test]
fn a_failure_reaches_each_waiter_and_counts_for_each() {
    shuttle::check_random(
        || {
            let scene = Scene::new(1, None);
            let waiters = [scene.push(), scene.push(), scene.push()].map(|waiter| waiter.expect("there is room"));
            let thread = scene.instance(0, Puppet { fails: true, more: 0 });
            for waiter in waiters {
                assert_eq!(wait(waiter).map_err(|error| error.kind()), Err(Kind::Backend));
            }
            scene.queue.close();
            thread.join().expect("the instance ends");
            assert_eq!(scene.counted(), (0, 3));
        },
        ORDERS,
    );
}

#[test]
fn a_request_that_comes_while_its_queue_is_replaced_is_answered_by_one_of_both() {
    shuttle::check_random(
        || {
            let (old, new) = (Scene::new(1, None), Scene::new(1, None));
            let threads = [old.instance(0, puppet()), new.instance(0, puppet())];
            let shown = Arc::new(sync::Mutex::new(old.queue.clone()));
            let (seen, next, replaced) = (shown.clone(), new.queue.clone(), old.queue.clone());
            let swap = thread::spawn(move || {
                *seen.lock() = next;
                replaced.close();
            });
            let found = || shown.lock().clone();
            let waiter = match push(&found()) {
                Err(Refusal::Closed(_)) => push(&found()).expect("readers see the new one before the old one closes"),
                pushed => pushed.expect("there is room"),
            };
            assert_eq!(wait(waiter), Ok(()));
            swap.join().expect("the swap ends");
            new.queue.close();
            threads.into_iter().for_each(|thread| thread.join().expect("the instance ends"));
            let (of_old, of_new) = (old.counted(), new.counted());
            assert_eq!((of_old.0 + of_new.0, of_old.1 + of_new.1), (1, 0));
        },
        ORDERS,
    );
}

#[test]
fn a_stop_answers_or_refuses_everything() {
    shuttle::check_random(
        || {
            let scene = Scene::new(2, None);
            let threads = [scene.instance(0, puppet()), scene.instance(1, puppet())];
            let queue = scene.queue.clone();
            let stop = thread::spawn(move || queue.abort());
            let pushed: Vec<_> = (0..3).filter_map(|_| scene.push()).collect();
            let accepted = pushed.len() as u64;
            let answered = pushed.into_iter().map(wait).filter(Result::is_ok).count() as u64;
            stop.join().expect("the stop ends");
            threads.into_iter().for_each(|thread| thread.join().expect("the instance ends"));
            assert_eq!(scene.counted(), (answered, accepted - answered));
            assert_eq!(scene.queue.waiting(), 0);
        },
        ORDERS,
    );
}

#[test]
fn an_abort_wakes_an_instance_that_waits_for_a_sequence_of_another_one() {
    shuttle::check_random(
        || {
            let batching = sequence::tests::batching(sequence::tests::direct(Duration::ZERO, 0.0));
            let batching = SequenceBatching { controls: Vec::new(), states: Vec::new(), ..batching };
            let instances = vec![Instances::new("g", Device::Cpu, 2)];
            let config = ModelConfig { instances, ..ModelConfig::new("m", "b") };
            let settings = SequenceSettings::new(&config, &batching, ResponseLimits::default()).expect("it is right");
            let scheduler = Sequences::new(settings, Arc::default());
            let push = || {
                let now = Instant::now();
                let sequence = Some(Sequence { id: CorrelationId::Number(1), start: true, end: false });
                let pushed = Pushed { sequence, ..Pushed::new(Member::new(1, Vec::new()), now) };
                scheduler.clone().push(pushed, now).expect("there is room")
            };
            // The second begins anew behind the first, which never ends.
            let (_first, _second) = (push(), push());
            let _runs = scheduler.try_pull(0).expect("it waits");
            let other = scheduler.clone();
            let other = thread::spawn(move || other.pull(1).is_none());
            scheduler.abort();
            assert!(other.join().expect("the instance ends"));
        },
        ORDERS,
    );
}

#[test]
fn a_caller_that_leaves_amid_the_responses_frees_the_instance() {
    shuttle::check_random(
        || {
            let limits = ResponseLimits { waiting_max: 1, stall_max: Duration::from_secs(1 << 20) };
            let scene = Scene::new(1, Some(limits));
            let thread = scene.instance(0, Puppet { fails: false, more: 3 });
            let mut leaves = scene.push().expect("there is room");
            let stays = scene.push().expect("there is room");
            let left = thread::spawn(move || {
                assert!(block_on(leaves.next()).is_some_and(|response| response.is_ok()));
            });
            assert_eq!(wait(stays), Ok(()));
            left.join().expect("the caller leaves");
            scene.queue.close();
            thread.join().expect("the instance ends");
            let (answered, failed) = scene.counted();
            assert_eq!(answered + failed, 2);
            assert!(answered >= 1);
        },
        ORDERS,
    );
}
