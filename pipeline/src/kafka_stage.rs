//! The log stage on Kafka: every accepted write goes to the partition's Kafka partition.

use stateside_types::{Refusal, StageKind};

use crate::{Outlet, Progress, Stage, Write};

/// Sends writes to Kafka; asynchronous: it is done with a write when the broker has acknowledged it
/// and no other node's claim stands before it.
#[derive(Debug, Default)]
pub struct KafkaStage;

impl Stage for KafkaStage {
    fn kind(&self) -> StageKind {
        StageKind::KafkaLog
    }

    fn admit(&mut self, write: &Write<'_>, outlet: &mut dyn Outlet) -> Result<(), Refusal> {
        outlet.kafka_admit(write)
    }

    fn accept(&mut self, write: &mut Write<'_>, outlet: &mut dyn Outlet) -> Progress {
        outlet.kafka_append(write);
        Progress::Pending
    }
}
