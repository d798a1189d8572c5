//! Ours beside tonic: the same calls to both, in turn, in one run.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use stateside_e2e::{
    config::Config,
    node_process::{Node, Site},
    ports,
    requirements::profile_folder,
    rpc,
    until::until,
};
use stateside_proto::v1::{Ack, GetRequest, UpsertEntry, UpsertRequest};
use tokio::runtime::Runtime;

use crate::{
    h2load::{Load, Shape},
    process::{SERVER_CPU, cpu_seconds},
    statistics::{median, spread},
};

const KEY: &[u8; 16] = b"key-of-16-bytes.";
const VALUE_BYTES: usize = 100;
const BATCH_PAIRS: usize = 1_000;
/// The shape that the bars are set for.
const MANY_STREAMS: Shape = Shape { connections: 8, streams: 32 };
/// A run before the measured one: caches, branch predictors, connection pools.
const WARM_UP_SECONDS: u32 = 1;

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Length of one measurement.
    pub seconds: u32,
    /// Measurements of each server, in turn.
    pub rounds: u32,
}

/// One line of the table.
struct Scenario {
    name: &'static str,
    load: Load,
    shape: Shape,
    /// Pairs in a call; rates are given in pairs when there are several.
    pairs: usize,
    /// What we aim at: times the peer's rate.
    aim: Option<f64>,
}

/// Rates and CPU of one server in one scenario.
#[derive(Default)]
struct Measured {
    calls_per_s: Vec<f64>,
    cpu_us_per_call: Vec<f64>,
    server_busy: Vec<f64>,
    /// Calls that were refused: answered fast, so they are not counted as work done.
    refused: u64,
}

impl Measured {
    fn json(&self) -> Value {
        json!({
            "calls_per_s": self.calls_per_s,
            "calls_per_s_median": median(&self.calls_per_s),
            "cpu_us_per_call_median": median(&self.cpu_us_per_call),
            "server_busy_median": median(&self.server_busy),
            "calls_refused": self.refused,
        })
    }
}

/// The tonic service as a process; killed when dropped.
struct Peer {
    child: Child,
    address: String,
}

impl Peer {
    fn start(folder: &Path) -> Result<Self, String> {
        let address = format!("127.0.0.1:{}", ports::free_block());
        let child = Command::new("taskset")
            .args(["-c", SERVER_CPU])
            .arg(profile_folder().join("tonic-peer"))
            .arg(&address)
            .arg(folder.join("peer.log"))
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("taskset or tonic-peer did not start: {error}"))?;
        let peer = Self { child, address };
        until("the tonic service listens", Duration::from_secs(10), || {
            std::net::TcpStream::connect(&peer.address).ok().map(drop)
        });
        Ok(peer)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the comparison and prints its table; answers it as JSON.
///
/// # Errors
/// A sentence: something could not be run, or did not answer as it should.
pub fn run(effort: Effort, folder: &Path) -> Result<Value, String> {
    // Acknowledged from memory by default, so that a request can ask for either.
    let mut site = Site::new(Config {
        ack: "memory",
        log_segment_mb: 64,
        log_max_mb: 1_024,
        ..Config::default()
    });
    site.prefix = ["taskset", "-c", SERVER_CPU].map(str::to_owned).to_vec();
    let node = site.start();
    let peer = Peer::start(folder)?;
    let ours = (site.data_address(), node.pid());
    let theirs = (peer.address.clone(), peer.child.id());
    for (address, _) in [&ours, &theirs] {
        both_answer(address)?;
    }
    println!(
        "server on core {SERVER_CPU}, h2load on core {}, {} s a measurement, {} rounds in turn",
        crate::process::LOAD_CPU,
        effort.seconds,
        effort.rounds
    );
    println!(
        "{:<34} {:>22} {:>22} {:>7} {:>13}  {:>11} {:>11}",
        "",
        "stateside /s (busy)",
        "tonic /s (busy)",
        "ratio",
        "(spread)",
        "our us/call",
        "their us/call"
    );
    let mut results = Vec::new();
    for scenario in scenarios(folder)? {
        results.push(compare(&scenario, effort, &node, &ours, &theirs)?);
    }
    for (address, _) in [&ours, &theirs] {
        both_answer(address)?;
    }
    Ok(Value::Array(results))
}

fn scenarios(folder: &Path) -> Result<Vec<Scenario>, String> {
    let get = GetRequest { keys: vec![KEY.to_vec()], routing_key: Vec::new() };
    let one = |ack| upsert(1, ack);
    let load =
        |name: &str, method, request: &UpsertRequest| Load::new(folder, name, method, request);
    const GET: &str = "stateside.v1.DataPlane/Get";
    const UPSERT: &str = "stateside.v1.DataPlane/Upsert";
    let few_streams = Shape { connections: 50, streams: 1 };
    Ok(vec![
        Scenario {
            name: "Get, 8 x 32",
            load: Load::new(folder, "get", GET, &get)?,
            shape: MANY_STREAMS,
            pairs: 1,
            aim: Some(2.2),
        },
        Scenario {
            name: "Upsert ack=memory, 8 x 32",
            load: load("memory", UPSERT, &one(Ack::Memory))?,
            shape: MANY_STREAMS,
            pairs: 1,
            aim: Some(2.2),
        },
        Scenario {
            name: "Upsert ack=durable, 8 x 32",
            load: load("durable", UPSERT, &one(Ack::Durable))?,
            shape: MANY_STREAMS,
            pairs: 1,
            aim: None,
        },
        Scenario {
            name: "Get, 50 x 1",
            load: Load::new(folder, "get50", GET, &get)?,
            shape: few_streams,
            pairs: 1,
            aim: None,
        },
        Scenario {
            name: "Upsert of 1,000 pairs, memory, 2 x 2",
            load: load("batch", UPSERT, &upsert(BATCH_PAIRS, Ack::Memory))?,
            shape: Shape { connections: 2, streams: 2 },
            pairs: BATCH_PAIRS,
            aim: None,
        },
    ])
}

/// A batch of pairs. Under one routing key when there are several: one partition, one batch.
fn upsert(pairs: usize, ack: Ack) -> UpsertRequest {
    let key = |number: usize| {
        if pairs == 1 { KEY.to_vec() } else { format!("key-{number:012}").into_bytes() }
    };
    UpsertRequest {
        entries: (0..pairs)
            .map(|number| UpsertEntry {
                key: key(number),
                value: vec![b'v'; VALUE_BYTES],
                ..UpsertEntry::default()
            })
            .collect(),
        routing_key: if pairs == 1 { Vec::new() } else { KEY.to_vec() },
        atomic: false,
        ack: ack.into(),
    }
}

fn compare(
    scenario: &Scenario,
    effort: Effort,
    node: &Node<'_>,
    ours: &(String, u32),
    theirs: &(String, u32),
) -> Result<Value, String> {
    let (mut our, mut their) = (Measured::default(), Measured::default());
    for server in [ours, theirs] {
        scenario.load.run(&server.0, scenario.shape, WARM_UP_SECONDS, None)?;
    }
    for _ in 0..effort.rounds {
        for ((address, pid), measured) in [(ours, &mut our), (theirs, &mut their)] {
            let before = cpu_seconds(*pid);
            let refused_before = refused(node);
            let run = scenario.load.run(address, scenario.shape, effort.seconds, None)?;
            let cpu = cpu_seconds(*pid) - before;
            let refused = refused(node) - refused_before;
            let done = run.calls.saturating_sub(refused) as f64;
            measured.refused += refused;
            measured.calls_per_s.push(done / run.seconds);
            measured.cpu_us_per_call.push(cpu * 1e6 / done);
            measured.server_busy.push(cpu / run.seconds);
        }
    }
    let ratio = median(&our.calls_per_s) / median(&their.calls_per_s);
    let ratios: Vec<f64> =
        our.calls_per_s.iter().zip(&their.calls_per_s).map(|(our, their)| our / their).collect();
    let (lowest, highest) = spread(&ratios);
    let shown = |measured: &Measured| {
        let rate = median(&measured.calls_per_s) * scenario.pairs as f64;
        format!("{:.0} ({:.0} %)", rate, 100.0 * median(&measured.server_busy))
    };
    let mut remark = scenario.aim.map_or(String::new(), |aim| format!("  aim {aim}"));
    if our.refused > 0 {
        remark += &format!("  {} calls refused, not counted", our.refused);
    }
    println!(
        "{:<34} {:>22} {:>22} {:>7.2} {:>13}  {:>11.2} {:>11.2}{remark}",
        scenario.name,
        shown(&our),
        shown(&their),
        ratio,
        format!("{lowest:.2}-{highest:.2}"),
        median(&our.cpu_us_per_call),
        median(&their.cpu_us_per_call),
    );
    Ok(json!({
        "scenario": scenario.name,
        "connections": scenario.shape.connections,
        "streams": scenario.shape.streams,
        "pairs_per_call": scenario.pairs,
        "stateside": our.json(),
        "tonic": their.json(),
        "ratio": ratio,
        "ratio_lowest": lowest,
        "ratio_highest": highest,
        "ratio_aim": scenario.aim,
    }))
}

/// h2load looks at HTTP's status only: sees that the calls it will make do what they say.
fn both_answer(address: &str) -> Result<(), String> {
    let runtime = Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let said = |status: tonic::Status| format!("{address}: {status}");
        let mut data = rpc::data(address).await.map_err(|error| format!("{address}: {error}"))?;
        for (pairs, ack) in [(1, Ack::Memory), (BATCH_PAIRS, Ack::Memory), (1, Ack::Durable)] {
            let answer = data.upsert(upsert(pairs, ack)).await.map_err(said)?.into_inner();
            if answer.results.len() != pairs || answer.results.iter().any(|r| r.error.is_some()) {
                return Err(format!("{address}: a batch of {pairs} was not written"));
            }
        }
        let get = GetRequest { keys: vec![KEY.to_vec()], routing_key: Vec::new() };
        let records = data.get(get).await.map_err(said)?.into_inner().records;
        if records.len() == 1 && records[0].value.len() == VALUE_BYTES {
            Ok(())
        } else {
            Err(format!("{address}: the record is not there"))
        }
    })
}

/// Calls that our node has refused so far, for whatever reason.
fn refused(node: &Node<'_>) -> u64 {
    let metrics = node.metrics();
    metrics
        .lines()
        .filter(|line| line.starts_with("stateside_refused_total"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}
