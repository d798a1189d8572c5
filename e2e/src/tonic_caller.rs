//! The cases through tonic and the generated types.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use stateside_proto::v1::{
    Ack, EntryError, GetRequest, HashRange, Record, RemoveEntry, RemoveRequest, RequestId,
    TopologyRequest, TopologyResponse, UpdateEntry, UpdateRequest, UpdateResult, UpsertEntry,
    UpsertRequest, WriteResult, update_entry::Operator,
};
use tokio::runtime::Runtime;
use tonic::{Request, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    cases::{Call, Caller},
    rpc::{self, Data, Failure},
};

/// A tonic client that speaks the cases' JSON.
pub struct TonicCaller {
    runtime: Runtime,
    channel: Channel,
    data: Data,
}

impl TonicCaller {
    /// Connects to the data plane at `host:port`.
    ///
    /// # Panics
    /// When there is no connection to be had.
    pub fn connect(address: &str) -> Self {
        let runtime = Runtime::new().expect("a runtime starts");
        let channel = runtime.block_on(rpc::channel(address)).expect("the node takes connections");
        let data = runtime.block_on(rpc::data(address)).expect("the node takes connections");
        Self { runtime, channel, data }
    }

    async fn unary(data: &mut Data, channel: &Channel, call: &Call) -> Result<Value, Status> {
        let request = &call.request;
        match call.method.as_str() {
            "stateside.v1.DataPlane/Upsert" => {
                let message = upsert_request(request);
                let answer = data.upsert(with_deadline(message, call)).await?.into_inner();
                Ok(json!({ "results": answer.results.iter().map(write_result).collect::<Value>() }))
            }
            "stateside.v1.DataPlane/Get" => {
                let message = GetRequest {
                    keys: list(&request["keys"]).iter().map(bytes).collect(),
                    routing_key: bytes(&request["routingKey"]),
                    ..Default::default()
                };
                let answer = data.get(with_deadline(message, call)).await?.into_inner();
                Ok(json!({ "records": answer.records.iter().map(record).collect::<Value>() }))
            }
            "stateside.v1.DataPlane/Remove" => {
                let message = remove_request(request);
                let answer = data.remove(with_deadline(message, call)).await?.into_inner();
                Ok(json!({ "results": answer.results.iter().map(write_result).collect::<Value>() }))
            }
            "stateside.v1.DataPlane/Update" => {
                let message = update_request(request);
                let answer = data.update(with_deadline(message, call)).await?.into_inner();
                Ok(
                    json!({ "results": answer.results.iter().map(update_result).collect::<Value>() }),
                )
            }
            "stateside.v1.DataPlane/Topology" => {
                Ok(topology(&data.topology(TopologyRequest {}).await?.into_inner()))
            }
            "grpc.health.v1.Health/Check" => {
                let service = request["service"].as_str().unwrap_or_default().to_owned();
                let answer = HealthClient::new(channel.clone())
                    .check(HealthCheckRequest { service })
                    .await?
                    .into_inner();
                let status = ServingStatus::try_from(answer.status)
                    .map_or("UNKNOWN", |status| status.as_str_name());
                Ok(json!({ "status": status }))
            }
            other => undefined(channel, other).await,
        }
    }
}

impl Caller for TonicCaller {
    fn name(&self) -> &'static str {
        "tonic"
    }

    fn call(&mut self, call: &Call) -> Result<Value, Box<Failure>> {
        let Self { runtime, channel, data } = self;
        runtime
            .block_on(Box::pin(Self::unary(data, channel, call)))
            .map_err(|status| Box::new(Failure::from(&status)))
    }
}

/// Calls a method that the generated client does not have.
async fn undefined(channel: &Channel, method: &str) -> Result<Value, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = format!("/{method}").parse().map_err(|_| Status::internal("not a path"))?;
    let codec = tonic_prost::ProstCodec::<TopologyRequest, TopologyResponse>::default();
    let answer = client.unary(Request::new(TopologyRequest {}), path, codec).await?;
    Ok(topology(answer.get_ref()))
}

fn with_deadline<T>(message: T, call: &Call) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(limit_ms) = call.deadline_ms {
        // Zero would round away on the wire: the smallest that grpc-timeout can say.
        request.set_timeout(Duration::from_millis(limit_ms).max(Duration::from_nanos(1)));
    }
    request
}

fn upsert_request(request: &Value) -> UpsertRequest {
    UpsertRequest {
        entries: list(&request["entries"])
            .iter()
            .map(|entry| UpsertEntry {
                key: bytes(&entry["key"]),
                value: bytes(&entry["value"]),
                if_absent: entry["ifAbsent"] == json!(true),
                if_version: number(&entry["ifVersion"]),
                ttl_ms: number(&entry["ttlMs"]).unwrap_or_default(),
            })
            .collect(),
        routing_key: bytes(&request["routingKey"]),
        atomic: request["atomic"] == json!(true),
        ack: ack(&request["ack"]),
        request_id: request.get("requestId").map(request_id),
        ..Default::default()
    }
}

fn remove_request(request: &Value) -> RemoveRequest {
    RemoveRequest {
        entries: list(&request["entries"])
            .iter()
            .map(|entry| RemoveEntry {
                key: bytes(&entry["key"]),
                if_version: number(&entry["ifVersion"]),
            })
            .collect(),
        routing_key: bytes(&request["routingKey"]),
        atomic: request["atomic"] == json!(true),
        ack: ack(&request["ack"]),
        request_id: request.get("requestId").map(request_id),
        ..Default::default()
    }
}

fn request_id(id: &Value) -> RequestId {
    RequestId {
        client: bytes(&id["client"]),
        number: number(&id["number"]).unwrap_or_default(),
        settled: number(&id["settled"]).unwrap_or_default(),
    }
}

fn update_request(request: &Value) -> UpdateRequest {
    let entry = |entry: &Value| UpdateEntry {
        key: bytes(&entry["key"]),
        operator: operator(entry),
        if_absent: entry["ifAbsent"] == json!(true),
        if_version: number(&entry["ifVersion"]),
        ttl_ms: number(&entry["ttlMs"]).unwrap_or_default(),
    };
    UpdateRequest {
        entries: list(&request["entries"]).iter().map(entry).collect(),
        routing_key: bytes(&request["routingKey"]),
        atomic: request["atomic"] == json!(true),
        ack: ack(&request["ack"]),
        return_values: request["returnValues"] == json!(true),
        request_id: request.get("requestId").map(request_id),
        ..Default::default()
    }
}

fn operator(entry: &Value) -> Option<Operator> {
    let integer = |name: &str| {
        let text = entry[name].as_str()?;
        Some(text.parse::<i64>().expect("cases write 64-bit numbers as strings"))
    };
    let content = |name: &str| entry.get(name).map(bytes);
    integer("add")
        .map(Operator::Add)
        .or(integer("max").map(Operator::Max))
        .or(integer("min").map(Operator::Min))
        .or(content("append").map(Operator::Append))
        .or(content("mergeJson").map(Operator::MergeJson))
}

fn update_result(result: &UpdateResult) -> Value {
    json!({
        "version": result.version.to_string(),
        "timestamp": result.timestamp.to_string(),
        "error": result.error.as_ref().map(entry_error),
        "value": result.value.as_ref().map(|value| BASE64.encode(value)),
    })
}

fn write_result(result: &WriteResult) -> Value {
    json!({
        "version": result.version.to_string(),
        "timestamp": result.timestamp.to_string(),
        "error": result.error.as_ref().map(entry_error),
    })
}

fn record(record: &Record) -> Value {
    json!({
        "found": record.found,
        "key": BASE64.encode(&record.key),
        "value": BASE64.encode(&record.value),
        "version": record.version.to_string(),
        "timestamp": record.timestamp.to_string(),
        "expireAtMs": record.expire_at_ms.to_string(),
        "error": record.error.as_ref().map(entry_error),
    })
}

fn entry_error(error: &EntryError) -> Value {
    json!({
        "code": error.code,
        "reason": error.reason,
        "message": error.message,
        "retryAfterMs": error.retry_after_ms,
        "metadata": error.metadata.iter().map(|(k, v)| (k.clone(), json!(v))).collect::<Value>(),
    })
}

fn topology(answer: &TopologyResponse) -> Value {
    let range =
        |range: &HashRange| json!({"start": range.start.to_string(), "end": range.end.to_string()});
    json!({
        "nodeId": answer.node_id,
        "version": answer.version.to_string(),
        "partitions": answer.partitions.iter().map(|partition| json!({
            "id": partition.id,
            "range": partition.range.as_ref().map(range),
            "epoch": partition.epoch.to_string(),
            "owner": partition.owner,
            "coreAddress": partition.core_address,
            "core": partition.core,
        })).collect::<Value>(),
    })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn bytes(value: &Value) -> Vec<u8> {
    BASE64.decode(value.as_str().unwrap_or_default()).expect("the interpreter writes base64")
}

fn number(value: &Value) -> Option<u64> {
    value.as_str().map(|text| text.parse().expect("cases write 64-bit numbers as strings"))
}

fn ack(value: &Value) -> i32 {
    let name = value.as_str().unwrap_or("ACK_DEFAULT");
    Ack::from_str_name(name).expect("cases use names of the contract").into()
}
