//! Bytes per record over those of key and value, by what the kernel counts as resident.

use super::Context;
use crate::{
    calls::{KEY_BYTES, VALUE_BYTES, fill, numbered_key, value},
    outcome::{Bar, Outcome},
    peers::{
        Server, if_installed,
        memcached::Memcached,
        redis::{Durability, Redis},
        stateside::{config, site_with},
    },
    process::memory,
};

const RECORDS: usize = 10_000_000;
const BYTES_PER_RECORD: f64 = 48.0;
const MEMCACHED_MIB: u32 = 8_192;
/// Room for all records: no background snapshot runs while memory is read.
const LOG_MIB: u32 = 8_192;

pub(super) fn ten_million(context: &Context<'_>) -> Result<Outcome, String> {
    let mut outcome = Outcome::default();
    let ours = {
        let site = site_with(stateside_e2e::config::Config { log_max_mb: LOG_MIB, ..config() });
        let node = site.start();
        over("stateside", &node, || fill(context.runtime, &site.data_address(), RECORDS))?
    };
    outcome.figure("stateside", ours, "B per record over key and value");
    let keys = || (0..RECORDS).map(numbered_key);
    let value = value();
    if let Some(redis) = if_installed("redis", || Redis::start(context.folder, Durability::None))? {
        let bytes = over("redis", &redis, || redis.fill(keys(), value.as_bytes()))?;
        outcome.figure("redis", bytes, "B per record over key and value");
    }
    let memcached = if_installed("memcached", || Memcached::start(context.folder, MEMCACHED_MIB))?;
    if let Some(memcached) = memcached {
        let bytes = over("memcached", &memcached, || {
            let items = memcached.fill(keys(), value.as_bytes())?;
            if items == RECORDS as u64 { Ok(()) } else { Err(format!("{items} items are left")) }
        })?;
        outcome.figure("memcached", bytes, "B per record over key and value");
    }
    let bar = Bar::at_most(
        "bytes per record over key and value",
        Some(ours.into()),
        BYTES_PER_RECORD,
        "B",
    );
    outcome.bars.push(bar);
    outcome.notes.push(
        "resident memory with the records less that of the server just started: buffers and the space that the allocator keeps count too".to_owned(),
    );
    Ok(outcome)
}

fn over(
    name: &str,
    server: &dyn Server,
    fill: impl FnOnce() -> Result<(), String>,
) -> Result<f64, String> {
    let before = memory(server.pid())?.resident;
    fill()?;
    let after = memory(server.pid())?.resident;
    let each = (after - before) as f64 / RECORDS as f64;
    eprintln!("    {name}: {each:.1} B per record in all");
    Ok(each - (KEY_BYTES + VALUE_BYTES) as f64)
}
