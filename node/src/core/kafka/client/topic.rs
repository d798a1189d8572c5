//! What the brokers say of the topic, and making it when it is not there.

use std::{
    collections::HashMap,
    future::Future,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Wake},
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    config::ClientConfig,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError as ClientError, RDKafkaErrorCode},
};
use stateside_pipeline::kafka::KAFKA_RECORD_BYTES_MAX;
use stateside_types::{PartitionId, Reason, Refusal};

use super::{OVERHEAD_BYTES, Quiet, number, reader::Reader};
use crate::core::kafka::link::KafkaConfig;

/// How long one question to the brokers may take.
const QUESTION: Duration = Duration::from_secs(5);
/// How long the topic's settings are asked for.
const SETTINGS: Duration = Duration::from_secs(2);
/// Kafka's own `max.message.bytes`.
const MESSAGE_BYTES_DEFAULT: usize = 1_048_588;
/// How often a topic that was made is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// The topic as the brokers have it.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) cluster: String,
    pub(super) partitions: u32,
}

/// What a look at the brokers led to when it led to nothing.
pub(super) enum Trouble {
    /// They cannot be reached: later.
    Away(String),
    /// They can, and the topic is wrong.
    Wrong(Refusal),
}

impl Reader {
    /// Whether the topic has the partition. Makes the topic when it is not there.
    pub(super) fn look(&mut self, id: PartitionId) -> Result<(), Trouble> {
        let known = match &self.known {
            Some(known) => known.clone(),
            None => {
                let known = self.ensure_topic()?;
                self.known.insert(known).clone()
            }
        };
        let wanted = self.config.partitions;
        if wanted > 0 && known.partitions != wanted {
            return Err(wrong(format!(
                "topic `{}` has {} Kafka partitions and kafka.partitions says {wanted}; correct the setting, or use another topic (kafka.topic)",
                self.config.topic, known.partitions
            )));
        }
        if id.0 >= known.partitions {
            // It may have been given more since.
            self.known = None;
            return Err(wrong(format!(
                "topic `{}` has {} Kafka partitions and partition {id} needs {}; give it more (kafka-topics.sh --alter --partitions {}), or use another topic (kafka.topic)",
                self.config.topic,
                known.partitions,
                id.0 + 1,
                id.0 + 1
            )));
        }
        Ok(())
    }

    /// Of each partition the first offset and the one after its last. In one question for all: an answer can take as
    /// long as a fetch that is out on the same connection.
    ///
    /// # Errors
    /// The brokers do not tell all of them, in words.
    pub(super) fn ends(&mut self, ids: &[PartitionId]) -> Result<Vec<(u64, u64)>, String> {
        // The first offsets first: a first one that is above the last is never seen.
        let asked = self.offsets(ids, Offset::Beginning).and_then(|first| {
            let last = self.offsets(ids, Offset::End)?;
            Ok(first.into_iter().zip(last).collect())
        });
        if asked.is_err() {
            // Look at the topic anew next time.
            self.known = None;
        }
        asked
    }

    fn offsets(&self, ids: &[PartitionId], which: Offset) -> Result<Vec<u64>, String> {
        let topic = self.config.topic.as_str();
        let ask = || {
            let mut list = TopicPartitionList::with_capacity(ids.len());
            for id in ids {
                list.add_partition_offset(topic, number(*id), which)?;
            }
            let told = self.consumer.offsets_for_times(list, QUESTION)?;
            let mut offsets = HashMap::with_capacity(ids.len());
            for one in told.elements() {
                one.error()?;
                if let Offset::Offset(offset) = one.offset() {
                    offsets.insert(one.partition(), u64::try_from(offset).unwrap_or(0));
                }
            }
            Ok(offsets)
        };
        let told = ask().map_err(|error: ClientError| error.to_string())?;
        let of = |id: &PartitionId| {
            let offset = told.get(&number(*id)).copied();
            offset.ok_or_else(|| format!("the offsets of partition {id} are not known"))
        };
        ids.iter().map(of).collect()
    }

    fn ensure_topic(&self) -> Result<Known, Trouble> {
        let away = |error: ClientError| Trouble::Away(error.to_string());
        let topic = self.config.topic.as_str();
        let partitions_of = |consumer: &BaseConsumer<Quiet>| -> Result<u32, Trouble> {
            let metadata = consumer.fetch_metadata(Some(topic), QUESTION).map_err(away)?;
            let found = metadata.topics().iter().find(|found| found.name() == topic);
            match found.and_then(|found| found.error().map(RDKafkaErrorCode::from)) {
                Some(
                    RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic,
                ) => Ok(0),
                Some(error) => Err(Trouble::Away(format!("topic `{topic}`: {error}"))),
                None => Ok(found.map_or(0, |found| found.partitions().len() as u32)),
            }
        };
        let mut partitions = partitions_of(&self.consumer)?;
        let client = self.consumer.client();
        let cluster = client.fetch_cluster_id(QUESTION);
        let cluster =
            cluster.ok_or_else(|| Trouble::Away("the cluster's id is not known".to_owned()))?;
        if partitions == 0 {
            if self.files.has_kafka_positions() {
                return Err(wrong(format!(
                    "topic `{topic}` is not in the Kafka cluster {cluster}, and this node has used it: it was deleted, or kafka.brokers leads to another cluster; set kafka.brokers right, or remove the partitions and add them again to begin anew"
                )));
            }
            self.create_topic()?;
            let until = Instant::now() + QUESTION;
            while partitions == 0 {
                if Instant::now() >= until {
                    return Err(Trouble::Away(format!(
                        "topic `{topic}` was made and is not there"
                    )));
                }
                partitions = partitions_of(&self.consumer)?;
                thread::sleep(LOOK);
            }
        }
        self.record_bytes_max.store(self.message_bytes_max()?, Ordering::Relaxed);
        Ok(Known { cluster, partitions })
    }

    fn admin(&self) -> Result<AdminClient<Quiet>, Trouble> {
        let mut settings = ClientConfig::new();
        for (name, value) in &self.config.options {
            settings.set(name, value);
        }
        settings.set("bootstrap.servers", &self.config.brokers);
        settings.create_with_context(Quiet).map_err(|error| Trouble::Away(error.to_string()))
    }

    fn create_topic(&self) -> Result<(), Trouble> {
        let KafkaConfig { topic, partitions, needed, replication, .. } = &self.config;
        let partitions = if *partitions > 0 { *partitions } else { (*needed).max(1) };
        let copies = i32::try_from(*replication).unwrap_or(i32::MAX);
        let in_sync = copies.saturating_sub(1).max(1).to_string();
        let bytes = (KAFKA_RECORD_BYTES_MAX + OVERHEAD_BYTES).to_string();
        let new = NewTopic::new(
            topic,
            i32::try_from(partitions).unwrap_or(i32::MAX),
            TopicReplication::Fixed(copies),
        )
        .set("cleanup.policy", "delete")
        .set("retention.ms", "-1")
        .set("retention.bytes", "-1")
        .set("min.insync.replicas", &in_sync)
        .set("unclean.leader.election.enable", "false")
        .set("max.message.bytes", &bytes);
        let options =
            AdminOptions::new().request_timeout(Some(QUESTION)).operation_timeout(Some(QUESTION));
        let made = block_on(self.admin()?.create_topics(&[new], &options));
        let made = made.map_err(|error| Trouble::Away(error.to_string()))?;
        for result in made {
            match result {
                Ok(_) => {
                    tracing::info!(topic, partitions, copies, "made the topic of the log in Kafka");
                }
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, RDKafkaErrorCode::InvalidReplicationFactor)) => {
                    return Err(wrong(format!(
                        "topic `{topic}` cannot be made with {copies} copies, there are fewer brokers; set kafka.replication, or start more brokers"
                    )));
                }
                Err((_, error)) => {
                    return Err(Trouble::Away(format!("topic `{topic}` cannot be made: {error}")));
                }
            }
        }
        Ok(())
    }

    /// The largest message that the topic takes.
    fn message_bytes_max(&self) -> Result<usize, Trouble> {
        let topic = ResourceSpecifier::Topic(&self.config.topic);
        let options = AdminOptions::new().request_timeout(Some(SETTINGS));
        // Not every broker tells, nor tells everybody. A limit that is not known is taken for Kafka's
        // own: a message above the true one would stop its partition.
        let told = block_on(self.admin()?.describe_configs(&[topic], &options)).unwrap_or_default();
        let most = told.into_iter().flatten().find_map(|resource| {
            resource.get("max.message.bytes")?.value.as_ref()?.parse::<usize>().ok()
        });
        let most = most.unwrap_or(MESSAGE_BYTES_DEFAULT).saturating_sub(OVERHEAD_BYTES);
        Ok(most.min(KAFKA_RECORD_BYTES_MAX))
    }
}

pub(super) fn wrong(text: String) -> Trouble {
    Trouble::Wrong(Refusal::new(Reason::LogMismatch, text))
}

/// Waits for a future that another thread finishes.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
