//! The waiting end of a request: it owns the request's deadline.
//!
//! A [`Waiter`] ends with the last response, or takes the request back when its time is up or when it is dropped. So a
//! timeout is exact however busy the instances are, and a caller that goes away frees its place at once.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::time::Sleep;

use super::Scheduler;
use super::entry::Ticket;
use super::promise::late_error;
use super::reply::{Answer, Receiver};
use super::responses::given_up;
use crate::error::{Kind, Result};
use crate::infer::{Instant, Response};

/// The stream of one request's responses; `respond` makes each of them out of an answer.
pub struct Waiter<F> {
    scheduler: Arc<dyn Scheduler>,
    receiver: Receiver,
    /// Present as long as the request may wait: until its outcome, as one of an iterative model waits again and again.
    ticket: Option<Ticket>,
    /// Whether it should have been given up, and ran.
    overdue: bool,
    /// Fires when the request is to be given up or, once it runs, at the caller's deadline.
    timer: Option<Pin<Box<Sleep>>>,
    arrived: Instant,
    deadline: Option<Instant>,
    /// Taken by the outcome.
    respond: Option<F>,
}

impl<F: FnMut(Answer) -> Response + Unpin> Waiter<F> {
    /// Waits for the request with this ticket.
    pub fn new(
        scheduler: Arc<dyn Scheduler>,
        (ticket, receiver): (Ticket, Receiver),
        (arrived, deadline): (Instant, Option<Instant>),
        respond: F,
    ) -> Self {
        let timer = ticket.give_up.map(|give_up| Box::pin(tokio::time::sleep_until(give_up.at)));
        Self {
            scheduler,
            receiver,
            ticket: Some(ticket),
            overdue: false,
            timer,
            arrived,
            deadline,
            respond: Some(respond),
        }
    }

    /// The timer fired: gives the request up if it still waits or its caller does not wait any more.
    pub(super) fn time_is_up(&mut self) -> Option<Result<Answer>> {
        if let Some(later) = self.later() {
            self.timer = Some(Box::pin(tokio::time::sleep_until(later)));
            return None;
        }
        let kind = match (self.overdue, &self.ticket) {
            (false, Some(Ticket { give_up: Some(give_up), .. })) => give_up.kind,
            _ => Kind::DeadlineExceeded,
        };
        let taken_back = |ticket: &Ticket| self.scheduler.take_back(ticket, kind);
        if self.ticket.as_ref().is_some_and(taken_back) {
            self.ticket = None;
            self.scheduler.stats().request_failed(kind, Instant::now().saturating_duration_since(self.arrived));
            return Some(Err(late_error(kind)));
        }
        if std::mem::replace(&mut self.overdue, true) {
            // It runs, and its caller's deadline passed. After this the instance sees that nobody waits, and records
            // that as the outcome; what it settled before is the outcome already.
            self.timer = None;
            let late = || Err(given_up(self.deadline, Instant::now()));
            return Some(self.receiver.close().unwrap_or_else(late));
        }
        self.timer = self.deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
        None
    }

    /// When to give the request up instead of now, if by what was learned meanwhile it could still be in time.
    fn later(&mut self) -> Option<Instant> {
        let ticket = self.ticket.as_mut().filter(|_| !self.overdue)?;
        self.scheduler.reckon(ticket);
        ticket.give_up.map(|give_up| give_up.at).filter(|at| *at > Instant::now())
    }

    /// The response that an answer makes; all but a decoupled model's earlier ones end the stream.
    fn deliver(&mut self, answer: Option<Result<Answer>>) -> Poll<Option<Result<Response>>> {
        let more = matches!(&answer, Some(Ok(answer)) if !answer.last);
        if more {
            let respond = self.respond.as_mut();
            return Poll::Ready(answer.zip(respond).map(|(answer, respond)| answer.map(respond)));
        }
        self.ticket = None;
        self.timer = None;
        let respond = self.respond.take();
        Poll::Ready(answer.zip(respond).map(|(answer, respond)| answer.map(respond)))
    }
}

impl<F: FnMut(Answer) -> Response + Unpin> Stream for Waiter<F> {
    type Item = Result<Response>;

    fn poll_next(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.respond.is_none() {
            return Poll::Ready(None);
        }
        if let Poll::Ready(answer) = this.receiver.poll(ctx) {
            return this.deliver(answer);
        }
        while let Some(timer) = &mut this.timer {
            if timer.as_mut().poll(ctx).is_pending() {
                break;
            }
            if let Some(outcome) = this.time_is_up() {
                return this.deliver(Some(outcome));
            }
        }
        Poll::Pending
    }
}

impl<F> Drop for Waiter<F> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take()
            && self.scheduler.take_back(&ticket, Kind::Cancelled)
        {
            let waited = Instant::now().saturating_duration_since(self.arrived);
            self.scheduler.stats().request_failed(Kind::Cancelled, waited);
        }
    }
}
