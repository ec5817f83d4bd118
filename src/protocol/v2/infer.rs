//! One inference: from the decoded message to the response, with the order of checks that clients know.

use std::sync::Arc;

use super::decode::{self, Arrival, Decoded};
use super::outcome::Observer;
use super::wire::ModelInferRequest;
use crate::error::{Error, Kind, Result};
use crate::gateway::{Gateway, Handle};
use crate::infer::{Response, Responses, only};
use crate::model::Version;
use crate::telemetry::trace::Start;

/// A request that was handed to the engine.
pub struct Started {
    /// Its responses.
    pub responses: Responses,
    /// Whether it may have any number of them.
    pub decoupled: bool,
    /// The version that answers.
    pub version: Version,
    /// On a stream: the caller wants a last message even if it holds no data.
    pub empty_final_response: bool,
}

/// Answers one request for a model that gives exactly one response.
///
/// # Errors
/// Whatever is wrong with the request, or why it could not be executed.
pub async fn unary(gateway: &Gateway, wire: ModelInferRequest, arrival: Arrival) -> Result<Response> {
    one(gateway, wire, arrival, Rpc::Unary).await
}

/// As [`unary`], for a request over HTTP.
///
/// # Errors
/// Those of [`unary`].
pub async fn over_http(gateway: &Gateway, wire: ModelInferRequest, arrival: Arrival) -> Result<Response> {
    one(gateway, wire, arrival, Rpc::Http).await
}

async fn one(gateway: &Gateway, wire: ModelInferRequest, arrival: Arrival, rpc: Rpc) -> Result<Response> {
    let (started, observer) = begin(gateway, wire, arrival, rpc)?;
    let outcome = only(started.responses).await;
    observer.outcome(&outcome);
    outcome
}

/// How a request came, which says how many responses it can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rpc {
    /// ModelInfer: exactly one response.
    Unary,
    /// HTTP's `infer`: exactly one response.
    Http,
    /// ModelStreamInfer, and HTTP's `generate`: any number of responses.
    Stream,
}

/// Hands one request to the engine, or counts it as refused.
///
/// # Errors
/// Whatever is wrong with the request.
pub fn start(gateway: &Gateway, wire: ModelInferRequest, arrival: Arrival, rpc: Rpc) -> Result<Started> {
    let (started, observer) = begin(gateway, wire, arrival, rpc)?;
    Ok(Started { responses: observer.around(started.responses), ..started })
}

/// As [`start`]; whoever takes the responses shows them to the observer.
fn begin(gateway: &Gateway, wire: ModelInferRequest, mut arrival: Arrival, rpc: Rpc) -> Result<(Started, Observer)> {
    if let Some(trace) = arrival.context.trace() {
        trace.start(Start { model: &wire.model_name, id: &wire.id, arrived: arrival.at });
    }
    let checked = check(gateway, wire, &mut arrival, rpc);
    let Arrival { at: arrived, context, portion, .. } = arrival;
    let mut observer = Observer { context, handle: None, arrived, _portion: portion };
    let (handle, mut decoded) = checked.inspect_err(|error| {
        gateway.refused(error.kind());
        observer.failed(error);
    })?;
    if let Some(trace) = observer.context.trace() {
        let inputs = decoded.request.inputs.iter().map(|input| (input.name.as_str(), &input.tensor));
        trace.executing(handle.version, inputs);
    }
    decoded.request.follow = observer.context.follow();
    let started = Started {
        responses: decoded.exchange.deliver(gateway.infer(decoded.request)),
        decoupled: handle.config.decoupled,
        version: handle.version,
        empty_final_response: decoded.empty_final_response,
    };
    observer.handle = Some(handle);
    Ok((started, observer))
}

fn check(
    gateway: &Gateway,
    wire: ModelInferRequest,
    arrival: &mut Arrival,
    rpc: Rpc,
) -> Result<(Arc<Handle>, Decoded)> {
    let handle = gateway.find(&wire.model_name, decode::version(&wire.model_version)?)?;
    let refusal = match rpc {
        Rpc::Unary => Some("ModelInfer RPC doesn't support models with decoupled transaction policy"),
        Rpc::Http => Some("HTTP end point doesn't support models with decoupled transaction policy"),
        Rpc::Stream => None,
    };
    if let Some(refusal) = refusal.filter(|_| handle.config.decoupled) {
        return Err(Error::new(Kind::Unimplemented, refusal));
    }
    let decoded = decode::request(wire, &handle.config, arrival, gateway.regions())?;
    Ok((handle, decoded))
}
