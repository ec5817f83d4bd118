//! Requests that wait for models: one load for all of them, one error for all of them, and nobody waits for nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join;
use tokio::sync::oneshot;

use super::*;
use crate::error::Kind;

fn demand(waiting_max: usize) -> Arc<Demand> {
    Demand::new(waiting_max, &Metrics::new())
}

fn key() -> Key {
    Key::of("m")
}

/// A load that ends when the test says so, and how often it was asked for.
#[derive(Clone, Default)]
struct Loads(Arc<AtomicUsize>);

impl Loads {
    fn ask(&self, end: oneshot::Receiver<Result<()>>) -> impl Future<Output = Result<()>> + Send + use<> {
        self.0.fetch_add(1, Ordering::Relaxed);
        async move { end.await.unwrap_or_else(|_| Err(Error::internal("it was given up"))) }
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn now(result: Result<()>) -> oneshot::Receiver<Result<()>> {
    let (end, wait) = oneshot::channel();
    end.send(result).expect("it waits");
    wait
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_share_one_load_and_its_error() {
    let (demand, loads) = (demand(10), Loads::default());
    let visits = [demand.visit(&key()), demand.visit(&key())].map(|visit| visit.expect("there is room"));
    let (end, wait) = oneshot::channel();
    let first = visits[0].load(|| loads.ask(wait));
    let second = visits[1].load(|| loads.ask(now(Ok(()))));
    let (first, second, ()) = futures_util::future::join3(first, second, async {
        end.send(Err(Error::unavailable("broken"))).expect("it waits");
    })
    .await;
    assert_eq!((first.clone(), loads.count()), (second, 1));
    assert_eq!(first.expect_err("it failed").message(), "broken");
}

#[tokio::test(start_paused = true)]
async fn a_broken_model_is_left_alone_for_longer_and_longer() {
    let (demand, loads) = (demand(10), Loads::default());
    let mut delays = Vec::new();
    for _ in 0..4 {
        let began = Instant::now();
        let visit = loop {
            match demand.visit(&key()) {
                Ok(visit) => break visit,
                Err(error) => assert_eq!(error.message(), "broken"),
            }
            tokio::time::advance(Duration::from_millis(10)).await;
        };
        delays.push(began.elapsed().as_millis());
        let failed = visit.load(|| loads.ask(now(Err(Error::unavailable("broken"))))).await;
        assert!(failed.is_err() && !demand.is_wanted(&key()));
    }
    assert_eq!(delays, [0, 100, 200, 400]);
    tokio::time::advance(Duration::from_secs(1)).await;
    let visit = demand.visit(&key()).expect("its time is over");
    assert_eq!(visit.load(|| loads.ask(now(Ok(())))).await, Ok(()));
    drop(visit);
    assert!(demand.visit(&key()).is_ok(), "what went well is forgotten");
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_takes_the_load_from_nobody() {
    let (demand, loads) = (demand(10), Loads::default());
    let (end, wait) = oneshot::channel();
    let impatient = demand.visit(&key()).expect("there is room");
    let patient = demand.visit(&key()).expect("there is room");
    {
        let gives_up = tokio::time::timeout(Duration::from_millis(5), impatient.load(|| loads.ask(wait)));
        assert!(gives_up.await.is_err());
    }
    drop(impatient);
    let (loaded, ()) = join(patient.load(|| loads.ask(now(Err(Error::internal("asked twice"))))), async {
        end.send(Ok(())).expect("it is still waited for");
    })
    .await;
    assert_eq!((loaded, loads.count()), (Ok(()), 1));
    drop(patient);
    assert!(!demand.is_needed(&key()));
}

#[tokio::test(start_paused = true)]
async fn a_load_whose_callers_were_hasty_is_joined_by_the_next_and_its_failure_is_known() {
    let (demand, loads) = (demand(10), Loads::default());
    let (end, wait) = oneshot::channel();
    let mut hasty = Some(wait);
    for _ in 0..3 {
        let visit = demand.visit(&key()).expect("nothing has failed yet");
        let load = visit.load(|| loads.ask(hasty.take().expect("asked once")));
        assert!(tokio::time::timeout(Duration::from_millis(5), load).await.is_err());
    }
    end.send(Err(Error::unavailable("broken"))).expect("the load goes on");
    tokio::task::yield_now().await;
    assert_eq!(demand.visit(&key()).err().expect("it is left alone").message(), "broken");
    assert_eq!(loads.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn too_many_are_refused() {
    let demand = demand(2);
    let visits = [demand.visit(&key()), demand.visit(&key())].map(|visit| visit.expect("there is room"));
    assert_eq!(demand.visit(&key()).err().expect("it is full").kind(), Kind::QueueFull);
    assert!(demand.visit(&Key::of("other")).is_ok(), "each model has its own");
    drop(visits);
    assert!(demand.visit(&key()).is_ok());
}

#[test]
fn what_a_load_needs_stays_as_long_as_it_goes_on() {
    let demand = demand(1);
    let progress = Arc::new(Progress::new());
    demand.hold(&progress, &Key::of("ensemble"), &[key()]);
    assert!(demand.is_needed(&key()) && demand.is_wanted(&key()));
    assert!(!demand.is_needed(&Key::of("other")));
    drop(progress);
    assert!(!demand.is_needed(&key()));
}

#[test]
fn what_is_needed_since_it_was_chosen_does_not_leave_and_stays_wanted() {
    let demand = demand(1);
    let (user, leaves) =
        (Key::of("ensemble"), || vec![(key(), BTreeMap::new()), (Key::of("ensemble"), BTreeMap::new())]);
    let wanted = demand.want(&user);
    assert!(!demand.evicted(leaves()) && demand.is_wanted(&user) && !demand.returns(&key()));
    drop(wanted);
    let progress = Arc::new(Progress::new());
    demand.hold(&progress, &user, &[key()]);
    assert!(!demand.evicted(leaves()) && demand.is_wanted(&key()));
    drop(progress);
    assert!(demand.evicted(leaves()) && demand.returns(&key()) && !demand.is_wanted(&user));
}

#[test]
fn a_load_keeps_what_those_hold_that_wait_for_it() {
    let demand = demand(1);
    let keys = |names: &[&str]| names.iter().map(|name| Key::of(name)).collect::<Vec<_>>();
    let progress = Arc::new(Progress::new());
    for (ensemble, members) in [("inner", ["a", "b"]), ("outer", ["inner", "c"]), ("other", ["a", "d"])] {
        demand.hold(&progress, &Key::of(ensemble), &keys(&members));
    }
    let kept = |name: &str| demand.kept_by(&Key::of(name)).into_iter().collect::<Vec<_>>();
    assert_eq!(
        kept("b"),
        keys(&["a", "b", "c", "inner", "outer"]),
        "but not what it holds for others with one of them"
    );
    assert_eq!(kept("d"), keys(&["a", "d", "other"]));
    assert_eq!(kept("e"), keys(&["e"]));
    drop(progress);
    assert_eq!(kept("b"), keys(&["b"]));
}

#[test]
fn loads_that_have_ended_leave_nothing_behind() {
    let demand = demand(1);
    for _ in 0..10 {
        demand.hold(&Arc::new(Progress::new()), &Key::of("ensemble"), &[key(), Key::of("other")]);
    }
    assert_eq!(demand.state.lock().holds.len(), 1, "those of the last one");
}

#[test]
fn names_that_mean_nothing_leave_nothing_behind() {
    let demand = demand(1);
    drop(demand.want(&key()));
    demand.is_nowhere(&key());
    assert!(demand.state.lock().models.is_empty());
    demand.forget(&key());
    assert!(demand.state.lock().models.is_empty());
}

#[test]
fn requests_bring_back_what_is_on_demand_or_was_evicted() {
    let demand = demand(1);
    assert!(!demand.returns(&key()));
    demand.configured(&key(), Residency::Resident);
    assert!(!demand.returns(&key()));
    assert!(demand.evicted(vec![(key(), BTreeMap::new())]));
    assert!(demand.returns(&key()));
    demand.forget(&key());
    assert!(!demand.returns(&key()));
    demand.configured(&key(), Residency::OnDemand);
    assert!(demand.returns(&key()));
}
