//! Drives a `Session` in-process: behind an in-memory pipe for the `h2` crate's client, or by
//! hand-made frames. Time is a number that the test sets.
#![allow(dead_code, reason = "every test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "test code outside of #[test] functions")]

pub(crate) mod frames;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use bytes::{Bytes, BytesMut};
use h2::client::{self, SendRequest};
use http::{HeaderMap, Request, StatusCode};
use stateside_types::{Reason, Refusal};
use stateside_wire::{Closed, Endpoint, Event, Method, Millis, Session, SessionConfig, StreamId};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::Notify,
};

pub(crate) const METHODS: &[&str] =
    &["/test.v1.Test/Echo", "/test.v1.Test/Size", "/test.v1.Test/Hang", "/test.v1.Test/Refuse"];
/// Answers with the request's message.
pub(crate) const ECHO: Method = Method(0);
/// Answers with as many bytes as the request's message says, big-endian.
pub(crate) const SIZE: Method = Method(1);
/// Answers nothing; the test does, through `Shared::hanging`.
pub(crate) const HANG: Method = Method(2);
/// Refuses as `OVERLOADED`.
pub(crate) const REFUSE: Method = Method(3);

pub(crate) fn config() -> SessionConfig {
    SessionConfig::new(METHODS)
}

/// What the application behind a session does with an event. True: it answered.
pub(crate) fn apply(session: &mut Session, event: Event) -> Option<StreamId> {
    let Event::Request { stream, method, message, .. } = event else { return None };
    match method {
        ECHO => assert!(session.respond(stream, |out| out.extend_from_slice(&message))),
        SIZE => {
            let size = u32::from_be_bytes(message[..4].try_into().unwrap()) as usize;
            // Changed bytes may ask for gigabytes, which only takes long.
            let size = if size > 17 << 20 { size & 0xffff } else { size };
            session.respond(stream, |out| out.resize(out.len() + size, 0x5a));
        }
        REFUSE => assert!(session.refuse(stream, &overloaded())),
        _ => {
            session.recycle(message);
            return Some(stream);
        }
    }
    session.recycle(message);
    None
}

pub(crate) fn overloaded() -> Refusal {
    Refusal::new(Reason::Overloaded, "100% of the queue is taken").with("queue", 7)
}

/// What the test sees of the server, and how it acts on it.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) now: Cell<u64>,
    pub(crate) poke: Notify,
    /// Feeds the session pieces of at most so many bytes; 0: as they come.
    pub(crate) cut_bytes: Cell<usize>,
    /// Bytes `send` may append at a time; 0: any number.
    pub(crate) budget: Cell<usize>,
    pub(crate) hanging: RefCell<Vec<StreamId>>,
    pub(crate) cancelled: RefCell<Vec<StreamId>>,
    pub(crate) deadlines: RefCell<Vec<Option<Millis>>>,
    pub(crate) requests: Cell<usize>,
    pub(crate) backlog_max: Cell<usize>,
    #[allow(clippy::type_complexity, reason = "one test hook")]
    pub(crate) next: RefCell<Vec<Box<dyn FnOnce(&mut Session)>>>,
}

impl Shared {
    /// Runs on the session as soon as the server gets to it.
    pub(crate) fn on_session(&self, act: impl FnOnce(&mut Session) + 'static) {
        self.next.borrow_mut().push(Box::new(act));
        self.poke.notify_one();
    }
}

/// How a session ended, as its owner saw it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Finished,
    Closed(Closed),
}

/// What the node does for a connection, in small.
pub(crate) async fn serve(
    mut io: DuplexStream,
    config: SessionConfig,
    shared: Rc<Shared>,
) -> Ended {
    let endpoint = Endpoint::new(config).unwrap();
    let mut session = Session::new(&endpoint, Millis(shared.now.get()));
    let mut buffer = vec![0; 64 << 10];
    let mut ended = None;
    loop {
        for act in shared.next.borrow_mut().drain(..) {
            act(&mut session);
        }
        while let Some(event) = session.next_event() {
            match &event {
                Event::Request { deadline, .. } => {
                    shared.requests.set(shared.requests.get() + 1);
                    shared.deadlines.borrow_mut().push(*deadline);
                }
                Event::Cancelled { stream } => shared.cancelled.borrow_mut().push(*stream),
            }
            if let Some(stream) = apply(&mut session, event) {
                shared.hanging.borrow_mut().push(stream);
            }
        }
        shared.backlog_max.set(shared.backlog_max.get().max(session.backlog_bytes()));
        let mut out = Vec::new();
        let budget = if shared.budget.get() == 0 { usize::MAX } else { shared.budget.get() };
        session.send(&mut out, budget);
        if !out.is_empty() {
            if io.write_all(&out).await.is_err() {
                return Ended::Finished;
            }
            continue;
        }
        if let Some(closed) = ended {
            return Ended::Closed(closed);
        }
        if session.is_finished() {
            return Ended::Finished;
        }
        tokio::select! {
            read = io.read(&mut buffer), if session.wants_read(0) => match read {
                Ok(0) | Err(_) => session.receive_end(),
                Ok(count) => {
                    let cut = if shared.cut_bytes.get() == 0 { count } else { shared.cut_bytes.get() };
                    for piece in buffer[..count].chunks(cut) {
                        let now = Millis(shared.now.get());
                        if let Err(closed) = session.receive(piece, now) {
                            ended = Some(closed);
                            break;
                        }
                    }
                }
            },
            () = shared.poke.notified() => {
                if let Err(closed) = session.tick(Millis(shared.now.get())) {
                    ended = Some(closed);
                }
            }
        }
    }
}

/// Runs `test` with an h2 client against a served session; gives back how the session ended.
pub(crate) fn with_client<F, T>(config: SessionConfig, builder: client::Builder, test: F) -> T
where
    F: AsyncFnOnce(SendRequest<Bytes>, Rc<Shared>) -> T,
{
    with_client_shared(config, builder, Rc::default(), test).0
}

pub(crate) fn with_client_shared<F, T>(
    config: SessionConfig,
    builder: client::Builder,
    shared: Rc<Shared>,
    test: F,
) -> (T, Ended)
where
    F: AsyncFnOnce(SendRequest<Bytes>, Rc<Shared>) -> T,
{
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let server = tokio::task::spawn_local(serve(theirs, config, Rc::clone(&shared)));
        let (send, connection) = builder.handshake::<_, Bytes>(ours).await.unwrap();
        tokio::task::spawn_local(connection);
        let result = test(send, shared).await;
        // The client's handle is gone: its connection ends, and with it the session.
        (result, server.await.unwrap())
    })
}

pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(message.len() + 5);
    bytes.extend_from_slice(&[0]);
    bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
    bytes.extend_from_slice(message);
    bytes.freeze()
}

pub(crate) fn request(method: Method) -> http::request::Builder {
    Request::post(format!("http://localhost{}", METHODS[usize::from(method.0)]))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

/// An answer as a gRPC client sees it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) http_status: StatusCode,
    /// Headers and trailers together.
    pub(crate) fields: HeaderMap,
    pub(crate) message: Vec<u8>,
}

impl Answer {
    pub(crate) fn grpc_status(&self) -> &str {
        self.fields.get("grpc-status").map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn grpc_message(&self) -> &str {
        self.fields.get("grpc-message").map_or("", |value| value.to_str().unwrap())
    }

    /// Whether the details name this reason.
    pub(crate) fn has_reason(&self, reason: Reason) -> bool {
        let details = self.fields.get("grpc-status-details-bin").expect("details");
        let bytes = base64_decoded(details.as_bytes());
        let wanted = reason.as_str().as_bytes();
        bytes.windows(wanted.len()).any(|window| window == wanted)
            && self.grpc_status() == (reason.code() as u8).to_string()
    }
}

pub(crate) fn base64_decoded(text: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = text.iter().map(|c| ALPHABET.iter().position(|a| a == c).unwrap() as u32);
    let mut bytes = Vec::new();
    let (mut group, mut have) = (0_u32, 0);
    for six in bits {
        group = group << 6 | six;
        have += 6;
        if have >= 8 {
            have -= 8;
            bytes.push((group >> have) as u8);
        }
    }
    bytes
}

/// Sends the pieces as DATA, reads the answer, giving windows back as a client does.
pub(crate) async fn call(
    send: &SendRequest<Bytes>,
    request: Request<()>,
    pieces: Vec<Bytes>,
) -> Result<Answer, h2::Error> {
    let mut send = send.clone().ready().await?;
    let (response, mut body) = send.send_request(request, pieces.is_empty())?;
    let last = pieces.len().saturating_sub(1);
    for (index, piece) in pieces.into_iter().enumerate() {
        // A stream that the server has answered and reset takes no more.
        if body.send_data(piece, index == last).is_err() {
            break;
        }
    }
    let response = response.await?;
    let http_status = response.status();
    let mut fields = response.headers().clone();
    let mut body = response.into_body();
    let mut message = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        message.extend_from_slice(&chunk);
    }
    if let Some(trailers) = body.trailers().await? {
        fields.extend(trailers);
    }
    if !message.is_empty() {
        assert_eq!(message[0], 0);
        let length = u32::from_be_bytes(message[1..5].try_into().unwrap());
        assert_eq!(length as usize, message.len() - 5);
        message.drain(..5);
    }
    Ok(Answer { http_status, fields, message })
}

pub(crate) async fn unary(send: &SendRequest<Bytes>, method: Method, message: &[u8]) -> Answer {
    call(send, request(method).body(()).unwrap(), vec![framed(message)]).await.unwrap()
}

/// Waits until `condition` holds, letting everything else run meanwhile.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if condition() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("never: {what}");
}
