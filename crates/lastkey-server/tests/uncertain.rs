//! What a client is told when nobody knows whether its change was made.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of tests for library code")]

mod support;

use std::time::{Duration, Instant};

use lastkey_server::Limits;
use support::start_with;

/// `503` would mean that nothing was done, and clients would send the request again.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_took_too_long_may_have_been_carried_out() {
    let server = start_with(Limits { answer: Duration::ZERO, ..Limits::default() }).await;
    // The timer goes by milliseconds: some may be done before it looks.
    let mut sent = 0;
    let answer = loop {
        sent += 1;
        assert!(sent < 200, "none of them takes too long");
        let mut request = server.signed("CreateKey", &[]);
        request.headers_mut().remove("host");
        *request.uri_mut() = "https://localhost/".parse().unwrap();
        let answer = server.send_h2(request).await;
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!(answer.error(), (504, "Unavailable.Uncertain".to_owned()));
    assert!(answer.text.contains("look before you repeat it"), "{}", answer.text);
    assert!(!answer.headers.contains_key("retry-after"));
    // And so it was, like the others.
    let patience = Instant::now() + Duration::from_secs(20);
    while server.engine.key_count() < sent {
        assert!(Instant::now() < patience, "the key is not made");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
