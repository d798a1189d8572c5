//! What a partition is made of, as manifest, registry and cores speak of it.

use std::{fmt, str::FromStr};

use crate::{Ack, Epoch, HashRange, PartitionId, PipelineSpec, Sequence};

macro_rules! named {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every variant.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name used in configuration and answers.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => Err(format!("`{other}` is not a {}; known: {}", $what, [$($text),+].join(", "))),
                }
            }
        }
    };
}

named!(
    /// Where a partition's records live.
    StoreKind, "state store" {
        /// A hash map in memory; durable through log and snapshots.
        Memory = "memory",
        /// The same, with its keys in order as well: for scans.
        MemoryOrdered = "memory-ordered",
        /// sled, on disk.
        Sled = "sled",
        /// A log-structured merge tree, on disk.
        Lsm = "lsm",
        /// The same on a slow directory, behind a bounded cache on a fast one.
        Tiered = "tiered",
        /// Integers in memory, without a log.
        Counters = "counters",
    }
);

impl StoreKind {
    /// Whether the store keeps its records on disk itself: it covers what it has written, and its
    /// lookups may block.
    pub const fn is_on_disk(self) -> bool {
        match self {
            Self::Memory | Self::MemoryOrdered | Self::Counters => false,
            Self::Sled | Self::Lsm | Self::Tiered => true,
        }
    }

    /// Whether partitions with this store have no log, whatever pipeline is declared for them.
    pub const fn is_unlogged(self) -> bool {
        matches!(self, Self::Counters)
    }
}

named!(
    /// Where a partition is in its life on this node.
    PartitionState, "partition state" {
        /// Being created or recovered.
        Init = "init",
        /// Serves.
        Primary = "primary",
        /// Stopped after a failed write to its log or store.
        Stopped = "stopped",
        /// Its files are damaged.
        Damaged = "damaged",
        /// Removed; its files are being deleted.
        Retired = "retired",
    }
);

/// A partition as a node runs it: what the desired set says of it plus what the node fixed when
/// it took the partition on. The manifest records these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionSpec {
    /// Its name in the fleet.
    pub id: PartitionId,
    /// The key hashes that it owns.
    pub range: HashRange,
    /// Where its records live.
    pub store: StoreKind,
    /// Default acknowledgement of its writes.
    pub ack: Ack,
    /// Its stages, in order.
    pub pipeline: PipelineSpec,
    /// Log records of earlier epochs are not this partition's: they belong to a removed
    /// partition of the same id, or to content that a restore replaced.
    pub first_epoch: Epoch,
    /// The current epoch; at least `first_epoch`.
    pub epoch: Epoch,
    /// Sequence of the state that the partition began with: 0, or after a restore where its
    /// versions go on from. Replay begins after it (or after a newer snapshot).
    pub base_sequence: Sequence,
}

impl PartitionSpec {
    /// Whether it has a log.
    pub fn is_logged(&self) -> bool {
        self.pipeline.iter().any(|stage| stage.kind().is_log())
    }

    /// Whether its log is in Kafka.
    pub fn is_logged_in_kafka(&self) -> bool {
        self.pipeline.is_logged_in_kafka()
    }
}
