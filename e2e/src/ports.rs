//! Free TCP ports for nodes under test.
//!
//! Ports come from below the range that the kernel hands to outgoing connections, so that a
//! client's socket cannot take one between a node's death and its restart.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::atomic::{AtomicU16, Ordering},
};

const FIRST: u16 = 10_000;
const LAST: u16 = 30_000;
/// Ports of one node: data, control, metrics, and one for each core.
pub const PORTS_PER_NODE: u16 = 16;

static NEXT_BLOCK: AtomicU16 = AtomicU16::new(0);

/// The first of [`PORTS_PER_NODE`] consecutive ports that nobody listens on.
///
/// # Panics
/// When there is no such block.
pub fn free_block() -> u16 {
    const BLOCKS: u16 = (LAST - FIRST) / PORTS_PER_NODE;
    // Test programs that run side by side start at different blocks.
    let offset = (std::process::id() % u32::from(BLOCKS)) as u16;
    for _ in 0..BLOCKS {
        let block = (NEXT_BLOCK.fetch_add(1, Ordering::Relaxed) + offset.wrapping_mul(7)) % BLOCKS;
        let first = FIRST + block * PORTS_PER_NODE;
        if (first..first + PORTS_PER_NODE).all(is_free) {
            return first;
        }
    }
    panic!("no {PORTS_PER_NODE} free ports in a row between {FIRST} and {LAST}");
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
