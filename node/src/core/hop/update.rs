//! Updates among the requests that hop.
//!
//! ```text
//!   operator 1 B │ terms 1 B │ version 8 B? │ expiry 8 B? │ key │ operand: 8 B, or as a key
//! ```

use stateside_partition::Ticket;
use stateside_types::{Ack, Operator, PartitionId, UpdateEntry};

use super::{HopKind, HopRequest, HopRequests, put_bytes, take, take_bytes, take_u64};

impl HopRequests {
    /// Adds an update.
    pub fn push_update<'k>(
        &mut self,
        ticket: Ticket,
        partition: PartitionId,
        ack: Option<Ack>,
        return_values: bool,
        entries: impl Iterator<Item = UpdateEntry<'k>>,
    ) {
        let start = self.bytes.len();
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
        self.finish(ticket, partition, HopKind::Update { ack, return_values }, start);
    }

    /// Fills `entries` with what an update asks for.
    pub fn updates<'a>(&'a self, request: &HopRequest, entries: &mut Vec<UpdateEntry<'a>>) {
        entries.clear();
        let mut bytes = &self.bytes[request.start..request.end];
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
    }
}

#[cfg(test)]
mod tests {
    use stateside_types::{Condition, Expiry, Sequence};

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
        hop.push_update(Ticket(3), PartitionId(4), ack, true, entries.iter().copied());
        let [update] = hop.requests() else { panic!("one request") };
        assert_eq!((update.ticket, update.partition), (Ticket(3), PartitionId(4)));
        assert_eq!(update.kind, HopKind::Update { ack, return_values: true });
        let mut got = Vec::new();
        hop.updates(update, &mut got);
        assert_eq!(got, entries);
    }
}
