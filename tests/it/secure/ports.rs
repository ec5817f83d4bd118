//! Kinds of ports: Unix-domain sockets, one port for all, one port for several processes; and floods.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nereid::infer::Instant;
use nereid::protocol::http::Settings as RestSettings;
use nereid::protocol::restricted::Restrictions;
use nereid::protocol::single_port::SinglePort;
use nereid::protocol::transport::{Address, Settings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::{Http2, Site, all, get, http1};
use crate::support::within;

const LIVE: &str = "/v2/health/live";

#[tokio::test]
async fn both_protocols_are_served_on_sockets_in_the_file_system() {
    let mut site = Site::new().await;
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (grpc, rest) = (folder.path().join("grpc"), folder.path().join("http"));
    site.serve_at(&Address::Unix(grpc.clone()), site.grpc(Restrictions::default()), Settings::grpc(), None);
    site.serve_at(&Address::Unix(rest.clone()), site.rest(RestSettings::default()), Settings::http(), None);
    let stream = UnixStream::connect(&grpc).await.expect("the server listens");
    let mut client = Http2::over(stream).await.expect("it speaks HTTP/2");
    assert!(client.is_live().await);
    let stream = UnixStream::connect(&rest).await.expect("the server listens");
    assert_eq!(http1(stream, get(LIVE)).await.expect("an answer").status(), 200);
    drop(client);
    site.stop().await;
    assert!(!grpc.exists() && !rest.exists(), "the files go with the server");
}

#[tokio::test]
async fn one_port_serves_grpc_and_http_of_both_versions() {
    let mut site = Site::new().await;
    let both = SinglePort { grpc: site.grpc(Restrictions::default()), rest: site.rest(RestSettings::default()) };
    let address = site.serve(both, Settings::http(), None);
    let connect = async || TcpStream::connect(address).await.expect("the server listens");
    // Both protocols in turn on one connection over HTTP/2.
    let mut client = Http2::over(connect().await).await.expect("it speaks HTTP/2");
    for _ in 0..3 {
        assert!(client.is_live().await);
        assert_eq!(client.send(get(&format!("http://nereid{LIVE}"))).await.expect("an answer").status(), 200);
    }
    assert_eq!(http1(connect().await, get(LIVE)).await.expect("an answer").status(), 200);
    drop(client);
    site.stop().await;
}

#[tokio::test]
async fn two_servers_share_a_port_and_one_goes_on_without_the_other() {
    let (mut one, mut other) = (Site::new().await, Site::new().await);
    let named = |name: &str| RestSettings { server_id: name.to_owned(), ..RestSettings::default() };
    let address = one.serve(one.rest(named("one")), Settings::http(), None);
    other.serve_at(&address.into(), other.rest(named("other")), Settings::http(), None);
    let names = async || {
        let mut names = BTreeMap::<String, usize>::new();
        for _ in 0..64 {
            let stream = TcpStream::connect(address).await.expect("the servers listen");
            let answer = http1(stream, get("/v2")).await.expect("an answer");
            let body: serde_json::Value = serde_json::from_slice(answer.body()).expect("JSON");
            *names.entry(body["name"].as_str().expect("a name").to_owned()).or_default() += 1;
        }
        names
    };
    assert_eq!(names().await.into_keys().collect::<Vec<_>>(), ["one", "other"]);
    one.stop().await;
    assert_eq!(names().await.into_keys().collect::<Vec<_>>(), ["other"]);
    other.stop().await;
}

#[tokio::test]
async fn a_flood_and_slow_peers_leave_other_clients_served() {
    const CONNECTIONS_MAX: usize = 32;
    let mut site = Site::new().await;
    let both = SinglePort { grpc: site.grpc(Restrictions::default()), rest: site.rest(RestSettings::default()) };
    let address = site.serve(both, Settings { connections_max: CONNECTIONS_MAX, ..Settings::http() }, None);
    let ended = AtomicBool::new(false);
    let slow = async |text: &'static str| {
        while !ended.load(Ordering::Relaxed) {
            let Ok(mut stream) = TcpStream::connect(address).await else { continue };
            for byte in text.as_bytes() {
                if stream.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            // Holds on until it is thrown out.
            let mut byte = [0];
            let gone = stream.read(&mut byte);
            let _ = tokio::time::timeout(Duration::from_millis(100), gone).await;
        }
    };
    let texts = ["", "GET /", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "POST / HTTP/1.1\r\nhost: x\r\nx: y"];
    let flood = (0..4 * CONNECTIONS_MAX).map(|index| slow(texts[index % texts.len()]));
    let mut longest = Duration::ZERO;
    let others = async {
        for _ in 0..20 {
            let start = Instant::now();
            let stream = TcpStream::connect(address).await.expect("the server listens");
            assert_eq!(http1(stream, get(LIVE)).await.expect("an answer").status(), 200);
            longest = longest.max(start.elapsed());
        }
        ended.store(true, Ordering::Relaxed);
    };
    within(async { tokio::join!(all(flood), others) }).await;
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    site.stop().await;
}
