//! Tests of the real `stateside` binary from outside: over its sockets, its command line and its
//! files, with clients in several languages.
//!
//! Nothing here imports the node. What is shared with it is the contract (`proto`) and the
//! placement of keys (`router`); the client is plain tonic, so that a fault in Stateside's own
//! client cannot hide one in the node.

pub mod cases;
pub mod command_line;
pub mod config;
pub mod exposition;
pub mod grpcurl;
pub mod history;
pub mod hostile;
pub mod kafka;
pub mod kafka_guard;
pub mod kill_loops;
pub mod node_process;
pub mod ports;
pub mod random;
pub mod raw_http2;
pub mod requirements;
pub mod rpc;
pub mod tonic_caller;
pub mod until;
