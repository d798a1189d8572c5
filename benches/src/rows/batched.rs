//! A thousand pairs in a call, beside Redis with a deep pipeline of single commands.

use prost::Message;
use stateside_e2e::config::Config;
use stateside_proto::v1::{Ack, GetRequest, UpsertRequest};
use stateside_types::limits::DEFAULT_PARTITIONS_PER_CORE;

use super::Context;
use crate::{
    calls::{
        BATCH_PAIRS, EVERY_ACK, GET, KEY, UPSERT, check, get_batch, numbered_key, upsert_batch,
        value,
    },
    comparison::{Contender, in_turn},
    loads::h2load::{Call, Shape},
    outcome::Outcome,
    peers::{
        if_installed,
        redis::{Durability, Redis},
        stateside::{config, site, site_with},
        tonic::Tonic,
    },
};

const UPSERT_TIMES_REDIS: f64 = 5.0;
const GET_TIMES_REDIS: f64 = 3.0;
const SHAPE: Shape = Shape { connections: 2, streams: 2 };
/// A pipeline that keeps nothing.
const WITHOUT_LOG: &str = "partition.pipeline = [\"clock\", \"dispatcher\", \"line-monitor\"]\n";
const NO_LOG: &str = "stateside, no log";
const REDIS_CONNECTIONS: u32 = 50;
const REDIS_DEPTH: u32 = 128;
/// redis-benchmark makes a number of it, so that it uses the keys that the batch has.
const REDIS_KEY: &str = "key-__rand_int__";

pub(super) fn upsert(context: &Context<'_>) -> Result<Outcome, String> {
    let batch = upsert_batch(Ack::Memory);
    let one_partition = UpsertRequest { routing_key: KEY.into(), ..batch.clone() };
    let value = value();
    let pairs: Vec<String> = keys().flat_map(|key| [key, value.clone()]).collect();
    let redis = Commands {
        single: vec!["SET", REDIS_KEY, &value],
        batch: ["MSET"].into_iter().chain(pairs.iter().map(String::as_str)).collect(),
    };
    beside(context, UPSERT, (&batch, &one_partition), &redis, ("SET", UPSERT_TIMES_REDIS))
}

pub(super) fn get(context: &Context<'_>) -> Result<Outcome, String> {
    let batch = get_batch();
    let one_partition = GetRequest { routing_key: KEY.into(), ..batch.clone() };
    let keys: Vec<String> = keys().collect();
    let redis = Commands {
        single: vec!["GET", REDIS_KEY],
        batch: ["MGET"].into_iter().chain(keys.iter().map(String::as_str)).collect(),
    };
    beside(context, GET, (&batch, &one_partition), &redis, ("GET", GET_TIMES_REDIS))
}

fn keys() -> impl Iterator<Item = String> {
    (0..BATCH_PAIRS).map(|number| String::from_utf8_lossy(&numbered_key(number)).into_owned())
}

struct Commands<'w> {
    single: Vec<&'w str>,
    batch: Vec<&'w str>,
}

fn beside(
    context: &Context<'_>,
    method: &'static str,
    (spread, one_partition): (&impl Message, &impl Message),
    commands: &Commands<'_>,
    (command, times_redis): (&str, f64),
) -> Result<Outcome, String> {
    let site = site();
    let node = site.start();
    let bare_site = site_with(Config { more: WITHOUT_LOG.to_owned(), ..config() });
    let bare_node = bare_site.start();
    let tonic = Tonic::start(context.folder)?;
    for address in [&site.data_address(), &tonic.address] {
        check(context.runtime, address, EVERY_ACK)?;
    }
    check(context.runtime, &bare_site.data_address(), &[Ack::Memory])?;
    write_routed(context, &site.data_address())?;
    let redis = if_installed("redis", || Redis::start(context.folder, Durability::None))?;
    let spread = Call::new(context.folder, "spread", method, spread)?;
    let one_partition = Call::new(context.folder, "one-partition", method, one_partition)?;
    let (ours, bare) = (site.data_address(), bare_site.data_address());
    let mut contenders = vec![
        Contender::new("stateside", &node, spread.load(&ours, SHAPE))
            .of_pairs(BATCH_PAIRS)
            .in_parts(DEFAULT_PARTITIONS_PER_CORE as usize),
        Contender::new("stateside, one partition", &node, one_partition.load(&ours, SHAPE))
            .of_pairs(BATCH_PAIRS),
        Contender::new(NO_LOG, &bare_node, spread.load(&bare, SHAPE))
            .of_pairs(BATCH_PAIRS)
            .in_parts(DEFAULT_PARTITIONS_PER_CORE as usize),
        Contender::new("tonic", &tonic, spread.load(&tonic.address, SHAPE)).of_pairs(BATCH_PAIRS),
    ];
    let (single, batch) = (format!("redis {command}"), format!("redis M{command}"));
    if let Some(redis) = &redis {
        redis.fill((0..BATCH_PAIRS).map(numbered_key), value().as_bytes())?;
        let mut load = redis.load(REDIS_CONNECTIONS, REDIS_DEPTH, &commands.single);
        load.keys = Some(BATCH_PAIRS);
        contenders.push(Contender::new(&single, redis, load));
        let load = redis.load(SHAPE.connections, SHAPE.streams, &commands.batch);
        contenders.push(Contender::new(&batch, redis, load).of_pairs(BATCH_PAIRS));
    }
    let mut outcome =
        Outcome { contenders: in_turn(context.effort, &contenders)?, ..Outcome::default() };
    outcome.bar_times(&single, times_redis);
    if method == UPSERT {
        // The same promise on both sides: nothing of either is on disk.
        outcome.bar_times_of(NO_LOG, &single, times_redis);
    }
    outcome.notes.push(
        "stateside's batch is spread over the core's 8 partitions; \"one partition\" sends it under one routing key".to_owned(),
    );
    outcome.notes.push(
        "\"no log\" leaves that stage out of the pipeline: as Redis and tonic, it writes nothing to disk here"
            .to_owned(),
    );
    outcome.notes.push(format!(
        "redis M{command} has no bar: it is Redis's own batch, of the same pairs in the same shape; times are of a call, at depth {REDIS_DEPTH} of a pipeline"
    ));
    Ok(outcome)
}

/// The batch once more under its routing key, so that reads by that key find it.
fn write_routed(context: &Context<'_>, address: &str) -> Result<(), String> {
    let request = UpsertRequest { routing_key: KEY.into(), ..upsert_batch(Ack::Memory) };
    crate::calls::answer(context.runtime, address, UPSERT, &request).map(drop)
}
