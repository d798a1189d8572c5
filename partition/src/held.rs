//! Answers that wait for the line monitor's edge.

use std::{collections::VecDeque, sync::Arc};

use stateside_types::{Refusal, Sequence, Timestamp};

use crate::Ticket;

/// What leaves when its sequence has passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Write(Ticket, Sequence, Timestamp),
    /// A refusal that is recorded, or that tells of what it saw.
    Refused(Ticket, Arc<Refusal>),
    /// A read that saw a write of this sequence.
    Read(Ticket, Sequence),
}

/// Answers by the sequence that they wait for. Writes come in order; a read waits for the newest
/// record that it saw, which lies near the end: so a deque, and insertion from the back.
#[derive(Debug, Default)]
pub(crate) struct HeldAnswers {
    queue: VecDeque<(Sequence, Held)>,
    /// Those that are not bounded by the window of writes.
    reads: usize,
}

impl Held {
    fn is_read(&self) -> bool {
        !matches!(self, Self::Write(..))
    }
}

impl HeldAnswers {
    pub(crate) fn hold(&mut self, until: Sequence, answer: Held) {
        self.reads += usize::from(answer.is_read());
        let behind = self.queue.iter().rev().take_while(|(sequence, _)| *sequence > until).count();
        self.queue.insert(self.queue.len() - behind, (until, answer));
    }

    pub(crate) fn reads(&self) -> usize {
        self.reads
    }

    /// The next answer whose sequence is at or below `passed`.
    pub(crate) fn pop(&mut self, passed: Sequence) -> Option<Held> {
        let (until, _) = self.queue.front()?;
        if *until > passed {
            return None;
        }
        let (_, answer) = self.queue.pop_front()?;
        self.reads -= usize::from(answer.is_read());
        Some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_leave_in_the_order_of_their_sequences() {
        let mut held = HeldAnswers::default();
        for n in [1, 2, 3] {
            held.hold(Sequence(n), Held::Write(Ticket(n), Sequence(n), Timestamp(0)));
        }
        held.hold(Sequence(2), Held::Read(Ticket(20), Sequence(2)));
        assert_eq!(held.pop(Sequence(0)), None);
        let order: Vec<_> = std::iter::from_fn(|| held.pop(Sequence(2))).collect();
        assert_eq!(order.len(), 3);
        assert_eq!(order[2], Held::Read(Ticket(20), Sequence(2)));
        assert_eq!(held.reads(), 0);
        assert!(matches!(held.pop(Sequence(3)), Some(Held::Write(Ticket(3), ..))));
    }
}
