//! The manifest: what a node has. Encoded as text that people can read, guarded by a checksum.
//!
//! ```text
//! stateside-manifest 1 1234 9ae0daaf\n      magic, format version, bytes of the body, CRC32C
//! {"node_id":…,"partitions":2}\n            ┐
//! {"id":0,"range":…,"core":0}\n             │ body: one JSON object a line
//! {"id":1,"range":…,"core":1}\n             ┘
//! ```
//! The checksum covers the header line up to itself and the whole body, so a damaged version
//! number reads as damage and not as another version. The header line has this form in every
//! version. Lengths tell a half-written file from a damaged one; neither is ever taken for a
//! node without partitions.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};
use stateside_router::{Route, RoutingTable};
use stateside_types::{
    CoreId, DesiredPartition, DesiredSet, Epoch, PartitionId, PartitionSpec, Sequence,
    check_pipeline, limits,
};

use crate::stages;

/// Version of the manifest's format.
pub const MANIFEST_VERSION: u32 = 1;

const MAGIC: &str = "stateside-manifest";

/// What a node has: its identity, its partitions and the core of each. Owned by the manager on
/// the control thread; the file is replaced whole at every change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The node's name in the fleet.
    pub node_id: String,
    /// When the node was first started, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// The epoch that the next new partition or restore takes. Never goes back.
    pub next_epoch: Epoch,
    /// Bumped whenever an existing partition moves to another core.
    pub placement: u64,
    /// Cores that the partitions are placed on.
    pub cores: u16,
    /// Rises with every change of the partition set; the version of the routing table.
    pub set_version: u64,
    /// The partitions by id.
    pub partitions: BTreeMap<PartitionId, PlacedPartition>,
}

/// A partition and the core that owns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedPartition {
    /// The partition.
    pub spec: PartitionSpec,
    /// Its core.
    pub core: CoreId,
}

/// Why bytes are not a manifest that this release can use. None of them means "a fresh node".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The file ends early: a write was cut short.
    #[error("the manifest is cut short: it has {found} of {expected} bytes")]
    Truncated {
        /// Bytes that there should be, as far as that can be told.
        expected: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// The file goes on after the manifest's end.
    #[error("the manifest has {extra} bytes too many")]
    TrailingBytes {
        /// How many.
        extra: u64,
    },
    /// The file does not begin as a manifest does.
    #[error("the file is no Stateside manifest: it does not begin with `{MAGIC}`")]
    NotAManifest,
    /// The checksum does not match: bytes changed since they were written.
    #[error("the manifest is damaged: its checksum does not match its content")]
    Damaged,
    /// Written by another release.
    #[error(
        "the manifest has format version {found}; this release reads version {MANIFEST_VERSION}"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// The checksum is right and the content is not: whoever wrote it had a bug or edited it.
    #[error("line {line} of the manifest: {message}")]
    Content {
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// Larger than any manifest.
    #[error("the manifest is larger than {} bytes", limits::MANIFEST_BYTES_MAX)]
    TooLarge,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadLine {
    node_id: String,
    created_unix_ms: u64,
    next_epoch: u64,
    placement: u64,
    cores: u16,
    set_version: u64,
    partitions: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PartitionLine {
    id: u32,
    range: String,
    store: String,
    ack: String,
    pipeline: Vec<serde_json::Value>,
    first_epoch: u64,
    epoch: u64,
    base_sequence: u64,
    core: u16,
}

impl Manifest {
    /// The manifest of a node that has no partitions yet.
    ///
    /// # Panics
    /// When `cores` is 0.
    pub fn new(node_id: String, created_unix_ms: u64, cores: u16) -> Self {
        assert!(cores > 0, "a node has at least one core");
        Self {
            node_id,
            created_unix_ms,
            next_epoch: Epoch(1),
            placement: 1,
            cores,
            set_version: 1,
            partitions: BTreeMap::new(),
        }
    }

    /// Takes an epoch that nobody had before. Used or not, nobody gets it again.
    pub fn take_epoch(&mut self) -> Epoch {
        let epoch = self.next_epoch;
        self.next_epoch = epoch.next();
        epoch
    }

    /// Records that `id` now holds restored content, written under `epoch`; its versions go on
    /// after `base_sequence`. Earlier epochs of its log are void.
    ///
    /// # Panics
    /// When there is no such partition, or the epoch was not taken from this manifest.
    pub fn set_restored(&mut self, id: PartitionId, epoch: Epoch, base_sequence: Sequence) {
        assert!(epoch < self.next_epoch, "epoch {epoch} was not taken from this manifest");
        let placed = self.partitions.get_mut(&id).expect("a restored partition is in the manifest");
        assert!(epoch > placed.spec.epoch, "epochs rise");
        placed.spec.first_epoch = epoch;
        placed.spec.epoch = epoch;
        placed.spec.base_sequence = base_sequence;
        self.set_version += 1;
    }

    /// Routes of all partitions except those that `is_hidden`: not created yet, or on their way
    /// out.
    pub fn routes(&self, mut is_hidden: impl FnMut(PartitionId) -> bool) -> Vec<Route> {
        let shown = self.partitions.values().filter(|placed| !is_hidden(placed.spec.id));
        shown
            .map(|placed| Route {
                id: placed.spec.id,
                range: placed.spec.range,
                epoch: placed.spec.epoch,
                core: placed.core,
            })
            .collect()
    }

    /// The routing table of all partitions, as cores begin with it.
    pub fn routing_table(&self) -> RoutingTable {
        RoutingTable::new(self.set_version, self.routes(|_| false))
            .expect("the ranges of a manifest do not overlap")
    }

    /// The partitions of one core, by id.
    pub fn partitions_of(&self, core: CoreId) -> impl Iterator<Item = &PartitionSpec> {
        self.partitions
            .values()
            .filter(move |placed| placed.core == core)
            .map(|placed| &placed.spec)
    }

    /// The set that would desire exactly what the node has.
    pub fn as_desired(&self) -> DesiredSet {
        let declared = |placed: &PlacedPartition| {
            let PartitionSpec { id, range, store, ack, ref pipeline, .. } = placed.spec;
            DesiredPartition {
                id,
                range,
                store: Some(store),
                ack: Some(ack),
                pipeline: Some(pipeline.clone()),
            }
        };
        DesiredSet::new(self.partitions.values().map(declared).collect(), Vec::new())
            .expect("what a manifest holds can stand side by side")
    }

    /// The manifest's bytes.
    ///
    /// # Panics
    /// When the manifest is not one that [`Self::decode`] would accept: that is a bug of the
    /// caller, and better found before the file is replaced.
    pub fn encode(&self) -> Vec<u8> {
        if let Err((_, message)) = self.check() {
            panic!("refusing to write a manifest that could not be read back: {message}");
        }
        let mut body = String::with_capacity(256 * (self.partitions.len() + 1));
        let head = HeadLine {
            node_id: self.node_id.clone(),
            created_unix_ms: self.created_unix_ms,
            next_epoch: self.next_epoch.0,
            placement: self.placement,
            cores: self.cores,
            set_version: self.set_version,
            partitions: self.partitions.len(),
        };
        push_line(&mut body, &head);
        for PlacedPartition { spec, core } in self.partitions.values() {
            let line = PartitionLine {
                id: spec.id.0,
                range: spec.range.to_string(),
                store: spec.store.to_string(),
                ack: spec.ack.to_string(),
                pipeline: stages::to_json(&spec.pipeline),
                first_epoch: spec.first_epoch.0,
                epoch: spec.epoch.0,
                base_sequence: spec.base_sequence.0,
                core: core.0,
            };
            push_line(&mut body, &line);
        }
        let mut bytes = header(MANIFEST_VERSION, body.len() as u64, body.as_bytes()).into_bytes();
        bytes.extend_from_slice(body.as_bytes());
        assert!(bytes.len() as u64 <= limits::MANIFEST_BYTES_MAX, "a manifest outgrew its limit");
        bytes
    }

    /// Reads a manifest back.
    ///
    /// # Errors
    /// [`ManifestError`]; see its variants.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > limits::MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge);
        }
        let (version, body) = open(bytes)?;
        if version != MANIFEST_VERSION {
            return Err(ManifestError::Version { found: version });
        }
        let body =
            std::str::from_utf8(body).map_err(|error| content(1, format!("not text: {error}")))?;
        let mut lines = body.lines().zip(2..);
        let (head, _) = lines.next().ok_or_else(|| content(2, "the first object is missing"))?;
        let head: HeadLine =
            serde_json::from_str(head).map_err(|error| content(2, error.to_string()))?;
        let mut partitions = BTreeMap::new();
        for (text, line) in lines {
            let placed = parse_partition(text).map_err(|message| content(line, message))?;
            let id = placed.spec.id;
            if partitions.insert(id, placed).is_some() {
                return Err(content(line, format!("partition {id} is listed twice")));
            }
        }
        if partitions.len() != head.partitions {
            let (found, said) = (partitions.len(), head.partitions);
            return Err(content(2, format!("{said} partitions announced, {found} listed")));
        }
        let manifest = Self {
            node_id: head.node_id,
            created_unix_ms: head.created_unix_ms,
            next_epoch: Epoch(head.next_epoch),
            placement: head.placement,
            cores: head.cores,
            set_version: head.set_version,
            partitions,
        };
        manifest.check().map_err(|(id, message)| {
            let place = id.and_then(|id| manifest.partitions.keys().position(|have| *have == id));
            content(place.map_or(2, |place| place + 3), message)
        })?;
        Ok(manifest)
    }

    /// What must hold of every manifest, on its way out and in.
    fn check(&self) -> Result<(), (Option<PartitionId>, String)> {
        let node = |message: &str| Err((None, message.to_owned()));
        if self.node_id.is_empty() || self.node_id.len() > limits::NODE_ID_BYTES_MAX {
            return node("the node id is empty or too long");
        }
        if self.cores == 0 || self.cores > limits::CORES_MAX {
            return node("the number of cores is not possible");
        }
        if self.next_epoch.0 == 0 {
            return node("epochs begin at 1");
        }
        if self.partitions.len() > limits::PARTITIONS_PER_NODE_MAX {
            return node("more partitions than a node holds");
        }
        for (id, PlacedPartition { spec, core }) in &self.partitions {
            let wrong = |message: String| Err((Some(*id), message));
            if spec.id != *id {
                return wrong(format!("partition {} is filed under {id}", spec.id));
            }
            if core.0 >= self.cores {
                return wrong(format!("partition {id} is on core {core} of {}", self.cores));
            }
            if spec.first_epoch.0 == 0
                || spec.first_epoch > spec.epoch
                || spec.epoch >= self.next_epoch
            {
                return wrong(format!(
                    "partition {id} has the epochs {}..={}, the next is {}",
                    spec.first_epoch, spec.epoch, self.next_epoch
                ));
            }
            if let Err(error) = check_pipeline(&spec.pipeline) {
                return wrong(format!("partition {id}: {error}"));
            }
        }
        RoutingTable::new(self.set_version, self.routes(|_| false)).map_err(|overlap| {
            let (one, other) = (overlap.0, overlap.1);
            (Some(other), format!("partitions {one} and {other} overlap"))
        })?;
        Ok(())
    }
}

/// Checks header, lengths and checksum; gives the version and the body.
fn open(bytes: &[u8]) -> Result<(u32, &[u8]), ManifestError> {
    let magic = MAGIC.as_bytes();
    let seen = bytes.len().min(magic.len());
    if bytes[..seen] != magic[..seen] {
        return Err(ManifestError::NotAManifest);
    }
    let found = bytes.len() as u64;
    // The longest header line: magic, u32, u64, eight hexadecimal digits, three blanks.
    let longest = magic.len() + 10 + 20 + 8 + 3;
    let Some(line_end) = bytes.iter().take(longest + 1).position(|byte| *byte == b'\n') else {
        return Err(if bytes.len() > longest {
            ManifestError::Damaged
        } else {
            ManifestError::Truncated { expected: longest as u64, found }
        });
    };
    let (line, body) = (&bytes[..line_end], &bytes[line_end + 1..]);
    let fields = std::str::from_utf8(line).ok().map(|line| line.split(' ').collect::<Vec<_>>());
    let Some([_, version, length, _]) = fields.as_deref() else {
        return Err(ManifestError::Damaged);
    };
    let (Ok(version), Ok(length)) = (version.parse::<u32>(), length.parse::<u64>()) else {
        return Err(ManifestError::Damaged);
    };
    // Before the length is believed, the header must be what its own fields render to, apart
    // from the checksum: `+1` and `01` are not numbers that were written here.
    if !line.starts_with(header_start(version, length).as_bytes()) {
        return Err(ManifestError::Damaged);
    }
    let have = body.len() as u64;
    if have < length {
        let expected = (line_end as u64 + 1).saturating_add(length);
        return Err(ManifestError::Truncated { expected, found });
    }
    if have > length {
        // A damaged length looks like this too; the checksum tells.
        let (body, _) = body.split_at(length as usize);
        return Err(if header(version, length, body).as_bytes() == &bytes[..=line_end] {
            ManifestError::TrailingBytes { extra: have - length }
        } else {
            ManifestError::Damaged
        });
    }
    // Compared as text: so the case of a hexadecimal digit counts too.
    if header(version, length, body).as_bytes() != &bytes[..=line_end] {
        return Err(ManifestError::Damaged);
    }
    Ok((version, body))
}

fn header_start(version: u32, length: u64) -> String {
    format!("{MAGIC} {version} {length} ")
}

fn header(version: u32, length: u64, body: &[u8]) -> String {
    let mut header = header_start(version, length);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(header.as_bytes()), body);
    let _ = writeln!(header, "{checksum:08x}");
    header
}

fn push_line(body: &mut String, value: &impl Serialize) {
    body.push_str(&serde_json::to_string(value).expect("numbers and strings become JSON"));
    body.push('\n');
}

fn content(line: usize, message: impl Into<String>) -> ManifestError {
    ManifestError::Content { line, message: message.into() }
}

fn parse_partition(text: &str) -> Result<PlacedPartition, String> {
    let line: PartitionLine = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(PlacedPartition {
        spec: PartitionSpec {
            id: PartitionId(line.id),
            range: line
                .range
                .parse()
                .map_err(|error: stateside_types::RangeError| error.to_string())?,
            store: line.store.parse()?,
            ack: line.ack.parse()?,
            pipeline: stages::from_json(&line.pipeline)?,
            first_epoch: Epoch(line.first_epoch),
            epoch: Epoch(line.epoch),
            base_sequence: Sequence(line.base_sequence),
        },
        core: CoreId(line.core),
    })
}

#[cfg(test)]
mod tests {
    use stateside_types::{Ack, HashRange, OptionValue, PipelineSpec, StoreKind};

    use super::*;

    /// The default stages behind a filter.
    fn filtered(deny: &str) -> PipelineSpec {
        let deny = vec![("deny".to_owned(), OptionValue::Text(deny.to_owned()))];
        let filter = stateside_pipeline::read_stage("filter", deny).unwrap();
        let stages = PipelineSpec::default();
        [filter].into_iter().chain(stages.iter().cloned()).collect::<Vec<_>>().into()
    }

    fn sample() -> Manifest {
        let mut manifest = Manifest::new("vm-1".to_owned(), 1_700_000_000_000, 2);
        for (index, range) in HashRange::split_evenly(3).into_iter().enumerate() {
            let epoch = manifest.take_epoch();
            let spec = PartitionSpec {
                id: PartitionId(index as u32),
                range,
                store: [StoreKind::Memory, StoreKind::Sled][index % 2],
                ack: Ack::Durable,
                pipeline: if index == 1 { filtered("tmp/") } else { PipelineSpec::default() },
                first_epoch: epoch,
                epoch,
                base_sequence: Sequence(index as u64 * 7),
            };
            let core = CoreId(index as u16 % 2);
            manifest.partitions.insert(spec.id, PlacedPartition { spec, core });
        }
        manifest
    }

    #[test]
    fn what_is_written_is_read_back() {
        for manifest in [sample(), Manifest::new("lonely".to_owned(), 0, 1)] {
            assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
        }
    }

    #[test]
    fn every_truncation_reads_as_cut_short() {
        let bytes = sample().encode();
        for end in 0..bytes.len() {
            let error = Manifest::decode(&bytes[..end]).unwrap_err();
            assert!(matches!(error, ManifestError::Truncated { .. }), "at {end}: {error}");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = sample().encode();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                let error = Manifest::decode(&flipped).unwrap_err();
                let expected = match error {
                    ManifestError::NotAManifest => at < MAGIC.len(),
                    // A flip of the length can announce more bytes than there are.
                    ManifestError::Truncated { .. } => at < MAGIC.len() + 8,
                    ManifestError::Damaged => at >= MAGIC.len(),
                    _ => false,
                };
                assert!(expected, "byte {at}, bit {bit}: {error}");
            }
        }
    }

    #[test]
    fn another_version_and_trailing_bytes_have_their_own_errors() {
        let mut bytes = sample().encode();
        bytes.push(b'\n');
        assert_eq!(Manifest::decode(&bytes), Err(ManifestError::TrailingBytes { extra: 1 }));
        let body = "whatever a later release writes\n";
        let newer = header(7, body.len() as u64, body.as_bytes()) + body;
        assert_eq!(Manifest::decode(newer.as_bytes()), Err(ManifestError::Version { found: 7 }));
        assert_eq!(Manifest::decode(b"[partition]\n"), Err(ManifestError::NotAManifest));
    }

    #[test]
    fn content_that_cannot_be_is_named_with_its_line() {
        let text = String::from_utf8(sample().encode()).unwrap();
        let body = text.split_once('\n').unwrap().1;
        for (from, to, line, says) in [
            ("\"cores\":2", "\"cores\":1", 4, "on core 1 of 1"),
            ("\"partitions\":3", "\"partitions\":4", 2, "4 partitions announced, 3 listed"),
            ("\"next_epoch\":4", "\"next_epoch\":3", 5, "the next is 3"),
            ("\"id\":2", "\"id\":1", 5, "listed twice"),
            ("\"store\":\"sled\"", "\"store\":\"tape\"", 4, "not a state store"),
            ("\"stage\":\"filter\"", "\"stage\":\"fitler\"", 4, "`fitler` is not a pipeline stage"),
            ("\"deny\":[\"tmp/\"]", "\"deny\":[1]", 4, "[1] is no option of a stage"),
            ("\"deny\":[\"tmp/\"]", "\"allow\":[]", 4, "allow: expected a string or a list"),
            ("\"cores\":2", "\"colour\":2", 2, "unknown field"),
            ("0xaaaaaaaaaaaaaaaa..", "0xaaaaaaaaaaaaaaa0..", 5, "overlap"),
        ] {
            let body = body.replacen(from, to, 1);
            // The first `0xaaaa…` is the end of partition 1's range, the second starts the last.
            let body = if from.starts_with("0xaa") {
                body.replace("..0xaaaaaaaaaaaaaaa0", "..0xaaaaaaaaaaaaaaaa")
            } else {
                body
            };
            let bytes = header(1, body.len() as u64, body.as_bytes()) + &body;
            match Manifest::decode(bytes.as_bytes()) {
                Err(ManifestError::Content { line: at, message }) => {
                    assert!(at == line && message.contains(says), "{from}: {at}: {message}");
                }
                other => panic!("{from} -> {to}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_restore_takes_an_epoch_of_its_own() {
        let mut manifest = sample();
        let epoch = manifest.take_epoch();
        manifest.set_restored(PartitionId(1), epoch, Sequence(99));
        let spec = &manifest.partitions[&PartitionId(1)].spec;
        assert_eq!(
            (spec.first_epoch, spec.epoch, spec.base_sequence),
            (epoch, epoch, Sequence(99))
        );
        assert_eq!(manifest.take_epoch(), epoch.next());
    }

    #[test]
    fn the_largest_node_fits_the_limit() {
        let mut manifest = Manifest::new("n".repeat(limits::NODE_ID_BYTES_MAX), u64::MAX, 1_024);
        let count = limits::PARTITIONS_PER_NODE_MAX as u32;
        let spare = filtered("x").iter().map(|stage| stage.toml().len()).sum::<usize>();
        let longest = filtered(&"\"".repeat((limits::PIPELINE_BYTES_MAX - spare) / 2));
        for (index, range) in HashRange::split_evenly(count).into_iter().enumerate() {
            let epoch = manifest.take_epoch();
            let spec = PartitionSpec {
                id: PartitionId(u32::MAX - index as u32),
                range,
                store: StoreKind::Memory,
                ack: Ack::Durable,
                pipeline: longest.clone(),
                first_epoch: epoch,
                epoch,
                base_sequence: Sequence(u64::MAX),
            };
            manifest.partitions.insert(spec.id, PlacedPartition { spec, core: CoreId(1_023) });
        }
        let bytes = manifest.encode();
        assert!((bytes.len() as u64) < limits::MANIFEST_BYTES_MAX);
        assert!(Manifest::decode(&bytes) == Ok(manifest), "as it was written");
    }
}
