//! TLS on every kind of port; certificates that change while calls are made.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nereid::protocol::http::Settings as RestSettings;
use nereid::protocol::restricted::Restrictions;
use nereid::protocol::transport::{Protocols, Settings, Tls};
use tokio::net::TcpStream;

use super::certificates::{Authority, connect, files};
use super::{Http2, Site, all, get, http1};
use crate::support::within;

#[tokio::test]
async fn grpc_and_http_are_served_encrypted_and_no_longer_plain() {
    let mut site = Site::new().await;
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let files = files(folder.path(), &authority.sign(), None);
    let tls = |protocols| Some(Tls::load(files.clone(), protocols).expect("a pair"));
    let grpc = site.serve(site.grpc(Restrictions::default()), Settings::grpc(), tls(Protocols::Http2));
    let rest = site.serve(site.rest(RestSettings::default()), Settings::http(), tls(Protocols::Both));

    let (h2, h1) = (authority.client(None, b"h2"), authority.client(None, b"http/1.1"));
    let mut client = Http2::over(connect(&h2, grpc).await.expect("it is trusted")).await.expect("it speaks HTTP/2");
    assert!(client.is_live().await);
    let refused = connect(&h1, grpc).await.expect_err("gRPC needs HTTP/2");
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");

    let live = "/v2/health/live";
    let answer = http1(connect(&h1, rest).await.expect("it is trusted"), get(live)).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let mut over_h2 = Http2::over(connect(&h2, rest).await.expect("it is trusted")).await.expect("it speaks HTTP/2");
    assert_eq!(over_h2.send(get(&format!("http://nereid{live}"))).await.expect("an answer").status(), 200);
    let plain = TcpStream::connect(rest).await.expect("the server listens");
    assert!(http1(plain, get(live)).await.is_err());
    let stranger = connect(&Authority::new().client(None, b"h2"), grpc).await.expect_err("who does not trust it");
    assert!(stranger.to_string().contains("invalid peer certificate"), "{stranger}");
    drop((client, over_h2));
    site.stop().await;
}

#[tokio::test]
async fn mutual_tls_wants_a_certificate_of_the_right_authority() {
    let mut site = Site::new().await;
    let (authority, other) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().expect("a temporary directory");
    let files = files(folder.path(), &authority.sign(), Some(&authority.pem));
    let tls = Tls::load(files, Protocols::Http2).expect("a pair");
    let address = site.serve(site.grpc(Restrictions::default()), Settings::grpc(), Some(tls));
    for (own, served) in [(Some(authority.sign()), true), (Some(other.sign()), false), (None, false)] {
        // The client learns of the refusal after its own part of the handshake.
        let stream = connect(&authority.client(own.as_ref(), b"h2"), address).await.expect("the server is trusted");
        let live = match Http2::over(stream).await {
            Ok(mut client) => client.is_live().await,
            Err(_) => false,
        };
        assert_eq!(live, served);
    }
    site.stop().await;
}

#[tokio::test]
async fn no_call_fails_while_certificates_change() {
    const CHANGES: usize = 20;
    let mut site = Site::new().await;
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let tls = Tls::load(files(folder.path(), &authority.sign(), None), Protocols::Http2).expect("a pair");
    let address = site.serve(site.grpc(Restrictions::default()), Settings::grpc(), Some(tls));
    let (ended, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let client = authority.client(None, b"h2");
    let calls_on_new_connections = async {
        while !ended.load(Ordering::Relaxed) {
            let stream = connect(&client, address).await.expect("a handshake");
            assert!(Http2::over(stream).await.expect("it speaks HTTP/2").is_live().await);
            calls.fetch_add(1, Ordering::Relaxed);
        }
    };
    let calls_on_one_connection = async {
        let mut one = Http2::over(connect(&client, address).await.expect("a handshake")).await.expect("HTTP/2");
        while !ended.load(Ordering::Relaxed) {
            assert!(one.is_live().await);
            calls.fetch_add(1, Ordering::Relaxed);
        }
    };
    let changes = async {
        for _ in 0..CHANGES {
            let new = authority.sign();
            // One after the other, so that they do not belong together for a while.
            std::fs::write(folder.path().join("server.crt"), &new.certificate).expect("writable");
            served(&calls, 5).await;
            std::fs::write(folder.path().join("server.key"), &new.key).expect("writable");
            // The last one is in use in the end.
            let expected = rustls::pki_types::pem::PemObject::from_pem_slice(new.certificate.as_bytes()).expect("PEM");
            until_shown(&client, address, &expected).await;
        }
        ended.store(true, Ordering::Relaxed);
    };
    within(async { tokio::join!(calls_on_new_connections, calls_on_one_connection, changes) }).await;
    assert!(calls.load(Ordering::Relaxed) > 5 * CHANGES);
    site.stop().await;
}

/// Waits for so many more calls.
async fn served(calls: &AtomicUsize, more: usize) {
    let before = calls.load(Ordering::Relaxed);
    while calls.load(Ordering::Relaxed) < before + more {
        tokio::task::yield_now().await;
    }
}

/// Waits until new connections are shown `expected`.
async fn until_shown(
    client: &tokio_rustls::TlsConnector,
    address: std::net::SocketAddr,
    expected: &rustls::pki_types::CertificateDer<'static>,
) {
    loop {
        let stream = connect(client, address).await.expect("a handshake");
        if stream.get_ref().1.peer_certificates().is_some_and(|chain| chain.first() == Some(expected)) {
            return;
        }
    }
}

#[tokio::test]
async fn who_does_not_finish_the_handshake_of_tls_is_closed() {
    let mut site = Site::new().await;
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let tls = Tls::load(files(folder.path(), &authority.sign(), None), Protocols::Http2).expect("a pair");
    let limits = Settings { handshake_timeout: Duration::from_millis(100), ..Settings::grpc() };
    let address = site.serve(site.grpc(Restrictions::default()), limits, Some(tls));
    let silent = (0..20).map(|_| async {
        let stream = TcpStream::connect(address).await.expect("the server listens");
        tokio::io::AsyncReadExt::read(&mut { stream }, &mut [0]).await.expect("closed, not broken")
    });
    assert_eq!(all(silent).await, [0; 20]);
    site.stop().await;
}
