//! Callers of the cache against runs that do nothing until they are told to, in virtual time.

use std::task::Waker;

use bytes::Bytes;
use futures_util::FutureExt as _;
use parking_lot::Mutex as Lock;
use proptest::prelude::*;
use tokio::sync::mpsc;

use super::*;
use crate::error::{Error, Kind, Result};
use crate::infer::{Output, Parameters, RequestedOutput, Responses, Sequence, round};
use crate::model::Scheduling;
use crate::tensor::{DataType, NamedTensor, Shape, Tensor};

/// One version with a cache, and the runs that were started.
struct Site {
    metrics: Metrics,
    stats: Arc<ModelStats>,
    cache: Arc<ModelCache>,
    runs: Arc<Lock<Vec<Run>>>,
}

/// A request that was started: the way to answer it.
struct Run {
    id: String,
    replies: mpsc::UnboundedSender<Result<Response>>,
}

impl Run {
    fn answer(&self, byte: u8) {
        let _ = self.replies.send(Ok(response(&self.id, byte)));
    }

    fn fail(&self, kind: Kind) {
        let _ = self.replies.send(Err(Error::new(kind, "it failed")));
    }

    fn is_dropped(&self) -> bool {
        self.replies.is_closed()
    }
}

fn response(id: &str, byte: u8) -> Response {
    let tensor = Tensor::new(DataType::Uint8, Shape::new(&[1]), Bytes::from(vec![byte]));
    let outputs = vec![Output { name: "y".into(), tensor, placed: false }];
    let (model, parameters) = ("m".into(), Parameters::new());
    Response { model, version: 1, id: id.to_owned(), outputs, parameters, last: true, times: None }
}

fn config() -> ModelConfig {
    let mut config = ModelConfig { response_cache: true, ..ModelConfig::new("m", "identity") };
    if let Scheduling::Single(policy) = &mut config.scheduling {
        policy.requests_max = 4;
    }
    config
}

impl Site {
    fn new(config: &ModelConfig) -> Self {
        let metrics = Metrics::new();
        let cache = Arc::new(Cache::new(&Settings { bytes_max: 1 << 20, ttl: None }, &metrics));
        Self::over(&cache, &metrics, config)
    }

    fn over(cache: &Arc<Cache>, metrics: &Metrics, config: &ModelConfig) -> Self {
        let stats = Arc::new(ModelStats::new(metrics, config, 1));
        let cache = ModelCache::new(Some(cache), config, &stats).expect("the model asks for it");
        Self { metrics: metrics.clone(), stats, cache, runs: Arc::default() }
    }

    fn call(&self, request: Request) -> Responses {
        let runs = self.runs.clone();
        let start = move |request: Request, in_flight| {
            let (replies, mut waiting) = mpsc::unbounded_channel();
            runs.lock().push(Run { id: request.id, replies });
            let stream = futures_util::stream::poll_fn(move |ctx| {
                let _in_flight = &in_flight;
                waiting.poll_recv(ctx)
            });
            Box::pin(stream) as Responses
        };
        let in_flight = self.metrics.request_received();
        Box::pin(Caller::new(self.cache.clone(), Own { request, in_flight, start }))
    }

    /// A run that was started.
    fn run(&self, index: usize) -> parking_lot::MappedMutexGuard<'_, Run> {
        parking_lot::MutexGuard::map(self.runs.lock(), |runs| &mut runs[index])
    }

    fn started(&self) -> usize {
        self.runs.lock().len()
    }

    /// Hits, misses, and requests that failed while they waited.
    fn counts(&self) -> (u64, u64, u64) {
        let now = self.stats.snapshot();
        (now.cache_hit.count, now.cache_miss.count, now.fail.count)
    }

    fn in_flight(&self) -> String {
        let text = self.metrics.render();
        let value = text.lines().find_map(|line| line.strip_prefix("nereid_requests_in_flight "));
        value.unwrap_or_default().to_owned()
    }
}

/// A request whose input is this byte.
fn request(id: &str, byte: u8) -> Request {
    let tensor = Tensor::new(DataType::Uint8, Shape::new(&[1]), Bytes::from(vec![byte]));
    let inputs = vec![NamedTensor { name: "x".to_owned(), tensor }];
    Request { id: id.to_owned(), inputs, ..Request::new("m", Instant::now()) }
}

/// The first element, if it is there.
fn poll(responses: &mut Responses) -> Option<Result<Response>> {
    match responses.as_mut().poll_next(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(first) => Some(first.unwrap_or_else(|| Err(Error::internal("it has ended")))),
        Poll::Pending => None,
    }
}

/// What a caller has got: its id and the byte of the answer, or the kind of the error.
fn got(responses: &mut Responses) -> Option<std::result::Result<(String, u8), Kind>> {
    let shown = |response: Response| (response.id, response.outputs[0].tensor.data[0]);
    poll(responses).map(|first| first.map(shown).map_err(|error| error.kind()))
}

fn answered(id: &str, byte: u8) -> Option<std::result::Result<(String, u8), Kind>> {
    Some(Ok((id.to_owned(), byte)))
}

#[tokio::test(start_paused = true)]
async fn what_was_answered_once_is_not_executed_again() {
    let site = Site::new(&config());
    let mut first = site.call(request("a", 1));
    assert_eq!(got(&mut first), None);
    site.run(0).answer(7);
    assert_eq!(got(&mut first), answered("a", 7));
    assert_eq!(poll(&mut first).map(|end| end.is_err()), Some(true), "there is one response");
    let mut second = site.call(request("b", 1));
    assert_eq!(got(&mut second), answered("b", 7));
    let _other = site.call(request("c", 2));
    assert_eq!((site.started(), site.counts()), (2, (1, 1, 0)));
}

#[tokio::test(start_paused = true)]
async fn equal_requests_at_the_same_time_are_executed_once() {
    let site = Site::new(&config());
    let mut callers = ["a", "b", "c"].map(|id| site.call(request(id, 1)));
    assert!(callers.iter_mut().all(|caller| got(caller).is_none()));
    site.run(0).answer(7);
    for (caller, id) in callers.iter_mut().zip(["a", "b", "c"]) {
        assert_eq!(got(caller), answered(id, 7));
    }
    assert_eq!((site.started(), site.counts()), (1, (2, 1, 0)));
    assert!(site.cache.is_idle());
    assert_eq!(site.in_flight(), "0");
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_woken() {
    let site = Site::new(&config());
    let mut callers = ["a", "b"].map(|id| site.call(request(id, 1)));
    let [leader, follower] = &mut callers;
    let both = async { tokio::join!(crate::infer::only(std::mem::replace(leader, pending())), take(follower)) };
    let answer = async { site.run(0).answer(7) };
    let ((one, other), ()) = tokio::join!(both, answer);
    assert_eq!((one.map(|it| it.id), other.map(|it| it.id)), (Ok("a".to_owned()), Ok("b".to_owned())));
}

fn pending() -> Responses {
    Box::pin(futures_util::stream::pending())
}

async fn take(responses: &mut Responses) -> Result<Response> {
    crate::infer::only(std::mem::replace(responses, pending())).await
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_gone_is_replaced_and_nobody_else_hears_of_it() {
    let site = Site::new(&config());
    let leader = site.call(request("a", 1));
    let mut others = ["b", "c"].map(|id| site.call(request(id, 1)));
    assert!(others.iter_mut().all(|caller| got(caller).is_none()));
    drop(leader);
    assert!(site.run(0).is_dropped());
    assert!(others.iter_mut().all(|caller| got(caller).is_none()));
    assert_eq!(site.started(), 2, "one of the two leads now");
    site.run(1).answer(7);
    let [second, third] = &mut others;
    assert_eq!((got(second), got(third)), (answered("b", 7), answered("c", 7)));
    assert_eq!(site.counts(), (1, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_overtakes_the_end_of_its_leader_ends_no_other_flight() {
    let site = Site::new(&config());
    let _leader = site.call(request("a", 1));
    let mut follower = site.call(request("b", 1));
    assert_eq!(got(&mut follower), None);
    let (key, flight) =
        site.cache.flights.lock().iter().map(|(key, flight)| (*key, flight.clone())).next().expect("one");
    // The leader's thread has come as far as this when another request comes, and the answer.
    site.cache.close(&key, &flight);
    let _next = site.call(request("c", 1));
    site.run(0).answer(7);
    assert_eq!(got(&mut follower), answered("b", 7));
    assert_eq!((site.started(), site.cache.flights.lock().len()), (2, 1), "the second flight is under way");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_late_fails_alone() {
    for kind in [Kind::DeadlineExceeded, Kind::TimedOut, Kind::BudgetExceeded, Kind::Cancelled] {
        let site = Site::new(&config());
        let mut leader = site.call(request("a", 1));
        let mut others = ["b", "c"].map(|id| site.call(request(id, 1)));
        site.run(0).fail(kind);
        assert!(others.iter_mut().all(|caller| got(caller).is_none()));
        assert_eq!(got(&mut leader), Some(Err(kind)));
        assert_eq!(site.started(), 2);
        site.run(1).answer(7);
        assert_eq!(others.each_mut().map(got), [answered("b", 7), answered("c", 7)]);
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_each_is_executed_for_itself_at_once() {
    let site = Site::new(&config());
    let mut callers = ["a", "b", "c"].map(|id| site.call(request(id, 1)));
    site.run(0).fail(Kind::Backend);
    let [leader, others @ ..] = &mut callers;
    assert_eq!(got(leader), Some(Err(Kind::Backend)));
    assert!(others.iter_mut().all(|caller| got(caller).is_none()));
    assert_eq!(site.started(), 3);
    site.run(1).fail(Kind::Backend);
    site.run(2).answer(7);
    let [second, third] = others;
    assert_eq!((got(second), got(third)), (Some(Err(Kind::Backend)), answered("c", 7)));
    assert_eq!(site.counts(), (0, 3, 0));
    assert!(site.cache.is_idle());
}

#[tokio::test(start_paused = true)]
async fn who_waits_has_its_own_deadline_to_the_millisecond() {
    let site = Site::new(&config());
    let mut leader = site.call(request("a", 1));
    let began = Instant::now();
    let deadline = began + Duration::from_millis(30);
    let late = site.call(Request { deadline: Some(deadline), ..request("b", 1) });
    let error = crate::infer::only(late).await.expect_err("its time is up");
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    // Timers have milliseconds.
    assert!((30..=31).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    assert_eq!(site.counts(), (0, 0, 1));
    site.run(0).answer(7);
    assert_eq!(got(&mut leader), answered("a", 7));
    assert_eq!(site.in_flight(), "0");
}

#[tokio::test(start_paused = true)]
async fn a_queue_timeout_refuses_who_waits_unless_it_only_delays() {
    for (action, expected) in [(TimeoutAction::Reject, Some(Err(Kind::TimedOut))), (TimeoutAction::Delay, None)] {
        let mut config = config();
        if let Scheduling::Single(policy) = &mut config.scheduling {
            (policy.timeout, policy.timeout_action) = (Some(Duration::from_millis(10)), action);
        }
        let site = Site::new(&config);
        let _leader = site.call(request("a", 1));
        let mut follower = site.call(request("b", 1));
        tokio::time::advance(Duration::from_millis(20)).await;
        assert_eq!(got(&mut follower), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_request_lets_others_have_their_turn() {
    let site = Site::new(&config());
    let large = |id| {
        let mut request = request(id, 1);
        request.inputs[0].tensor.data = Bytes::from(vec![1; 3 << 20]);
        request
    };
    round::begin();
    round::put_off(|| Waker::noop().clone());
    let mut first = site.call(large("a"));
    assert_eq!((got(&mut first), site.started()), (None, 0), "it is not read to its end yet");
    assert!(!round::has_put_off(), "other threads have their turn, too");
    drop(site.call(large("b")));
    assert_eq!(site.counts(), (0, 0, 1));
    let leading = tokio::spawn(crate::infer::only(first));
    while site.started() == 0 {
        tokio::task::yield_now().await;
    }
    site.run(0).answer(7);
    assert_eq!(leading.await.expect("no panic").expect("an answer").id, "a");
    assert_eq!(crate::infer::only(site.call(large("c"))).await.expect("it was kept").id, "c");
    assert_eq!((site.started(), site.counts(), site.cache.is_idle()), (1, (1, 1, 1), true));
}

#[tokio::test(start_paused = true)]
async fn who_stops_waiting_counts_as_cancelled_and_the_leader_goes_on() {
    let site = Site::new(&config());
    let mut leader = site.call(request("a", 1));
    let mut follower = site.call(request("b", 1));
    assert_eq!(got(&mut follower), None);
    drop(follower);
    assert_eq!(site.stats.snapshot().failures[&Kind::Cancelled], 1);
    site.run(0).answer(7);
    assert_eq!(got(&mut leader), answered("a", 7));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_leader_that_has_stopped_reading() {
    let site = Site::new(&config());
    let mut leader = site.call(request("a", 1));
    let follower = tokio::spawn(crate::infer::only(site.call(request("b", 1))));
    tokio::task::yield_now().await;
    site.run(0).answer(7);
    assert_eq!(follower.await.expect("no panic").expect("an answer").id, "b");
    assert_eq!(got(&mut leader), answered("a", 7), "its answer is still there");
}

#[tokio::test(start_paused = true)]
async fn no_more_wait_than_the_queue_would_hold() {
    let site = Site::new(&config());
    let _leader = site.call(request("a", 1));
    let mut waiting: Vec<Responses> = (0..4).map(|_| site.call(request("b", 1))).collect();
    let mut refused = site.call(request("c", 1));
    assert_eq!(got(&mut refused), Some(Err(Kind::QueueFull)));
    waiting.pop();
    let mut taken = site.call(request("d", 1));
    assert_eq!(got(&mut taken), None);
}

#[tokio::test(start_paused = true)]
async fn an_answer_lives_as_long_as_the_model_says() {
    let ttl = Some(Duration::from_secs(5));
    let site = Site::new(&ModelConfig { response_cache_ttl: ttl, ..config() });
    let mut first = site.call(request("a", 1));
    site.run(0).answer(7);
    assert_eq!(got(&mut first), answered("a", 7));
    tokio::time::advance(Duration::from_secs(4)).await;
    assert_eq!(got(&mut site.call(request("b", 1))), answered("b", 7));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(got(&mut site.call(request("c", 1))), None);
    let text = site.metrics.render();
    assert!(text.contains("nereid_cache_evictions_total{reason=\"expired\"} 1"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_reload_finds_nothing_of_what_was_before_and_an_unload_leaves_nothing() {
    let metrics = Metrics::new();
    let cache = Arc::new(Cache::new(&Settings { bytes_max: 1 << 20, ttl: None }, &metrics));
    let old = Site::over(&cache, &metrics, &config());
    let mut first = old.call(request("a", 1));
    old.run(0).answer(7);
    assert_eq!(got(&mut first), answered("a", 7));
    let new = Site::over(&cache, &metrics, &config());
    assert_eq!(got(&mut new.call(request("b", 1))), None);
    drop((first, old));
    let holds = |name: &str| metrics.render().lines().any(|line| line == format!("{name} 0"));
    assert!(holds("nereid_cache_entries") && holds("nereid_cache_bytes"));
}

#[tokio::test(start_paused = true)]
async fn several_responses_are_nobody_elses() {
    let site = Site::new(&config());
    let mut leader = site.call(request("a", 1));
    let mut other = site.call(request("b", 1));
    let more = Response { last: false, ..response("a", 1) };
    site.run(0).replies.send(Ok(more)).expect("the leader is there");
    assert_eq!(got(&mut other), None);
    assert_eq!(site.started(), 2);
    assert_eq!(got(&mut leader), answered("a", 1));
    assert_eq!(got(&mut leader), None);
    site.run(0).answer(2);
    assert_eq!(got(&mut leader), answered("a", 2));
    assert_eq!(got(&mut site.call(request("c", 1))), None, "nothing was kept");
}

#[tokio::test(start_paused = true)]
async fn urgent_requests_do_not_wait_for_others() {
    let batching = crate::model::DynamicBatching {
        preferred_rows: Vec::new(),
        queue_delay_max: Duration::ZERO,
        preserve_ordering: false,
        queue: QueuePolicy {
            timeout_action: TimeoutAction::Reject,
            timeout: None,
            allow_timeout_override: false,
            requests_max: 9,
        },
        priorities: crate::model::Priorities { levels: 2, default_level: 2, ..Default::default() },
    };
    let site = Site::new(&ModelConfig { scheduling: Scheduling::Dynamic(batching), ..config() });
    let _slow = site.call(request("a", 1));
    let mut urgent = site.call(Request { priority: 1, ..request("b", 1) });
    assert_eq!(got(&mut urgent), None);
    let _same_level = site.call(Request { priority: 2, ..request("c", 1) });
    let _default_level = site.call(Request { priority: 7, ..request("d", 1) });
    assert_eq!(site.started(), 2);
    site.run(1).answer(7);
    assert_eq!(got(&mut urgent), answered("b", 7));
}

#[tokio::test(start_paused = true)]
async fn requests_of_a_sequence_pass_by_and_so_do_all_of_an_outdated_version() {
    let site = Site::new(&config());
    let sequence = Sequence { id: crate::infer::CorrelationId::Number(1), start: true, end: false };
    assert!(!site.cache.takes(&Request { sequence: Some(sequence), ..request("a", 1) }));
    assert!(site.cache.takes(&request("a", 1)));
    let kept = RequestedOutput { name: "OUT".to_owned(), classification: 0, keep: true };
    assert!(!site.cache.takes(&Request { outputs: vec![kept], ..request("a", 1) }));
    site.cache.outdate();
    assert!(!site.cache.takes(&request("a", 1)), "until it is loaded again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_many_threads_nobody_is_forgotten() {
    let mut config = config();
    if let Scheduling::Single(policy) = &mut config.scheduling {
        policy.requests_max = 1 << 20;
    }
    let site = Arc::new(Site::new(&config));
    let callers = (0..4000u32).map(|number| {
        let site = site.clone();
        tokio::spawn(async move {
            let byte = (number % 7) as u8;
            let mut request = request(&format!("{byte}.{number}"), byte);
            // What was answered is not asked for ever, so that there is always somebody who leads.
            request.inputs[0].name = format!("x{}", number / 50);
            let mut responses = site.call(request);
            if number % 5 == 0 {
                // It goes away after it was asked once, or before.
                let _ = (number % 10 == 0).then(|| poll(&mut responses));
                tokio::task::yield_now().await;
                return None;
            }
            Some((byte, crate::infer::only(responses).await))
        })
    });
    let callers: Vec<_> = callers.collect();
    let runs = site.runs.clone();
    let all = futures_util::future::join_all(callers);
    let answering = async {
        loop {
            let started = std::mem::take(&mut *runs.lock());
            for run in started {
                match run.id.ends_with('3') {
                    true => run.fail(Kind::DeadlineExceeded),
                    false => run.answer(run.id.as_bytes()[0] - b'0'),
                }
            }
            tokio::task::yield_now().await;
        }
    };
    let outcomes = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::select! {
            outcomes = all => outcomes,
            never = answering => never,
        }
    });
    for outcome in outcomes.await.expect("nobody waits for ever") {
        match outcome.expect("no panic") {
            Some((byte, Ok(response))) => assert_eq!(response.outputs[0].tensor.data[0], byte),
            Some((_, Err(error))) => assert_eq!(error.kind(), Kind::DeadlineExceeded),
            None => {}
        }
    }
    assert!(site.cache.is_idle());
    assert_eq!((site.cache.waiting.load(Relaxed), site.in_flight().as_str()), (0, "0"));
}

/// What may happen next in a history.
#[derive(Clone, Debug)]
enum Step {
    Call { byte: u8, deadline: Option<u64> },
    Drop(usize),
    Answer(usize),
    Fail(usize, Kind),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        Just(Kind::Backend),
        Just(Kind::DeadlineExceeded),
        Just(Kind::TimedOut),
        Just(Kind::QueueFull),
        Just(Kind::Unavailable)
    ];
    prop_oneof![
        5 => (0..3u8, proptest::option::of(1..30u64)).prop_map(|(byte, deadline)| Step::Call { byte, deadline }),
        2 => any::<usize>().prop_map(Step::Drop),
        3 => any::<usize>().prop_map(Step::Answer),
        2 => (any::<usize>(), kind).prop_map(|(run, kind)| Step::Fail(run, kind)),
        2 => (1..20u64).prop_map(Step::Pass),
    ]
}

/// Callers that have no outcome yet, each with what it asked, and what they got in all.
struct History {
    site: Site,
    open: Vec<(u8, Responses)>,
    outcomes: u64,
}

impl History {
    /// Polls every caller; whoever gets an answer gets the one to its own question.
    fn settle(&mut self) {
        let mut outcomes = 0;
        self.open.retain_mut(|(byte, caller)| match got(caller) {
            None => true,
            Some(outcome) => {
                outcomes += 1;
                if let Ok((_, answer)) = outcome {
                    assert_eq!(answer, *byte);
                }
                assert!(poll(caller).is_some_and(|end| end.is_err()), "one outcome each");
                false
            }
        });
        self.outcomes += outcomes;
    }

    async fn step(&mut self, step: Step, calls: u64) {
        let pick = |index: usize, len: usize| index.checked_rem(len);
        match step {
            Step::Call { byte, deadline } => {
                let deadline = deadline.map(|millis| Instant::now() + Duration::from_millis(millis));
                // The run knows by its id what the answer is.
                let request = Request { deadline, ..request(&format!("{byte}.{calls}"), byte) };
                self.open.push((byte, self.site.call(request)));
            }
            Step::Drop(index) => {
                if let Some(index) = pick(index, self.open.len()) {
                    drop(self.open.swap_remove(index));
                    self.outcomes += 1;
                }
            }
            Step::Answer(index) => self.reply(index, |run| run.answer(run.id.as_bytes()[0] - b'0')),
            Step::Fail(index, kind) => self.reply(index, |run| run.fail(kind)),
            Step::Pass(millis) => tokio::time::advance(Duration::from_millis(millis)).await,
        }
        self.settle();
        // Who was told to take over leads or waits only when it is asked the next time.
        self.settle();
    }

    /// Tells one of the runs that go on.
    fn reply(&self, index: usize, tell: impl FnOnce(&Run)) {
        let mut runs = self.site.runs.lock();
        runs.retain(|run| !run.is_dropped());
        if let Some(index) = index.checked_rem(runs.len()) {
            tell(&runs.swap_remove(index));
        }
    }
}

proptest! {
    #[test]
    fn every_caller_has_one_outcome_whatever_happens(steps in proptest::collection::vec(step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let history = async {
            let mut history = History { site: Site::new(&config()), open: Vec::new(), outcomes: 0 };
            let mut calls = 0;
            for step in steps {
                calls += u64::from(matches!(step, Step::Call { .. }));
                history.step(step, calls).await;
            }
            let waits = history.site.cache.waiting.load(Relaxed);
            assert!(waits <= 4, "{waits} wait");
            while !history.open.is_empty() {
                history.step(Step::Answer(0), calls).await;
            }
            assert_eq!(history.outcomes, calls);
            assert!(history.site.cache.is_idle());
            assert_eq!(history.site.cache.waiting.load(Relaxed), 0);
            assert_eq!(history.site.in_flight(), "0");
        };
        runtime.expect("a runtime").block_on(history.boxed_local());
    }
}
