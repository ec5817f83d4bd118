//! What the world knows of each sequence, and what must hold of it.
//!
//! * Its requests run in the order of arrival, never two at once, in one slot of one instance, which no other sequence
//!   has meanwhile; a sequence that was started before another of the same id has ended waits for that end.
//! * What the model file is told is true: start, end, id, and the state that the last execution of this sequence gave.
//! * A request is refused as not started only if its sequence is over, and accepted only if it is not.
//!
//! The scheduler may know that a sequence is over at a moment when the caller that gave it up is not heard yet. So what
//! it does as if a sequence were over is noted as a claim, which somebody's outcome must bear out.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use nereid::infer::Instant;

use crate::ledger::TICK;

/// One sequence, from its start to its end.
#[derive(Debug)]
struct Run {
    id: u64,
    /// Whether further requests may come.
    open: bool,
    /// Requests that wait, in the order of arrival.
    waiting: VecDeque<u64>,
    running: Option<u64>,
    /// Where it runs: the instance, and the slot where sequences have one.
    place: Option<(usize, usize)>,
    state: Option<Vec<u64>>,
    idle_since: Option<Instant>,
    /// The former sequence of the same id, if that was not at its end.
    behind: Option<usize>,
    /// Since when it is over.
    over: Option<Instant>,
    /// Since when the scheduler treats it as over.
    claimed: Option<Instant>,
}

/// One request.
#[derive(Clone, Copy, Debug)]
struct Request {
    run: usize,
    start: bool,
    end: bool,
    /// How often it was executed.
    steps: u32,
}

/// What the model file was told about a member.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    pub start: bool,
    pub end: bool,
    /// The sequence's id; 0 for one that the server gave it.
    pub id: u64,
    /// The state; `None` for the initial one.
    pub state: Option<Vec<u64>>,
}

/// All sequences of a served copy of a model.
#[derive(Debug)]
pub struct History {
    terms: Terms,
    runs: Vec<Run>,
    requests: BTreeMap<u64, Request>,
    by_id: BTreeMap<u64, usize>,
    places: BTreeMap<(usize, usize), usize>,
}

/// What holds for all sequences of a model.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long a sequence lives without a request.
    pub idle_max: Duration,
    /// Whether each sequence has a slot of its own in the batch.
    pub slots: bool,
    /// Whether a request may run more than once.
    pub iterative: bool,
    /// The longest that a caller does not listen.
    pub pause_max: Duration,
}

impl History {
    pub fn new(terms: Terms) -> Self {
        let (runs, requests) = (Vec::new(), BTreeMap::new());
        Self { terms, runs, requests, by_id: BTreeMap::new(), places: BTreeMap::new() }
    }

    /// How much later than its cause something may be heard.
    fn slack(&self) -> Duration {
        TICK + self.terms.pause_max
    }

    /// The sequence of this id that takes requests, as far as the world knows.
    pub fn knows(&self, id: u64, now: Instant) -> bool {
        self.by_id.get(&id).is_some_and(|run| !self.is_over(*run, now))
    }

    fn is_over(&self, run: usize, now: Instant) -> bool {
        let Run { over, idle_since, .. } = &self.runs[run];
        over.is_some() || idle_since.is_some_and(|since| since + self.terms.idle_max <= now)
    }

    /// A request was accepted; `id` is 0 for one that is a sequence of its own.
    pub fn accepted(&mut self, request: u64, (id, start, end): (u64, bool, bool), now: Instant) {
        let former = self.by_id.get(&id).copied().filter(|_| id != 0);
        let run = match former.filter(|_| !start) {
            Some(run) => run,
            None => {
                assert!(start, "request {request} of sequence {id} is accepted, and nothing was started");
                self.start(id, former, now)
            }
        };
        assert!(start || !self.is_over(run, now), "request {request} is accepted for a sequence that is over");
        self.requests.insert(request, Request { run, start, end, steps: 0 });
        let run_state = &mut self.runs[run];
        run_state.idle_since = None;
        run_state.waiting.push_back(request);
        if end || id == 0 {
            self.shut(run, now);
        }
    }

    fn start(&mut self, id: u64, former: Option<usize>, now: Instant) -> usize {
        let behind = former.filter(|former| !self.is_over(*former, now));
        if let Some(former) = former {
            self.shut(former, now);
        }
        let run = self.runs.len();
        self.runs.push(Run {
            id,
            open: true,
            waiting: VecDeque::new(),
            running: None,
            place: None,
            state: None,
            idle_since: None,
            behind,
            over: None,
            claimed: None,
        });
        if id != 0 {
            self.by_id.insert(id, run);
        }
        run
    }

    /// A sequence takes no further requests.
    fn shut(&mut self, run: usize, now: Instant) {
        self.runs[run].open = false;
        self.forget(run);
        self.rest(run, now);
    }

    fn forget(&mut self, run: usize) {
        let id = self.runs[run].id;
        if self.by_id.get(&id) == Some(&run) {
            self.by_id.remove(&id);
        }
    }

    /// A sequence at its end is over.
    fn rest(&mut self, run: usize, now: Instant) {
        let Run { open, waiting, running, .. } = &self.runs[run];
        if waiting.is_empty() && running.is_none() && !open {
            self.kill(run, now);
        }
    }

    /// A sequence is over.
    fn kill(&mut self, run: usize, now: Instant) {
        self.runs[run].over.get_or_insert(now);
        self.forget(run);
    }

    /// The scheduler does something as if this sequence were over.
    fn claim(&mut self, run: usize, now: Instant) {
        let slack = self.slack();
        if let Some(over) = self.runs[run].over {
            assert!(now <= over + slack, "a sequence is over for {:?} and still matters", now - over);
        } else if !self.is_over(run, now) {
            self.runs[run].claimed.get_or_insert(now);
        }
    }

    /// A request was refused because nobody knows its sequence.
    pub fn refused_as_unknown(&mut self, request: u64, (id, start): (u64, bool), now: Instant) {
        assert!(!start, "request {request} starts a sequence and is refused as if it did not");
        if let Some(run) = self.by_id.get(&id).copied() {
            if !self.is_over(run, now) {
                self.claim(run, now);
            }
            self.forget(run);
        }
    }

    /// A request begins to run in this slot of this instance, and the model file is told this.
    pub fn begins(&mut self, request: u64, (instance, slot): (usize, usize), told: Told, now: Instant) {
        let Request { run: own, start, end, steps } = self.requests[&request];
        let run = &mut self.runs[own];
        assert_eq!(run.over, None, "request {request} runs after the end of its sequence");
        assert_eq!(run.running, None, "two requests of a sequence run at once");
        assert_eq!(run.waiting.pop_front(), Some(request), "request {request} runs before an older one");
        run.running = Some(request);
        let first = steps == 0;
        let state = run.state.clone();
        let id = run.id;
        assert_eq!(told, Told { start: start && first, end: end && first, id, state }, "request {request}");
        let place = (instance, if self.terms.slots { slot } else { 0 });
        let behind = run.behind.take();
        match run.place {
            Some(known) => assert_eq!(known, place, "request {request} runs elsewhere than its sequence"),
            None => run.place = Some(place),
        }
        if let Some(behind) = behind.filter(|behind| !self.is_over(*behind, now)) {
            self.claim(behind, now);
        }
        if self.terms.slots
            && let Some(other) = self.places.insert(place, own).filter(|other| *other != own)
            && !self.is_over(other, now)
        {
            self.claim(other, now);
        }
    }

    /// Whether a request is a sequence of its own, whose id the server has made up.
    pub fn is_alone(&self, request: u64) -> bool {
        self.runs[self.requests[&request].run].id == 0
    }

    /// How often a request was executed before.
    pub fn steps(&self, request: u64) -> u32 {
        self.requests[&request].steps
    }

    /// The execution of a request ended, and gave this state if it went well.
    pub fn ran(&mut self, request: u64, ran: Ran, now: Instant) {
        let requested = self.requests.get_mut(&request).expect("only what was accepted runs");
        requested.steps += 1;
        let own = requested.run;
        let run = &mut self.runs[own];
        assert_eq!(run.running.take(), Some(request));
        if let Some(state) = ran.state {
            run.state = Some(state);
        }
        if ran.abandoned {
            self.kill(own, now);
            return;
        }
        if ran.again {
            run.waiting.push_front(request);
        } else if run.waiting.is_empty() {
            run.idle_since = Some(now);
        }
        self.rest(own, now);
    }

    /// Whether the sequence of a request that runs is over, so that it will not run again.
    pub fn is_ended(&self, request: u64) -> bool {
        self.runs[self.requests[&request].run].over.is_some()
    }

    /// A request was given up: by its caller, or because its time was up. Its sequence is over, unless it was answered
    /// and the caller did not care to hear.
    pub fn given_up(&mut self, request: u64, waited: bool, now: Instant) {
        let own = self.requests[&request].run;
        self.runs[own].waiting.retain(|other| *other != request);
        if waited || self.runs[own].running == Some(request) {
            self.kill(own, now);
        }
    }

    /// Nobody takes the place of an instance: its sequences are over.
    pub fn deserted(&mut self, instance: usize, now: Instant) {
        for run in 0..self.runs.len() {
            if self.runs[run].place.is_some_and(|(own, _)| own == instance) {
                self.kill(run, now);
            }
        }
    }

    /// A request that waited has failed because another one of its sequence was given up.
    pub fn failed_with_others(&mut self, request: u64, now: Instant) {
        let own = self.requests[&request].run;
        self.runs[own].waiting.retain(|other| *other != request);
        self.claim(own, now);
    }

    /// Nothing more is accepted; all sequences are over if at once.
    pub fn closed(&mut self, at_once: bool, now: Instant) {
        for run in 0..self.runs.len() {
            match at_once {
                true => self.kill(run, now),
                false => self.shut(run, now),
            }
        }
    }

    /// Everything that the scheduler did was borne out.
    pub fn settled(&self) {
        for (number, run) in self.runs.iter().enumerate() {
            let Some(claimed) = run.claimed else { continue };
            let right = run.over.is_some_and(|over| over <= claimed + self.slack());
            assert!(right, "sequence {number} was treated as over, and was not: {run:?}");
        }
    }
}

/// How an execution ended for a request.
#[derive(Debug)]
pub struct Ran {
    /// The new state, if it went well and the request was not given up.
    pub state: Option<Vec<u64>>,
    /// Nobody waits for it any more.
    pub abandoned: bool,
    /// It is to run again.
    pub again: bool,
}
