//! This build's own node, one core, with the defaults but for what a row changes.

use stateside_e2e::{
    config::Config,
    node_process::{Node, Site},
};

use super::{Counters, Server, metric};
use crate::process::SERVER_CPU;

/// A place for a node on the server's core. Acknowledged from memory by default, so that a call
/// can ask for either.
pub fn site() -> Site {
    site_with(config())
}

/// A place for a node on the server's core, with another configuration.
pub fn site_with(config: Config) -> Site {
    let mut site = Site::new(config);
    site.prefix = ["taskset", "-c", SERVER_CPU].map(str::to_owned).to_vec();
    site
}

/// The log's sizes are the defaults of the node; the tests' own are smaller.
pub fn config() -> Config {
    Config { ack: "memory", log_segment_mb: 64, log_max_mb: 1_024, ..Config::default() }
}

impl Server for Node<'_> {
    fn pid(&self) -> u32 {
        Node::pid(self)
    }

    fn counters(&self) -> Result<Counters, String> {
        let text = self.metrics();
        let sum = |name: &str| metric(&text, name, |_| true) as u64;
        let refused =
            metric(&text, "stateside_requests_total", |line| !line.contains("code=\"OK\"")) as u64;
        Ok(Counters {
            refused,
            // A refused call is in both metrics.
            refused_parts: sum("stateside_refused_total").saturating_sub(refused),
            hops: sum("stateside_hops_sent_total"),
            disk_writes: sum("stateside_log_write_duration_seconds_count"),
        })
    }
}
