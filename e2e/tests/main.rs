//! The real binary, from outside. One program for all of them: each would link the same half
//! of the workspace anew.

mod bench;
mod clients;
mod counters;
mod damage;
mod expiry;
mod full_disk;
mod hostile_peers;
mod kafka;
mod kafka_retries;
mod kafka_secured;
mod kill_loops;
mod lifecycle;
mod malformed_requests;
mod metrics;
mod partitions;
mod quick_start;
mod retries;
mod scan;
mod split;
mod stages;
mod startup;
mod tiered;
mod update;
