//! What a node remembers of a partition's log in Kafka: where it last claimed it, and from where
//! the next start replays. A small text file beside the partition's snapshots.
//!
//! ```text
//! stateside-kafka 1
//! cluster 5L6g3nShT-eMCtK--X86sw
//! topic stateside
//! claim 12 3 0 89abcdef          offset, epoch, sequence, checksum of the claim
//! anchor 4711 3 4698 01234567    the same of a write that the newest snapshot has; or `none`
//! end 5a5a5a5a                   CRC32C of the lines before
//! ```
//! Offsets alone name nothing: a topic that was deleted and made anew, or another cluster's of the
//! same name, has the same offsets. So each comes with the checksum of the message that must be there.

use std::fmt::Write as _;

use stateside_types::{Epoch, Sequence};

const MAGIC: &str = "stateside-kafka 1";

/// A message that counts, and where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anchor {
    /// Its offset in the Kafka partition.
    pub offset: u64,
    /// Its epoch.
    pub epoch: Epoch,
    /// The last write that counts, up to and including this message.
    pub sequence: Sequence,
    /// Its checksum.
    pub crc: u32,
}

/// See the module's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Kafka's id of its cluster.
    pub cluster: String,
    /// The topic.
    pub topic: String,
    /// This node's last claim.
    pub claim: Anchor,
    /// The store or a snapshot has everything up to this message. None: nothing.
    pub anchor: Option<Anchor>,
}

/// Why bytes are no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PositionError {
    /// Another release's.
    #[error("it was written by another release of Stateside")]
    Version,
    /// Not what was written.
    #[error("it is damaged")]
    Damaged,
}

impl Position {
    /// The file's text.
    pub fn encode(&self) -> String {
        let anchor = self.anchor.map_or_else(|| "none".to_owned(), line);
        let mut text = format!(
            "{MAGIC}\ncluster {}\ntopic {}\nclaim {}\nanchor {anchor}\n",
            self.cluster,
            self.topic,
            line(self.claim)
        );
        let crc = crc32c::crc32c(text.as_bytes());
        let _ = writeln!(text, "end {crc:08x}");
        text
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// [`PositionError`].
    pub fn decode(text: &str) -> Result<Self, PositionError> {
        let body = text.rfind("end ").map(|at| text.split_at(at));
        let (body, end) = body.ok_or(PositionError::Damaged)?;
        if end != format!("end {:08x}\n", crc32c::crc32c(body.as_bytes())) {
            return Err(PositionError::Damaged);
        }
        let mut lines = body.lines();
        if lines.next() != Some(MAGIC) {
            return Err(PositionError::Version);
        }
        let mut field = |name: &str| {
            let line = lines.next().ok_or(PositionError::Damaged)?;
            let rest = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' '));
            rest.ok_or(PositionError::Damaged)
        };
        Ok(Self {
            cluster: field("cluster")?.to_owned(),
            topic: field("topic")?.to_owned(),
            claim: parse(field("claim")?)?,
            anchor: match field("anchor")? {
                "none" => None,
                anchor => Some(parse(anchor)?),
            },
        })
    }
}

fn line(anchor: Anchor) -> String {
    let Anchor { offset, epoch, sequence, crc } = anchor;
    format!("{offset} {epoch} {sequence} {crc:08x}")
}

fn parse(text: &str) -> Result<Anchor, PositionError> {
    let mut parts = text.split(' ');
    let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok());
    let (offset, epoch, sequence) = (number(), number(), number());
    let crc = parts.next().and_then(|part| u32::from_str_radix(part, 16).ok());
    match (offset, epoch, sequence, crc, parts.next()) {
        (Some(offset), Some(epoch), Some(sequence), Some(crc), None) => {
            Ok(Anchor { offset, epoch: Epoch(epoch), sequence: Sequence(sequence), crc })
        }
        _ => Err(PositionError::Damaged),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(anchor: Option<Anchor>) -> Position {
        let claim = Anchor { offset: 12, epoch: Epoch(3), sequence: Sequence(0), crc: 0x0000_00ab };
        Position { cluster: "c".to_owned(), topic: "t".to_owned(), claim, anchor }
    }

    #[test]
    fn a_position_reads_back_and_no_damage_passes() {
        for position in [position(None), position(Some(position(None).claim))] {
            let text = position.encode();
            assert_eq!(Position::decode(&text), Ok(position));
            for at in 0..text.len() {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1;
                let damaged = String::from_utf8(bytes).unwrap();
                assert_eq!(Position::decode(&damaged), Err(PositionError::Damaged), "byte {at}");
                assert!(Position::decode(&text[..at]).is_err());
            }
        }
    }
}
