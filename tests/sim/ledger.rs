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
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Waits,
    Runs,
    Ended,
}

/// What a caller heard at last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    last_answered: Option<(u64, Instant)>,
    heard: BTreeMap<String, u64>,
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

    /// Answers come in the order of their requests.
    pub fn in_turn(&mut self, id: u64, now: Instant) {
        // What happens at one moment, tasks hear of in any order.
        if let Some((last, at)) = self.last_answered.filter(|(last, _)| *last > id) {
            assert_eq!(at, now, "request {id} is answered behind {last}");
            return;
        }
        self.last_answered = Some((id, now));
    }

    fn left(&mut self, level: u64) {
        self.waiting -= 1;
        *self.levels.get_mut(&level).expect("counted when it came") -= 1;
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

    /// A caller has heard the last of its request, or hears no more.
    pub fn end(&mut self, id: u64, heard: Heard, now: Instant) {
        self.unended -= 1;
        let line = self.lines.get_mut(&id).expect("only what was accepted ends");
        assert_eq!(line.heard, None, "request {id} has a second outcome");
        line.heard = Some(heard);
        *self.heard.entry(format!("{heard:?}")).or_default() += 1;
        let waited = line.place == Place::Waits;
        assert!(!waited || heard != Heard::Answer, "request {id} is answered and never ran");
        let asked = &line.asked;
        match heard {
            Heard::Failure(Kind::TimedOut) => {
                let due = asked.arrived + asked.timeout.expect("only with a timeout can it pass");
                assert!(waited, "request {id} timed out while it ran");
                assert!(now + TICK >= due, "request {id} timed out {:?} too early", due - now);
                assert!(now <= due + TICK, "request {id} timed out {:?} too late", now - due);
            }
            Heard::Failure(Kind::DeadlineExceeded) => {
                assert!(asked.deadline.is_some(), "request {id} has no deadline to exceed");
            }
            _ => {}
        }
        if let Some(deadline) = asked.deadline.filter(|_| heard != Heard::Nothing) {
            assert!(now <= deadline + TICK, "request {id} was told {:?} after its deadline", now - deadline);
        }
        line.place = Place::Ended;
        if waited {
            let level = asked.level;
            self.left(level);
        }
    }

    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    pub fn heard(&self, heard: Heard) -> u64 {
        self.heard.get(&format!("{heard:?}")).copied().unwrap_or(0)
    }

    /// Nothing is left without an outcome.
    pub fn close(&self) {
        let left = self.lines.iter().find(|(_, line)| line.heard.is_none());
        assert!(left.is_none(), "request {left:?} has no outcome");
        assert_eq!(self.waiting, 0, "what waits was counted wrong");
    }
}
