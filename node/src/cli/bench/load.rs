//! The records that a run works on, written before it begins.

use std::time::Instant;

use futures_util::{StreamExt, TryStreamExt, stream};
use stateside_client::{Ack, Client, Error, Upsert, WriteOptions};

use super::{progress::Progress, records::Records};
use crate::cli::failure::Failure;

/// Records of one batch, and bytes: half of what a request may have.
const BATCH_RECORDS: usize = 1_000;
const BATCH_BYTES: usize = 512 << 10;
/// Batches under way at once.
const BATCHES_MAX: usize = 16;

/// What was loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loaded {
    pub(super) records: u64,
    pub(super) seconds: f64,
}

/// Writes `count` records.
pub(super) async fn load(
    client: &Client,
    records: &Records,
    count: u64,
    ack: Option<Ack>,
    progress: &mut Progress,
) -> Result<Loaded, Failure> {
    let begun = Instant::now();
    let options = WriteOptions { ack, ..WriteOptions::default() };
    let batch = (BATCH_BYTES / (records.bytes() + 16)).clamp(1, BATCH_RECORDS) as u64;
    let batches = (0..count.div_ceil(batch)).map(|n| n * batch..count.min((n + 1) * batch));
    let mut done = 0;
    let mut written = stream::iter(batches)
        .map(|numbers| write(client, records, numbers, &options))
        .buffer_unordered(BATCHES_MAX);
    while let Some(batch) = written.try_next().await? {
        done += batch;
        progress.loaded(done, count, begun.elapsed());
    }
    Ok(Loaded { records: done, seconds: begun.elapsed().as_secs_f64() })
}

async fn write(
    client: &Client,
    records: &Records,
    numbers: std::ops::Range<u64>,
    options: &WriteOptions,
) -> Result<u64, Error> {
    let written = numbers.end - numbers.start;
    let keys: Vec<(u64, Vec<u8>)> = numbers.map(|number| (number, records.key(number))).collect();
    let entries: Vec<Upsert<'_>> =
        keys.iter().map(|(number, key)| Upsert::new(key, records.value(*number))).collect();
    client.upsert(&entries, options).await?.all()?;
    Ok(written)
}
