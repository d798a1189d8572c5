//! A page of a tree, and what the overlay makes of it.

use std::ops::Bound;

use super::{
    engine::Database,
    overlay::Overlay,
    tree::KeyedRecord,
    {TreeSession, held_bytes},
};
use crate::{PageRequest, PageStep, SnapshotRecord, StoreError};

/// Records of a tree in their order.
pub(super) struct Page {
    records: Vec<KeyedRecord>,
    /// Memory that they take.
    pub(super) bytes: usize,
    /// The tree holds more within the request's bounds.
    has_more: bool,
}

impl<D: Database> TreeSession<'_, D> {
    /// Reads a page.
    pub(super) fn page(&self, request: &PageRequest) -> Result<Page, StoreError> {
        let mut page = Page { records: Vec::new(), bytes: 0, has_more: false };
        let mut payload = 0;
        let mut entries = self.records(request.bounds())?;
        while let Some((key, stored)) = self.next(&mut entries)? {
            if page.records.len() == request.records_max || payload >= request.bytes_max {
                page.has_more = true;
                break;
            }
            let (key, record) = self.record_of(key.as_ref(), stored.as_ref())?;
            payload += key.len() + record.value_len;
            page.bytes += held_bytes(&key, Some(&record));
            page.records.push((key, record));
        }
        Ok(page)
    }
}

impl Page {
    /// Hands out what the tree and the batches beyond it hold together. The tree was read after
    /// every batch that has left the overlay was written to it.
    pub(super) fn merge(
        &self,
        request: &PageRequest,
        overlay: &Overlay,
        emit: &mut dyn FnMut(SnapshotRecord<'_>),
    ) -> PageStep {
        let (from, mut to) = request.bounds();
        let end = self.records.last().filter(|_| self.has_more).map(|(key, _)| &**key);
        if let Some(end) = end {
            // Behind it the tree has records that are not here.
            to = Bound::Included(end);
        }
        let mut newer = overlay.between((from, to)).into_iter().peekable();
        let mut older = self.records.iter().peekable();
        let (mut records, mut bytes, mut last) = (0, 0, None);
        loop {
            let of_overlay = match (newer.peek(), older.peek()) {
                (None, None) => break,
                (Some((new, _)), Some((old, _))) => *new <= &**old,
                (newest, _) => newest.is_some(),
            };
            if let Some(last) = last
                && (records >= request.records_max || bytes >= request.bytes_max)
            {
                return PageStep::More(Box::from(last));
            }
            let (key, record) = if of_overlay {
                let (key, record) = newer.next().expect("it was there");
                older.next_if(|(old, _)| **old == *key);
                (key, record)
            } else {
                let (key, stored) = older.next().expect("it was there");
                (&**key, Some(stored.as_record()))
            };
            last = Some(key);
            if let Some(record) = record {
                emit(SnapshotRecord { key, record });
                records += 1;
                bytes += key.len() + record.value.len();
            }
        }
        end.map_or(PageStep::End, |end| PageStep::More(Box::from(end)))
    }
}
