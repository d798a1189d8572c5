//! Times of calls that come at their own rate, at half of what each server can bear: what its users see,
//! queues included, and not what a load sees that waits for its answers.

use stateside_proto::v1::Ack;

use super::Context;
use crate::{
    calls::{EVERY_ACK, GET, KEY, UPSERT, check, get_one, upsert_one, value},
    comparison::Ratio,
    loads::{
        Latency, Load,
        h2load::{Call, Shape},
        open_loop::{OpenLoop, pauses},
    },
    outcome::{Bar, Outcome, number},
    peers::{
        if_installed,
        redis::{Durability, Redis},
        stateside::site,
    },
    statistics::{median, spread},
};

/// As in the rows that the peak is taken from.
const SHAPES: [Shape; 2] =
    [Shape { connections: 50, streams: 1 }, Shape { connections: 8, streams: 32 }];
const LOAD_SHARE: f64 = 0.5;
const P99_US: f64 = 1_000.0;
const P999_US: f64 = 5_000.0;

/// A server under its rate, and the times of each round.
struct Paced {
    load: OpenLoop,
    times: Vec<Latency>,
    late_us: Vec<f64>,
}

impl Paced {
    /// At its share of what `full` achieves.
    fn new(mut load: OpenLoop, full: &impl Load, seconds: u32) -> Result<Self, String> {
        // The first run is a warm-up.
        full.run(1)?;
        let peak = full.run(seconds)?;
        load.calls_per_s = (LOAD_SHARE * peak.calls as f64 / peak.seconds).round();
        Ok(Self { load, times: Vec::new(), late_us: Vec::new() })
    }

    fn measure(&mut self, seconds: u32) -> Result<(), String> {
        let (latency, late_us) = self.load.measure(seconds)?;
        self.times.push(latency);
        self.late_us.push(late_us);
        Ok(())
    }

    fn time(&self, of: fn(&Latency) -> f64) -> Ratio {
        let times: Vec<f64> = self.times.iter().map(of).collect();
        let (lowest, highest) = spread(&times);
        Ratio { value: median(&times), lowest, highest }
    }
}

pub(super) fn half_of_peak(context: &Context<'_>) -> Result<Outcome, String> {
    let (folder, seconds) = (context.folder, context.effort.seconds);
    let site = site();
    let _node = site.start();
    let address = site.data_address();
    check(context.runtime, &address, EVERY_ACK)?;
    let redis = if_installed("redis", || Redis::start(folder, Durability::None))?;
    let value = value();
    if let Some(redis) = &redis {
        redis.fill(std::iter::once(KEY.into()), value.as_bytes())?;
    }
    let mut outcome = Outcome::default();
    let pauses = pauses(seconds * context.effort.rounds)?;
    let upsert = upsert_one(KEY.as_bytes(), Ack::Memory);
    for shape in SHAPES {
        let connections = shape.connections as usize;
        let get = get_one(KEY.as_bytes());
        let ours = [
            (
                "Get",
                Call::new(folder, "open-get", GET, &get)?,
                OpenLoop::grpc(folder, "get", &address, GET, &get, connections)?,
            ),
            (
                "Upsert ack=memory",
                Call::new(folder, "open-upsert", UPSERT, &upsert)?,
                OpenLoop::grpc(folder, "upsert", &address, UPSERT, &upsert, connections)?,
            ),
        ];
        let theirs = [&["GET", KEY][..], &["SET", KEY, &value]];
        for ((name, call, load), words) in ours.into_iter().zip(theirs) {
            let mut node = Paced::new(load, &call.load(&address, shape), seconds)?;
            let mut peer = redis
                .as_ref()
                .map(|redis| {
                    let load = OpenLoop::redis(folder, &redis.address(), words, connections)?;
                    Paced::new(load, &redis.load(shape.connections, shape.streams, words), seconds)
                })
                .transpose()?;
            for _ in 0..context.effort.rounds {
                node.measure(seconds)?;
                if let Some(peer) = &mut peer {
                    peer.measure(seconds)?;
                }
            }
            report(name, shape, &node, peer.as_ref(), &mut outcome);
        }
    }
    outcome.figure(
        "a core without any server: time lost in pauses of more than 0.5 ms",
        pauses.share * 100.0,
        "%",
    );
    outcome.figure("a core without any server: longest pause", pauses.longest_us, "us");
    outcome.notes.push(
        "times count from when a call was due; arrivals are random; each server at half of its own closed-loop rate".to_owned(),
    );
    outcome.notes.push(
        "a machine that takes 1 % of a core's time in pauses of milliseconds has that pause as everyone's p99: then the ratio to Redis says more"
            .to_owned(),
    );
    Ok(outcome)
}

fn report(name: &str, shape: Shape, node: &Paced, peer: Option<&Paced>, outcome: &mut Outcome) {
    let what =
        format!("{name}, {} connections at {}/s", shape.connections, number(node.load.calls_per_s));
    let (p99, p999) = (node.time(|time| time.p99_us), node.time(|time| time.p999_us));
    let over_redis = |ours: f64, theirs: f64| if theirs > 0.0 { ours / theirs } else { f64::NAN };
    outcome.bars.push(Bar::at_most(format!("{what}: p99"), Some(p99), P99_US, "us"));
    outcome.bars.push(Bar::at_most(format!("{what}: p99.9"), Some(p999), P999_US, "us"));
    outcome.figure(format!("{what}: p50"), node.time(|time| time.p50_us).value, "us");
    outcome.figure(format!("{what}: 1 call of 100 sent late by"), median(&node.late_us), "us");
    if let Some(peer) = peer {
        let theirs = format!(
            "redis, {} connections at {}/s",
            shape.connections,
            number(peer.load.calls_per_s)
        );
        for (which, ours, of) in [
            ("p50", node.time(|time| time.p50_us), (|time| time.p50_us) as fn(&Latency) -> f64),
            ("p99", p99, |time| time.p99_us),
            ("p99.9", p999, |time| time.p999_us),
        ] {
            let time = peer.time(of).value;
            outcome.figure(format!("{theirs}: {which}"), time, "us");
            outcome.figure(
                format!("{what}: {which} over redis's"),
                over_redis(ours.value, time),
                "x",
            );
        }
    }
}
