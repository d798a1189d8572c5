//! The `ControlPlane` service: translates calls for the manager, and answers what only asks from
//! the manager's view and the cores' descriptions.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use stateside_proto::v1::{self, control_plane_server::ControlPlane};
use stateside_types::{Ack, HashRange, PartitionId, PartitionState, Reason, Refusal, limits};
use tokio::{
    sync::{Semaphore, SemaphorePermit, oneshot},
    time::Instant,
};
use tonic::{Request, Response, Status};

use super::{
    facts::{Facts, describe_all},
    manager::{Answer, Call, Described, Target, Wanted},
    status::to_status,
};
use crate::{core::command::PartitionReport, metrics::ProcessUsage};

/// The service. One per control thread.
pub(crate) struct ControlService {
    facts: Arc<Facts>,
}

impl ControlService {
    pub(crate) const fn new(facts: Arc<Facts>) -> Self {
        Self { facts }
    }

    /// Asks the manager and waits for its answer.
    async fn ask<T>(&self, call: impl FnOnce(Answer<T>) -> Call) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        let stopping = || Refusal::new(Reason::ShuttingDown, "the node is stopping");
        self.facts.calls.send(call(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    async fn describe(&self) -> Vec<Described> {
        let reports = self.facts.reports().await;
        describe_all(&self.facts.view(), &reports)
    }

    async fn describe_one(&self, id: PartitionId) -> Result<v1::Partition, Refusal> {
        let all = self.describe().await;
        let one = all.iter().find(|described| described.placed.spec.id == id);
        one.map(to_proto).ok_or_else(|| {
            Refusal::new(Reason::UnknownPartition, format!("partition {id} was removed meanwhile"))
        })
    }

    /// Counts the outcome and turns a refusal into a status.
    fn answer<T>(&self, outcome: Result<T, Refusal>) -> Result<Response<T>, Status> {
        let control = &self.facts.metrics.control;
        match outcome {
            Ok(answer) => {
                control.calls_ok.increment();
                Ok(Response::new(answer))
            }
            Err(refusal) => {
                control.calls_refused.increment();
                Err(to_status(&refusal))
            }
        }
    }

    async fn add(
        &self,
        request: v1::AddPartitionRequest,
    ) -> Result<v1::AddPartitionResponse, Refusal> {
        let _permit = permit(&self.facts.changes)?;
        let range = request.range.ok_or_else(|| {
            Refusal::new(Reason::InvalidRange, "range: every partition needs one")
        })?;
        let store = match request.store.as_str() {
            "" => None,
            name => Some(name.parse().map_err(|error: String| invalid("store", &error))?),
        };
        let wanted = Wanted {
            id: request.id.map(PartitionId),
            range: HashRange::try_from(range)?,
            store,
            ack: read_ack(request.ack)?,
        };
        let id = self.ask(|reply| Call::Add { wanted, reply }).await?;
        Ok(v1::AddPartitionResponse { partition: Some(self.describe_one(id).await?) })
    }

    async fn remove(
        &self,
        request: v1::RemovePartitionRequest,
    ) -> Result<v1::RemovePartitionResponse, Refusal> {
        let _permit = permit(&self.facts.changes)?;
        let target = match request.target {
            Some(v1::remove_partition_request::Target::Id(id)) => Target::Id(PartitionId(id)),
            Some(v1::remove_partition_request::Target::Range(range)) => {
                Target::Range(HashRange::try_from(range)?)
            }
            None => return Err(invalid("target", "give an id or a range")),
        };
        let confirm = request.confirm;
        let was = self.ask(|reply| Call::Remove { target, confirm, reply }).await?;
        Ok(v1::RemovePartitionResponse { partition: Some(to_proto(&was)) })
    }

    async fn list(&self) -> Result<v1::ListPartitionsResponse, Refusal> {
        let _permit = permit(&self.facts.reads)?;
        let partitions = self.describe().await.iter().map(to_proto).collect();
        Ok(v1::ListPartitionsResponse { partitions })
    }

    async fn take_snapshot(
        &self,
        request: v1::SnapshotRequest,
    ) -> Result<v1::SnapshotResponse, Refusal> {
        let _permit = permit(&self.facts.changes)?;
        let path = read_path(&request.path)?;
        let (id, began) = (PartitionId(request.partition), Instant::now());
        let report = self.ask(|reply| Call::Snapshot { id, path, reply }).await?;
        Ok(v1::SnapshotResponse {
            partition: id.0,
            path: request.path,
            sequence: report.sequence.0,
            records: report.records,
            bytes: report.bytes,
            duration_ms: millis_since(began),
        })
    }

    async fn restore_from(
        &self,
        request: v1::RestoreRequest,
    ) -> Result<v1::RestoreResponse, Refusal> {
        let _permit = permit(&self.facts.changes)?;
        let path = read_path(&request.path)?;
        let (id, began) = (PartitionId(request.partition), Instant::now());
        let confirm = request.confirm;
        let restored = self.ask(|reply| Call::Restore { id, path, confirm, reply }).await?;
        Ok(v1::RestoreResponse {
            partition: Some(self.describe_one(id).await?),
            records: restored.records,
            duration_ms: millis_since(began),
        })
    }

    async fn change_store_of(
        &self,
        request: v1::ChangeStoreRequest,
    ) -> Result<v1::ChangeStoreResponse, Refusal> {
        let _permit = permit(&self.facts.changes)?;
        let to = request.store.parse().map_err(|error: String| invalid("store", &error))?;
        let (id, began) = (PartitionId(request.partition), Instant::now());
        let copied = self.ask(|reply| Call::ChangeStore { id, to, reply }).await?;
        Ok(v1::ChangeStoreResponse {
            partition: Some(self.describe_one(id).await?),
            records: copied.records,
            snapshot_bytes: copied.bytes,
            duration_ms: millis_since(began),
        })
    }

    async fn describe_node(&self) -> Result<v1::StatusResponse, Refusal> {
        let _permit = permit(&self.facts.reads)?;
        let facts = &self.facts;
        let reports = facts.reports().await;
        let view = facts.view();
        let all = describe_all(&view, &reports);
        let mut by_state = HashMap::new();
        for described in &all {
            *by_state.entry(described.state().to_string()).or_insert(0) += 1;
        }
        let loads = view.manifest.core_loads();
        let cores = reports.iter().zip(facts.cores.ids()).map(|(report, core)| {
            let at = usize::from(core.0);
            let report = report.clone().unwrap_or_default();
            v1::CoreStatus {
                core: core.0.into(),
                address: facts.core_addresses.get(at).cloned().unwrap_or_default(),
                partitions: loads.get(at).copied().unwrap_or(0) as u32,
                connections: report.connections,
                requests: report.requests,
                log_bytes: report.log_bytes,
                log_segments: report.log_segments,
                log_problem: report.log_problem,
                log_mode: report.log_mode.to_owned(),
            }
        });
        let (recovery_bytes_read, recovery_bytes_total) = facts.recovery.get();
        Ok(v1::StatusResponse {
            node_id: view.manifest.node_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: facts.phase().to_string(),
            uptime_ms: millis_since(facts.started),
            data_address: facts.data_address.clone(),
            control_address: facts.control_address.clone(),
            metrics_address: facts.metrics_address.clone(),
            data_dir: facts.data_dir.clone(),
            cores: cores.collect(),
            partitions: by_state,
            records: all.iter().map(|one| one.count(|report| report.records)).sum(),
            memory_bytes: reports.iter().flatten().map(|report| report.memory_bytes).sum(),
            memory_limit_bytes: facts.memory_limit_bytes,
            pending_changes: view.pending.clone(),
            recovery_bytes_read,
            recovery_bytes_total,
            registry: view.registry.clone(),
            resident_bytes: ProcessUsage::read().resident_bytes,
            request_ids: Some(request_ids(all.iter().filter_map(|one| one.report.as_ref()))),
        })
    }
}

#[tonic::async_trait]
impl ControlPlane for ControlService {
    async fn add_partition(
        &self,
        request: Request<v1::AddPartitionRequest>,
    ) -> Result<Response<v1::AddPartitionResponse>, Status> {
        self.answer(self.add(request.into_inner()).await)
    }

    async fn remove_partition(
        &self,
        request: Request<v1::RemovePartitionRequest>,
    ) -> Result<Response<v1::RemovePartitionResponse>, Status> {
        self.answer(self.remove(request.into_inner()).await)
    }

    async fn list_partitions(
        &self,
        _request: Request<v1::ListPartitionsRequest>,
    ) -> Result<Response<v1::ListPartitionsResponse>, Status> {
        self.answer(self.list().await)
    }

    async fn snapshot(
        &self,
        request: Request<v1::SnapshotRequest>,
    ) -> Result<Response<v1::SnapshotResponse>, Status> {
        self.answer(self.take_snapshot(request.into_inner()).await)
    }

    async fn restore(
        &self,
        request: Request<v1::RestoreRequest>,
    ) -> Result<Response<v1::RestoreResponse>, Status> {
        self.answer(self.restore_from(request.into_inner()).await)
    }

    async fn change_store(
        &self,
        request: Request<v1::ChangeStoreRequest>,
    ) -> Result<Response<v1::ChangeStoreResponse>, Status> {
        self.answer(self.change_store_of(request.into_inner()).await)
    }

    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        self.answer(self.describe_node().await)
    }
}

/// The control plane is for operators: a few calls at a time, refused beyond.
fn permit(semaphore: &Semaphore) -> Result<SemaphorePermit<'_>, Refusal> {
    semaphore.try_acquire().map_err(|_| {
        Refusal::new(Reason::Overloaded, "too many control calls of this kind are under way")
    })
}

fn to_proto(described: &Described) -> v1::Partition {
    let Described { placed, report } = described;
    let spec = report.as_ref().map_or(&placed.spec, |report| &report.spec);
    let state = match described.state() {
        PartitionState::Init => v1::PartitionState::Init,
        PartitionState::Primary => v1::PartitionState::Primary,
        PartitionState::Stopped => v1::PartitionState::Stopped,
        PartitionState::Damaged => v1::PartitionState::Damaged,
        PartitionState::Retired => v1::PartitionState::Retired,
    };
    v1::Partition {
        id: spec.id.0,
        range: Some(spec.range.into()),
        epoch: spec.epoch.0,
        state: state.into(),
        core: placed.core.0.into(),
        store: spec.store.to_string(),
        ack: v1::Ack::from(spec.ack).into(),
        records: described.count(|report| report.records),
        payload_bytes: described.count(|report| report.payload_bytes),
        memory_bytes: described.count(|report| report.memory_bytes),
        sequence: described.count(|report| report.sequence.0),
        durable_sequence: described.count(|report| report.durable_sequence.0),
        snapshot_sequence: described.count(|report| report.snapshot_sequence.0),
        snapshot_unix_ms: described.count(|report| report.snapshot_unix_ms),
        detail: report.as_ref().map(|report| report.detail.clone()).unwrap_or_default(),
        stages: spec.pipeline.iter().map(ToString::to_string).collect(),
        store_change: report.as_ref().and_then(|report| report.store_change).map(|change| {
            v1::StoreChange {
                store: change.to.to_string(),
                phase: change.phase.to_owned(),
                records: change.records,
                records_total: change.records_total,
                waiting_bytes: change.waiting_bytes,
            }
        }),
        request_ids: report.as_ref().map(|report| request_ids(std::iter::once(report))),
        kafka: report.as_ref().and_then(|report| report.kafka).map(|kafka| v1::KafkaLog {
            epoch: kafka.epoch,
            offset: kafka.offset,
            lag: kafka.lag,
        }),
    }
}

/// Of partitions together.
fn request_ids<'a>(reports: impl Iterator<Item = &'a PartitionReport>) -> v1::RequestIds {
    reports.fold(v1::RequestIds::default(), |sum, report| {
        let oldest = report.requests.oldest.millis();
        let oldest = [sum.oldest_unix_ms, oldest].into_iter().filter(|oldest| *oldest > 0).min();
        v1::RequestIds {
            answers: sum.answers + report.requests.answers,
            clients: sum.clients + report.requests.clients,
            oldest_unix_ms: oldest.unwrap_or(0),
            retries_answered: sum.retries_answered + report.retries_answered,
        }
    })
}

fn read_ack(ack: i32) -> Result<Option<Ack>, Refusal> {
    let ack = v1::Ack::try_from(ack)
        .map_err(|_| invalid("ack", &format!("{ack} is not an acknowledgement")))?;
    Ok(ack.into())
}

fn read_path(path: &str) -> Result<PathBuf, Refusal> {
    if path.is_empty() || path.len() > limits::PATH_BYTES_MAX || path.contains('\0') {
        return Err(invalid("path", "not a usable path"));
    }
    Ok(PathBuf::from(path))
}

fn invalid(field: &'static str, what: &str) -> Refusal {
    Refusal::new(Reason::InvalidArgument, format!("{field}: {what}")).with("field", field)
}

fn millis_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}
