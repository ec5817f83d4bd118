//! What the world knows of each request, and what must hold of it.

use std::collections::BTreeMap;
use std::time::Duration;

use nereid::error::Kind;
use nereid::infer::Instant;

/// Timers of tokio's clock count whole milliseconds, and a task that they wake runs behind others of that moment.
pub const TICK: Duration = Duration::from_millis(2);

/// One request, as its caller sees it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub arrived: Instant,
    pub deadline: Option<Instant>,
    /// When it must have begun to run; `None` also for one that is only delayed then.
    pub timeout: Option<Duration>,
    /// Its priority level.
    pub level: u64,
    pub rows: usize,
    /// The size of a row: requests of different widths never share a batch.
    pub width: usize,
    /// Its caller takes its time between responses, and may hear of the end late.
    pub unhurried: bool,
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Waits,
    Runs,
    Ended,
}

/// What a caller heard at last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Heard {
    Answer,
    Failure(Kind),
    /// It did not wait for the end.
    Nothing,
}

#[derive(Debug)]
struct Line {
    asked: Asked,
    place: Place,
    heard: Option<Heard>,
}

/// All requests that one served version accepted.
#[derive(Debug, Default)]
pub struct Ledger {
    lines: BTreeMap<u64, Line>,
    accepted: u64,
    waiting: usize,
    /// Requests that wait, by level.
    levels: BTreeMap<u64, usize>,
    unended: usize,
    heard: BTreeMap<Heard, u64>,
}

impl Ledger {
    pub fn accept(&mut self, id: u64, asked: Asked) {
        self.accepted += 1;
        self.waiting += 1;
        self.unended += 1;
        *self.levels.entry(asked.level).or_default() += 1;
        let line = Line { asked, place: Place::Waits, heard: None };
        assert!(self.lines.insert(id, line).is_none(), "request {id} was accepted twice");
    }

    /// How many wait, as the world counts.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many have no outcome yet.
    pub fn unended(&self) -> usize {
        self.unended
    }

    /// The highest level at which something waits.
    pub fn highest(&self) -> Option<u64> {
        self.levels.iter().find(|(_, waiting)| **waiting > 0).map(|(level, _)| *level)
    }

    /// The level of a request.
    pub fn level(&self, id: u64) -> u64 {
        self.lines[&id].asked.level
    }

    fn left(&mut self, level: u64) {
        self.waiting -= 1;
        *self.levels.get_mut(&level).expect("counted when it came") -= 1;
    }

    /// Whether the caller of a request waits no longer.
    pub fn is_over(&self, id: u64) -> bool {
        self.lines[&id].heard.is_some()
    }

    /// A request that ran is to run again; that it began in time is all that its timeout asked for.
    pub fn again(&mut self, id: u64) {
        let line = self.lines.get_mut(&id).expect("only what was accepted runs again");
        assert_eq!(line.place, Place::Runs, "request {id} is brought back and does not run");
        line.place = Place::Waits;
        line.asked.timeout = None;
        self.waiting += 1;
        *self.levels.entry(line.asked.level).or_default() += 1;
    }

    /// An instance has taken these as one batch.
    pub fn begin(&mut self, ids: &[u64], rows_max: usize, now: Instant) {
        assert!(!ids.is_empty(), "a batch has no requests");
        let (mut rows, mut levels) = (0, Vec::new());
        let mut widths = Vec::new();
        for id in ids {
            let line = self.lines.get_mut(id).unwrap_or_else(|| panic!("request {id} runs, and was never accepted"));
            assert_eq!(line.place, Place::Waits, "request {id} runs a second time or after its end");
            line.place = Place::Runs;
            levels.push(line.asked.level);
            rows += line.asked.rows;
            widths.push(line.asked.width);
            if let Some(deadline) = line.asked.deadline {
                assert!(now <= deadline, "request {id} runs after its deadline");
            }
            if let Some(timeout) = line.asked.timeout {
                assert!(now <= line.asked.arrived + timeout + TICK, "request {id} runs after its queue timeout");
            }
        }
        levels.into_iter().for_each(|level| self.left(level));
        assert!(rows <= rows_max || ids.len() == 1, "a batch has {rows} rows, {rows_max} are allowed");
        widths.dedup();
        assert_eq!(widths.len(), 1, "a batch has requests of different shapes");
    }

    /// A caller has heard the last of its request, or hears no more; whether the request waited until then.
    pub fn end(&mut self, id: u64, heard: Heard, now: Instant) -> bool {
        self.unended -= 1;
        let line = self.lines.get_mut(&id).expect("only what was accepted ends");
        assert_eq!(line.heard, None, "request {id} has a second outcome");
        line.heard = Some(heard);
        *self.heard.entry(heard).or_default() += 1;
        let (asked, waited) = (&line.asked, line.place == Place::Waits);
        assert!(!waited || heard != Heard::Answer, "request {id} is answered and never ran");
        if heard == Heard::Failure(Kind::DeadlineExceeded) {
            assert!(asked.deadline.is_some(), "request {id} has no deadline to exceed");
        }
        let bounded = heard != Heard::Nothing && !asked.unhurried;
        if let Some(deadline) = asked.deadline.filter(|_| bounded) {
            assert!(now <= deadline + TICK, "request {id} was told {:?} after its deadline", now - deadline);
        }
        line.place = Place::Ended;
        if waited {
            let level = asked.level;
            self.left(level);
        }
        waited
    }

    /// A request that waited has heard at `now` that its queue timeout has passed.
    pub fn timed_out(&self, id: u64, now: Instant) {
        let asked = &self.lines[&id].asked;
        let due = asked.arrived + asked.timeout.expect("only with a timeout can it pass");
        assert!(now + TICK >= due, "request {id} timed out {:?} too early", due - now);
        assert!(now <= due + TICK, "request {id} timed out {:?} too late", now - due);
    }

    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    pub fn heard(&self, heard: Heard) -> u64 {
        self.heard.get(&heard).copied().unwrap_or(0)
    }

    /// Nothing is left without an outcome.
    pub fn close(&self) {
        let left = self.lines.iter().find(|(_, line)| line.heard.is_none());
        assert!(left.is_none(), "request {left:?} has no outcome");
        assert_eq!(self.waiting, 0, "what waits was counted wrong");
    }
}
