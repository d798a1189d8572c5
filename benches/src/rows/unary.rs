//! Calls of one pair, acknowledged from memory: many streams on few connections, one call on each
//! of many connections, one call at a time.

use prost::Message;
use stateside_proto::v1::Ack;

use super::Context;
use crate::{
    calls::{
        EVERY_ACK, GET, KEY, KEY_BYTES, UPSERT, VALUE_BYTES, answer, check, get_one, upsert_one,
        value,
    },
    comparison::{Contender, in_turn},
    loads::{
        h2load::{Call, Shape},
        memcaslap::{Command, Memcaslap},
    },
    outcome::{Bar, Outcome},
    peers::{
        if_installed,
        memcached::Memcached,
        nghttpd::Nghttpd,
        redis::{Durability, Redis},
        stateside::site,
        tonic::Tonic,
    },
};

/// The same service on tonic has to be beaten by this.
const TIMES_TONIC: f64 = 2.4;
/// Of nghttpd's rate: what is left for being a store.
const SHARE_OF_NGHTTPD: f64 = 0.95;
const TIMES_REDIS: f64 = 1.15;
/// CPU per call over Redis's.
const CPU_OF_REDIS: f64 = 1.1;
/// One call at a time may take this much longer than Redis's.
const BEHIND_REDIS_US: f64 = 15.0;
const MEMCACHED_MIB: u32 = 1_024;

pub(super) fn get_8x32(context: &Context<'_>) -> Result<Outcome, String> {
    many_streams(context, GET, &get_one(KEY.as_bytes()))
}

pub(super) fn upsert_8x32(context: &Context<'_>) -> Result<Outcome, String> {
    many_streams(context, UPSERT, &upsert_one(KEY.as_bytes(), Ack::Memory))
}

pub(super) fn get_50x1(context: &Context<'_>) -> Result<Outcome, String> {
    one_stream(context, 50, Command::Get)
}

pub(super) fn upsert_50x1(context: &Context<'_>) -> Result<Outcome, String> {
    one_stream(context, 50, Command::Set)
}

pub(super) fn get_1x1(context: &Context<'_>) -> Result<Outcome, String> {
    one_stream(context, 1, Command::Get)
}

pub(super) fn upsert_1x1(context: &Context<'_>) -> Result<Outcome, String> {
    one_stream(context, 1, Command::Set)
}

/// All speak HTTP/2 here, so the load is the same to the byte.
fn many_streams(
    context: &Context<'_>,
    method: &'static str,
    request: &impl Message,
) -> Result<Outcome, String> {
    let shape = Shape { connections: 8, streams: 32 };
    let site = site();
    let node = site.start();
    let tonic = Tonic::start(context.folder)?;
    for address in [&site.data_address(), &tonic.address] {
        check(context.runtime, address, EVERY_ACK)?;
    }
    let body = answer(context.runtime, &site.data_address(), method, request)?;
    let body_bytes = body.len();
    let nghttpd = if_installed("nghttpd", || Nghttpd::start(context.folder, &[(method, body)]))?;
    if let Some(nghttpd) = &nghttpd {
        let theirs = answer(context.runtime, &nghttpd.address, method, request)?;
        if theirs.len() != body_bytes {
            return Err(format!("nghttpd answers {} B, not {body_bytes}", theirs.len()));
        }
    }
    let call = Call::new(context.folder, "unary", method, request)?;
    let mut contenders = vec![
        Contender::new("stateside", &node, call.load(&site.data_address(), shape)),
        Contender::new("tonic", &tonic, call.load(&tonic.address, shape)),
    ];
    if let Some(nghttpd) = &nghttpd {
        contenders.push(Contender::new("nghttpd", nghttpd, call.load(&nghttpd.address, shape)));
    }
    let mut outcome =
        Outcome { contenders: in_turn(context.effort, &contenders)?, ..Outcome::default() };
    outcome.bar_times("tonic", TIMES_TONIC);
    outcome.bar_times("nghttpd", SHARE_OF_NGHTTPD);
    outcome.notes.push("every call reads or writes the same record".to_owned());
    outcome.notes.push(format!(
        "nghttpd sends the {body_bytes} B of a node's answer from a file and decodes nothing; it reads the file for each answer"
    ));
    Ok(outcome)
}

/// Beside servers with protocols of their own, and one call under way on a connection.
fn one_stream(
    context: &Context<'_>,
    connections: u32,
    command: Command,
) -> Result<Outcome, String> {
    let shape = Shape { connections, streams: 1 };
    let value = value();
    let (call, words) = match command {
        Command::Get => {
            let request = get_one(KEY.as_bytes());
            (Call::new(context.folder, "unary", GET, &request)?, vec!["GET", KEY])
        }
        Command::Set => {
            let request = upsert_one(KEY.as_bytes(), Ack::Memory);
            (Call::new(context.folder, "unary", UPSERT, &request)?, vec!["SET", KEY, &value])
        }
    };
    let site = site();
    let node = site.start();
    let tonic = Tonic::start(context.folder)?;
    for address in [&site.data_address(), &tonic.address] {
        check(context.runtime, address, EVERY_ACK)?;
    }
    let redis = if_installed("redis", || Redis::start(context.folder, Durability::None))?;
    let memcached = if_installed("memcached", || Memcached::start(context.folder, MEMCACHED_MIB))?;
    let mut contenders = vec![
        Contender::new("stateside", &node, call.load(&site.data_address(), shape)),
        Contender::new("tonic", &tonic, call.load(&tonic.address, shape)),
    ];
    if let Some(redis) = &redis {
        redis.fill(std::iter::once(KEY.into()), value.as_bytes())?;
        contenders.push(Contender::new("redis", redis, redis.load(connections, 1, &words)));
    }
    if let Some(memcached) = &memcached {
        let sizes = (KEY_BYTES, VALUE_BYTES);
        let load = Memcaslap::new(context.folder, &memcached.address, connections, command, sizes)?;
        contenders.push(Contender::new("memcached", memcached, load));
    }
    let mut outcome =
        Outcome { contenders: in_turn(context.effort, &contenders)?, ..Outcome::default() };
    if connections == 1 {
        latency_bar(&mut outcome)
    } else {
        throughput_bars(&mut outcome)
    }
    outcome.notes.push(
        "memcaslap spreads its calls over 1,024 keys a connection, sets them first and counts that, and tells no percentiles"
            .to_owned(),
    );
    Ok(outcome)
}

fn throughput_bars(outcome: &mut Outcome) {
    outcome.bar_times("redis", TIMES_REDIS);
    let ours = outcome.contenders.first();
    let cpu = ours
        .zip(outcome.named("redis"))
        .map(|(ours, redis)| ours.ratio(redis, |sample| sample.cpu_us_per_operation));
    outcome.bars.push(Bar::at_most("CPU per call / redis's", cpu, CPU_OF_REDIS, "x"));
}

fn latency_bar(outcome: &mut Outcome) {
    let behind = outcome
        .contenders
        .first()
        .zip(outcome.named("redis"))
        .and_then(|(ours, redis)| ours.behind_us(redis));
    outcome.bars.push(Bar::at_most("p50 - redis's p50", behind, BEHIND_REDIS_US, "us"));
}
