//! The window of request ids in a partition's tree: a line for each row, changed in the same batch as
//! the records that came with the request. So a crash leaves the window as of the sequence that meta
//! says, like everything else; the log may let go of what the tree covers.

use std::ops::Bound;

use stateside_types::Sequence;

use super::engine::{Change, Database, TreeSession};
use crate::{RequestChange, RequestRow, RequestWindow, StoreError};

/// What stands behind the records; see `tree.rs`.
pub(super) const ANSWER_TAG: u8 = 4;
pub(super) const CLIENT_TAG: u8 = 5;
/// Lines written by one batch of a load.
const LOAD_BATCH: usize = 1_024;

/// A line of the tree: its key, and the row's bytes unless it is gone.
#[derive(Debug)]
pub(super) struct RequestLine {
    pub(super) key: Box<[u8]>,
    pub(super) row: Option<Box<[u8]>>,
}

impl RequestLine {
    pub(super) fn of(change: &RequestChange<'_>) -> Self {
        match change {
            RequestChange::Put(row) => {
                let mut bytes = Vec::new();
                row.encode(&mut bytes);
                let key = match row {
                    RequestRow::Answer { sequence, .. } => answer_key(*sequence),
                    RequestRow::Client { client, .. } => client_key(client),
                };
                Self { key, row: Some(bytes.into()) }
            }
            RequestChange::ForgetAnswer(sequence) => Self { key: answer_key(*sequence), row: None },
            RequestChange::ForgetClient(client) => Self { key: client_key(client), row: None },
        }
    }

    /// Every line of a window.
    pub(super) fn all(window: &RequestWindow) -> Box<[Self]> {
        let mut lines = Vec::new();
        window.rows(|row| lines.push(Self::of(&RequestChange::Put(row))));
        lines.into()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.key.len() + self.row.as_ref().map_or(0, |row| row.len())
    }
}

/// What a line does to the tree.
pub(super) fn line_change(key: &[u8], row: Option<&[u8]>) -> Change {
    match row {
        Some(row) => Change::Put(key.to_vec(), row.to_vec()),
        None => Change::Remove(key.to_vec()),
    }
}

impl<D: Database> TreeSession<'_, D> {
    /// The window that the tree holds.
    pub(super) fn read_requests(&self) -> Result<RequestWindow, StoreError> {
        let mut window = RequestWindow::default();
        for tag in [CLIENT_TAG, ANSWER_TAG] {
            let (from, to) = (vec![tag], vec![tag + 1]);
            let mut lines = self.range(Bound::Included(from), Bound::Excluded(to))?;
            while let Some((_, row)) = self.next(&mut lines)? {
                match RequestRow::decode(row.as_ref()) {
                    Some((row, [])) => window.load(&row),
                    _ => return Err(self.damaged("a request does not read")),
                }
            }
        }
        Ok(window)
    }

    /// Writes the lines of a load.
    pub(super) fn load_requests(&self, lines: &[RequestLine]) -> Result<(), StoreError> {
        lines.chunks(LOAD_BATCH).try_for_each(|lines| {
            self.apply(
                lines.iter().map(|line| line_change(&line.key, line.row.as_deref())).collect(),
            )
        })
    }
}

/// Big-endian, so that the tree has answers in their order.
fn answer_key(sequence: Sequence) -> Box<[u8]> {
    let mut out = vec![ANSWER_TAG];
    out.extend_from_slice(&sequence.0.to_be_bytes());
    out.into()
}

fn client_key(client: &[u8]) -> Box<[u8]> {
    [&[CLIENT_TAG], client].concat().into()
}
