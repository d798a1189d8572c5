//! Times of calls that come at their own rate, at half of what each server can bear: what its users see,
//! queues included, and not what a load sees that waits for its answers.
//!
//! Calls that know nothing of each other come and go one by one, so the peak is that of one call a
//! connection: loads that send 32 at a time have them answered at a fraction of the cost.

use prost::Message;
use stateside_proto::v1::Ack;

use super::Context;
use crate::{
    calls::{EVERY_ACK, GET, KEY, UPSERT, check, get_one, upsert_one, value},
    comparison::{Contender, in_turn},
    loads::{
        Load,
        h2load::{Call, Shape},
        open_loop::{OpenLoop, pauses},
    },
    outcome::{Bar, Outcome},
    peers::{
        if_installed,
        redis::{Durability, Redis},
        stateside::site,
    },
};

const CONNECTIONS: u32 = 50;
const LOAD_SHARE: f64 = 0.5;
const P99_US: f64 = 1_000.0;
const P999_US: f64 = 5_000.0;

pub(super) fn get(context: &Context<'_>) -> Result<Outcome, String> {
    half_of_peak(context, GET, &get_one(KEY.as_bytes()), &["GET", KEY])
}

pub(super) fn upsert(context: &Context<'_>) -> Result<Outcome, String> {
    let request = upsert_one(KEY.as_bytes(), Ack::Memory);
    half_of_peak(context, UPSERT, &request, &["SET", KEY, &value()])
}

fn half_of_peak(
    context: &Context<'_>,
    method: &'static str,
    request: &impl Message,
    words: &[&str],
) -> Result<Outcome, String> {
    let (folder, seconds) = (context.folder, context.effort.seconds);
    let pauses = pauses(seconds * context.effort.rounds)?;
    let site = site();
    let node = site.start();
    let redis = if_installed("redis", || Redis::start(folder, Durability::None))?;
    let address = site.data_address();
    check(context.runtime, &address, EVERY_ACK)?;
    let paced = |mut load: OpenLoop, full: &dyn Load| -> Result<OpenLoop, String> {
        // The first run is a warm-up.
        full.run(1)?;
        let peak = full.run(seconds)?;
        load.calls_per_s = (LOAD_SHARE * peak.calls as f64 / peak.seconds).round();
        Ok(load)
    };
    let call = Call::new(folder, "unary", method, request)?;
    let full = call.load(&address, Shape { connections: CONNECTIONS, streams: 1 });
    let load = OpenLoop::grpc(folder, &address, method, request, CONNECTIONS)?;
    let mut contenders = vec![Contender::new("stateside", &node, paced(load, &full)?)];
    if let Some(redis) = &redis {
        redis.fill(std::iter::once(KEY.into()), value().as_bytes())?;
        let load = OpenLoop::redis(folder, &redis.address(), words, CONNECTIONS)?;
        let load = paced(load, &redis.load(CONNECTIONS, 1, words))?;
        contenders.push(Contender::new("redis", redis, load));
    }
    let mut outcome =
        Outcome { contenders: in_turn(context.effort, &contenders)?, ..Outcome::default() };
    bars(&mut outcome);
    let lost = pauses.share * 100.0;
    outcome.figure("two busy cores without a server: time in pauses of 0.5 ms and more", lost, "%");
    outcome.figure("two busy cores without a server: longest pause", pauses.longest_us, "us");
    outcome.notes.push(
        "times count from when a call was due; arrivals are random, each server's at half of its own rate in a closed loop of 50 x 1"
            .to_owned(),
    );
    outcome.notes.push(
        "pauses that the machine makes are in everyone's p99 and p99.9; the ratio to Redis's has them on both sides"
            .to_owned(),
    );
    Ok(outcome)
}

fn bars(outcome: &mut Outcome) {
    let Some(ours) = outcome.contenders.first() else { return };
    let (p99, p999) = (ours.time(|time| time.p99_us), ours.time(|time| time.p999_us));
    let mut figures = Vec::new();
    if let Some(redis) = outcome.named("redis") {
        for (name, ours, theirs) in [
            ("p99 over redis's", p99, redis.time(|time| time.p99_us)),
            ("p99.9 over redis's", p999, redis.time(|time| time.p999_us)),
        ] {
            figures
                .extend(ours.zip(theirs).map(|(ours, theirs)| (name, ours.value / theirs.value)));
        }
    }
    outcome.bars.push(Bar::at_most("p99 at half of the peak", p99, P99_US, "us"));
    outcome.bars.push(Bar::at_most("p99.9 at half of the peak", p999, P999_US, "us"));
    for (name, ratio) in figures {
        outcome.figure(name, ratio, "x");
    }
}
