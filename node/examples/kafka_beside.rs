//! What the brokers alone cost: a bare producer with the settings that the log in Kafka uses, to be laid
//! beside `stateside bench` on the same brokers. And a disturber, which makes owners read back.
//!
//! ```text
//! cargo run --release -p stateside-node --features kafka --example kafka_beside -- produce BROKERS TOPIC CALLS SECONDS
//! cargo run --release -p stateside-node --features kafka --example kafka_beside -- disturb BROKERS TOPIC EVERY_MS SECONDS
//! ```
//! `produce` keeps CALLS messages of 163 bytes under way, what an upsert of 16 + 100 bytes makes, and
//! prints rate, latencies and its CPU. Each answer makes the next message go, on the thread that heard of it:
//! no client can be nearer to the brokers. `TOPIC` is made by hand, or by a node, beforehand.
//!
//! `disturb` repeats the first message of each partition of a node's topic: a claim whose epoch is taken,
//! which counts for nobody, but stands where the owner's next write would.

use std::{
    collections::BTreeMap,
    error::Error,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    config::ClientConfig,
    consumer::{BaseConsumer, Consumer},
    message::{DeliveryResult, Message},
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
};

const MESSAGE_BYTES: usize = 40 + 7 + 16 + 100;
const WARM_UP: Duration = Duration::from_secs(1);
const ASKING: Duration = Duration::from_secs(5);

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, brokers, topic, number, seconds] = arguments.as_slice() else {
        return Err("say produce|disturb BROKERS TOPIC CALLS|EVERY_MS SECONDS".into());
    };
    let (number, time) = (number.parse()?, Duration::from_secs(seconds.parse()?));
    match mode.as_str() {
        "produce" => produce(brokers, topic, usize::try_from(number)?, time),
        "disturb" => disturb(brokers, topic, Duration::from_millis(number), time),
        other => Err(format!("`{other}` is neither produce nor disturb").into()),
    }
}

fn producer_settings(brokers: &str) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "0");
    settings
}

fn partitions(brokers: &str, topic: &str) -> Result<i32, Failure> {
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let metadata = consumer.fetch_metadata(Some(topic), ASKING)?;
    let count = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    if count == 0 {
        Err(format!("there is no topic {topic}").into())
    } else {
        Ok(count.try_into()?)
    }
}

/// Hears of deliveries and sends the next message.
struct Calls {
    topic: String,
    partitions: i32,
    begin: Instant,
    producer: OnceLock<Arc<BaseProducer<Heard>>>,
    latencies: Mutex<Histogram<u64>>,
    failed: AtomicBool,
    next: AtomicI32,
}

impl Calls {
    fn send(&self) {
        let partition = self.next.fetch_add(1, Ordering::Relaxed) % self.partitions;
        let record =
            BaseRecord::<[u8], [u8], _>::with_opaque_to(&self.topic, Box::new(Instant::now()))
                .partition(partition)
                .payload(&[7; MESSAGE_BYTES]);
        let producer = self.producer.get().expect("it is there before anything is sent");
        self.failed.fetch_or(producer.send(record).is_err(), Ordering::Relaxed);
    }
}

struct Heard(Arc<Calls>);

impl ClientContext for Heard {}

impl ProducerContext for Heard {
    type DeliveryOpaque = Box<Instant>;

    fn delivery(&self, result: &DeliveryResult<'_>, since: Box<Instant>) {
        let calls = &self.0;
        if result.is_err() {
            return calls.failed.store(true, Ordering::Relaxed);
        }
        if *since >= calls.begin {
            let took = since.elapsed().as_nanos() as u64;
            let mut latencies = calls.latencies.lock().expect("no thread panics with it");
            latencies.saturating_record(took);
        }
        calls.send();
    }
}

fn produce(brokers: &str, topic: &str, under_way: usize, time: Duration) -> Result<(), Failure> {
    let calls = Arc::new(Calls {
        topic: topic.to_owned(),
        partitions: partitions(brokers, topic)?,
        begin: Instant::now() + WARM_UP,
        producer: OnceLock::new(),
        latencies: Mutex::new(Histogram::new_with_bounds(1, 60_000_000_000, 3)?),
        failed: AtomicBool::new(false),
        next: AtomicI32::new(0),
    });
    let context = Heard(Arc::clone(&calls));
    let producer = Arc::new(producer_settings(brokers).create_with_context(context)?);
    let producer: &Arc<BaseProducer<Heard>> = calls.producer.get_or_init(|| producer);
    (0..under_way).for_each(|_| calls.send());
    producer.poll(calls.begin - Instant::now());
    let before = cpu();
    producer.poll(time);
    if calls.failed.load(Ordering::Relaxed) {
        return Err("a message failed".into());
    }
    let used = cpu() - before;
    let latencies = calls.latencies.lock().expect("as above");
    let ms = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1e6;
    println!(
        "{under_way} under way: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms, CPU {:.1} us a message",
        latencies.len() as f64 / time.as_secs_f64(),
        ms(0.5),
        ms(0.99),
        used.as_secs_f64() * 1e6 / latencies.len().max(1) as f64
    );
    // What is under way is of no interest, and the process ends.
    std::process::exit(0)
}

/// User and system time of this process.
fn cpu() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a whole rusage, which zeroes are a valid one of.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let of = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs())
            + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    of(usage.ru_utime) + of(usage.ru_stime)
}

fn disturb(brokers: &str, topic: &str, every: Duration, time: Duration) -> Result<(), Failure> {
    let count = partitions(brokers, topic)?;
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "kafka-beside")
        .create()?;
    let mut list = TopicPartitionList::new();
    for partition in 0..count {
        list.add_partition_offset(topic, partition, Offset::Offset(0))?;
    }
    consumer.assign(&list)?;
    let mut firsts = BTreeMap::new();
    let until = Instant::now() + ASKING;
    while firsts.len() < usize::try_from(count)? {
        if let Some(message) = consumer.poll(ASKING) {
            let message = message?;
            let payload = || message.payload().unwrap_or_default().to_vec();
            firsts.entry(message.partition()).or_insert_with(payload);
        }
        if Instant::now() >= until {
            return Err("a partition has no message".into());
        }
    }
    consumer.unassign()?;
    let producer: BaseProducer = producer_settings(brokers).create()?;
    let until = Instant::now() + time;
    let mut sent = 0_u64;
    while Instant::now() < until {
        for (partition, payload) in &firsts {
            let record = BaseRecord::<(), [u8]>::to(topic).partition(*partition).payload(payload);
            producer.send(record).map_err(|(error, _)| error)?;
            sent += 1;
        }
        producer.poll(Duration::ZERO);
        std::thread::sleep(every);
    }
    producer.flush(ASKING)?;
    println!("{sent} messages stood in the owners' way");
    Ok(())
}
