//! Names for writes: which numbers are under way, and what may be called settled. Pure but for the
//! lock; shared by the clones of a client.
//!
//! ```text
//!   begin ─► number ─► attempts, all under it ─► end      settled: the lowest number not ended
//! ```
//! A number ends when its caller has the answer or has given up: nobody retries it then. What is
//! still on its way under it is refused by the node as forgotten, or was executed; which of the two,
//! whoever gave up was told that it is unknown.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The name that a caller gives a write, to be able to repeat it itself: after its own restart, say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// Who writes: 1 to 32 bytes, unique among all that write to the node, the same over restarts of the
    /// caller; one for many requests.
    pub client: Vec<u8>,
    /// From 1, and above that of every earlier request of the client.
    pub number: u64,
    /// The caller repeats nothing below this number any more, so partitions may forget it. 0: it does not
    /// say.
    pub settled: u64,
}

/// Numbers of one client.
#[derive(Debug)]
pub(crate) struct Session {
    name: [u8; 16],
    numbers: Mutex<Numbers>,
}

#[derive(Debug, Default)]
struct Numbers {
    last: u64,
    open: BTreeSet<u64>,
}

impl Session {
    /// A session under a name that nobody else has.
    pub(crate) fn new() -> Self {
        // Each state has keys of its own, drawn from the system's randomness.
        let half = || RandomState::new().hash_one(0_u8).to_le_bytes();
        let mut name = [0; 16];
        name[..8].copy_from_slice(&half());
        name[8..].copy_from_slice(&half());
        Self { name, numbers: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Numbers> {
        // Every change of it is one step.
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the names of one batch come from.
pub(crate) enum Naming<'a> {
    /// It has none.
    None,
    /// Its caller gave it one.
    Given(&'a RequestId),
    /// The client numbers its requests.
    Own(OwnNumbers<'a>),
}

/// Numbers of a batch's requests; they end with this.
pub(crate) struct OwnNumbers<'a> {
    session: &'a Session,
    taken: Vec<u64>,
}

impl Drop for OwnNumbers<'_> {
    fn drop(&mut self) {
        let mut numbers = self.session.lock();
        for number in &self.taken {
            numbers.open.remove(number);
        }
    }
}

impl<'a> Naming<'a> {
    pub(crate) fn own(session: &'a Session) -> Self {
        Self::Own(OwnNumbers { session, taken: Vec::new() })
    }

    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// The number of a request that has not had one; 0 without names.
    pub(crate) fn next(&mut self) -> u64 {
        match self {
            Self::None => 0,
            Self::Given(id) => id.number,
            Self::Own(own) => {
                let mut numbers = own.session.lock();
                numbers.last += 1;
                let number = numbers.last;
                numbers.open.insert(number);
                own.taken.push(number);
                number
            }
        }
    }

    /// The whole name of the request with this number.
    pub(crate) fn name(&self, number: u64) -> Option<RequestId> {
        match self {
            Self::None => None,
            Self::Given(id) => Some((*id).clone()),
            Self::Own(own) => {
                let settled = own.session.lock().open.first().copied().unwrap_or(number);
                Some(RequestId { client: own.session.name.to_vec(), number, settled })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_settled_when_it_and_all_before_it_have_ended() {
        let session = Session::new();
        let settled = |naming: &Naming<'_>| naming.name(99).unwrap().settled;
        let (mut first, mut second) = (Naming::own(&session), Naming::own(&session));
        assert_eq!((first.next(), second.next(), first.next()), (1, 2, 3));
        assert_eq!(settled(&second), 1);
        drop(first);
        assert_eq!(settled(&second), 2);
        let mut third = Naming::own(&session);
        assert_eq!(third.next(), 4);
        drop(second);
        assert_eq!(settled(&third), 4);
        assert_ne!(Session::new().name, Session::new().name);
    }
}
