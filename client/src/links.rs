//! The connections of a client: one per address, made when first needed, remade when lost.
//!
//! Hazard: a core's address from a topology need not lead to the node that gave it. Behind a
//! tunnel or a port mapping, `localhost:7410` may be another node, which owns the same hashes and
//! would take the writes. So a link to a core's address is used only after the node behind it has told
//! its id; whoever answers differently, or not at all, is left alone for a while and the shared
//! endpoint is used instead.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use stateside_proto::v1;
use tokio::time::{Instant, timeout_at};

use crate::{
    Endpoint, Error,
    error::{self, Effect},
    link::Link,
    topology::Home,
};

/// Path of the method that tells who a node is.
pub(crate) const TOPOLOGY_PATH: &str = "/stateside.v1.DataPlane/Topology";
/// How long a core's address that did not work is left alone the first time. Doubles with each
/// further failure: behind a firewall that swallows packets every attempt costs its caller the time
/// to connect.
const AVOID_FIRST: Duration = Duration::from_secs(10);
/// Doublings at most, to 5 minutes.
const AVOID_DOUBLINGS_MAX: u32 = 5;

/// All links of one client.
#[derive(Debug)]
pub(crate) struct Links {
    connect_timeout: Duration,
    slots: Mutex<HashMap<Endpoint, Arc<Slot>>>,
}

#[derive(Debug, Default)]
struct Slot {
    state: Mutex<SlotState>,
    /// Held while connecting, so that calls that arrive meanwhile share the attempt.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct SlotState {
    link: Option<Link>,
    avoid_until: Option<Instant>,
    failures: u32,
}

/// What a core's own address came to.
pub(crate) enum AtHome {
    /// The link.
    Link(Link),
    /// It did not work just now: the topology may be out of date.
    Failed,
    /// It did not work a while ago.
    Avoided,
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, SlotState> {
        // The state is valid after every statement: a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn usable(&self) -> Option<Link> {
        self.state().link.clone().filter(|link| !link.is_closed())
    }
}

impl Links {
    pub(crate) fn new(connect_timeout: Duration) -> Self {
        Self { connect_timeout, slots: Mutex::default() }
    }

    /// The link to `endpoint`, whoever answers there.
    pub(crate) async fn shared(&self, endpoint: &Endpoint, until: Instant) -> Result<Link, Error> {
        let slot = self.slot(endpoint);
        if let Some(link) = slot.usable() {
            return Ok(link);
        }
        let Ok(_one_at_a_time) = timeout_at(until, slot.connecting.lock()).await else {
            return Err(error::unreachable(&endpoint.to_string().into(), "no connection in time"));
        };
        if let Some(link) = slot.usable() {
            return Ok(link);
        }
        let link =
            Link::connect(endpoint, until.min(Instant::now() + self.connect_timeout)).await?;
        slot.state().link = Some(link.clone());
        Ok(link)
    }

    /// The link to a core's own address, if that leads to the node that owns it.
    pub(crate) async fn home(&self, home: &Home, until: Instant) -> AtHome {
        let slot = self.slot(&home.endpoint);
        if let Some(link) = slot.usable() {
            return AtHome::Link(link);
        }
        let avoided =
            || slot.state().avoid_until.is_some_and(|avoid_until| Instant::now() < avoid_until);
        if avoided() {
            return AtHome::Avoided;
        }
        let Ok(_one_at_a_time) = timeout_at(until, slot.connecting.lock()).await else {
            return AtHome::Failed;
        };
        if let Some(link) = slot.usable() {
            return AtHome::Link(link);
        }
        if avoided() {
            return AtHome::Avoided;
        }
        let until = until.min(Instant::now() + self.connect_timeout);
        let verified = async {
            let link = Link::connect(&home.endpoint, until).await?;
            let answer: v1::TopologyResponse = link
                .call(TOPOLOGY_PATH, Bytes::new(), Effect::Read, until, self.connect_timeout)
                .await?;
            Ok::<_, Error>((*answer.node_id == *home.owner).then_some(link))
        };
        let link = verified.await.ok().flatten();
        let mut state = slot.state();
        state.link.clone_from(&link);
        match link {
            Some(link) => {
                state.failures = 0;
                AtHome::Link(link)
            }
            None => {
                let avoid = AVOID_FIRST * (1 << state.failures.min(AVOID_DOUBLINGS_MAX));
                state.avoid_until = Some(Instant::now() + avoid);
                state.failures += 1;
                AtHome::Failed
            }
        }
    }

    /// Drops a link that turned out not to take calls any more.
    pub(crate) fn forget(&self, endpoint: &Endpoint) {
        self.slot(endpoint).state().link = None;
    }

    /// Drops the links that lead to none of these.
    pub(crate) fn retain(&self, keep: impl Fn(&Endpoint) -> bool) {
        self.slots().retain(|endpoint, _| keep(endpoint));
    }

    fn slot(&self, endpoint: &Endpoint) -> Arc<Slot> {
        let mut slots = self.slots();
        match slots.get(endpoint) {
            Some(slot) => Arc::clone(slot),
            None => Arc::clone(slots.entry(endpoint.clone()).or_default()),
        }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Endpoint, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
