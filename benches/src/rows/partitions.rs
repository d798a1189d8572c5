//! A thousand partitions on one core beside the usual eight: calls, memory, start.

use std::{fs, path::Path, time::Instant};

use stateside_e2e::{config::Config, node_process::Site};
use stateside_proto::v1::Ack;
use stateside_router::key_hash;
use stateside_types::HashRange;

use super::Context;
use crate::{
    calls::{GET, UPSERT, answer, get_one, numbered_key, upsert_one},
    comparison::{Contender, in_turn},
    loads::{
        Together,
        h2load::{Call, H2load, Shape},
    },
    outcome::{Bar, Outcome},
    peers::{
        Server,
        stateside::{config, site_with},
    },
    process::memory,
    statistics::median,
};

const MANY: u32 = 1_000;
const FEW: u32 = 8;
/// Partitions that the load touches: h2load has one body, so there is one load for each.
const TOUCHED: u32 = 8;
const SHAPE: Shape = Shape { connections: 1, streams: 32 };
const SHARE_OF_RATE: f64 = 0.95;
const KIB_PER_PARTITION: f64 = 100.0;
const START_SECONDS: f64 = 2.0;
const STARTS: usize = 3;

pub(super) fn thousand(context: &Context<'_>) -> Result<Outcome, String> {
    let many_site = site_of(context.folder, MANY)?;
    let few_site = site_of(context.folder, FEW)?;
    let begun = Instant::now();
    let many = many_site.start();
    let first_start = begun.elapsed().as_secs_f64();
    let few = few_site.start();
    let resident = |node: &dyn Server| memory(node.pid()).map(|memory| memory.resident as f64);
    let added = resident(&many)? - resident(&few)?;
    let idle_kib = added / 1024.0 / f64::from(MANY - FEW);
    let keys = keys_apart();
    for key in &keys {
        for site in [&many_site, &few_site] {
            let request = upsert_one(key, Ack::Memory);
            answer(context.runtime, &site.data_address(), UPSERT, &request)?;
        }
    }
    let contenders = [
        Contender::new("1,000 partitions", &many, load(context, &many_site, &keys)?),
        Contender::new("8 partitions", &few, load(context, &few_site, &keys)?),
    ];
    let mut outcome =
        Outcome { contenders: in_turn(context.effort, &contenders)?, ..Outcome::default() };
    drop(contenders);
    drop(many);
    drop(few);
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let begun = Instant::now();
        let mut node = many_site.start();
        starts.push(begun.elapsed().as_secs_f64());
        node.kill();
    }
    outcome.bar_times("8 partitions", SHARE_OF_RATE);
    let memory =
        Bar::at_most("memory per idle partition", Some(idle_kib.into()), KIB_PER_PARTITION, "KiB");
    let start =
        Bar::at_most("start after kill -9", Some(median(&starts).into()), START_SECONDS, "s");
    outcome.bars.extend([memory, start]);
    outcome.figure("first start, partitions made", first_start, "s");
    outcome
        .notes
        .push(format!("Get by {TOUCHED} loads of 1 x 32, each with a key of another partition"));
    Ok(outcome)
}

/// A node whose registry declares so many partitions.
fn site_of(folder: &Path, partitions: u32) -> Result<Site, String> {
    let registry = folder.join(format!("{partitions}-partitions.toml"));
    let ranges = HashRange::split_evenly(partitions);
    let text: String = ranges
        .iter()
        .enumerate()
        .map(|(id, range)| format!("[[partition]]\nid = {id}\nrange = \"{range}\"\n"))
        .collect();
    fs::write(&registry, text).map_err(|error| format!("{}: {error}", registry.display()))?;
    let more = format!("registry.file = {:?}\n", registry.to_string_lossy());
    Ok(site_with(Config { more, ..config() }))
}

/// A key in each eighth of the hashes.
fn keys_apart() -> Vec<Vec<u8>> {
    let ranges = HashRange::split_evenly(TOUCHED);
    let inside =
        |range: &HashRange| (0..1_000).map(numbered_key).find(|key| range.contains(key_hash(key)));
    ranges.iter().filter_map(inside).collect()
}

fn load(context: &Context<'_>, site: &Site, keys: &[Vec<u8>]) -> Result<Together<H2load>, String> {
    let loads: Result<Vec<H2load>, String> = keys
        .iter()
        .enumerate()
        .map(|(number, key)| {
            let call = Call::new(context.folder, &format!("get-{number}"), GET, &get_one(key))?;
            Ok(call.load(&site.data_address(), SHAPE))
        })
        .collect();
    loads.map(Together)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_load_has_a_partition_of_its_own() {
        let keys = keys_apart();
        assert_eq!(keys.len(), TOUCHED as usize);
        for (key, range) in keys.iter().zip(HashRange::split_evenly(TOUCHED)) {
            assert!(range.contains(key_hash(key)));
        }
    }
}
