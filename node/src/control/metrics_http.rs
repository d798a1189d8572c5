//! HTTP/1 on the metrics address: `/metrics`, `/healthz`, `/readyz`.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use stateside_types::limits;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::sleep,
};

use super::{bootstrap::now_unix_ms, facts::Facts, phase::Phase};
use crate::metrics::{ProcessUsage, Scrape, render};

/// A client that does not finish its request is dropped after this.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept: descriptors are used up, and that does not pass at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until its task is dropped.
pub(crate) async fn serve(listener: TcpListener, facts: Arc<Facts>) {
    let places = Arc::new(Semaphore::new(limits::METRICS_CONNECTIONS_MAX));
    // Dropped with this task, and its connections with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the metrics address cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // With no place left the connection is closed: whoever scrapes comes again.
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let facts = Arc::clone(&facts);
            connections.spawn(async move {
                serve_connection(stream, facts).await;
                drop(place);
            });
        }
    }
}

async fn serve_connection(stream: TcpStream, facts: Arc<Facts>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let facts = Arc::clone(&facts);
        async move {
            let (parts, _) = request.into_parts();
            Ok::<_, Infallible>(answer(&parts.method, parts.uri.path(), &facts).await)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the metrics address ended early");
    }
}

async fn answer(method: &Method, path: &str, facts: &Facts) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/metrics" => {
            let mut response = text(StatusCode::OK, scrape(facts).await);
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
            );
            response
        }
        "/healthz" => text(StatusCode::OK, "alive\n".to_owned()),
        "/readyz" => match facts.phase() {
            Phase::Serving => match facts.still_opening().await {
                None => text(StatusCode::OK, "serving\n".to_owned()),
                Some(what) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{what}\n")),
            },
            Phase::Recovering => {
                let (read, total) = facts.recovery.get();
                let body = format!("recovering: {read} of {total} bytes\n");
                text(StatusCode::SERVICE_UNAVAILABLE, body)
            }
            Phase::Draining => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()),
        },
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /metrics, /healthz and /readyz here\n".to_owned(),
        ),
    }
}

async fn scrape(facts: &Facts) -> String {
    let reports = facts.reports().await;
    render(
        &facts.metrics,
        &Scrape {
            reports: &reports,
            state: facts.phase().as_str(),
            states: Phase::NAMES,
            recovery: facts.recovery.get(),
            uptime_seconds: facts.started.elapsed().as_secs_f64(),
            now_unix_ms: now_unix_ms(),
            process: ProcessUsage::read(),
        },
    )
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
