//! Sessions against a real client stack: the `h2` crate, over an in-memory pipe.
#![allow(clippy::unwrap_used, reason = "test code outside of #[test] functions")]

mod harness;

use std::rc::Rc;

use bytes::Bytes;
use h2::client::Builder;
use harness::{
    Answer, ECHO, Ended, HANG, REFUSE, SIZE, Shared, call, config, framed, request, unary, until,
    with_client, with_client_shared,
};
use http::Request;
use stateside_types::Reason;
use stateside_wire::Millis;

fn assert_ok(answer: &Answer, message: &[u8]) {
    assert_eq!(answer.http_status, 200);
    assert_eq!(answer.fields["content-type"], "application/grpc");
    assert_eq!(answer.grpc_status(), "0");
    assert!(answer.message == message, "the message differs");
}

/// One call with odd headers or pieces; what the client is told.
fn refused(request: Request<()>, pieces: Vec<Bytes>) -> Answer {
    with_client(config(), Builder::new(), async move |send, shared| {
        let answer = call(&send, request, pieces).await.unwrap();
        assert_eq!(shared.requests.get(), 0, "the application saw it");
        // The connection is none the worse.
        assert_ok(&unary(&send, ECHO, b"after").await, b"after");
        answer
    })
}

fn data(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

#[test]
fn unary_calls_are_answered_also_many_at_a_time() {
    let (_, ended) =
        with_client_shared(config(), Builder::new(), Rc::default(), async |send, _| {
            assert_ok(&unary(&send, ECHO, b"hello").await, b"hello");
            assert_ok(&unary(&send, ECHO, b"").await, b"");
            let calls: Vec<_> = (0..200_u32)
                .map(|n| {
                    let send = send.clone();
                    tokio::task::spawn_local(async move {
                        let message = n.to_be_bytes().repeat(1 + n as usize);
                        assert_ok(&unary(&send, ECHO, &message).await, &message);
                    })
                })
                .collect();
            for call in calls {
                call.await.unwrap();
            }
        });
    assert_eq!(ended, Ended::Finished);
}

#[test]
fn input_cut_anywhere_and_output_in_small_budgets_is_the_same() {
    for cut_bytes in [1, 2, 3, 7, 64] {
        let shared = Rc::new(Shared::default());
        shared.cut_bytes.set(cut_bytes);
        shared.budget.set(10 * cut_bytes);
        with_client_shared(config(), Builder::new(), shared, async |send, _| {
            for size in [0, 1, 100, 20_000] {
                let message = vec![size as u8; size];
                let pieces = framed(&message).chunks(7_001).map(data).collect();
                let answer = call(&send, request(ECHO).body(()).unwrap(), pieces).await.unwrap();
                assert_ok(&answer, &message);
            }
        });
    }
}

#[test]
fn a_refusal_carries_code_text_reason_and_retry_hint() {
    let answer =
        with_client(config(), Builder::new(), async |send, _| unary(&send, REFUSE, b"x").await);
    assert_eq!(answer.http_status, 200);
    assert!(answer.has_reason(Reason::Overloaded));
    assert!(answer.grpc_message().starts_with("100%25 of the queue"), "{}", answer.grpc_message());
    let details = harness::base64_decoded(answer.fields["grpc-status-details-bin"].as_bytes());
    let text = String::from_utf8_lossy(&details);
    for part in ["google.rpc.ErrorInfo", "stateside.dev", "queue", "google.rpc.RetryInfo"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

#[test]
fn unknown_methods_are_unimplemented() {
    let wrong = Request::post("http://localhost/test.v1.Test/Nothing")
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    assert!(refused(wrong, vec![framed(b"x")]).has_reason(Reason::UnknownMethod));
}

#[test]
fn other_http_methods_and_content_types_get_http_errors() {
    let get = Request::get("http://localhost/test.v1.Test/Echo").body(()).unwrap();
    let answer = refused(get, vec![]);
    assert_eq!(answer.http_status, 405);
    assert_eq!(answer.fields["allow"], "POST");

    let json = Request::post("http://localhost/test.v1.Test/Echo")
        .header("content-type", "application/json")
        .body(())
        .unwrap();
    let answer = refused(json, vec![data(b"{}")]);
    assert_eq!(answer.http_status, 415);
    assert!(answer.has_reason(Reason::MalformedRequest));
}

#[test]
fn a_client_without_te_trailers_is_served() {
    with_client(config(), Builder::new(), async |send, _| {
        let plain = Request::post("http://localhost/test.v1.Test/Echo")
            .header("content-type", "application/grpc+proto")
            .body(())
            .unwrap();
        assert_ok(&call(&send, plain, vec![framed(b"x")]).await.unwrap(), b"x");
    });
}

#[test]
fn compressed_messages_are_refused_and_told_what_is_read() {
    for encoding in ["identity", "gzip"] {
        let with = request(ECHO).header("grpc-encoding", encoding).body(()).unwrap();
        let answer = refused(with, vec![data(&[1, 0, 0, 0, 1, 9])]);
        assert!(answer.has_reason(Reason::CompressionUnsupported));
        assert_eq!(answer.fields["grpc-accept-encoding"], "identity");
    }
}

#[test]
fn bodies_that_are_not_one_message_are_refused() {
    let empty = || request(ECHO).body(()).unwrap();
    for (pieces, part) in [
        (vec![], "no request message"),
        (vec![data(b"")], "no request message"),
        (vec![data(&[0, 0, 0])], "ended before"),
        (vec![data(&[0, 0, 0, 0, 9, 1, 2])], "ended before"),
        (vec![framed(b"one"), framed(b"two")], "one request message"),
        (vec![data(&[7, 0, 0, 0, 0])], "begins with 7"),
    ] {
        let answer = refused(empty(), pieces);
        assert!(answer.has_reason(Reason::MalformedRequest));
        assert!(answer.grpc_message().contains(part), "{}", answer.grpc_message());
    }
}

#[test]
fn a_message_above_the_limit_is_refused_by_its_prefix() {
    let answer = with_client(config(), Builder::new(), async |send, shared| {
        let mut send = send.ready().await.unwrap();
        let (response, mut body) =
            send.send_request(request(ECHO).body(()).unwrap(), false).unwrap();
        // Only the prefix is sent: the answer does not wait for the rest.
        body.send_data(data(&[0, 0, 16, 0, 1]), false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(shared.requests.get(), 0);
        // And the client is told to stop, without an error.
        let reason = std::future::poll_fn(|context| body.poll_reset(context)).await.unwrap();
        assert_eq!(reason, h2::Reason::NO_ERROR);
        Answer {
            http_status: response.status(),
            fields: response.headers().clone(),
            message: Vec::new(),
        }
    });
    assert!(answer.has_reason(Reason::BatchTooLarge));
}

#[test]
fn the_largest_message_is_taken_and_comes_back() {
    let message: Vec<u8> = (0..1 << 20).map(|n: u32| (n / 7) as u8).collect();
    with_client(config(), Builder::new(), async |send, _| {
        assert_ok(&unary(&send, ECHO, &message).await, &message);
    });
}

#[test]
fn sixty_four_batches_of_a_mebibyte_at_a_time_all_go_through() {
    with_client(config(), Builder::new(), async |send, _| {
        let message = vec![3; 1 << 20];
        let calls: Vec<_> = (0..64)
            .map(|_| {
                let (send, message) = (send.clone(), message.clone());
                tokio::task::spawn_local(async move {
                    assert_ok(&unary(&send, ECHO, &message).await, &message);
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap();
        }
    });
}

#[test]
fn request_bytes_above_the_connections_limit_are_refused_as_overloaded() {
    let mut small = config();
    small.request_bytes_per_connection_max = 20_000;
    with_client(small, Builder::new(), async |send, shared| {
        // Two streams that hold half the budget between them and never finish.
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut send = send.clone().ready().await.unwrap();
            let (response, mut body) =
                send.send_request(request(ECHO).body(()).unwrap(), false).unwrap();
            body.send_data(framed(&[1; 4_990]).slice(..4_900), false).unwrap();
            held.push((response, body));
        }
        let answer = unary(&send, ECHO, &[2; 1_000]).await;
        assert!(answer.has_reason(Reason::Overloaded));
        assert_eq!(shared.requests.get(), 0);
        // What they give up is there for others.
        for (_, body) in &mut held {
            body.send_reset(h2::Reason::CANCEL);
        }
        assert_ok(&unary(&send, ECHO, &[2; 1_000]).await, &[2; 1_000]);
    });
}

#[test]
fn a_large_answer_flows_through_small_windows() {
    let mut builder = Builder::new();
    builder.initial_window_size(65_535).initial_connection_window_size(65_535);
    let mut small = config();
    small.response_backlog_bytes_max = 40 << 20;
    let shared = Rc::new(Shared::default());
    shared.budget.set(100_000);
    with_client_shared(small, builder, shared, async |send, _| {
        let size = 16_u32 << 20;
        let answer = unary(&send, SIZE, &size.to_be_bytes()).await;
        assert_eq!(answer.message.len(), size as usize);
        assert_eq!(answer.grpc_status(), "0");
    });
}

#[test]
fn an_answer_above_the_limit_is_refused() {
    with_client(config(), Builder::new(), async |send, _| {
        let answer = unary(&send, SIZE, &((16_u32 << 20) + 1).to_be_bytes()).await;
        assert!(answer.has_reason(Reason::ResponseTooLarge));
    });
}

#[test]
fn a_window_of_one_byte_is_served_byte_by_byte() {
    let mut builder = Builder::new();
    builder.initial_window_size(1);
    with_client(config(), builder, async |send, _| {
        assert_ok(&unary(&send, ECHO, b"slowly").await, b"slowly");
    });
}

#[test]
fn calls_wait_while_answers_pile_up_and_go_on_when_they_are_read() {
    let mut small = config();
    small.send_backlog_bytes_max = 100_000;
    let mut builder = Builder::new();
    builder.initial_window_size(10_000);
    with_client(small, builder, async |send, shared| {
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let send = send.clone();
                tokio::task::spawn_local(async move {
                    let answer = unary(&send, SIZE, &60_000_u32.to_be_bytes()).await;
                    assert_eq!(answer.message.len(), 60_000);
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap();
        }
        assert!(shared.backlog_max.get() <= 200_000, "{}", shared.backlog_max.get());
    });
}

#[test]
fn an_answer_above_the_backlog_resets_its_stream_only() {
    let mut small = config();
    small.response_backlog_bytes_max = 50_000;
    with_client(small, Builder::new(), async |send, _| {
        let large =
            call(&send, request(SIZE).body(()).unwrap(), vec![framed(&60_000_u32.to_be_bytes())]);
        let error = large.await.unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM));
        assert_ok(&unary(&send, ECHO, b"next").await, b"next");
    });
}

#[test]
fn a_deadline_that_passes_is_answered_and_cancels_the_call() {
    with_client(config(), Builder::new(), async |send, shared| {
        let hang = request(HANG).header("grpc-timeout", "500m").body(()).unwrap();
        let answer = tokio::task::spawn_local({
            let send = send.clone();
            async move { call(&send, hang, vec![framed(b"x")]).await.unwrap() }
        });
        until("the call hangs", || shared.hanging.borrow().len() == 1).await;
        assert_eq!(shared.deadlines.borrow()[0], Some(Millis(500)));

        shared.now.set(499);
        shared.poke.notify_one();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!answer.is_finished());
        shared.now.set(500);
        shared.poke.notify_one();
        let answer = answer.await.unwrap();
        assert!(answer.has_reason(Reason::DeadlineExceeded));
        assert_eq!(*shared.cancelled.borrow(), *shared.hanging.borrow());

        // A late answer finds nothing, and does no harm.
        let late = shared.hanging.borrow()[0];
        shared.on_session(move |session| {
            assert!(!session.respond(late, |out| out.push(1)));
            assert!(!session.refuse(late, &harness::overloaded()));
        });
        assert_ok(&unary(&send, ECHO, b"next").await, b"next");
    });
}

#[test]
fn a_malformed_timeout_is_refused() {
    let odd = request(ECHO).header("grpc-timeout", "soon").body(()).unwrap();
    assert!(refused(odd, vec![framed(b"x")]).has_reason(Reason::MalformedRequest));
}

#[test]
fn a_call_that_its_client_resets_is_cancelled() {
    with_client(config(), Builder::new(), async |send, shared| {
        let mut ready = send.clone().ready().await.unwrap();
        let (response, mut body) =
            ready.send_request(request(HANG).body(()).unwrap(), false).unwrap();
        body.send_data(framed(b"x"), true).unwrap();
        until("the call hangs", || shared.hanging.borrow().len() == 1).await;
        body.send_reset(h2::Reason::CANCEL);
        drop(response);
        until("the call is cancelled", || !shared.cancelled.borrow().is_empty()).await;
        assert_eq!(*shared.cancelled.borrow(), *shared.hanging.borrow());
        shared.on_session(|session| assert_eq!(session.open_streams(), 0));
        assert_ok(&unary(&send, ECHO, b"next").await, b"next");
    });
}

#[test]
fn a_reset_while_the_answer_is_under_way_frees_what_it_held() {
    let mut builder = Builder::new();
    builder.initial_window_size(1_000);
    with_client(config(), builder, async |send, shared| {
        let mut ready = send.clone().ready().await.unwrap();
        let (response, mut body) =
            ready.send_request(request(SIZE).body(()).unwrap(), false).unwrap();
        body.send_data(framed(&1_000_000_u32.to_be_bytes()), true).unwrap();
        let response = response.await.unwrap();
        body.send_reset(h2::Reason::CANCEL);
        drop(response);
        assert_ok(&unary(&send, ECHO, b"next").await, b"next");
        shared.on_session(|session| assert_eq!(session.backlog_bytes(), 0));
        assert_ok(&unary(&send, ECHO, b"next").await, b"next");
    });
}

#[test]
fn headers_above_the_limit_are_refused() {
    let mut fat = request(ECHO);
    for n in 0..20 {
        fat = fat.header(format!("x-padding-{n}"), "v".repeat(1_000));
    }
    let answer = refused(fat.body(()).unwrap(), vec![framed(b"x")]);
    assert!(answer.has_reason(Reason::MalformedRequest));
    assert!(answer.grpc_message().contains("16384"));
}

#[test]
fn go_away_finishes_open_calls_and_ends() {
    let (answer, ended) =
        with_client_shared(config(), Builder::new(), Rc::default(), async |send, shared| {
            let answer = tokio::task::spawn_local({
                let send = send.clone();
                async move { unary(&send, HANG, b"x").await }
            });
            until("the call hangs", || shared.hanging.borrow().len() == 1).await;
            shared.on_session(|session| session.go_away(Millis(0)));
            // The client learns of it: it opens no more.
            let mut refused = false;
            for _ in 0..1_000 {
                refused = send.clone().ready().await.is_err();
                if refused {
                    break;
                }
                tokio::task::yield_now().await;
            }
            assert!(refused, "the client still opens calls");
            assert!(!answer.is_finished());
            let hanging = shared.hanging.borrow()[0];
            shared.on_session(move |session| {
                assert!(!session.is_finished());
                assert!(session.respond(hanging, |out| out.extend_from_slice(b"done")));
            });
            answer.await.unwrap()
        });
    assert_ok(&answer, b"done");
    assert_eq!(ended, Ended::Finished);
}

#[test]
fn a_hundred_concurrent_streams_wait_for_the_limit_of_ten() {
    let mut small = config();
    small.streams_max = 10;
    with_client(small, Builder::new(), async |send, _| {
        assert_ok(&unary(&send, ECHO, b"settings are there").await, b"settings are there");
        let calls: Vec<_> = (0..100_u32)
            .map(|n| {
                let send = send.clone();
                tokio::task::spawn_local(async move {
                    let message = n.to_be_bytes();
                    assert_ok(&unary(&send, ECHO, &message).await, &message);
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap();
        }
    });
}
