//! Writes that are on disk before they are answered.

use stateside_proto::v1::Ack;

use super::Context;
use crate::{
    calls::{EVERY_ACK, KEY, UPSERT, check, upsert_one, value},
    comparison::{Contender, Measured, in_turn},
    loads::{
        direct_write::DirectWrite,
        h2load::{Call, Shape},
    },
    outcome::{Bar, Outcome},
    peers::{
        etcd::{self, Etcd, PutRequest},
        if_installed,
        redis::{Durability, Redis},
        stateside::site,
        tonic::Tonic,
    },
};

const TIMES_REDIS_MANY: f64 = 1.5;
const TIMES_ETCD: f64 = 12.0;
const TIMES_REDIS_FEW: f64 = 1.3;
/// What one call may take beyond one durable write.
const BEYOND_DISK_US: f64 = 60.0;
const REDIS_DEPTH: u32 = 32;
const DISK: &str = "disk alone";
/// The same calls, answered from memory: what is left of them when nobody waits for a disk.
const NO_WAIT: &str = "stateside, ack = memory";

pub(super) fn many_streams(context: &Context<'_>) -> Result<Outcome, String> {
    let shape = Shape { connections: 8, streams: REDIS_DEPTH };
    let mut outcome = beside(context, shape, &[(8, REDIS_DEPTH), (50, REDIS_DEPTH)])?;
    outcome.bar_times("redis 8 x 32", TIMES_REDIS_MANY);
    outcome.bar_times("etcd", TIMES_ETCD);
    if let Some((no_wait, redis)) = outcome.named(NO_WAIT).zip(outcome.named("redis 8 x 32")) {
        let times = no_wait.times(redis).value;
        outcome.figure(format!("{NO_WAIT}: rate over that of redis 8 x 32"), times, "x");
    }
    outcome.notes.push(format!(
        "\"{NO_WAIT}\" waits for no disk: as much as load and node can do with such calls, and so the most that a durable one could reach"
    ));
    outcome.notes.push(
        "the bar is taken beside Redis with as many writes under way (8 x 32); 50 x 32 is shown for its best case".to_owned(),
    );
    Ok(outcome)
}

pub(super) fn many_connections(context: &Context<'_>) -> Result<Outcome, String> {
    let shape = Shape { connections: 50, streams: 1 };
    let mut outcome = beside(context, shape, &[(50, 1)])?;
    outcome.bar_times("redis 50 x 1", TIMES_REDIS_FEW);
    Ok(outcome)
}

pub(super) fn one(context: &Context<'_>) -> Result<Outcome, String> {
    let shape = Shape { connections: 1, streams: 1 };
    let mut outcome = beside(context, shape, &[(1, 1)])?;
    outcome.bar_times("redis 1 x 1", TIMES_REDIS_FEW);
    let beyond = outcome
        .contenders
        .first()
        .zip(outcome.named(DISK))
        .and_then(|(ours, disk)| ours.behind_us(disk));
    outcome.bars.push(Bar::at_most("p50 - that of the disk alone", beyond, BEYOND_DISK_US, "us"));
    Ok(outcome)
}

/// Ours, tonic, Redis in these shapes, etcd; with one call at a time the disk alone as well.
fn beside(
    context: &Context<'_>,
    shape: Shape,
    redis_shapes: &[(u32, u32)],
) -> Result<Outcome, String> {
    let value = value();
    let call =
        Call::new(context.folder, "durable", UPSERT, &upsert_one(KEY.as_bytes(), Ack::Durable))?;
    let put = PutRequest { key: KEY.into(), value: value.clone().into_bytes() };
    let put = Call::new(context.folder, "put", etcd::PUT, &put)?;
    let site = site();
    let node = site.start();
    let tonic = Tonic::start(context.folder)?;
    for address in [&site.data_address(), &tonic.address] {
        check(context.runtime, address, EVERY_ACK)?;
    }
    let redis = if_installed("redis", || Redis::start(context.folder, Durability::Always))?;
    let etcd = if_installed("etcd", || Etcd::start(context.folder))?;
    let mut contenders = vec![
        Contender::new("stateside", &node, call.load(&site.data_address(), shape)),
        Contender::new("tonic", &tonic, call.load(&tonic.address, shape)),
    ];
    if let Some(redis) = &redis {
        for (connections, depth) in redis_shapes {
            let load = redis.load(*connections, *depth, &["SET", KEY, &value]);
            contenders.push(Contender::new(format!("redis {connections} x {depth}"), redis, load));
        }
    }
    if let Some(etcd) = &etcd {
        contenders.push(Contender::new("etcd", etcd, put.load(&etcd.address, shape)));
    }
    if shape.streams > 1 {
        let call =
            Call::new(context.folder, "no-wait", UPSERT, &upsert_one(KEY.as_bytes(), Ack::Memory))?;
        contenders.push(Contender::new(NO_WAIT, &node, call.load(&site.data_address(), shape)));
    }
    if shape == (Shape { connections: 1, streams: 1 }) {
        contenders.push(Contender {
            name: DISK.to_owned(),
            server: None,
            load: Box::new(DirectWrite { folder: context.folder.to_owned() }),
            pairs: 1,
            parts: 1,
        });
    }
    let mut outcome =
        Outcome { contenders: in_turn(context.effort, &contenders)?, ..Outcome::default() };
    disk_figures(&mut outcome);
    outcome.notes.push(
        "redis: appendonly, appendfsync always; etcd: its defaults; tonic: one fdatasync for what has arrived; all on one file system".to_owned(),
    );
    Ok(outcome)
}

fn disk_figures(outcome: &mut Outcome) {
    let bytes = |measured: &Measured| measured.median(|sample| sample.disk_bytes_per_call);
    let writes = |measured: &Measured| measured.median(|sample| sample.disk_writes_per_call);
    let mut figures = Vec::new();
    for measured in outcome.contenders.iter().filter(|measured| measured.peak_memory.is_some()) {
        let counted = writes(measured);
        if counted > 0.0 {
            figures.push((format!("{}: durable writes per call", measured.name), counted, ""));
            let calls = 1.0 / counted;
            figures.push((format!("{}: calls per durable write", measured.name), calls, ""));
        }
        let name = format!("{}: bytes written to disk per call", measured.name);
        figures.push((name, bytes(measured), "B"));
    }
    for (name, value, unit) in figures {
        outcome.figure(name, value, unit);
    }
}
