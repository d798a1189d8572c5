//! Updates on their way to the partitions, and their answers.

use std::mem;

use stateside_partition::{Input, Ticket};
use stateside_proto::codec;
use stateside_types::{Refusal, Sequence, Timestamp, UpdateEntry};

use super::{Executor, Verb};
use crate::core::{
    calls::{Outcome, Part},
    world::StreamRef,
};

impl Executor {
    /// The slot of the call when it keeps the message.
    pub(super) fn update(
        &mut self,
        stream: StreamRef,
        message: &[u8],
    ) -> Result<Option<u32>, Refusal> {
        let mut entries = codec::recycle_updates(mem::take(&mut self.updates));
        let decoded = codec::decode_update(message, &mut entries);
        let done = decoded.and_then(|head| {
            self.place_write(stream, Verb::Update, &entries, &head, |this, ticket, route, part| {
                this.update_part(ticket, route, part, &head);
            })
        });
        self.updates = codec::recycle_updates(entries);
        done
    }

    fn update_part(
        &mut self,
        ticket: Ticket,
        route: u32,
        entries: &[UpdateEntry<'_>],
        head: &codec::WriteHead<'_>,
    ) {
        let codec::WriteHead { ack, request, return_values, .. } = *head;
        let Some(slot) = self.local_slot(route) else {
            let Some((requests, id)) = self.hop(ticket, route) else { return };
            return requests.push_update(ticket, id, head, entries.iter().copied());
        };
        let input = Input::Update { ticket, entries, ack, request, return_values };
        self.step_slot(slot, ticket, input);
    }
}

/// Writes the results of an update of one partition that is to tell its values.
pub(crate) fn assemble_values(
    part: &Part,
    sequence: Sequence,
    timestamp: Timestamp,
    out: &mut Vec<u8>,
) {
    for value in part.values() {
        codec::encode_update_result(out, sequence, timestamp, value);
    }
}

/// Writes the answer of a ready update of several partitions, in the request's order.
pub(crate) fn assemble_update(parts: &[Part], part_of_entry: &[u16], out: &mut Vec<u8>) {
    // Each part has its values in the request's order.
    let mut values: Vec<_> = parts.iter().map(Part::values).collect();
    for &at in part_of_entry {
        let value = values[usize::from(at)].next().flatten();
        match &parts[usize::from(at)].outcome {
            Outcome::Written(token, timestamp) => {
                codec::encode_update_result(out, token.sequence, *timestamp, value);
            }
            Outcome::Refused(refusal) => codec::encode_write_refused(out, refusal),
            Outcome::Read(_) | Outcome::Waiting => unreachable!("a write's part, and ready"),
        }
    }
}
