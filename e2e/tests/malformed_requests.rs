//! Requests that no client library would send: each gets a clear answer, and the node serves on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use stateside_e2e::{
    config::Config,
    node_process::Site,
    raw_http2::{GRPC_HEADERS, code, framed, grpc, post, post_unfinished, reason},
    rpc,
};

const GET: &str = "stateside.v1.DataPlane/Get";
const UPSERT: &str = "stateside.v1.DataPlane/Upsert";
const REMOVE: &str = "stateside.v1.DataPlane/Remove";
const UPDATE: &str = "stateside.v1.DataPlane/Update";
/// A GetRequest for the key `k`.
const GET_K: &[u8] = &[0x0a, 1, b'k'];

/// Starts a node, lets the test do its worst, and sees that a usual client is still served.
async fn against_a_node<F: Future<Output = ()>>(test: impl FnOnce(String) -> F) {
    let site = Site::new(Config::default());
    let mut node = site.start();
    test(site.data_address()).await;
    let mut data = rpc::data(&site.data_address()).await.unwrap();
    rpc::put(&mut data, "after", "x").await.unwrap();
    assert!(rpc::get(&mut data, "after").await.unwrap().found);
    assert!(node.runs());
    assert!(!node.output().contains("panicked"), "{}", node.output());
}

#[tokio::test]
async fn malformed_protobuf_is_refused() {
    against_a_node(|address| async move {
        for (what, bytes) in [
            ("a length beyond the end", &[0x0a, 200, 1, b'k'][..]),
            (
                "a number of ten bytes and more",
                &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            ),
            ("a group that never ends", &[0x0b]),
            ("field number 0", &[0x02, 1, b'k']),
            ("a wrong wire type", &[0x08, 1]),
            ("noise", &[0xff; 64]),
        ] {
            for method in [GET, UPSERT, REMOVE, UPDATE] {
                let answer = grpc(&address, method, bytes).await.unwrap();
                assert_eq!(reason(&answer), "MALFORMED_REQUEST", "{what} to {method}: {answer:?}");
                assert_eq!(code(&answer), "INVALID_ARGUMENT", "{what} to {method}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn fields_that_this_version_does_not_know_are_passed_over() {
    against_a_node(|address| async move {
        let mut message = GET_K.to_vec();
        // Field 100: a varint; field 101: bytes; field 102: 64 bits; field 103: 32 bits.
        message.extend([0xa0, 0x06, 7, 0xaa, 0x06, 2, 1, 2]);
        message.extend([0xb1, 0x06, 1, 2, 3, 4, 5, 6, 7, 8, 0xbd, 0x06, 1, 2, 3, 4]);
        let answer = grpc(&address, GET, &message).await.unwrap();
        assert_eq!(answer.grpc_status(), 0, "{answer:?}");
    })
    .await;
}

#[tokio::test]
async fn a_message_that_is_not_framed_right_is_refused() {
    against_a_node(|address| async move {
        let mut too_long = framed(false, GET_K);
        too_long[4] = 200;
        let mut second = framed(false, GET_K);
        second.extend(framed(false, GET_K));
        let mut flag = framed(false, GET_K);
        flag[0] = 7;
        for (what, body) in [
            ("less than it announces", too_long),
            ("two messages", second),
            ("a flag that is none", flag),
            ("half a prefix", vec![0, 0]),
            ("nothing", Vec::new()),
        ] {
            let answer = post(&address, &format!("/{GET}"), &GRPC_HEADERS, body).await.unwrap();
            assert!(answer.grpc_status() > 0, "{what}: {answer:?}");
            assert_eq!(reason(&answer), "MALFORMED_REQUEST", "{what}: {answer:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_message_larger_than_a_batch_is_refused_by_its_prefix() {
    against_a_node(|address| async move {
        let mut body = framed(false, GET_K);
        body[1..5].copy_from_slice(&u32::MAX.to_be_bytes());
        let answer = post(&address, &format!("/{UPSERT}"), &GRPC_HEADERS, body).await.unwrap();
        assert_eq!(reason(&answer), "BATCH_TOO_LARGE", "{answer:?}");
    })
    .await;
}

#[tokio::test]
async fn a_compressed_message_is_refused_with_what_is_accepted() {
    against_a_node(|address| async move {
        let headers = [GRPC_HEADERS[0], GRPC_HEADERS[1], ("grpc-encoding", "gzip")];
        let answer =
            post(&address, &format!("/{GET}"), &headers, framed(true, b"zzzz")).await.unwrap();
        assert_eq!(reason(&answer), "COMPRESSION_UNSUPPORTED", "{answer:?}");
        assert_eq!(code(&answer), "UNIMPLEMENTED");
        assert!(answer.headers.contains_key("grpc-accept-encoding"), "{answer:?}");
    })
    .await;
}

#[tokio::test]
async fn what_is_not_grpc_gets_an_http_status() {
    against_a_node(|address| async move {
        let path = format!("/{GET}");
        let json = [("content-type", "application/json"), ("te", "trailers")];
        let answer = post(&address, &path, &json, b"{}".to_vec()).await.unwrap();
        assert_eq!(answer.http_status, 415, "{answer:?}");
    })
    .await;
}

#[tokio::test]
async fn unknown_paths_are_unimplemented() {
    against_a_node(|address| async move {
        for method in
            ["stateside.v1.DataPlane/Nothing", "no.Such/Service", "", "stateside.v1.DataPlane"]
        {
            let answer = grpc(&address, method, GET_K).await.unwrap();
            assert_eq!(code(&answer), "UNIMPLEMENTED", "/{method}: {answer:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn the_server_itself_keeps_deadlines() {
    against_a_node(|address| async move {
        let with = |timeout| [GRPC_HEADERS[0], GRPC_HEADERS[1], ("grpc-timeout", timeout)];
        let path = format!("/{GET}");
        // A request that never becomes whole: the client has no clock, the server must have one.
        let mut unfinished = framed(false, GET_K);
        unfinished[4] = 200;
        let answer = post_unfinished(&address, &path, &with("100m"), unfinished).await.unwrap();
        assert_eq!(code(&answer), "DEADLINE_EXCEEDED", "{answer:?}");
        assert_eq!(reason(&answer), "DEADLINE_EXCEEDED", "{answer:?}");
        for generous in ["5S", "1H", "99999999H", "20000m"] {
            let answer =
                post(&address, &path, &with(generous), framed(false, GET_K)).await.unwrap();
            assert_eq!(answer.grpc_status(), 0, "{generous}: {answer:?}");
        }
        for wrong in ["5", "S", "-1S", "123456789S", "1x"] {
            let answer = post(&address, &path, &with(wrong), framed(false, GET_K)).await.unwrap();
            assert_ne!(answer.grpc_status(), 0, "{wrong}: {answer:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn headers_without_end_are_refused() {
    against_a_node(|address| async move {
        let long = "x".repeat(64 << 10);
        let headers = [GRPC_HEADERS[0], GRPC_HEADERS[1], ("x-long", long.as_str())];
        // Refused with a status or by resetting the stream; never taken.
        let answer = post(&address, &format!("/{GET}"), &headers, framed(false, GET_K)).await;
        assert!(
            answer.is_err() || answer.as_ref().is_ok_and(|a| a.grpc_status() != 0),
            "{answer:?}"
        );
    })
    .await;
}
