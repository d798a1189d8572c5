//! Where each partition lives, as a node told: the routing table with addresses beside it.

use std::sync::Arc;

use stateside_proto::v1;
use stateside_router::{Route, RoutingTable};
use stateside_types::{CoreId, Epoch, HashRange, KeyHash, PartitionId};

use crate::{Endpoint, Error};

/// One answer to `Topology`. Never changes; a newer answer is a new one.
#[derive(Debug)]
pub struct Topology {
    table: RoutingTable,
    /// For each route of the table, where it lives: an index into `homes`.
    home_of: Vec<u32>,
    homes: Vec<Home>,
    node_id: Arc<str>,
}

/// A core's own address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    pub(crate) endpoint: Endpoint,
    /// The node that must answer there.
    pub(crate) owner: Arc<str>,
}

impl Topology {
    /// Reads an answer that came from `endpoint`.
    pub(crate) fn read(answer: v1::TopologyResponse, endpoint: &Endpoint) -> Result<Self, Error> {
        let protocol = |why: String| Error::Protocol {
            address: endpoint.to_string().into(),
            why: format!("its topology makes no sense: {why}").into(),
        };
        let mut routes = Vec::with_capacity(answer.partitions.len());
        let mut placed = Vec::with_capacity(answer.partitions.len());
        let mut homes: Vec<Home> = Vec::new();
        for partition in answer.partitions {
            let id = partition.id;
            let range =
                partition.range.ok_or_else(|| protocol(format!("partition {id} has no range")))?;
            let range =
                HashRange::try_from(range).map_err(|refusal| protocol(refusal.message.into()))?;
            let core = u16::try_from(partition.core)
                .map_err(|_| protocol(format!("partition {id} is on core {}", partition.core)))?;
            routes.push(Route {
                id: PartitionId(id),
                range,
                epoch: Epoch(partition.epoch),
                core: CoreId(core),
            });
            let core_endpoint = endpoint
                .core(&partition.core_address)
                .map_err(|error| protocol(format!("partition {id}: {error}")))?;
            // A handful of homes for thousands of partitions: a scan beats a map.
            let home = homes
                .iter()
                .position(|home| home.endpoint == core_endpoint && *home.owner == *partition.owner)
                .unwrap_or_else(|| {
                    homes.push(Home { endpoint: core_endpoint, owner: partition.owner.into() });
                    homes.len() - 1
                });
            placed.push((range.start(), home as u32));
        }
        let table = RoutingTable::new(answer.version, routes)
            .map_err(|overlap| protocol(format!("{} and {} overlap", overlap.0, overlap.1)))?;
        // The table sorts by range start; starts are unique because ranges do not overlap.
        placed.sort_unstable();
        let home_of = placed.into_iter().map(|(_, home)| home).collect();
        Ok(Self { table, home_of, homes, node_id: answer.node_id.into() })
    }

    /// Rises with every change of the partition set on the node that answered.
    pub fn version(&self) -> u64 {
        self.table.version()
    }

    /// The node that answered.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// The partitions, by the start of their ranges.
    pub fn routes(&self) -> &[Route] {
        self.table.routes()
    }

    /// The partition that owns `hash`, as an index into [`Self::routes`].
    pub fn find_index(&self, hash: KeyHash) -> Option<usize> {
        self.table.find_index(hash)
    }

    pub(crate) fn homes(&self) -> &[Home] {
        &self.homes
    }

    /// Index into [`Self::homes`] of a route.
    pub(crate) fn home_of(&self, route: usize) -> u32 {
        self.home_of[route]
    }
}

#[cfg(test)]
mod tests {
    use stateside_router::key_hash;

    use super::*;

    fn location(id: u32, start: u64, end: u64, core: u32) -> v1::PartitionLocation {
        v1::PartitionLocation {
            id,
            range: Some(v1::HashRange { start, end }),
            epoch: 1,
            owner: "n".into(),
            core_address: format!(":{}", 7410 + core),
            core,
        }
    }

    fn read(partitions: Vec<v1::PartitionLocation>) -> Result<Topology, Error> {
        let answer = v1::TopologyResponse { partitions, node_id: "n".into(), version: 3 };
        Topology::read(answer, &Endpoint::tcp("node-3", 7400))
    }

    #[test]
    fn each_hash_leads_to_its_cores_address() {
        let half = 1 << 63;
        let topology = read(vec![location(8, half, 0, 1), location(9, 0, half, 0)]).unwrap();
        assert_eq!((topology.version(), topology.node_id()), (3, "n"));
        for key in 0..100_u32 {
            let hash = key_hash(&key.to_le_bytes());
            let home = topology.home_of(topology.find_index(hash).unwrap()) as usize;
            let port = if hash.0 < half { 7410 } else { 7411 };
            assert_eq!(topology.homes()[home].endpoint, Endpoint::tcp("node-3", port));
        }
    }

    #[test]
    fn a_topology_that_makes_no_sense_is_a_protocol_error() {
        let mut no_range = location(1, 0, 0, 0);
        no_range.range = None;
        let mut bad_address = location(1, 0, 0, 0);
        bad_address.core_address = "nowhere".into();
        for (partitions, part) in [
            (vec![no_range], "no range"),
            (vec![bad_address], "nowhere"),
            (vec![location(1, 9, 3, 0)], "empty"),
            (vec![location(1, 0, 0, 70_000)], "core 70000"),
            (vec![location(1, 0, 50, 0), location(2, 49, 0, 0)], "overlap"),
        ] {
            let error = read(partitions).unwrap_err();
            assert!(matches!(error, Error::Protocol { .. }), "{error}");
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(read(Vec::new()).unwrap().find_index(key_hash(b"k")).is_none());
    }
}
