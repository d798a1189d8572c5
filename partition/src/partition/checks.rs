//! What is checked of a write before it is accepted.

use stateside_pipeline::Write;
use stateside_statestore::{Lookup, RequestWindow};
use stateside_types::{
    Condition, ExpireAt, Expiry, Reason, Record, Refusal, Sequence, StageKind, WallClock,
    WriteEntry,
};

use super::Partition;

impl Partition {
    pub(super) fn check_expiries(&self, entries: &[WriteEntry<'_>]) -> Result<(), Refusal> {
        let asks = |entry: &WriteEntry<'_>| matches!(entry.expiry, Expiry::After(_));
        match entries.iter().position(asks) {
            Some(index) if !self.pipeline.has(StageKind::Clock) => Err(Refusal::new(
                Reason::InvalidTtl,
                format!("partition {} has no clock stage, so nothing can expire", self.spec.id),
            )
            .with("entry", index)),
            _ => Ok(()),
        }
    }

    pub(super) fn check_conditions(
        &self,
        entries: &[WriteEntry<'_>],
        now: WallClock,
    ) -> Result<(), Refusal> {
        let exists = |expire_at: Option<ExpireAt>| !expire_at.is_some_and(|at| at.has_come(now));
        for (index, entry) in entries.iter().enumerate() {
            if entry.condition == Condition::None {
                continue;
            }
            let current = match self.store.get(entry.key) {
                Lookup::Found(Record { version, expire_at, .. })
                | Lookup::Withheld { version, expire_at, .. } => {
                    exists(expire_at).then_some(version)
                }
                Lookup::Absent | Lookup::Unknown => None,
            };
            let holds = match entry.condition {
                Condition::None => true,
                Condition::IfAbsent => current.is_none(),
                Condition::IfVersion(wanted) => current == Some(wanted),
            };
            if holds {
                continue;
            }
            let found = match current {
                Some(version) => format!("the record has version {version}"),
                None => "there is no record".to_owned(),
            };
            let wanted = match entry.condition {
                Condition::IfVersion(version) => format!("if_version {version}"),
                _ => "if_absent".to_owned(),
            };
            let key = String::from_utf8_lossy(&entry.key[..entry.key.len().min(64)]).into_owned();
            return Err(Refusal::new(
                Reason::ConditionFailed,
                format!("{wanted} does not hold for key `{key}`: {found}; nothing was written"),
            )
            .with("entry", index)
            .with("version", current.unwrap_or(Sequence::ZERO)));
        }
        Ok(())
    }

    /// Whether the write stays below the node's memory limit.
    pub(crate) fn check_memory(&self, write: &Write<'_>, available: u64) -> Result<(), Refusal> {
        let entries = write.entries;
        let id_bytes = if write.request.is_some() { RequestWindow::GROWTH_MAX } else { 0 };
        // The cheap bound decides nearly always; lookups are made only near the limit.
        if available == u64::MAX
            || self.store.growth_max(entries) + id_bytes <= available
            || u64::try_from(self.store.growth(entries)).unwrap_or(0) + id_bytes <= available
        {
            return Ok(());
        }
        Err(Refusal::new(Reason::MemoryFull, "the node's memory limit is reached"))
    }
}
