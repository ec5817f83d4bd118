//! gRPC and HTTP on one port, for platforms that allow only one: chosen by the type of a request's content.

use std::error::Error;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response};
use http_body_util::Either;

use super::transport::{Body, Service};
use crate::gateway::request_memory::Portion;

/// Two front ends as one.
pub struct SinglePort<G, R> {
    /// Answers what is gRPC.
    pub grpc: G,
    /// Answers everything else.
    pub rest: R,
}

impl<G, R> Service for SinglePort<G, R>
where
    G: Service<Body: http_body::Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>>,
    R: Service<Body: http_body::Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>>,
{
    type Body = Either<G::Body, R::Body>;

    async fn call(&self, request: Request<Body>) -> Response<Self::Body> {
        if is_grpc(request.headers()) {
            self.grpc.call(request).await.map(Either::Left)
        } else {
            self.rest.call(request).await.map(Either::Right)
        }
    }

    /// Both count for the same.
    fn portion(&self) -> Portion {
        self.grpc.portion()
    }

    async fn ended(&self) {
        tokio::join!(self.grpc.ended(), self.rest.ended());
    }
}

/// As gRPC has it: `application/grpc`, alone or with `+` or `;` and more behind it.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(|kind| kind.as_bytes()).unwrap_or_default();
    kind.strip_prefix(b"application/grpc").is_some_and(|rest| rest.first().is_none_or(|next| b"+;".contains(next)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_told_by_its_type_of_content() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x=y", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, kind.parse().expect("a value"))]);
            assert_eq!(is_grpc(&headers), expected, "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
