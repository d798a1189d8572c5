//! One HTTP/2 connection to one address.
//!
//! tonic's own `Channel` reconnects behind the caller's back, and then nobody can tell whether a failed
//! write was sent on the old connection or never. Here a link is one connection and dies with it:
//! "not sent" stays distinguishable from "no answer" (see `error::from_status`). It also saves the
//! channel's queue and its task hop per call.

use std::{
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut, Bytes};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use stateside_types::limits::{
    CLIENT_CONNECTION_WINDOW_BYTES, CLIENT_STREAM_WINDOW_BYTES, RESPONSE_BYTES_MAX,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::{Instant, timeout_at},
};
use tonic::{
    Request, Status,
    body::Body,
    client::Grpc,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
    codegen::http::{self, HeaderValue, Uri, header::USER_AGENT, uri::PathAndQuery},
};
use tonic_prost::{ProstCodec, ProstDecoder};
use tower_service::Service;

use crate::{
    Endpoint, Error,
    error::{self, Effect},
};

/// A silent connection is asked for a sign of life after this long, and given up after another
/// `KEEPALIVE_TIMEOUT`: a peer that vanished would otherwise hold calls until their deadlines.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const CLIENT_NAME: HeaderValue =
    HeaderValue::from_static(concat!("stateside-client/", env!("CARGO_PKG_VERSION")));

/// A connection. Cheap to clone; closes when the last clone is dropped and its calls have ended.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    address: Arc<str>,
    origin: Uri,
    sender: SendRequest<Body>,
    /// Whether the other side has ever answered a call.
    answered: Arc<AtomicBool>,
}

impl Link {
    /// Connects.
    pub(crate) async fn connect(endpoint: &Endpoint, until: Instant) -> Result<Self, Error> {
        let address: Arc<str> = endpoint.to_string().into();
        let connecting = async {
            match endpoint {
                Endpoint::Tcp { host, port } => {
                    let stream = TcpStream::connect((&**host, *port)).await?;
                    // A request is one write; waiting to fill a packet would only delay it.
                    stream.set_nodelay(true)?;
                    handshake(stream).await
                }
                Endpoint::Unix(path) => handshake(UnixStream::connect(&**path).await?).await,
            }
        };
        let sender = match timeout_at(until, connecting).await {
            Ok(Ok(sender)) => sender,
            Ok(Err(problem)) => return Err(error::unreachable(&address, &plain(&problem))),
            Err(_) => return Err(error::unreachable(&address, "no connection in time")),
        };
        // An address of digits, dots, brackets and letters is an authority; a socket has none.
        let authority = match endpoint {
            Endpoint::Tcp { .. } => format!("http://{address}"),
            Endpoint::Unix(_) => "http://localhost".to_owned(),
        };
        let origin = authority.parse().map_err(|_| Error::InvalidEndpoint {
            endpoint: Arc::clone(&address),
            why: "the host has characters that no host name has",
        })?;
        Ok(Self { address, origin, sender, answered: Arc::default() })
    }

    /// For tonic's generated clients.
    pub(crate) fn origin(&self) -> Uri {
        self.origin.clone()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Calls a unary method with an encoded request; `until` is told to the node as well.
    pub(crate) async fn call<A: prost::Message + Default + 'static>(
        &self,
        path: &'static str,
        message: Bytes,
        effect: Effect,
        until: Instant,
        deadline: Duration,
    ) -> Result<A, Error> {
        let mut grpc = Grpc::with_origin(self.clone(), self.origin())
            .max_decoding_message_size(RESPONSE_BYTES_MAX + (64 << 10));
        let mut request = Request::new(message);
        request.set_timeout(until.saturating_duration_since(Instant::now()));
        let path = PathAndQuery::from_static(path);
        let calling = grpc.unary(request, path, EncodedCodec(PhantomData));
        self.answer(timeout_at(until, calling).await, effect, deadline)
    }

    /// What became of a call: its answer, or the error that tells what a caller may assume.
    pub(crate) fn answer<A>(
        &self,
        ended: Result<Result<tonic::Response<A>, Status>, tokio::time::error::Elapsed>,
        effect: Effect,
        deadline: Duration,
    ) -> Result<A, Error> {
        match ended {
            Ok(Ok(answer)) => {
                self.answered.store(true, Ordering::Relaxed);
                Ok(answer.into_inner())
            }
            Ok(Err(status)) => {
                let mut error = error::from_status(&status, &self.address, effect);
                if let Error::ConnectionLost { why, .. } = &mut error
                    && !self.answered.load(Ordering::Relaxed)
                {
                    // An HTTP/1 server and many others just hang up on HTTP/2.
                    *why = format!("{why}; is a Stateside node listening there?").into();
                }
                Err(error)
            }
            Err(_) if effect.is_read() => Err(Error::DeadlineExceeded { deadline }),
            Err(_) => Err(Error::OutcomeUnknown {
                why: format!("no answer from {} within {deadline:?}", self.address).into(),
            }),
        }
    }
}

async fn handshake<S>(stream: S) -> std::io::Result<SendRequest<Body>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(CLIENT_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CLIENT_CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(std::io::Error::other)?;
    // Ends with the connection. Its error reaches every call that was under way.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// An IO error without the number that Rust appends.
fn plain(problem: &std::io::Error) -> String {
    let text = problem.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => text.to_owned(),
    }
}

impl Service<http::Request<Body>> for Link {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    /// Always ready: a closed connection is reported by `call`, as "canceled", in a form that
    /// survives the way through tonic.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        request.headers_mut().insert(USER_AGENT, CLIENT_NAME);
        Box::pin(self.sender.send_request(request))
    }
}

/// Sends what is encoded already, decodes with prost.
struct EncodedCodec<A>(PhantomData<A>);

struct EncodedEncoder;

impl<A: prost::Message + Default + 'static> Codec for EncodedCodec<A> {
    type Encode = Bytes;
    type Decode = A;
    type Encoder = EncodedEncoder;
    type Decoder = ProstDecoder<A>;

    fn encoder(&mut self) -> EncodedEncoder {
        EncodedEncoder
    }

    fn decoder(&mut self) -> ProstDecoder<A> {
        ProstCodec::<A, A>::raw_decoder(BufferSettings::default())
    }
}

impl Encoder for EncodedEncoder {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(item.len());
        out.put(item);
        Ok(())
    }
}
