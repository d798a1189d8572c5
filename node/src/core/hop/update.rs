//! Updates among the requests that hop.
//!
//! ```text
//!   operator 1 B │ terms 1 B │ version 8 B? │ expiry 8 B? │ key │ operand: 8 B, or as a key
//! ```

use stateside_partition::Ticket;
use stateside_proto::codec;
use stateside_types::{Operator, PartitionId, RequestId, UpdateEntry};

use super::{HopKind, HopRequest, HopRequests, put_bytes, take, take_bytes, take_id, take_u64};

impl HopRequests {
    /// Adds an update.
    pub fn push_update<'k>(
        &mut self,
        ticket: Ticket,
        partition: PartitionId,
        &codec::WriteHead { ack, request, return_values, .. }: &codec::WriteHead<'_>,
        entries: impl Iterator<Item = UpdateEntry<'k>>,
    ) {
        let start = self.bytes.len();
        let has_id = self.put_id(request);
        for UpdateEntry { key, operator, condition, expiry } in entries {
            self.bytes.push(match operator {
                Operator::Add(_) => 0,
                Operator::Append(_) => 1,
                Operator::Max(_) => 2,
                Operator::Min(_) => 3,
                Operator::Merge(_) => 4,
            });
            self.put_terms(condition, expiry, false);
            put_bytes(&mut self.bytes, key);
            match operator {
                Operator::Add(operand) | Operator::Max(operand) | Operator::Min(operand) => {
                    self.bytes.extend_from_slice(&operand.to_le_bytes());
                }
                Operator::Append(bytes) | Operator::Merge(bytes) => {
                    put_bytes(&mut self.bytes, bytes);
                }
            }
        }
        self.finish(ticket, partition, HopKind::Update { ack, has_id, return_values }, start);
    }

    /// Fills `entries` with what an update asks for; its id, if it has one.
    pub fn updates<'a>(
        &'a self,
        request: &HopRequest,
        entries: &mut Vec<UpdateEntry<'a>>,
    ) -> Option<RequestId<'a>> {
        entries.clear();
        let mut bytes = &self.bytes[request.start..request.end];
        let has_id = matches!(request.kind, HopKind::Update { has_id: true, .. });
        let id = take_id(&mut bytes, has_id);
        while !bytes.is_empty() {
            let operator = take(&mut bytes, 1)[0];
            let (condition, expiry, _) = super::take_terms(&mut bytes);
            let key = take_bytes(&mut bytes);
            let operator = match operator {
                0 => Operator::Add(take_u64(&mut bytes).cast_signed()),
                1 => Operator::Append(take_bytes(&mut bytes)),
                2 => Operator::Max(take_u64(&mut bytes).cast_signed()),
                3 => Operator::Min(take_u64(&mut bytes).cast_signed()),
                _ => Operator::Merge(take_bytes(&mut bytes)),
            };
            entries.push(UpdateEntry { key, operator, condition, expiry });
        }
        id
    }
}

#[cfg(test)]
mod tests {
    use stateside_types::{Ack, Condition, Expiry, Sequence};

    use super::*;

    #[test]
    fn updates_that_hop_arrive_unchanged() {
        let operators = [
            Operator::Add(i64::MIN),
            Operator::Append(b""),
            Operator::Max(-1),
            Operator::Min(i64::MAX),
            Operator::Merge(&[b' '; 70_000]),
        ];
        let conditions = [Condition::None, Condition::IfAbsent, Condition::IfVersion(Sequence(7))];
        let expiries = [Expiry::Never, Expiry::After(5)];
        let mut entries = Vec::new();
        for operator in operators {
            for condition in conditions {
                for expiry in expiries {
                    entries.push(UpdateEntry { key: b"key", operator, condition, expiry });
                }
            }
        }
        let mut hop = HopRequests::default();
        let ack = Some(Ack::Durable);
        let request = Some(RequestId { client: b"c", number: 1, settled: 0 });
        let head = codec::WriteHead { ack, request, return_values: true, ..Default::default() };
        hop.push_update(Ticket(3), PartitionId(4), &head, entries.iter().copied());
        let [update] = hop.requests() else { panic!("one request") };
        assert_eq!((update.ticket, update.partition), (Ticket(3), PartitionId(4)));
        assert_eq!(update.kind, HopKind::Update { ack, has_id: true, return_values: true });
        let mut got = Vec::new();
        assert_eq!(hop.updates(update, &mut got), request);
        assert_eq!(got, entries);
    }
}
