//! Up to where each partition of the node survives without any log.
//!
//! A log may hold records of partitions that other cores own by now (the number of cores has
//! changed), so a core must know of all partitions before it lets a segment go. Each core
//! publishes its own; until every core has, nothing is let go.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use stateside_types::{CoreId, Epoch, PartitionId, Sequence};

/// A partition's content: its id and first epoch.
pub(crate) type Content = (PartitionId, Epoch);

/// Shared by the cores of a node; touched a few times a second.
pub struct Coverage {
    /// None: this core's is not known, and may need any log.
    cores: Vec<Mutex<Option<HashMap<Content, Sequence>>>>,
}

impl Coverage {
    /// Nothing is known yet.
    pub fn new(cores: usize) -> Self {
        Self { cores: (0..cores).map(|_| Mutex::default()).collect() }
    }

    /// Replaces what is known of a core's partitions; None while it needs all of the logs.
    pub(crate) fn publish(&self, core: CoreId, covered: Option<HashMap<Content, Sequence>>) {
        let slot = &self.cores[usize::from(core.0)];
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = covered;
    }

    /// What every core has published, if all have. A partition that is not in it is gone.
    pub(crate) fn all(&self) -> Option<HashMap<Content, Sequence>> {
        let mut all = HashMap::new();
        for slot in &self.cores {
            let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(slot.as_ref()?);
        }
        Some(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_known_before_every_core_has_spoken() {
        let coverage = Coverage::new(2);
        let content = (PartitionId(1), Epoch(1));
        coverage.publish(CoreId(0), Some(HashMap::from([(content, Sequence(5))])));
        assert!(coverage.all().is_none());
        coverage.publish(CoreId(1), Some(HashMap::new()));
        assert_eq!(coverage.all().unwrap().get(&content), Some(&Sequence(5)));
        coverage.publish(CoreId(1), None);
        assert!(coverage.all().is_none(), "the second core needs all logs again");
    }
}
