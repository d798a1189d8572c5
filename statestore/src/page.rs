//! Pages: pieces of a store's records in the order of their keys.
//!
//! Only some stores order their keys. A store on disk reads a page off the core's thread, as it does
//! keys: `page` answers [`PageStep::Unknown`], `fetch_page` asks for it, and once the work
//! has finished `page` knows it, with everything applied meanwhile.

use std::ops::Bound;

/// Which piece of the records, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Where it begins.
    pub from: Bound<Box<[u8]>>,
    /// Where it ends at the latest.
    pub to: Bound<Box<[u8]>>,
    /// Most records; at least 1.
    pub records_max: usize,
    /// Bytes of keys and values after which it ends; one record may exceed them.
    pub bytes_max: usize,
}

impl PageRequest {
    /// Whether no key can lie between the bounds. Ordered maps refuse such ranges.
    pub fn is_empty(&self) -> bool {
        use Bound::{Excluded, Included, Unbounded};
        match (&self.from, &self.to) {
            (Unbounded, _) | (_, Unbounded) => false,
            (Included(from), Included(to)) => from > to,
            (Included(from) | Excluded(from), Included(to) | Excluded(to)) => from >= to,
        }
    }

    /// The bounds, borrowed.
    pub fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        (self.from.as_ref().map(|key| &**key), self.to.as_ref().map(|key| &**key))
    }
}

/// How far a page goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageStep {
    /// The store does not order its keys.
    Unordered,
    /// Only the disk knows: `fetch_page`, run the work, ask again.
    Unknown,
    /// There is more behind this key, which need not be one that was handed out.
    More(Box<[u8]>),
    /// The end of the range was reached.
    End,
}
