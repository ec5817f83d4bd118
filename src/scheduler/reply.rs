//! What an execution gives a request, and the way it takes: once for an ordinary model, any number of times for a
//! decoupled one.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::order::{Given, Order, Record, Turn};
use super::responses::{self, ResponseLimits};
use crate::error::{Error, Result};
use crate::infer::Times;
use crate::tensor::Tensor;

/// What an execution gave one request.
#[derive(Debug)]
pub struct Answer {
    /// All outputs of the model in its order.
    pub outputs: Vec<Tensor>,
    /// When the request passed each stage.
    pub times: Times,
    /// Whether no other answer follows; never false of an ordinary model's.
    pub last: bool,
}

/// Where a request's answers go.
#[derive(Debug)]
pub(super) enum Reply {
    /// To a caller that gets exactly one.
    One(oneshot::Sender<Result<Answer>>),
    /// To a caller that gets exactly one, after those of all earlier requests.
    InTurn(Turn),
    /// To a caller that gets any number.
    Many(responses::Sender),
    /// Nowhere: its row only keeps others in their places.
    Nobody,
}

/// Where a request's answers come from; dropping it tells the instance that nobody waits.
#[derive(Debug)]
pub struct Receiver(Way);

#[derive(Debug)]
enum Way {
    One(oneshot::Receiver<Result<Answer>>),
    Many(responses::Receiver),
}

/// The two ends for one request; with limits for a decoupled model.
pub(super) fn channel(limits: Option<ResponseLimits>) -> (Reply, Receiver) {
    match limits {
        None => {
            let (reply, receiver) = oneshot::channel();
            (Reply::One(reply), Receiver(Way::One(receiver)))
        }
        Some(limits) => {
            let (reply, receiver) = responses::channel(limits);
            (Reply::Many(reply), Receiver(Way::Many(receiver)))
        }
    }
}

impl Reply {
    /// Whether nobody waits for an answer any more.
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            Reply::One(reply) => reply.is_closed(),
            Reply::InTurn(turn) => turn.is_abandoned(),
            Reply::Many(reply) => reply.is_abandoned(),
            Reply::Nobody => false,
        }
    }

    /// Whether an answer is recorded when it is sent, and not before.
    pub(super) fn records(&self) -> bool {
        matches!(self, Reply::InTurn(_))
    }

    /// Sends the last answer; `None` where a decoupled model gave none to end with.
    pub(super) fn answer(self, answer: Option<Answer>, record: Record) {
        match (self, answer) {
            (Reply::InTurn(turn), Some(answer)) => turn.give(Given::Answer(Box::new((answer, record)))),
            (reply, answer) => reply.finish(answer.map(Ok)),
        }
    }

    /// Tells of a failure, at once.
    pub(super) fn fail(self, error: Error) {
        self.finish(Some(Err(error)));
    }

    fn finish(self, answer: Option<Result<Answer>>) {
        match self {
            Reply::One(reply) => {
                // Whoever waited may have gone.
                let _ = answer.map(|answer| reply.send(answer));
            }
            Reply::InTurn(turn) => {
                let _ = answer.map(|answer| turn.pass(answer));
            }
            Reply::Many(reply) => {
                answer.into_iter().for_each(|answer| reply.push(answer));
                reply.complete();
            }
            Reply::Nobody => {}
        }
    }

    /// The same for a caller that gets its answer in the order of requests; a decoupled model has none.
    pub(super) fn in_turn(self, order: &Arc<Order>) -> Self {
        match self {
            Reply::One(reply) => Reply::InTurn(order.enter(reply)),
            other => other,
        }
    }
}

impl Receiver {
    /// The next answer; `None` after the last of a decoupled model.
    pub(super) fn poll(&mut self, ctx: &mut Context<'_>) -> Poll<Option<Result<Answer>>> {
        match &mut self.0 {
            Way::One(receiver) => Pin::new(receiver).poll(ctx).map(|answer| {
                Some(answer.unwrap_or_else(|_| Err(Error::internal("the instance ended without a response"))))
            }),
            Way::Many(receiver) => receiver.poll(ctx),
        }
    }

    /// Waits no longer: after this the instance sees that nobody does. What it had settled before is the outcome
    /// already, and given.
    pub(super) fn close(&mut self) -> Option<Result<Answer>> {
        match &mut self.0 {
            Way::One(receiver) => {
                receiver.close();
                receiver.try_recv().ok()
            }
            Way::Many(receiver) => receiver.close(),
        }
    }
}
