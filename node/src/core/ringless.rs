//! A core without its ring: request bytes in, answer bytes out, on the caller's thread.
//!
//! Not a part of the node. It is there so that `stateside-counts` can count what a call costs:
//! everything between the socket's buffer and the socket's buffer is the node's own (session,
//! service, executor, partitions, log), but nothing here depends on the kernel, on time or on
//! chance, so the same calls cost the same instructions every time.
//!
//! ```text
//!   bytes ─► session ─► service ─► executor ─► partitions ─► log, encoded ─┐
//!   bytes ◄─ session ◄─ service ◄─ calls ◄──── partitions ◄─ "written" ◄───┘
//! ```
//! Left out: the ring and `connections`, which do not work without each other, the files' bytes
//! (a write is said to have succeeded at once), and the tick.
//!
//! Hazard: nothing is durable here, whatever the answers say.

use std::{
    io,
    path::Path,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use stateside_partition::Partition;
use stateside_pipeline::log::{GroupNumber, LogFailed, Placement, Retention, WriterLimits};
use stateside_router::{Route, RoutingTable};
use stateside_statestore::MemoryStore;
use stateside_types::{
    Ack, CoreId, Epoch, HashRange, PartitionId, PartitionSpec, PipelineSpec, Sequence, StoreKind,
    WallClock,
};
use stateside_wire::{Closed, Endpoint, Session, SessionConfig};

use super::{
    connections::millis,
    executor::{Executor, Hosted},
    log::CoreLog,
    pool::PoolHandle,
    service::{self, METHODS, Node},
    world::{MemoryBudget, World},
};
use crate::{
    log_files::{LogCatalog, LogConfig, LogError, RecoveringCore, SegmentKeeper},
    metrics::CoreMetrics,
    reactor::{BlockingPool, ConnectionId, Waker},
};

/// How much later each turn is than the one before: real turns under load are about as long.
const TURN: Duration = Duration::from_micros(20);
/// The wall clock of the first turn, milliseconds since 1970.
const WALL_CLOCK_MS: u64 = 1_700_000_000_000;
/// Room in the log. There is one segment, so this bounds what can be written.
const SEGMENT_BYTES: u64 = 64 << 20;
/// How long the disk may take to make that segment.
const SEGMENT_PATIENCE: Duration = Duration::from_secs(60);
/// As for a real connection: see `connections`.
const SEND_BUDGET_BYTES: usize = 256 << 10;

/// Why a core without a ring could not be made, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RinglessError {
    /// The log's files could not be made.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The system refused a thread or a descriptor.
    #[error("the system refused: {0}")]
    Io(#[from] io::Error),
    /// The log's segment did not come.
    #[error("no log segment could be made within {SEGMENT_PATIENCE:?}")]
    NoSegment,
    /// The log is over.
    #[error(transparent)]
    LogFailed(#[from] LogFailed),
    /// The session is.
    #[error(transparent)]
    Session(#[from] Closed),
}

/// One core with one connection and partitions over memory stores.
pub struct RinglessCore {
    executor: Executor,
    session: Session,
    node: Node,
    metrics: CoreMetrics,
    start: Instant,
    turns: u32,
}

impl RinglessCore {
    /// A core with `partitions` even partitions of these stages, and its log below `directory`. The same `seed`
    /// places the same records alike.
    ///
    /// # Errors
    /// See [`RinglessError`].
    ///
    /// # Panics
    /// When the stages make no pipeline.
    pub fn new(
        directory: &Path,
        partitions: u32,
        pipeline: &PipelineSpec,
        seed: u64,
    ) -> Result<Self, RinglessError> {
        let start = Instant::now();
        let specs: Vec<PartitionSpec> = HashRange::split_evenly(partitions)
            .into_iter()
            .enumerate()
            .map(|(index, range)| spec(PartitionId(index as u32), range, pipeline))
            .collect();
        let mut log = open_log(directory, start)?;
        for spec in &specs {
            log.adopt(spec.id, spec.first_epoch, Sequence::ZERO);
        }
        let pool = BlockingPool::new(2, Arc::new(|error| panic!("{error}")));
        let (pool, _) = PoolHandle::new(pool, Waker::without_ring()?);
        let world = World {
            calls: Default::default(),
            kafka: None,
            log,
            pool,
            node: "vm-1".into(),
            memory: MemoryBudget::new(0),
            wall: WallClock(WALL_CLOCK_MS),
            turn_ns: 0,
            hops: 0,
            is_draining: false,
            answered_at_once: Default::default(),
            requests: 0,
        };
        let mut executor = Executor::new(CoreId(0), 1, world, seed);
        let routes = specs.iter().map(|spec| Route {
            id: spec.id,
            range: spec.range,
            epoch: spec.epoch,
            core: CoreId(0),
        });
        let table = RoutingTable::new(1, routes.collect()).expect("an even split is disjoint");
        for spec in specs {
            let partition = Partition::new(spec, Box::new(MemoryStore::new(seed)));
            let partition = partition.expect("the stages make a pipeline");
            executor.host(Hosted::Here(Box::new(partition)));
        }
        executor.set_table(Arc::new(table));
        let endpoint: Rc<Endpoint> = Endpoint::new(SessionConfig::new(METHODS))?;
        Ok(Self {
            executor,
            session: Session::new(&endpoint, millis(start, start)),
            node: Node { id: "counted".to_owned(), core_addresses: Vec::new() },
            metrics: CoreMetrics::default(),
            start,
            turns: 0,
        })
    }

    /// One turn: takes what the client sent, appends to `out` what it gets. All calls are
    /// answered when this returns, those that wait for the log too.
    ///
    /// # Errors
    /// The session or the log is over.
    pub fn turn(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), RinglessError> {
        self.turns += 1;
        let since = TURN * self.turns;
        let now = self.start + since;
        self.executor.world.wall = WallClock(WALL_CLOCK_MS + since.as_millis() as u64);
        self.executor.world.log.set_now(now);
        self.executor.world.turn_ns = since.as_nanos() as u64;
        self.session.receive(bytes, millis(self.start, now))?;
        self.drain_events();
        loop {
            let Self { executor, session, metrics, .. } = self;
            while let Some(slot) = executor.world.calls.next_ready(|_| ()) {
                executor.world.calls.pop_ready();
                service::answer(executor, metrics, slot, Some(session));
            }
            let written = executor.world.log.next_write().is_some();
            if written {
                executor.log_written(Ok(()), metrics)?;
            }
            session.send(out, SEND_BUDGET_BYTES);
            let started = self.drain_events();
            if !written && !started && !self.executor.world.calls.has_ready() {
                return Ok(());
            }
        }
    }

    /// Hands out what the session has to do; whether there was anything.
    fn drain_events(&mut self) -> bool {
        let Self { executor, session, node, metrics, .. } = self;
        let mut any = false;
        while let Some(event) = session.next_event() {
            let id = ConnectionId::WITHOUT_RING;
            service::on_event(executor, node, metrics, id, session, event);
            any = true;
        }
        any
    }

    /// Calls answered so far, whatever the answer.
    pub fn answered(&self) -> u64 {
        self.metrics.requests_total()
    }

    /// Refusals among the answers, of calls or of entries.
    pub fn refused(&self) -> u64 {
        self.metrics.refusals_total()
    }

    /// Calls that have no answer yet.
    pub fn calls_under_way(&self) -> usize {
        self.session.open_streams() + self.executor.world.calls.len()
    }
}

/// Acknowledges from memory by default, so that a request can choose either.
fn spec(id: PartitionId, range: HashRange, pipeline: &PipelineSpec) -> PartitionSpec {
    PartitionSpec {
        id,
        range,
        store: StoreKind::Memory,
        ack: Ack::Memory,
        pipeline: pipeline.clone(),
        first_epoch: Epoch(1),
        epoch: Epoch(1),
        base_sequence: Sequence::ZERO,
    }
}

/// A log with one segment. The keeper is stopped when it has made that: its thread's
/// instructions would be counted with the calls'.
fn open_log(directory: &Path, now: Instant) -> Result<CoreLog, RinglessError> {
    let config = LogConfig {
        segment_bytes: SEGMENT_BYTES,
        direct_io: false,
        ..LogConfig::new(directory.join("log"))
    };
    let who = RecoveringCore { core: CoreId(0), cores: 1, placement: Placement(1) };
    let catalog = LogCatalog::scan(&config)?;
    let keeper = SegmentKeeper::start(config)?;
    let limits = WriterLimits::default();
    let (mut writer, mut files) =
        keeper.open(&catalog, who, limits, GroupNumber(1), Retention::new())?;
    if !files.wait_ready(&mut writer, Instant::now() + SEGMENT_PATIENCE) {
        return Err(RinglessError::NoSegment);
    }
    drop(keeper);
    Ok(CoreLog::new(writer, files, SEGMENT_BYTES, u64::MAX, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_greeted_and_nonsense_is_answered_with_goaway() {
        let directory = tempfile::tempdir().unwrap();
        let mut core = RinglessCore::new(directory.path(), 2, &PipelineSpec::default(), 1).unwrap();
        let mut out = Vec::new();
        core.turn(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", &mut out).unwrap();
        assert_eq!(out[3], 4, "the server's settings come first");
        assert_eq!((core.answered(), core.refused(), core.calls_under_way()), (0, 0, 0));
        let data_on_no_stream = b"\0\0\x01\0\0\0\0\0\0x";
        out.clear();
        core.turn(data_on_no_stream, &mut out).unwrap();
        let goaway = out.windows(9).any(|head| head[3..] == [7, 0, 0, 0, 0, 0]);
        assert!(goaway, "a frame of type 7 on stream 0: {out:?}");
        assert_eq!((core.answered(), core.calls_under_way()), (0, 0));
    }
}
