//! Every RPC and every route, with the right, a wrong and no secret of every restricted group.

use http::{Method, Request};
use nereid::protocol::category::Category;
use nereid::protocol::grpc::METHODS;
use nereid::protocol::http::Settings as RestSettings;
use nereid::protocol::http::routes::ROUTES;
use nereid::protocol::restricted::{Group, Restrictions, Secret};
use nereid::protocol::transport::Settings;
use tokio::net::TcpStream;
use tonic::Code;

use super::{Http2, Site, get, http1};

fn group(categories: &[Category], name: String) -> Group {
    let header = name.parse().expect("a header's name");
    Group { categories: categories.to_vec(), header, secret: Secret::new(&secret(&name)), name }
}

fn secret(header: &str) -> String {
    format!("the secret of {header}")
}

/// Each category is a group of its own.
fn one_each(prefix: &str) -> Restrictions {
    let groups = Category::ALL.map(|category| group(&[category], header(prefix, category)));
    Restrictions::new(groups.into())
}

fn header(prefix: &str, category: Category) -> String {
    format!("{prefix}{}-key", category.name())
}

/// What a caller may tell: nothing, each header with the right secret, its own with a wrong one; and whether that opens
/// `category`.
fn told(prefix: &str, category: Category) -> Vec<(Option<(String, String)>, bool)> {
    let own = header(prefix, category);
    let wrong = ["", "the secret", "the secret of "].map(|wrong| (Some((own.clone(), wrong.to_owned())), false));
    let right = Category::ALL.map(|each| {
        let name = header(prefix, each);
        let secret = secret(&name);
        (Some((name, secret)), each == category)
    });
    [(None, false)].into_iter().chain(wrong).chain(right).collect()
}

#[tokio::test]
async fn every_rpc_opens_to_the_secret_of_its_group_only() {
    const PREFIX: &str = "triton-grpc-protocol-";
    let mut site = Site::new().await;
    let address = site.serve(site.grpc(one_each(PREFIX)), Settings::grpc(), None);
    let stream = TcpStream::connect(address).await.expect("the server listens");
    // Hundreds of calls, one after the other: each would wait for a delayed acknowledgement.
    stream.set_nodelay(true).expect("it is open");
    let mut client = Http2::over(stream).await.expect("it speaks HTTP/2");
    for (path, category) in METHODS {
        let own = header(PREFIX, *category);
        let refusal = format!("This protocol is restricted, expecting header '{own}'");
        for (told, opens) in told(PREFIX, *category) {
            for encoding in [None, Some(("grpc-encoding", "gzip"))] {
                let told = told.as_ref().map(|(name, value)| (name.as_str(), value.as_str()));
                let headers: Vec<_> = told.into_iter().chain(encoding).collect();
                let status = client.call(path, &headers).await.expect("an answer");
                let refused = status.is_some_and(|it| it.code() == Code::Unavailable && it.message() == refusal);
                assert_eq!(refused, !opens, "{path} with {headers:?}");
            }
        }
    }
    drop(client);
    site.stop().await;
}

#[tokio::test]
async fn every_route_opens_to_the_secret_of_its_group_only() {
    let mut site = Site::new().await;
    let settings = RestSettings { restrictions: one_each("x-"), ..RestSettings::default() };
    let address = site.serve(site.rest(settings), Settings::http(), None);
    let categories = ROUTES.iter().filter_map(|route| Some((route, route.category?)));
    for (route, category) in categories {
        let own = header("x-", category);
        let refusal = format!(r#"{{"error":"This API is restricted, expecting header '{own}'"}}"#);
        for (told, opens) in told("x-", category) {
            let path = route.path.replace(['{', '}'], "");
            let mut request = Request::builder().method(route.method).uri(&path).header("host", "nereid");
            if let Some((name, value)) = &told {
                request = request.header(name, value);
            }
            let stream = TcpStream::connect(address).await.expect("the server listens");
            let request = request.body(Default::default()).expect("well formed");
            let answer = http1(stream, request).await.expect("an answer");
            let refused = answer.status() == 403 && answer.body() == refusal.as_bytes();
            assert_eq!(refused, !opens, "{} {path} with {told:?}: {answer:?}", route.method);
            assert!(refused || answer.status() != 403, "{path}: {answer:?}");
        }
    }
    site.stop().await;
}

#[tokio::test]
async fn what_is_in_no_group_is_open_and_an_inference_refused_is_counted() {
    let mut site = Site::new().await;
    let only_inference = |name: &str| Restrictions::new(vec![group(&[Category::Inference], name.to_owned())]);
    let settings = RestSettings { restrictions: only_inference("key"), ..RestSettings::default() };
    let grpc = site.serve(site.grpc(only_inference("triton-grpc-protocol-key")), Settings::grpc(), None);
    let rest = site.serve(site.rest(settings), Settings::http(), None);
    let mut client = Http2::over(TcpStream::connect(grpc).await.expect("it listens")).await.expect("HTTP/2");
    assert!(client.is_live().await);
    let live = http1(TcpStream::connect(rest).await.expect("it listens"), get("/v2/health/live")).await;
    assert_eq!(live.expect("an answer").status(), 200);
    let refused = client.call("/inference.GRPCInferenceService/ModelInfer", &[]).await.expect("an answer");
    assert_eq!(refused.expect("a refusal").code(), Code::Unavailable);
    assert!(site.engine.metrics().render().contains("nereid_requests_received_total 1"));
    drop(client);
    site.stop().await;
}

#[tokio::test]
async fn pages_of_named_origins_may_call_and_others_may_not() {
    let mut site = Site::new().await;
    let origin = "https://page.example";
    let settings = RestSettings {
        restrictions: one_each(""),
        cors_origins: vec![origin.parse().expect("a value")],
        ..RestSettings::default()
    };
    let open = site.serve(site.rest(settings), Settings::http(), None);
    let closed = site.serve(site.rest(RestSettings::default()), Settings::http(), None);
    for (address, asked, allowed) in
        [(open, origin, Some(origin)), (open, "https://other.example", None), (closed, origin, None)]
    {
        // A preflight has no secret, and needs none.
        let request = Request::builder().method(Method::OPTIONS).uri("/v2/models/pair/infer").header("host", "nereid");
        let request = request.header("origin", asked).header("access-control-request-method", "POST");
        let request = request.header("access-control-request-headers", "inference-key");
        let stream = TcpStream::connect(address).await.expect("the server listens");
        let answer = http1(stream, request.body(Default::default()).expect("well formed")).await.expect("an answer");
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().expect("text"));
        assert_eq!(header("access-control-allow-origin"), allowed, "{asked}");
        if allowed.is_some() {
            assert_eq!(header("access-control-allow-headers"), Some("inference-key"));
        }
        // Without being asked first, browsers send some requests anyway, and say whose they are.
        for (site, is_foreign) in [("cross-site", true), ("same-site", true), ("same-origin", false), ("none", false)] {
            let request = Request::post("/v2/repository/models/pair/unload").header("host", "nereid");
            let request = request.header("origin", asked).header("sec-fetch-site", site);
            let stream = TcpStream::connect(address).await.expect("the server listens");
            let request = request.body(Default::default()).expect("well formed");
            let answer = http1(stream, request).await.expect("an answer");
            let refused = answer.status() == 403 && answer.body().starts_with(b"{\"error\":\"pages of other origins");
            assert_eq!(refused, is_foreign && allowed.is_none(), "{asked} {site}: {answer:?}");
        }
    }
    site.stop().await;
}
