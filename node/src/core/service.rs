//! The data plane's methods: from a session's event to the executor, from a ready call to the
//! session's answer.

use std::sync::Arc;

use prost::Message;
use stateside_proto::{
    codec,
    scan::SCAN_SESSION,
    session::{ANSWER_SESSION, encode_session},
    v1,
};
use stateside_router::RoutingTable;
use stateside_types::{Code, CoreId, Reason, Refusal};
use stateside_wire::{Event, Rejections, Session};

use super::{
    calls::{Call, Origin, Outcome},
    connections::Connections,
    executor::{Executor, Verb, assemble_read, assemble_update, assemble_values, assemble_write},
    world::StreamRef,
};
use crate::{
    metrics::{CoreMetrics, Method},
    reactor::ConnectionId,
};

/// The methods that sessions know, in the order of their numbers.
pub(crate) const METHODS: &[&str] = &[
    "/stateside.v1.DataPlane/Upsert",
    "/stateside.v1.DataPlane/Get",
    "/stateside.v1.DataPlane/Remove",
    "/stateside.v1.DataPlane/Topology",
    "/grpc.health.v1.Health/Check",
    "/stateside.v1.DataPlane/Scan",
    "/stateside.v1.DataPlane/Update",
];

const UPSERT: u16 = 0;
const GET: u16 = 1;
const REMOVE: u16 = 2;
const TOPOLOGY: u16 = 3;
const SCAN: u16 = 5;
const UPDATE: u16 = 6;

/// The service of `grpc.health.v1` that this plane is.
const HEALTH_SERVICES: [&str; 2] = ["", "stateside.v1.DataPlane"];

/// What every core answers alike. Shared by the cores.
pub struct Node {
    /// The node's id.
    pub id: String,
    /// `host:port` of each core's own port; the host may be empty.
    pub core_addresses: Vec<String>,
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse.ServingStatus`.
const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Takes one event of a session.
pub(crate) fn on_event(
    executor: &mut Executor,
    node: &Node,
    metrics: &CoreMetrics,
    connection: ConnectionId,
    session: &mut Session,
    event: Event,
) {
    // The session has answered a cancelled call, or nobody waits; its parts run to their end.
    let Event::Request { stream, method, message, deadline } = event else { return };
    let verb = match method.0 {
        UPSERT => Verb::Upsert,
        GET => Verb::Get,
        REMOVE => Verb::Remove,
        SCAN => Verb::Scan,
        UPDATE => Verb::Update,
        other => {
            let outcome = if other == TOPOLOGY {
                let topology = topology(node, executor.table());
                session.respond(stream, |out| append(&topology, out));
                Ok(())
            } else {
                let draining = executor.world.is_draining;
                health(&message, draining).map(|answer| {
                    session.respond(stream, |out| append(&answer, out));
                })
            };
            if let Err(refusal) = &outcome {
                session.refuse(stream, refusal);
            }
            session.recycle(message);
            count_at_once(executor, metrics, label(Some(method)), outcome.err().as_ref());
            return;
        }
    };
    match executor.request(StreamRef { connection, stream }, verb, message, deadline) {
        Ok(message) => {
            if let Some(message) = message {
                session.recycle(message);
            }
            // What is ready is answered before the session's next request is taken: a session
            // that has too much unsent hands out no more, so answers cannot pile up.
            let here = |origin: &Origin<StreamRef>| matches!(origin, Origin::Stream(stream) if stream.connection == connection);
            while let Some(slot) = executor.world.calls.pop_ready_if(here) {
                answer(executor, metrics, slot, Some(session));
            }
        }
        Err((refusal, message)) => {
            session.refuse(stream, &refusal);
            session.recycle(message);
            count_at_once(executor, metrics, verb.into(), Some(&refusal));
        }
    }
}

/// How many connections are answered before the core looks for new requests. A send takes about as
/// long as executing a request; after a write to the log there may be hundreds of them to do, and the
/// disk would have nothing to do meanwhile.
const CONNECTIONS_PER_LOOK: u32 = 16;

/// Answers calls whose last part is in, connection by connection, up to
/// [`CONNECTIONS_PER_LOOK`]. The rest stays ready.
pub(crate) fn answer_ready(
    executor: &mut Executor,
    metrics: &CoreMetrics,
    connections: &mut Connections,
) {
    let connection_of = |origin: &Origin<StreamRef>| match origin {
        Origin::Hop(..) => None,
        Origin::Stream(stream) => Some(stream.connection),
    };
    let key = |origin: &Origin<StreamRef>| connection_of(origin).map(ConnectionId::index);
    let mut last = None;
    let mut left = CONNECTIONS_PER_LOOK;
    while let Some(slot) = executor.world.calls.next_ready(key) {
        let connection = connection_of(&executor.world.calls.get_mut(slot).origin);
        if connection != last {
            if left == 0 {
                break;
            }
            last = connection;
            left -= 1;
        }
        executor.world.calls.pop_ready();
        let session = connection.and_then(|connection| connections.session(connection));
        answer(executor, metrics, slot, session);
    }
}

/// Answers a ready call. Without a session its client has gone.
pub(crate) fn answer(
    executor: &mut Executor,
    metrics: &CoreMetrics,
    slot: u32,
    session: Option<&mut Session>,
) {
    let now = executor.world.turn_ns;
    let call = executor.world.calls.get_mut(slot);
    let stream = match call.origin {
        Origin::Hop(core, ticket) => return executor.answer_hop(slot, core, ticket),
        Origin::Stream(StreamRef { stream, .. }) => stream,
    };
    let refusal = match call.parts() {
        [only] => match &only.outcome {
            Outcome::Refused(refusal) => Some(refusal),
            _ => None,
        },
        _ => None,
    };
    if let Some(session) = session {
        let is_answered = match refusal {
            Some(refusal) => session.refuse(stream, refusal),
            None => session.respond(stream, |out| write_answer(call, metrics, out)),
        };
        // Else its client has reset it, or its session has told it that its deadline passed.
        if is_answered {
            let method = Method::ALL[usize::from(call.method)];
            count(metrics, method, refusal);
            if call.started_ns == now {
                executor.world.answered_at_once[method as usize] += 1;
            } else {
                metrics.took(method, now.saturating_sub(call.started_ns), 1);
            }
        }
        let message = std::mem::take(&mut call.message);
        if message.capacity() > 0 {
            session.recycle(message);
        }
    }
    executor.world.calls.close(slot);
}

fn write_answer<S>(call: &Call<S>, metrics: &CoreMetrics, out: &mut Vec<u8>) {
    if let [only] = call.parts() {
        match only.outcome {
            Outcome::Read(_) => out.extend_from_slice(&only.body),
            Outcome::Written(token, timestamp) if !only.ends.is_empty() => {
                assemble_values(only, token.sequence, timestamp, out);
            }
            Outcome::Written(token, timestamp) => {
                let entries = only.entries as usize;
                codec::encode_write_results(out, entries, token.sequence, timestamp);
            }
            Outcome::Refused(_) | Outcome::Waiting => unreachable!("handled, and ready"),
        }
        return write_session(call, out);
    }
    for part in call.parts() {
        if let Outcome::Refused(refusal) = &part.outcome {
            metrics.refusal(refusal.reason);
        }
    }
    if call.method == Verb::Get as u8 {
        assemble_read(call.parts(), &call.part_of_entry, &call.message, out);
    } else if call.method == Verb::Update as u8 {
        assemble_update(call.parts(), &call.part_of_entry, out);
    } else {
        assemble_write(call.parts(), &call.part_of_entry, out);
    }
    write_session(call, out);
}

fn write_session<S>(call: &Call<S>, out: &mut Vec<u8>) {
    if call.has_session {
        let is_scan = call.method == Verb::Scan as u8;
        let field = if is_scan { SCAN_SESSION } else { ANSWER_SESSION };
        encode_session(out, field, call.tokens());
    }
}

impl From<Verb> for Method {
    fn from(verb: Verb) -> Self {
        match verb {
            Verb::Upsert => Self::Upsert,
            Verb::Get => Self::Get,
            Verb::Remove => Self::Remove,
            Verb::Scan => Self::Scan,
            Verb::Update => Self::Update,
        }
    }
}

const _: () = {
    assert!(Method::Upsert as u8 == Verb::Upsert as u8);
    assert!(Method::Get as u8 == Verb::Get as u8);
    assert!(Method::Remove as u8 == Verb::Remove as u8);
    assert!(Method::Scan as u8 == Verb::Scan as u8);
    assert!(Method::Update as u8 == Verb::Update as u8);
};

/// Counts what sessions answered by themselves.
pub(crate) fn count_rejections(metrics: &CoreMetrics, rejections: Rejections) {
    for ((method, reason), count) in rejections {
        metrics.rejected(label(method), reason, count);
    }
}

fn label(method: Option<stateside_wire::Method>) -> Method {
    match method.map(|method| method.0) {
        Some(UPSERT) => Method::Upsert,
        Some(GET) => Method::Get,
        Some(REMOVE) => Method::Remove,
        Some(SCAN) => Method::Scan,
        Some(UPDATE) => Method::Update,
        Some(TOPOLOGY) => Method::Topology,
        Some(_) => Method::Health,
        None => Method::Unknown,
    }
}

fn count(metrics: &CoreMetrics, method: Method, refusal: Option<&Refusal>) {
    metrics.answered(method, refusal.map_or(Code::Ok, |refusal| refusal.reason.code()));
    if let Some(refusal) = refusal {
        metrics.refusal(refusal.reason);
    }
}

/// Counts an answer that no partition was asked for.
fn count_at_once(
    executor: &mut Executor,
    metrics: &CoreMetrics,
    method: Method,
    refusal: Option<&Refusal>,
) {
    count(metrics, method, refusal);
    executor.world.answered_at_once[method as usize] += 1;
}

fn topology(node: &Node, table: &Arc<RoutingTable>) -> v1::TopologyResponse {
    let address = |core: CoreId| node.core_addresses.get(usize::from(core.0)).cloned();
    v1::TopologyResponse {
        partitions: table
            .routes()
            .iter()
            .map(|route| v1::PartitionLocation {
                id: route.id.0,
                range: Some(route.range.into()),
                epoch: route.epoch.0,
                owner: node.id.clone(),
                core_address: address(route.core).unwrap_or_default(),
                core: u32::from(route.core.0),
            })
            .collect(),
        node_id: node.id.clone(),
        version: table.version(),
    }
}

fn health(message: &[u8], draining: bool) -> Result<HealthCheckResponse, Refusal> {
    let request = HealthCheckRequest::decode(message).map_err(|error| {
        Refusal::new(Reason::MalformedRequest, format!("the request is not valid: {error}"))
    })?;
    if !HEALTH_SERVICES.contains(&request.service.as_str()) {
        let text = format!("the data plane does not serve `{}`", request.service);
        return Err(Refusal::new(Reason::UnknownService, text));
    }
    Ok(HealthCheckResponse { status: if draining { NOT_SERVING } else { SERVING } })
}

fn append(message: &impl Message, out: &mut Vec<u8>) {
    message.encode(out).expect("a vector grows as needed");
}
