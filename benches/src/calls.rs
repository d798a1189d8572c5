//! The keys, values and requests that every row uses, and the check that a server does what they
//! ask: a load looks at HTTP's status at most.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use stateside_e2e::{raw_http2, rpc};
use stateside_proto::v1::{Ack, GetRequest, UpsertEntry, UpsertRequest};
use tokio::runtime::Runtime;

use prost::Message;

/// Of every key.
pub const KEY_BYTES: usize = 16;
/// Of every value.
pub const VALUE_BYTES: usize = 100;
/// The key of calls with one pair.
pub const KEY: &str = "key-of-16-bytes.";
/// Pairs in a batch.
pub const BATCH_PAIRS: usize = 1_000;
/// The method that reads.
pub const GET: &str = "stateside.v1.DataPlane/Get";
/// The method that writes.
pub const UPSERT: &str = "stateside.v1.DataPlane/Upsert";
/// Batches under way while records are written.
const WRITERS: usize = 8;
/// How long a node may refuse one batch, and the pause between two tries.
const FILL_PATIENCE: Duration = Duration::from_secs(60);
const FILL_PAUSE: Duration = Duration::from_millis(20);

const _: () = assert!(KEY.len() == KEY_BYTES);

/// The value of every record.
pub fn value() -> String {
    "v".repeat(VALUE_BYTES)
}

/// One of many keys. redis-benchmark makes the same of `key-__rand_int__`.
pub fn numbered_key(number: usize) -> Vec<u8> {
    format!("key-{number:012}").into_bytes()
}

/// A write of one pair.
pub fn upsert_one(key: &[u8], ack: Ack) -> UpsertRequest {
    UpsertRequest {
        entries: vec![rpc::entry(key, value())],
        ack: ack.into(),
        ..UpsertRequest::default()
    }
}

/// A read of one record.
pub fn get_one(key: &[u8]) -> GetRequest {
    GetRequest { keys: vec![key.to_vec()], ..GetRequest::default() }
}

/// A write of a batch.
pub fn upsert_batch(ack: Ack) -> UpsertRequest {
    UpsertRequest { entries: entries(0..BATCH_PAIRS), ack: ack.into(), ..UpsertRequest::default() }
}

/// A read of the same batch.
pub fn get_batch() -> GetRequest {
    GetRequest { keys: (0..BATCH_PAIRS).map(numbered_key).collect(), ..GetRequest::default() }
}

fn entries(numbers: Range<usize>) -> Vec<UpsertEntry> {
    numbers.map(|number| rpc::entry(numbered_key(number), value())).collect()
}

/// Writes so many records with the node's default acknowledgement; several batches at a time.
///
/// # Errors
/// A batch was not written.
pub fn fill(runtime: &Runtime, address: &str, records: usize) -> Result<(), String> {
    let tasks: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let address = address.to_owned();
            runtime.spawn(async move {
                let mut data = rpc::data(&address).await.map_err(|error| error.to_string())?;
                for batch in (writer..records / BATCH_PAIRS).step_by(WRITERS) {
                    let numbers = batch * BATCH_PAIRS..(batch + 1) * BATCH_PAIRS;
                    let until = Instant::now() + FILL_PATIENCE;
                    while let Some(error) = refused(&mut data, numbers.clone()).await? {
                        // It refuses what its disk does not keep up with, and means: later.
                        if Instant::now() > until {
                            return Err(format!("while filling: {error}"));
                        }
                        tokio::time::sleep(FILL_PAUSE).await;
                    }
                }
                Ok(())
            })
        })
        .collect();
    for task in tasks {
        runtime.block_on(task).map_err(|error| error.to_string())??;
    }
    Ok(())
}

/// Writes a batch; what a part of it was refused with, if one was.
async fn refused(data: &mut rpc::Data, numbers: Range<usize>) -> Result<Option<String>, String> {
    match rpc::put_all(data, entries(numbers)).await {
        Ok(results) => Ok(results.into_iter().find_map(|r| r.error).map(|error| error.message)),
        Err(status) if status.code() == tonic::Code::ResourceExhausted => {
            Ok(Some(status.message().to_owned()))
        }
        Err(status) => Err(format!("while filling: {status}")),
    }
}

/// What [`check`] asks of a server that has a log.
pub const EVERY_ACK: &[Ack] = &[Ack::Memory, Ack::Durable];

/// Makes every call of the rows once, looks at the answers, and leaves all records there. A node
/// without a log is not asked for what it cannot do.
///
/// # Errors
/// An answer is not what it should be.
pub fn check(runtime: &Runtime, address: &str, acks: &[Ack]) -> Result<(), String> {
    let said = |status: tonic::Status| format!("{address}: {status}");
    runtime.block_on(async {
        let mut data = rpc::data(address).await.map_err(|error| format!("{address}: {error}"))?;
        let single = acks.iter().map(|ack| upsert_one(KEY.as_bytes(), *ack));
        for request in single.chain([upsert_batch(Ack::Memory)]) {
            let pairs = request.entries.len();
            let results = data.upsert(request).await.map_err(said)?.into_inner().results;
            if results.len() != pairs || results.iter().any(|result| result.error.is_some()) {
                return Err(format!("{address}: a batch of {pairs} was not written"));
            }
        }
        for request in [get_one(KEY.as_bytes()), get_batch()] {
            let keys = request.keys.len();
            let records = data.get(request).await.map_err(said)?.into_inner().records;
            let whole = records.iter().all(|record| record.value.len() == VALUE_BYTES);
            if records.len() != keys || !whole {
                return Err(format!("{address}: of {keys} records not all are there"));
            }
        }
        Ok(())
    })
}

/// The bytes with which a server answers, gRPC's prefix included.
///
/// # Errors
/// It does not answer.
pub fn answer(
    runtime: &Runtime,
    address: &str,
    method: &str,
    request: &impl Message,
) -> Result<Vec<u8>, String> {
    let answer = runtime.block_on(raw_http2::grpc(address, method, &request.encode_to_vec()))?;
    if answer.grpc_status() != 0 {
        return Err(format!("{address}: {method}: {:?}", answer.failure()));
    }
    Ok(answer.body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_and_values_have_the_size_that_the_tables_name() {
        for number in [0, BATCH_PAIRS, 10_000_000] {
            assert_eq!(numbered_key(number).len(), KEY_BYTES);
        }
        assert_eq!(value().len(), VALUE_BYTES);
        assert_eq!(get_batch().keys.len(), upsert_batch(Ack::Memory).entries.len());
    }
}
