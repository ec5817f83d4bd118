//! What waits, in lanes: only requests of one lane may share a batch.
//!
//! A lane has a line for each priority level that has requests in it, and each line two parts: requests that are in time,
//! in the order of arrival, and behind them those whose time is up and that are delayed, in the order in which that
//! happened. Knows no lock and no clock; whose line is served next is decided in `turns`.

use std::collections::{BTreeSet, HashMap, VecDeque};

use smallvec::{SmallVec, smallvec};

use super::entry::{Entry, LaneKey, Ticket};
use super::estimate::{Estimates, SizeClass};
use super::turns::{Claim, Rank, Turns};
use crate::error::Kind;
use crate::infer::Instant;

/// Everything that waits.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: HashMap<LaneKey, Lane>,
    counts: Counts,
}

/// How much waits.
#[derive(Debug, Default)]
struct Counts {
    /// Ascending; levels that have nobody may be missing.
    levels: SmallVec<[Level; 1]>,
    requests: usize,
}

/// What waits in one level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) level: u64,
    /// Requests, with those that are delayed.
    pub(super) requests: usize,
    /// Rows, without those that are delayed.
    pub(super) rows: usize,
}

/// Requests that may share a batch.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) class: SizeClass,
    /// Ascending by level.
    lines: SmallVec<[Line; 1]>,
}

#[derive(Debug, Default)]
struct Line {
    level: u64,
    /// In the order of arrival.
    in_time: VecDeque<Entry>,
    /// In the order in which their time was up.
    delayed: VecDeque<Entry>,
    /// When which of `in_time` are to be delayed; empty where none is.
    delays: BTreeSet<(Instant, u64)>,
}

/// Which line the next request comes from, and which part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pick {
    line: usize,
    delayed: bool,
}

/// Requests of one lane in their order of service.
pub(super) type Picks = SmallVec<[Pick; 16]>;

impl Lanes {
    /// How many requests wait.
    pub(super) fn requests(&self) -> usize {
        self.counts.requests
    }

    /// How many requests wait in one level.
    pub(super) fn requests_of(&self, level: u64) -> usize {
        self.counts.levels.iter().find(|at| at.level == level).map_or(0, |at| at.requests)
    }

    /// The levels in which requests wait, ascending.
    pub(super) fn levels(&self) -> &[Level] {
        &self.counts.levels
    }

    /// The lane with this key, if anything waits in it.
    pub(super) fn lane(&self, key: &LaneKey) -> Option<&Lane> {
        self.lanes.get(key)
    }

    /// Puts a request at the end of its line.
    pub(super) fn push(&mut self, key: LaneKey, level: u64, entry: Entry) {
        self.counts.came(level, entry.promise.rows);
        let lane = self.lanes.entry(key).or_default();
        lane.class = entry.promise.class;
        lane.line(level).push(entry);
    }

    /// Takes one request out.
    pub(super) fn take_back(&mut self, ticket: &Ticket) -> Option<Entry> {
        let lane = self.lanes.get_mut(&ticket.lane)?;
        let line = lane.lines.iter_mut().find(|line| line.level == ticket.level)?;
        let (entry, delayed) = match line.in_time.binary_search_by_key(&ticket.seq, |entry| entry.seq) {
            Ok(index) => {
                let entry = line.in_time.remove(index)?;
                forget(&mut line.delays, &entry);
                (entry, false)
            }
            Err(_) => {
                let index = line.delayed.iter().position(|entry| entry.seq == ticket.seq)?;
                (line.delayed.remove(index)?, true)
            }
        };
        self.counts.left(ticket.level, entry.promise.rows, delayed);
        self.tidy(&ticket.lane);
        Some(entry)
    }

    /// Takes everything out, in the order of arrival.
    pub(super) fn take_all(&mut self) -> Vec<Entry> {
        let lines = std::mem::take(self).lanes.into_values().flat_map(|lane| lane.lines);
        let mut entries: Vec<Entry> = lines.flat_map(|line| line.in_time.into_iter().chain(line.delayed)).collect();
        entries.sort_unstable_by_key(|entry| entry.seq);
        entries
    }

    /// Delays the requests whose time is up.
    pub(super) fn delay(&mut self, now: Instant) {
        for line in self.lanes.values_mut().flat_map(|lane| &mut lane.lines) {
            let rows = line.delay(now);
            self.counts.delayed(line.level, rows);
        }
    }

    /// The lanes in the order in which they are to be served.
    pub(super) fn in_turn(&self, turns: &Turns<'_>) -> SmallVec<[(Rank, LaneKey); 1]> {
        let first = |(key, lane): (&LaneKey, &Lane)| Some((lane.next(&lane.start(), turns)?.0, key.clone()));
        let mut order: SmallVec<[(Rank, LaneKey); 1]> = self.lanes.iter().filter_map(first).collect();
        order.sort_unstable_by_key(|(rank, _)| *rank);
        order
    }

    /// Takes out the requests of a lane that would be late even if they ran alone now, up to those that stand behind more
    /// than so many rows of their line: a long queue is not read through for each batch.
    pub(super) fn take_late(
        &mut self,
        (key, rows_max): (&LaneKey, usize),
        estimates: &Estimates,
        now: Instant,
        late: &mut Vec<(Entry, Kind)>,
    ) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        let before = late.len();
        for line in &mut lane.lines {
            for (delayed, part) in [(false, &mut line.in_time), (true, &mut line.delayed)] {
                let taken = late.len();
                take_late((part, rows_max), estimates, now, late);
                for (entry, _) in &late[taken..] {
                    self.counts.left(line.level, entry.promise.rows, delayed);
                    forget(&mut line.delays, entry);
                }
            }
        }
        if late.len() > before {
            self.tidy(key);
        }
    }

    /// Takes these requests, which must be the first in the order of service.
    pub(super) fn take(&mut self, key: &LaneKey, picks: &[Pick]) -> Vec<Entry> {
        let Some(lane) = self.lanes.get_mut(key) else { return Vec::new() };
        let mut entries = Vec::with_capacity(picks.len());
        for pick in picks {
            let Some(line) = lane.lines.get_mut(pick.line) else { break };
            let part = if pick.delayed { &mut line.delayed } else { &mut line.in_time };
            let Some(entry) = part.pop_front() else { break };
            self.counts.left(line.level, entry.promise.rows, pick.delayed);
            forget(&mut line.delays, &entry);
            entries.push(entry);
        }
        self.tidy(key);
        entries
    }

    /// Drops lines without requests, and the lane if it has a shape of its own; the usual ones are kept for the next.
    fn tidy(&mut self, key: &LaneKey) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        if lane.lines.len() > 1 {
            lane.lines.retain(|line| !line.is_empty());
        }
        if !key.is_empty() && lane.lines.iter().all(Line::is_empty) {
            self.lanes.remove(key);
        }
    }
}

impl Counts {
    fn came(&mut self, level: u64, rows: usize) {
        self.requests += 1;
        let index = self.levels.binary_search_by_key(&level, |at| at.level).unwrap_or_else(|index| {
            self.levels.insert(index, Level { level, ..Level::default() });
            index
        });
        self.levels[index].requests += 1;
        self.levels[index].rows += rows;
    }

    fn left(&mut self, level: u64, rows: usize, delayed: bool) {
        self.requests -= 1;
        let Ok(index) = self.levels.binary_search_by_key(&level, |at| at.level) else { return };
        let at = &mut self.levels[index];
        at.requests -= 1;
        at.rows -= if delayed { 0 } else { rows };
        if at.requests == 0 && self.levels.len() > 1 {
            self.levels.remove(index);
        }
    }

    fn delayed(&mut self, level: u64, rows: usize) {
        if let Some(at) = self.levels.iter_mut().find(|at| at.level == level) {
            at.rows -= rows;
        }
    }
}

impl Lane {
    fn line(&mut self, level: u64) -> &mut Line {
        match self.lines.binary_search_by_key(&level, |line| line.level) {
            Ok(index) => &mut self.lines[index],
            Err(index) => {
                self.lines.insert(index, Line { level, ..Line::default() });
                &mut self.lines[index]
            }
        }
    }

    /// The first requests in their order of service, as long as `goes_on`.
    pub(super) fn in_turn(&self, turns: &mut Turns<'_>, mut goes_on: impl FnMut(&Entry) -> bool) -> Picks {
        let mut picks = Picks::new();
        let mut at = self.start();
        while let Some((rank, pick, entry)) = self.next(&at, turns) {
            if !goes_on(entry) {
                break;
            }
            turns.serve(rank, entry.promise.rows, picks.is_empty());
            let (in_time, delayed) = &mut at[pick.line];
            *(if pick.delayed { delayed } else { in_time }) += 1;
            picks.push(pick);
        }
        picks
    }

    /// The positions from which all is served.
    fn start(&self) -> SmallVec<[(usize, usize); 1]> {
        smallvec![(0, 0); self.lines.len()]
    }

    /// Who is served next if each line has been served up to its position in `at`.
    fn next(&self, at: &[(usize, usize)], turns: &Turns<'_>) -> Option<(Rank, Pick, &Entry)> {
        let lines = self.lines.iter().zip(at).enumerate();
        let mut heads = lines.filter_map(|(index, (line, at))| {
            let (rank, delayed, entry) = line.head(*at, turns)?;
            Some((rank, Pick { line: index, delayed }, entry))
        });
        // The lines stand in their levels' order.
        if turns.is_strict() { heads.next() } else { heads.min_by_key(|(rank, ..)| *rank) }
    }
}

impl Line {
    fn is_empty(&self) -> bool {
        self.in_time.is_empty() && self.delayed.is_empty()
    }

    fn push(&mut self, entry: Entry) {
        self.delays.extend(entry.promise.delay_at.map(|at| (at, entry.seq)));
        self.in_time.push_back(entry);
    }

    /// Delays requests whose time is up; gives their rows.
    fn delay(&mut self, now: Instant) -> usize {
        let mut rows = 0;
        while let Some(&(at, seq)) = self.delays.first()
            && now > at
        {
            self.delays.pop_first();
            let index = self.in_time.binary_search_by_key(&seq, |entry| entry.seq);
            let Some(entry) = index.ok().and_then(|index| self.in_time.remove(index)) else { continue };
            rows += entry.promise.rows;
            // Whenever this is noticed, the order is that of the moments.
            let behind = self.delayed.partition_point(|other| (other.promise.delay_at, other.seq) < (Some(at), seq));
            self.delayed.insert(behind, entry);
        }
        rows
    }

    /// Who is next behind those that have been served.
    fn head(&self, (in_time, delayed): (usize, usize), turns: &Turns<'_>) -> Option<(Rank, bool, &Entry)> {
        let claim = |entry: &Entry, delayed: bool| {
            let since = if delayed { entry.promise.delay_at.unwrap_or(entry.arrived) } else { entry.arrived };
            turns.rank(Claim { level: self.level, delayed, since, seq: entry.seq })
        };
        let in_time = self.in_time.get(in_time).map(|entry| (claim(entry, false), false, entry));
        let delayed = self.delayed.get(delayed).map(|entry| (claim(entry, true), true, entry));
        match (in_time, delayed) {
            (Some(one), Some(other)) => Some(if one.0 <= other.0 { one } else { other }),
            (one, other) => one.or(other),
        }
    }
}

/// A request is not to be delayed any more.
fn forget(delays: &mut BTreeSet<(Instant, u64)>, entry: &Entry) {
    if let Some(at) = entry.promise.delay_at {
        delays.remove(&(at, entry.seq));
    }
}

fn take_late(
    (part, rows_max): (&mut VecDeque<Entry>, usize),
    estimates: &Estimates,
    now: Instant,
    late: &mut Vec<(Entry, Kind)>,
) {
    let (mut rows, mut index) = (0, 0);
    while rows <= rows_max
        && let Some(entry) = part.get(index)
    {
        match entry.promise.broken(estimates, now) {
            Some(kind) => late.extend(part.remove(index).map(|entry| (entry, kind))),
            None => {
                rows += entry.promise.rows;
                index += 1;
            }
        }
    }
}
