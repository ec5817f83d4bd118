//! `POST .../infer`: one request, one response.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName};

use super::aside::aside;
use super::binary::{self, Layout};
use super::deadline::deadline;
use super::decode::{self, Decoded};
use super::path::Named;
use super::reply::Answer;
use super::{App, body, encode};
use crate::error::Result;
use crate::gateway::request_memory::Portion;
use crate::infer::Instant;
use crate::protocol::v2::context::{Context, REQUEST_ID};
use crate::protocol::v2::decode::{Arrival, version};
use crate::protocol::v2::infer;
use crate::protocol::v2::unread::Unread;
use crate::telemetry::trace::Protocol;

/// Answers one request. Dropping the future, as is done when the client goes away, cancels it.
pub async fn infer(State(app): State<Arc<App>>, at: Named, request: Request) -> Response {
    let context = Context::of(&app.gateway, Protocol::Http, request.headers());
    let id = context.header();
    let mut response = answer(&app, at, request, context).await.into_response();
    if let Some(id) = id {
        response.headers_mut().insert(HeaderName::from_static(REQUEST_ID), id);
    }
    response
}

async fn answer(app: &App, at: Named, request: Request, context: Context) -> Answer {
    let (head, body) = request.into_parts();
    let deadline = deadline(&head.headers);
    let unread = Unread::new(app.gateway.clone());
    let mut portion = app.gateway.portion();
    let Decoded { mut message, binary } = match read(app, &at, &head.headers, body, &mut portion).await {
        Ok(decoded) => decoded,
        Err(error) => {
            unread.refuse(error.kind());
            context.refused(&error);
            return Err(error.into());
        }
    };
    unread.read();
    app.settings.forward.add(&head.headers, &mut message.parameters);
    (message.model_name, message.model_version) = (at.model, at.version);
    let arrival = Arrival { at: Instant::now(), deadline, context: context.clone(), portion };
    let response = infer::over_http(&app.gateway, message, arrival).await?;
    context.sending();
    let text_bytes = encode::text_bytes(&response, &binary);
    Ok(aside(text_bytes, move || encode::response(response, &binary, context)).await?)
}

/// Reads and decodes a request. Its model must be there: no body is read for one that is not.
async fn read(app: &App, at: &Named, headers: &HeaderMap, body: Body, portion: &mut Portion) -> Result<Decoded> {
    let handle = app.gateway.find(&at.model, version(&at.version)?)?;
    let body = body::read(body, app.settings.request_bytes_max, portion).await?;
    match binary::split(headers, body)? {
        Layout::Request(text, blobs) => aside(text.len(), move || decode::request(&text, blobs)).await,
        Layout::Tensor(data) => binary::tensor(&handle.config, data),
    }
}
