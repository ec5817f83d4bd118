//! A caller: waits for its responses, takes its time between them, or leaves.

use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt as _;
use nereid::error::Error;
use nereid::infer::{Instant, Parameters, Response};
use nereid::scheduler::{Answer, Receiver, Ticket, Waiter};
use tokio::time::{sleep, timeout};

use crate::ledger::{Asked, Heard};
use crate::served::{Rules, Served};

/// What a caller is like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Temper {
    /// It leaves after this time.
    pub patience: Option<Duration>,
    /// It takes this time for each response but the last.
    pub pause: Option<Duration>,
}

/// A request was accepted: its caller waits from now on.
pub fn call<R: Rules>(
    served: &Rc<Served<R>>,
    (id, asked): (u64, Asked),
    (ticket, receiver): (Ticket, Receiver),
    temper: Temper,
) {
    let (arrived, deadline) = (asked.arrived, asked.deadline);
    served.ledger.borrow_mut().accept(id, asked);
    let own = served.clone();
    let respond = move |answer: Answer| {
        own.rules.answered(id, &answer);
        response(&answer)
    };
    let waiter = Waiter::new(served.scheduler.clone(), (ticket, receiver), (arrived, deadline), respond);
    served.stepped();
    served.world.call(wait(waiter, id, served.clone(), temper));
}

async fn wait<F: FnMut(Answer) -> Response + Unpin, R: Rules>(
    mut waiter: Waiter<F>,
    id: u64,
    served: Rc<Served<R>>,
    temper: Temper,
) {
    let last = async {
        let mut last: Option<Result<Response, Error>> = None;
        while let Some(response) = waiter.next().await {
            let more = response.as_ref().is_ok_and(|response| !response.last);
            last = Some(response);
            served.world.poke();
            if let Some(pause) = temper.pause.filter(|_| more) {
                sleep(pause).await;
            }
        }
        assert!(last.is_some(), "request {id} ended without an outcome");
        last.and_then(Result::err)
    };
    let heard = match temper.patience {
        None => Some(last.await),
        Some(patience) => timeout(patience, last).await.ok(),
    };
    drop(waiter);
    let failure = heard.as_ref().and_then(Option::as_ref);
    let outcome = match (&heard, failure) {
        (None, _) => Heard::Nothing,
        (Some(_), None) => Heard::Answer,
        (Some(_), Some(error)) => Heard::Failure(error.kind()),
    };
    let now = Instant::now();
    let waited = served.ledger.borrow_mut().end(id, outcome, now);
    served.rules.heard(&served, id, (outcome, waited), failure);
    served.stepped();
}

/// What a caller gets.
pub fn response(answer: &Answer) -> Response {
    Response {
        model: "m".into(),
        version: 1,
        id: String::new(),
        outputs: Vec::new(),
        parameters: Parameters::new(),
        last: answer.last,
        times: Some(answer.times),
    }
}
