//! What a hop between cores costs: clients that send each key to the core that owns it, clients
//! that do not, and the worst case. With two cores there is none left for the load: all share the
//! machine, so the CPU time of a call says more than the rate.

use stateside_e2e::{config::Config, node_process::Site, rpc};
use stateside_router::key_hash;

use super::Context;
use crate::{
    calls::{EVERY_ACK, GET, check, get_one, numbered_key, upsert_one},
    comparison::{Contender, Measured, in_turn},
    loads::{
        Together,
        h2load::{Call, H2load, Shape},
    },
    outcome::{Bar, Outcome},
    peers::stateside::config,
};

const CORES: u16 = 2;
const ALL_CPUS: &str = "0,1";
/// Of each of two loads. As many calls as 8 x 32 together, on more connections: the kernel deals
/// them out to the cores by chance, and with few it may deal them all to one.
const SHAPE: Shape = Shape { connections: 16, streams: 8 };
const CPU_PER_HOP_US: f64 = 1.5;
const EVERY_CALL_HOPS: &str = "every call hops";

pub(super) fn routing(context: &Context<'_>) -> Result<Outcome, String> {
    // The node pins its cores itself.
    let site = Site::new(Config { cores: CORES, ..config() });
    let node = site.start();
    check(context.runtime, &site.data_address(), EVERY_ACK)?;
    let keys: Vec<Vec<u8>> =
        (0..CORES).map(|core| key_of_core(context, &site, core)).collect::<Result<_, _>>()?;
    let calls: Vec<Call> = keys
        .iter()
        .enumerate()
        .map(|(core, key)| Call::new(context.folder, &format!("core-{core}"), GET, &get_one(key)))
        .collect::<Result<_, _>>()?;
    let port = |core: usize| format!("127.0.0.1:{}", usize::from(site.core_port_base()) + core);
    let others = usize::from(CORES) - 1;
    let contenders = [
        Contender::new("routing client", &node, together(&calls, port)),
        Contender::new("shared port", &node, together(&calls, |_| site.data_address())),
        Contender::new(EVERY_CALL_HOPS, &node, together(&calls, |core| port(others - core))),
    ];
    let mut outcome =
        Outcome { contenders: in_turn(context.effort, &contenders)?, ..Outcome::default() };
    let hops = |measured: &Measured| measured.median(|sample| sample.hops_per_call);
    for measured in &outcome.contenders.clone() {
        outcome.figure(format!("{}: hops per call", measured.name), hops(measured), "");
    }
    let (routed, hopping) = (&outcome.contenders[0], outcome.named(EVERY_CALL_HOPS));
    let cost = hopping.map(|hopping| cpu_per_hop(routed, hopping));
    outcome.bars.push(Bar::at_most("CPU per hop", cost, CPU_PER_HOP_US, "us"));
    outcome.notes.push(
        "two cores and two loads share two CPUs: rates are what is left, CPU per call is the server's own".to_owned(),
    );
    outcome.notes.push(
        "shared port: a closed loop makes fewer of the calls that take longer, so fewer than half hop".to_owned(),
    );
    outcome.notes.push(
        "CPU per hop: CPU per call when every call hops less that of the routing client, per hop counted".to_owned(),
    );
    Ok(outcome)
}

fn cpu_per_hop(routed: &Measured, hopping: &Measured) -> crate::comparison::Ratio {
    let each: Vec<f64> = routed
        .samples
        .iter()
        .zip(&hopping.samples)
        .map(|(without, with)| {
            (with.cpu_us_per_operation - without.cpu_us_per_operation)
                / (with.hops_per_call - without.hops_per_call)
        })
        .collect();
    let (lowest, highest) = crate::statistics::spread(&each);
    crate::comparison::Ratio { value: crate::statistics::median(&each), lowest, highest }
}

/// A load for the key of each core, at the address that `address` tells for that core.
fn together(calls: &[Call], address: impl Fn(usize) -> String) -> Together<H2load> {
    let load = |(core, call): (usize, &Call)| {
        let mut load = call.load(&address(core), SHAPE);
        load.cpus = ALL_CPUS;
        load
    };
    Together(calls.iter().enumerate().map(load).collect())
}

/// The first key that this core owns; the record is written.
fn key_of_core(context: &Context<'_>, site: &Site, core: u16) -> Result<Vec<u8>, String> {
    context.runtime.block_on(async {
        let address = site.data_address();
        let mut data = rpc::data(&address).await.map_err(|error| error.to_string())?;
        let said = |status: tonic::Status| format!("{address}: {status}");
        let topology = rpc::topology(&mut data).await.map_err(said)?;
        let owned = |key: &Vec<u8>| {
            let hash = key_hash(key).0;
            topology.partitions.iter().any(|partition| {
                let range = partition.range.unwrap_or_default();
                let inside = range.start <= hash && (range.end == 0 || hash < range.end);
                inside && partition.core == u32::from(core)
            })
        };
        let key = (0..1_000).map(numbered_key).find(owned);
        let key = key.ok_or_else(|| format!("core {core} owns none of 1,000 keys"))?;
        let request = upsert_one(&key, stateside_proto::v1::Ack::Memory);
        data.upsert(request).await.map_err(said)?;
        Ok(key)
    })
}
