//! The Rust client of Stateside: batches, routing, deadlines and retries of what is safe to retry.
//!
//! ```no_run
//! # async fn example() -> Result<(), stateside_client::Error> {
//! use stateside_client::{Client, Options, ReadOptions, Upsert, WriteOptions};
//!
//! let client = Client::connect("127.0.0.1:7400", Options::default()).await?;
//! let entries = [Upsert::new("user/1", "Ada"), Upsert::new("user/2", "Grace").if_absent()];
//! for result in client.upsert(&entries, &WriteOptions::default()).await? {
//!     println!("version {}", result?.version);
//! }
//! let record = client.get_one("user/1", &ReadOptions::default()).await?;
//! assert_eq!(record.map(|record| record.value), Some(b"Ada".to_vec()));
//! # Ok(()) }
//! ```
//!
//! # What is retried
//! | what happened | a read | a write |
//! |---|---|---|
//! | refused: `OVERLOADED`, `PARTITION_STARTING`, `PARTITION_BUSY`, `SESSION_BEHIND`, `SHUTTING_DOWN` | after the node's hint and a backoff | the same: a refusal changed nothing |
//! | refused: `BAD_NODE` | after a new topology | the same |
//! | refused: `RESPONSE_TOO_LARGE` | in smaller groups | – |
//! | refused otherwise | no | no |
//! | not sent: no connection, GOAWAY before its turn | yes | yes: nothing was applied |
//! | sent, connection lost | yes | with a request id yes; else [`Error::OutcomeUnknown`], unless [`Options::retry_unknown_writes`] and no entry has a condition, adds or appends |
//! | refused: `LOG_UNAVAILABLE` | – | with a request id after the node's hint; else no |
//! | sent, no answer within the deadline | [`Error::DeadlineExceeded`] | [`Error::OutcomeUnknown`] |
//!
//! All within the call's deadline and [`Options::retries`].
//!
//! With [`Options::request_ids`] every write has a name under which partitions execute it once and answer it
//! alike as often as it comes, so that each of these retries is safe, conditions included.
//!
//! # Routing
//! The client reads `Topology` once and sends each key to the port of the core that owns it. It needs no
//! supervision: a `BAD_NODE` answer makes it read the topology again (once, however many calls got
//! one), and a core's port that cannot be reached, or that belongs to another node, is passed over in
//! favour of the endpoint it was given.

mod batch;
mod client;
mod control;
mod endpoint;
mod error;
mod link;
mod links;
mod options;
mod plan;
mod request_ids;
mod retry;
mod scan;
mod session;
mod topology;
mod update;

pub use batch::{Record, Removal, Results, Upsert, Written};
pub use client::Client;
pub use control::ControlClient;
pub use endpoint::Endpoint;
pub use error::{Error, Refused};
pub use options::{Options, ReadOptions, WriteOptions};
pub use request_ids::RequestId;
pub use scan::{Page, ScanPlace, ScanRange};
pub use session::Session;
pub use stateside_proto::v1;
pub use stateside_types::{Ack, Condition, ExpireAt, Operator, Reason, Sequence, Timestamp};
pub use topology::Topology;
pub use update::{Update, Updated};
