//! `generate` and `generate_stream`: one inference of plain values, answered by one object or by a stream of events.
//!
//! The inference ends when the caller goes away: its responses are dropped with the body that they are written to.

use std::pin::Pin;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response as Reply};
use futures_core::Stream;
use futures_util::StreamExt as _;
use http::{HeaderName, StatusCode};

use super::aside::aside;
use super::deadline::deadline;
use super::path::Named;
use super::reply::{self, Answer};
use super::{App, body, json, mapping, sse};
use crate::error::{Error, Result};
use crate::gateway::request_memory::Portion;
use crate::infer::{Instant, Response};
use crate::protocol::v2::context::{Context, REQUEST_ID};
use crate::protocol::v2::decode::{self, Arrival};
use crate::protocol::v2::infer::{self, Rpc};
use crate::protocol::v2::unread::Unread;
use crate::protocol::v2::wire::ModelInferRequest;
use crate::telemetry::trace::Protocol;

/// Responses, each as the object that is sent.
type Objects = Pin<Box<dyn Stream<Item = Result<Vec<u8>>> + Send>>;

/// `POST .../generate`: exactly one response.
pub async fn once(State(app): State<Arc<App>>, at: Named, request: Request) -> Reply {
    let context = Context::of(&app.gateway, Protocol::Http, request.headers());
    let answer = object_of_one(&app, at, request, context.clone()).await;
    with_id(answer.into_response(), &context)
}

/// `POST .../generate_stream`: any number of responses, each an event.
///
/// The status is sent with the first response: what goes wrong before it is an ordinary error, what goes wrong later
/// is an event.
pub async fn events(State(app): State<Arc<App>>, at: Named, request: Request) -> Reply {
    let context = Context::of(&app.gateway, Protocol::Http, request.headers());
    let answer = event_of_each(&app, at, request, context.clone()).await;
    with_id(answer.into_response(), &context)
}

fn with_id(mut answer: Reply, context: &Context) -> Reply {
    if let Some(id) = context.header() {
        answer.headers_mut().insert(HeaderName::from_static(REQUEST_ID), id);
    }
    answer
}

async fn object_of_one(app: &App, at: Named, request: Request, context: Context) -> Answer {
    let mut objects = start(app, at, request, context.clone()).await?;
    let only = objects.next().await.transpose()?;
    let another = match only {
        Some(_) => objects.next().await.transpose()?,
        None => None,
    };
    let (Some(only), None) = (only, another) else {
        return Err(Error::invalid(
            "generate expects model to produce exactly 1 response, use generate stream for model that generates \
             various number of responses",
        )
        .into());
    };
    context.sending();
    Ok(reply::json(StatusCode::OK, only))
}

async fn event_of_each(app: &App, at: Named, request: Request, context: Context) -> Answer {
    let mut objects = start(app, at, request, context.clone()).await?;
    let first = objects.next().await.transpose()?;
    context.sending();
    Ok(sse::response(futures_util::stream::iter(first.map(Ok)).chain(objects), context))
}

/// The responses of an inference as objects, without one that says nothing but that it is the last.
async fn start(app: &App, at: Named, request: Request, context: Context) -> Result<Objects> {
    let unread = Unread::new(app.gateway.clone());
    let deadline = deadline(request.headers());
    let mut portion = app.gateway.portion();
    let message = match read(app, at, request, &mut portion).await {
        Ok(message) => message,
        Err(error) => {
            unread.refuse(error.kind());
            context.refused(&error);
            return Err(error);
        }
    };
    unread.read();
    let arrival = Arrival { at: Instant::now(), deadline, context, portion };
    let responses = infer::start(&app.gateway, message, arrival, Rpc::Stream)?.responses;
    let says_something = |response: &Result<Response>| match response {
        Ok(response) => !response.last || !response.outputs.is_empty(),
        Err(_) => true,
    };
    let responses = responses.filter(move |response| std::future::ready(says_something(response)));
    Ok(Box::pin(responses.then(async |response| {
        let response = response?;
        aside(response.outputs.iter().map(|output| output.tensor.data.len()).sum(), move || object(&response)).await
    })))
}

/// Reads and decodes a request. Its model must be there: no body is read for one that is not.
async fn read(app: &App, at: Named, request: Request, portion: &mut Portion) -> Result<ModelInferRequest> {
    let handle = app.gateway.find(&at.model, decode::version(&at.version)?)?;
    let (head, body) = request.into_parts();
    let text = body::read(body, app.settings.request_bytes_max, portion).await?;
    let text_bytes = text.len();
    let mut message = aside(text_bytes, move || mapping::request(&text, at, &handle.config)).await?;
    app.settings.forward.add(&head.headers, &mut message.parameters);
    Ok(message)
}

/// One flat object: the model, the response's parameters, the outputs by name; an output of one element is that.
fn object(response: &Response) -> Result<Vec<u8>> {
    let mut text = Vec::with_capacity(256);
    member(&mut text, "model_name");
    json::string(&mut text, &response.model);
    member(&mut text, "model_version");
    json::string(&mut text, &response.version.to_string());
    if !response.id.is_empty() {
        member(&mut text, "id");
        json::string(&mut text, &response.id);
    }
    for (key, value) in &response.parameters {
        member(&mut text, key);
        json::value(&mut text, value);
    }
    for output in &response.outputs {
        member(&mut text, &output.name);
        let begin = text.len();
        json::tensor(&mut text, &output.tensor, &output.name)?;
        if output.tensor.shape.elements() == Some(1) {
            text.pop();
            text.remove(begin);
        }
    }
    text.push(b'}');
    Ok(text)
}

fn member(text: &mut Vec<u8>, key: &str) {
    text.push(if text.is_empty() { b'{' } else { b',' });
    json::string(text, key);
    text.push(b':');
}
