//! A request while a scheduler has it, and what it is known by.

use smallvec::SmallVec;

use super::estimate::SizeClass;
use super::order::{Failed, Given};
use super::promise::{GiveUp, Promise};
use super::reply::Reply;
use super::run::Steps;
use crate::error::Error;
use crate::infer::Instant;
use crate::telemetry::stats::ModelStats;
use crate::tensor::Member;

/// A request in a scheduler or taken from it.
#[derive(Debug)]
pub struct Entry {
    pub(super) member: Member,
    pub(super) arrived: Instant,
    pub(super) promise: Promise,
    pub(super) reply: Reply,
    pub(super) seq: u64,
    /// What its former executions were, if there were any.
    pub(super) steps: Option<Box<Steps>>,
}

impl Entry {
    /// Fails a request whose execution failed.
    pub(super) fn settle(self, stats: &ModelStats, error: Error, now: Instant) {
        if let Reply::InTurn(turn) = self.reply {
            turn.give(Given::Failure(Failed { error, arrived: self.arrived, deadline: self.promise.deadline }));
            return;
        }
        self.refuse(stats, error, now);
    }

    /// Fails a request that was taken from its scheduler and not executed; this waits for no other request's answer.
    pub(super) fn refuse(self, stats: &ModelStats, error: Error, now: Instant) {
        stats.request_failed(error.kind(), now.saturating_duration_since(self.arrived));
        self.reply.fail(error);
    }
}

/// What a pushed request is known by.
#[derive(Debug)]
pub struct Ticket {
    /// Where it stands: in which lane of a queue, or in which sequence.
    pub(super) lane: LaneKey,
    pub(super) level: u64,
    pub(super) seq: u64,
    pub(super) promise: Promise,
    /// When it should be taken back unless it runs by then, by the run times that were known when that was reckoned.
    pub(super) give_up: Option<GiveUp>,
}

/// Requests to run as one batch.
#[derive(Debug)]
pub struct Pulled {
    pub(super) entries: Vec<Entry>,
    pub(super) class: SizeClass,
}

/// What requests that may share a batch have in common: types and shapes.
pub(super) type LaneKey = SmallVec<[i64; 8]>;
