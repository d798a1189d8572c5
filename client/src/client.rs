//! The data-plane client: places entries, sends requests, puts the results back in order.
//!
//! ```text
//! batch ─► check ─► plan (by core, by limits) ─► calls, bounded ─► results by entry
//!                    ▲                                  │
//!                    └── entries worth another try ◄────┘   after backoff, after a new topology
//! ```
//! Rounds end together: an entry that is retried waits for the slowest call of its round. Failures
//! are rare, and one plan per round keeps a partition's entries in one request.

use std::{
    collections::HashSet,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use stateside_proto::v1;
use stateside_router::key_hash;
use stateside_types::{KeyHash, PartitionId, Reason, limits};
use tokio::{
    sync::{Mutex, Semaphore},
    time::{Instant, sleep, timeout_at},
};

use crate::{
    Endpoint, Error, Options, ReadOptions, Record, Removal, RequestId, Results, Topology, Update,
    Updated, Upsert, WriteOptions, Written,
    batch::{Batch, GetBatch, Head, RemoveBatch, UpsertBatch},
    error::Effect,
    link::Link,
    links::{AtHome, Links, TOPOLOGY_PATH},
    plan::{Placed, Request, RequestLimits, Target, plan},
    request_ids::{Naming, Session},
    retry::{Backoff, Verdict, decide},
    session::InSession,
    update::UpdateBatch,
};

/// A client of one node's data plane. Cheap to clone; clones share connections and limits. Lives in
/// a tokio runtime.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    endpoint: Endpoint,
    options: Options,
    backoff: Backoff,
    links: Links,
    turns: Semaphore,
    /// Of [`Options::request_ids`].
    session: Option<Session>,
    topology: RwLock<Option<Arc<Topology>>>,
    /// Counts installed topologies: whoever waited for a refresh sees that it was done.
    generation: AtomicU64,
    refreshing: Mutex<()>,
    /// A core's address did not answer: ask for a topology before the next call.
    stale: AtomicBool,
}

impl Client {
    /// Connects to `endpoint`: `HOST:PORT`, `http://HOST:PORT` or `unix:PATH`. With routing, reads
    /// the topology too; connections to cores are made when first needed.
    ///
    /// # Errors
    /// [`Error::InvalidEndpoint`], [`Error::Unreachable`], [`Error::Protocol`]; not retried.
    pub async fn connect(endpoint: &str, options: Options) -> Result<Self, Error> {
        let endpoint: Endpoint = endpoint.parse()?;
        let shared = Arc::new(Shared {
            backoff: Backoff::new(&options),
            links: Links::new(options.connect_timeout),
            turns: Semaphore::new(options.calls_max.clamp(1, Semaphore::MAX_PERMITS)),
            session: options.request_ids.then(Session::new),
            topology: RwLock::default(),
            generation: AtomicU64::new(0),
            refreshing: Mutex::default(),
            stale: AtomicBool::new(false),
            endpoint,
            options,
        });
        let until = Instant::now() + shared.options.deadline;
        if shared.options.routing {
            shared.refresh(0, until).await?;
        } else {
            shared.links.shared(&shared.endpoint, until).await?;
        }
        Ok(Self { shared })
    }

    /// Where it was told to connect to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.shared.endpoint
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The topology in use; `None` without routing.
    pub fn topology(&self) -> Option<Arc<Topology>> {
        self.shared.topology()
    }

    /// Writes records. Entries of one partition are written together under one version, as far as
    /// they fit into one request (1 MiB, 16384 entries); partitions succeed and fail on their own,
    /// unless [`WriteOptions::atomic`].
    ///
    /// # Errors
    /// When the batch failed as a whole: what every node refuses (found before anything is sent,
    /// so nothing was applied), or the failure of the one request that carried all of it.
    /// Everything else is the entries' own results.
    pub async fn upsert(
        &self,
        entries: &[Upsert<'_>],
        options: &WriteOptions,
    ) -> Result<Results<Written>, Error> {
        let deadline = options.deadline.unwrap_or(self.shared.options.deadline);
        let batch = UpsertBatch { head: self.shared.write_head(options), entries };
        self.shared.execute(&batch, options.request_id.as_ref(), deadline).await
    }

    /// Writes one record.
    ///
    /// # Errors
    /// As [`Self::upsert`].
    pub async fn upsert_one(
        &self,
        entry: Upsert<'_>,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        one(self.upsert(&[entry], options).await?)
    }

    /// Deletes records; deleting what is absent succeeds. Otherwise as [`Self::upsert`].
    ///
    /// # Errors
    /// As [`Self::upsert`].
    pub async fn remove(
        &self,
        entries: &[Removal<'_>],
        options: &WriteOptions,
    ) -> Result<Results<Written>, Error> {
        let deadline = options.deadline.unwrap_or(self.shared.options.deadline);
        let batch = RemoveBatch { head: self.shared.write_head(options), entries };
        self.shared.execute(&batch, options.request_id.as_ref(), deadline).await
    }

    /// Deletes one record.
    ///
    /// # Errors
    /// As [`Self::upsert`].
    pub async fn remove_one(
        &self,
        entry: Removal<'_>,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        one(self.remove(&[entry], options).await?)
    }

    /// Changes records where they are. Otherwise as [`Self::upsert`]; an entry that adds or appends is
    /// never repeated in doubt, whatever [`Options::retry_unknown_writes`] says.
    ///
    /// # Errors
    /// As [`Self::upsert`]; and what the node says of values that an operator cannot change.
    pub async fn update(
        &self,
        entries: &[Update<'_>],
        options: &WriteOptions,
    ) -> Result<Results<Updated>, Error> {
        let deadline = options.deadline.unwrap_or(self.shared.options.deadline);
        let batch = UpdateBatch { head: self.shared.write_head(options), entries };
        self.shared.execute(&batch, options.request_id.as_ref(), deadline).await
    }

    /// As [`Self::update`], and answers with the values that the records have from now on.
    ///
    /// # Errors
    /// As [`Self::update`].
    pub async fn update_and_get(
        &self,
        entries: &[Update<'_>],
        options: &WriteOptions,
    ) -> Result<Results<Updated>, Error> {
        let deadline = options.deadline.unwrap_or(self.shared.options.deadline);
        let head = Head { return_values: true, ..self.shared.write_head(options) };
        let batch = UpdateBatch { head, entries };
        self.shared.execute(&batch, options.request_id.as_ref(), deadline).await
    }

    /// Changes one record, and answers with its value.
    ///
    /// # Errors
    /// As [`Self::update`].
    pub async fn update_one(
        &self,
        entry: Update<'_>,
        options: &WriteOptions,
    ) -> Result<Updated, Error> {
        one(self.update_and_get(&[entry], options).await?)
    }

    /// Reads records: `None` where a key has none. The same key may be asked for twice. Keys that
    /// would make an answer too large are asked for in smaller groups.
    ///
    /// # Errors
    /// When the batch failed as a whole; everything else is the keys' own results.
    pub async fn get<K: AsRef<[u8]> + Sync>(
        &self,
        keys: &[K],
        options: &ReadOptions,
    ) -> Result<Results<Option<Record>>, Error> {
        let deadline = options.deadline.unwrap_or(self.shared.options.deadline);
        let tokens = options.session.as_ref().map(crate::Session::snapshot).unwrap_or_default();
        let head = Head {
            routing_key: options.routing_key.as_deref().unwrap_or_default(),
            session: options.session.as_ref().map(|session| InSession { session, tokens: &tokens }),
            ..Head::default()
        };
        self.shared.execute(&GetBatch { head, keys }, None, deadline).await
    }

    /// Reads one record.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_one(
        &self,
        key: impl AsRef<[u8]> + Sync,
        options: &ReadOptions,
    ) -> Result<Option<Record>, Error> {
        one(self.get(&[key], options).await?)
    }
}

fn one<T>(results: Results<T>) -> Result<T, Error> {
    results.into_iter().next().expect("a batch of one entry has one result")
}

/// What the requests of one round share.
pub(crate) struct Call {
    /// What they were planned by: indexes of homes are its own.
    pub(crate) topology: Option<Arc<Topology>>,
    pub(crate) until: Instant,
    /// For the error message: `until` as the caller gave it.
    pub(crate) deadline: Duration,
}

/// What one request brought.
struct Ended<T> {
    request: Request,
    effect: Effect,
    /// Per entry of the request, or the failure of the call.
    answer: Result<Vec<Result<T, Error>>, Error>,
}

/// How far a batch has come.
struct Progress<T> {
    results: Vec<Option<Result<T, Error>>>,
    /// Entries that some attempt may have applied without an answer.
    unknown: HashSet<u32>,
    /// Its requests have ids.
    named: bool,
    /// Set when the last round was one call for the whole batch and that call failed.
    whole: Option<Error>,
}

impl Shared {
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    fn write_head<'a>(&self, options: &'a WriteOptions) -> Head<'a> {
        Head {
            routing_key: options.routing_key.as_deref().unwrap_or_default(),
            atomic: options.atomic,
            ack: options.ack,
            has_id: self.session.is_some() || options.request_id.is_some(),
            // The tokens of a write are learnt, not told: it waits for none.
            session: options.session.as_ref().map(|session| InSession { session, tokens: &[] }),
            ..Head::default()
        }
    }

    fn naming<'a>(&'a self, head: &Head<'_>, given: Option<&'a RequestId>) -> Naming<'a> {
        match (given, &self.session) {
            (Some(id), _) => Naming::Given(id),
            (None, Some(session)) if head.has_id => Naming::own(session),
            _ => Naming::None,
        }
    }

    pub(crate) fn turns(&self) -> &Semaphore {
        &self.turns
    }

    pub(crate) fn delay(&self, attempt: u32, not_before: Duration) -> Duration {
        self.backoff.delay(attempt, not_before)
    }

    /// Counts installed topologies.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn topology(&self) -> Option<Arc<Topology>> {
        // An Arc is replaced whole: a panic elsewhere does not spoil it.
        self.topology.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the topology, unless another caller has done so since generation `seen`.
    pub(crate) async fn refresh(&self, seen: u64, until: Instant) -> Result<(), Error> {
        let deadline = self.options.deadline;
        let Ok(_one_at_a_time) = timeout_at(until, self.refreshing.lock()).await else {
            return Err(Error::DeadlineExceeded { deadline });
        };
        if self.generation.load(Ordering::Acquire) != seen {
            return Ok(());
        }
        let asked = async |link: Link| {
            link.call(TOPOLOGY_PATH, Bytes::new(), Effect::Read, until, deadline).await
        };
        let link = self.links.shared(&self.endpoint, until).await?;
        let answer: v1::TopologyResponse = match asked(link).await {
            Err(Error::Unreachable { .. }) => {
                // The connection was there but took no call: make a new one.
                self.links.forget(&self.endpoint);
                asked(self.links.shared(&self.endpoint, until).await?).await?
            }
            answer => answer?,
        };
        let topology = Topology::read(answer, &self.endpoint)?;
        self.links.retain(|endpoint| {
            *endpoint == self.endpoint
                || topology.homes().iter().any(|home| home.endpoint == *endpoint)
        });
        *self.topology.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(topology));
        self.stale.store(false, Ordering::Release);
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    async fn execute<B: Batch>(
        &self,
        batch: &B,
        id: Option<&RequestId>,
        deadline: Duration,
    ) -> Result<Results<B::Output>, Error> {
        batch.check()?;
        if let Some(id) = id {
            batch.check_id(id)?;
        }
        let mut naming = self.naming(&batch.head(), id);
        // Of each entry: the number of the request that it was first sent with, and is retried with.
        let mut numbers = vec![0; if naming.is_none() { 0 } else { batch.len() }];
        let until = Instant::now() + deadline;
        let mut request_limits =
            RequestLimits { bytes: batch.entries_bytes_max(), entries: limits::BATCH_ENTRIES_MAX };
        let mut progress = Progress {
            results: (0..batch.len()).map(|_| None).collect(),
            unknown: HashSet::new(),
            named: !naming.is_none(),
            whole: None,
        };
        let mut pending: Vec<u32> = (0..batch.len() as u32).collect();
        let mut attempt = 0;
        loop {
            let seen = self.generation.load(Ordering::Acquire);
            if self.stale.load(Ordering::Acquire) {
                // Only a hint: without a new topology the shared endpoint still works.
                drop(self.refresh(seen, until).await);
            }
            let topology = self.topology();
            let is_unnumbered = numbers.first() == Some(&0);
            let mut requests = if is_unnumbered || naming.is_none() {
                requests(batch, &pending, topology.as_deref(), request_limits)?
            } else {
                renumbered(batch, &mut pending, &numbers, topology.as_deref(), request_limits)?
            };
            if is_unnumbered {
                number(&mut requests, &mut naming, &mut numbers, request_limits);
            }
            if attempt == 0 && requests.len() > 1 && !batch.effect(0).is_read() {
                refuse_duplicates(batch)?;
            }
            let ended =
                self.round(batch, requests, &naming, &Call { topology, until, deadline }).await;
            let next = self.sort_out(ended, attempt, &mut progress);
            if next.pending.is_empty() {
                break;
            }
            let delay = match next.delay {
                Some(not_before) => self.backoff.delay(attempt, not_before),
                None => Duration::ZERO,
            };
            if Instant::now() + delay >= until {
                progress.give_up(next.pending);
                break;
            }
            if next.reroute {
                drop(self.refresh(seen, until).await);
            }
            if next.halve {
                request_limits.entries = (next.halved_from / 2).max(1);
            }
            sleep(delay).await;
            attempt += u32::from(next.delay.is_some());
            pending = next.pending.into_iter().map(|(index, _)| index).collect();
            pending.sort_unstable();
        }
        progress.finish()
    }

    async fn round<B: Batch>(
        &self,
        batch: &B,
        mut requests: Vec<Request>,
        naming: &Naming<'_>,
        call: &Call,
    ) -> Vec<Ended<B::Output>> {
        if requests.len() == 1 {
            let request = requests.swap_remove(0);
            return vec![self.send(batch, request, naming, call).await];
        }
        requests
            .into_iter()
            .map(|request| self.send(batch, request, naming, call))
            .collect::<FuturesUnordered<_>>()
            .collect()
            .await
    }

    async fn send<B: Batch>(
        &self,
        batch: &B,
        request: Request,
        naming: &Naming<'_>,
        call: &Call,
    ) -> Ended<B::Output> {
        let mut effect = batch.effect(request.picks[0] as usize);
        if !effect.is_read() {
            let only_once = Effect::Write { only_once: true };
            if request.picks.iter().any(|&pick| batch.effect(pick as usize) == only_once) {
                effect = only_once;
            }
        }
        let answer = async {
            let Ok(turn) = timeout_at(call.until, self.turns.acquire()).await else {
                return Err(Error::DeadlineExceeded { deadline: call.deadline });
            };
            let _turn = turn.expect("the semaphore is never closed");
            let id = naming.name(request.number);
            let mut message = batch.encode(&request.picks, request.bytes, id.as_ref());
            let session = batch.head().session;
            if let Some(session) = session {
                let of = partitions(batch, &request.picks, call.topology.as_deref());
                session.encode(B::SESSION, of.as_deref(), &mut message);
            }
            let message = Bytes::from(message);
            let answer: B::Answer =
                self.call_path(B::PATH, request.target, message, effect, call).await?;
            if let Some(session) = session {
                session.learn(B::session_of(&answer));
            }
            let results = B::unpack(answer);
            if results.len() == request.picks.len() {
                return Ok(results);
            }
            let why = format!("{} results for {} entries", results.len(), request.picks.len());
            Err(match effect {
                Effect::Read => {
                    Error::Protocol { address: self.endpoint.to_string().into(), why: why.into() }
                }
                Effect::Write { .. } => Error::OutcomeUnknown { why: why.into() },
            })
        };
        let answer = answer.await;
        Ended { request, effect, answer }
    }

    pub(crate) async fn call_path<A: prost::Message + Default + 'static>(
        &self,
        path: &'static str,
        target: Target,
        message: Bytes,
        effect: Effect,
        call: &Call,
    ) -> Result<A, Error> {
        let mut remade = false;
        loop {
            let (endpoint, link) = self.link(target, call).await?;
            let answer = link.call(path, message.clone(), effect, call.until, call.deadline).await;
            match answer {
                Err(Error::Unreachable { .. }) if !remade => {
                    // It was not sent: the connection had died unnoticed. A new one, at once.
                    self.links.forget(&endpoint);
                    remade = true;
                }
                answer => return answer,
            }
        }
    }

    /// The link that leads to `target`, or to the shared endpoint when the core's own address does
    /// not work.
    async fn link(&self, target: Target, call: &Call) -> Result<(Endpoint, Link), Error> {
        if let (Target::Home(index), Some(topology)) = (target, &call.topology) {
            let home = &topology.homes()[index as usize];
            match self.links.home(home, call.until).await {
                AtHome::Link(link) => return Ok((home.endpoint.clone(), link)),
                AtHome::Failed => self.stale.store(true, Ordering::Release),
                AtHome::Avoided => {}
            }
        }
        Ok((self.endpoint.clone(), self.links.shared(&self.endpoint, call.until).await?))
    }

    /// Books what a round brought and collects what is worth another try.
    fn sort_out<T: Clone>(
        &self,
        ended: Vec<Ended<T>>,
        attempt: u32,
        progress: &mut Progress<T>,
    ) -> Next {
        let mut next = Next::default();
        let one_call = ended.len() == 1;
        progress.whole = None;
        for Ended { request, effect, answer } in ended {
            let whole = one_call && request.picks.len() == progress.results.len();
            let asked = request.picks.len();
            let results = match answer {
                Ok(results) => results,
                Err(error) => {
                    if whole {
                        progress.whole = Some(error.clone());
                    }
                    request.picks.iter().map(|_| Err(error.clone())).collect()
                }
            };
            for (index, result) in request.picks.into_iter().zip(results) {
                let error = match result {
                    Ok(output) => {
                        progress.results[index as usize] = Some(Ok(output));
                        continue;
                    }
                    Err(error) => error,
                };
                if matches!(error, Error::OutcomeUnknown { .. }) {
                    progress.unknown.insert(index);
                }
                match decide(&error, effect, progress.named, attempt, &self.options) {
                    Verdict::Halve if asked > 1 => {
                        next.halve = true;
                        next.halved_from = next.halved_from.max(asked);
                    }
                    Verdict::Retry { not_before } => {
                        next.delay = Some(next.delay.unwrap_or_default().max(not_before));
                    }
                    Verdict::Reroute => {
                        next.reroute = true;
                        next.delay = Some(next.delay.unwrap_or_default());
                    }
                    Verdict::Halve | Verdict::GiveUp => {
                        progress.results[index as usize] = Some(Err(error));
                        continue;
                    }
                }
                next.pending.push((index, error));
            }
        }
        next
    }
}

/// Places the pending entries and cuts them into requests.
fn requests<B: Batch>(
    batch: &B,
    pending: &[u32],
    topology: Option<&Topology>,
    limits: RequestLimits,
) -> Result<Vec<Request>, Error> {
    const NOWHERE: (Target, u32) = (Target::Shared, u32::MAX);
    let routing_key = batch.head().routing_key;
    let place_of = |hash: KeyHash| match topology {
        None => NOWHERE,
        Some(topology) => topology
            .find_index(hash)
            .map_or(NOWHERE, |route| (Target::Home(topology.home_of(route)), route as u32)),
    };
    let together = (!routing_key.is_empty()).then(|| place_of(key_hash(routing_key)));
    let mut placed: Vec<Placed> = pending
        .iter()
        .map(|&index| {
            let (target, partition) =
                together.unwrap_or_else(|| place_of(key_hash(batch.key(index as usize))));
            let bytes = batch.entry_length(index as usize) as u32; // at most 1 MiB, checked
            Placed { index, target, partition, bytes }
        })
        .collect();
    if !batch.head().atomic {
        return Ok(plan(&mut placed, limits));
    }
    // Never split. Whether the keys share a partition is for the node to say; unless they
    // seem to, it is asked through the shared endpoint.
    let bytes = placed.iter().map(|entry| entry.bytes as usize).sum();
    if bytes > limits.bytes || placed.len() > limits.entries {
        let message = format!(
            "an atomic batch is never split, and this one has {bytes} bytes in {} entries",
            placed.len()
        );
        return Err(Error::refused(Reason::BatchTooLarge, message));
    }
    let first = placed[0];
    let share = placed.iter().all(|entry| entry.partition == first.partition);
    let target = if share { first.target } else { Target::Shared };
    Ok(vec![Request { target, picks: pending.to_vec(), bytes, number: 0 }])
}

/// Gives the requests of the first round their numbers: one for all, as a partition has its part of one
/// request only; but several where the batch was cut by size, for then a partition may have more.
fn number(
    requests: &mut [Request],
    naming: &mut Naming<'_>,
    numbers: &mut [u64],
    limits: RequestLimits,
) {
    let bytes: usize = requests.iter().map(|request| request.bytes).sum();
    let is_cut = bytes > limits.bytes || numbers.len() > limits.entries;
    let mut number = 0;
    for request in requests {
        if number == 0 || is_cut {
            number = naming.next();
        }
        request.number = number;
        request.picks.iter().for_each(|&pick| numbers[pick as usize] = number);
    }
}

/// Places pending entries again, each under the number that it was first sent with.
fn renumbered<B: Batch>(
    batch: &B,
    pending: &mut [u32],
    numbers: &[u64],
    topology: Option<&Topology>,
    limits: RequestLimits,
) -> Result<Vec<Request>, Error> {
    pending.sort_unstable_by_key(|&index| (numbers[index as usize], index));
    let mut all = Vec::new();
    for part in pending.chunk_by(|&a, &b| numbers[a as usize] == numbers[b as usize]) {
        let mut part_requests = requests(batch, part, topology, limits)?;
        part_requests.iter_mut().for_each(|request| request.number = numbers[part[0] as usize]);
        all.append(&mut part_requests);
    }
    Ok(all)
}

/// The partitions that a request is of, as far as they are known.
fn partitions<B: Batch>(
    batch: &B,
    picks: &[u32],
    topology: Option<&Topology>,
) -> Option<Vec<PartitionId>> {
    let topology = topology?;
    let routing_key = batch.head().routing_key;
    let place = |key: &[u8]| {
        let route = topology.find_index(key_hash(key))?;
        Some(topology.routes()[route].id)
    };
    let mut partitions: Vec<_> = match routing_key.is_empty() {
        false => place(routing_key).into_iter().collect(),
        true => picks.iter().filter_map(|&pick| place(batch.key(pick as usize))).collect(),
    };
    partitions.sort_unstable();
    partitions.dedup();
    Some(partitions)
}

/// What the next round has to do.
#[derive(Default)]
struct Next {
    /// Entries, with the error to report should there be no next round.
    pending: Vec<(u32, Error)>,
    /// Wait, at least this long. `None`: the failure is none that waiting mends.
    delay: Option<Duration>,
    reroute: bool,
    halve: bool,
    halved_from: usize,
}

impl<T> Progress<T> {
    fn give_up(&mut self, pending: Vec<(u32, Error)>) {
        for (index, error) in pending {
            self.results[index as usize] = Some(Err(error));
        }
    }

    fn finish(self) -> Result<Results<T>, Error> {
        let (unknown, named) = (self.unknown, self.named);
        // A later attempt that failed harmlessly does not tell what the earlier one did.
        let honest = |index: u32, error: Error| match error {
            Error::OutcomeUnknown { .. } => error,
            // Under an id this is the answer to every attempt.
            error if named && error.reason().is_some_and(Reason::is_verdict) => error,
            error if unknown.contains(&index) => Error::OutcomeUnknown {
                why: format!("an attempt got no answer, and the last one failed: {error}").into(),
            },
            error => error,
        };
        if let Some(error) = self.whole {
            return Err(honest(0, error));
        }
        let results = self.results.into_iter().enumerate().map(|(index, result)| {
            result
                .expect("every entry is either answered or given up")
                .map_err(|error| honest(index as u32, error))
        });
        Ok(Results::new(results.collect()))
    }
}

/// A node refuses a batch that names a key twice; in requests of their own the two would both be
/// applied, in no certain order.
fn refuse_duplicates<B: Batch>(batch: &B) -> Result<(), Error> {
    let mut keys = HashSet::with_capacity(batch.len());
    for index in 0..batch.len() {
        if !keys.insert(batch.key(index)) {
            let message = format!("entry {index} repeats the key of an earlier entry");
            return Err(Error::refused(Reason::DuplicateKey, message));
        }
    }
    Ok(())
}
