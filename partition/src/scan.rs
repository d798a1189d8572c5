//! Scans: a partition's records in the order of their keys, page by page.
//!
//! The pages of a scan are the state at one sequence, that of its first page, or the scan ends: stores
//! keep no old versions. A page shows the state at sequence S exactly if nothing in it is newer
//! than S and nothing was removed after S:
//! ```text
//!   page 1 at S ──► records, S, last key       what was written since, behind the last key?
//!   page 2      ──► any version > S, or a removal after S  ─► SCAN_MOVED
//!                   neither                                ─► records as of S
//! ```
//! Writes to keys that the scan has passed, or that lie outside of its range, do not end it;
//! removals do wherever they are, for they leave no trace to tell by. (Keeping old versions was turned
//! down: every write would pay for scans that nobody makes.) Who can do with less asks for the state of each
//! page's own time.

use stateside_statestore::PageRequest;
use stateside_types::{Epoch, Sequence};

/// What a scan asks of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Which piece of the records.
    pub page: PageRequest,
    /// The state to show: the first epoch of the partition's content, and a sequence. None: the present.
    pub at: Option<(Epoch, Sequence)>,
}

/// What a page's answer says besides the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageEnd<'a> {
    /// First epoch of the partition's content.
    pub epoch: Epoch,
    /// The records are the state after this sequence.
    pub sequence: Sequence,
    /// There may be more behind this key.
    pub after: Option<&'a [u8]>,
}
