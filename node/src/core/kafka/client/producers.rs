//! The producer, and another one when it fails for good.
//!
//! librdkafka gives an idempotent producer up for good when it cannot tell any more what the brokers
//! have of it (a *fatal* error). Nothing that it holds is sent after that, and nothing new is taken.
//! What it held may or may not be in the log, so the partitions with writes under way are opened anew:
//! they read the log, claim it again, and so find out. The others go on with the next producer; what
//! an owner knows of the log is offsets, and these are no producer's.
//!
//! A write belongs to the producer that was the present one when its owner heard of it. Both
//! happen, and the exchange does, while the owners are locked: no write of a partition goes out
//! behind one that went down with the producer before.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use rdkafka::{
    config::ClientConfig,
    error::KafkaError as ClientError,
    producer::{BaseProducer, Producer as _},
};

use super::{Deliveries, PAUSE, RETRY, Shared};

/// Lives with the three threads, which share it.
pub(super) struct Producers {
    settings: ClientConfig,
    shared: Arc<Shared>,
    /// Locked behind [`Shared::owned`] or alone, never before it.
    present: Mutex<Arc<BaseProducer<Deliveries>>>,
}

impl Producers {
    /// Makes the first one.
    ///
    /// # Errors
    /// librdkafka does not take the settings.
    pub(super) fn new(settings: ClientConfig, shared: Arc<Shared>) -> Result<Self, ClientError> {
        let first = make(&settings, &shared)?;
        Ok(Self { settings, shared, present: Mutex::new(Arc::new(first)) })
    }

    /// The one that takes writes.
    pub(super) fn present(&self) -> Arc<BaseProducer<Deliveries>> {
        Arc::clone(&self.present.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The events thread: hears of deliveries until told to stop, and puts another producer in the
    /// place of one that has failed for good.
    pub(super) fn hear(&self, stop: &AtomicBool) {
        let mut last: Option<(Instant, String)> = None;
        while !stop.load(Ordering::Acquire) {
            let present = self.present();
            // Returns after a moment, also when there is always something to hear.
            present.poll(PAUSE);
            let Some((error, reason)) = present.client().fatal_error() else { continue };
            // A producer may fail before it has sent anything: without the right to write, say.
            if last.as_ref().is_some_and(|(at, _)| at.elapsed() < RETRY) {
                continue;
            }
            *self.shared.trouble() = Some(reason.clone());
            if last.as_ref().is_none_or(|(_, before)| *before != reason) {
                tracing::error!(
                    %error,
                    reason,
                    "the Kafka producer has failed for good: another one takes its place, and partitions with writes under way are opened anew"
                );
            }
            self.exchange(&reason);
            last = Some((Instant::now(), reason));
        }
    }

    fn exchange(&self, reason: &str) {
        let next = match make(&self.settings, &self.shared) {
            Ok(next) => Arc::new(next),
            Err(failed) => {
                // The settings were taken before; out of threads or memory, it may be taken later.
                tracing::error!(%failed, "no other Kafka producer can be made; tried again");
                return;
            }
        };
        let mut all = self.shared.owned();
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = std::mem::replace(&mut *present, next);
        for (id, owned) in all.iter_mut().filter(|(_, owned)| owned.owner.pending() > 0) {
            self.shared.give_up(*id, owned, &format!("the producer failed for good: {reason}"));
        }
        drop(present);
        // Each delivery that ends now looks for its owner.
        drop(all);
        // Its drop tells the deliveries that it still has, so a claim that went down with it is sent again.
        drop(failed);
    }
}

fn make(
    settings: &ClientConfig,
    shared: &Arc<Shared>,
) -> Result<BaseProducer<Deliveries>, ClientError> {
    settings.create_with_context(Deliveries(Arc::clone(shared)))
}
