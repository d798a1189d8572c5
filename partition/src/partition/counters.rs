//! What a partition with the store `counters` takes: integers alone, by whatever way they come.

use stateside_statestore::is_counter;
use stateside_types::{Change, Reason, Refusal, WriteEntry};

/// # Errors
/// `NOT_AN_INTEGER` of the first value that is none.
#[cold]
pub(super) fn check(entries: &[WriteEntry<'_>]) -> Result<(), Refusal> {
    let unfit = |entry: &WriteEntry<'_>| matches!(entry.change, Change::Put(v) if !is_counter(v));
    match entries.iter().position(unfit) {
        None => Ok(()),
        Some(index) => {
            let text = format!("the value of entry {index} is not the text of an integer");
            Err(Refusal::new(Reason::NotAnInteger, text).with("entry", index))
        }
    }
}
