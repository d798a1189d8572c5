//! The reading half of an import, on a thread of its own: rows become keys and values in chunks.

use std::time::Instant;

use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{
    lanes::Entry,
    mapping::Mapping,
    pace::Pace,
    rows::{InputError, Position, Rows},
};

/// Records handed over at once at most.
const CHUNK_RECORDS: usize = 512;
/// Bytes of keys and values handed over at once, about.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that may wait to be sent.
const CHUNKS_WAITING: usize = 8;

/// What a row came to.
#[derive(Debug)]
pub(super) enum Parsed {
    /// A record.
    Entry(Entry),
    /// None, and why.
    Bad(BadRow),
}

/// A row without a usable record.
#[derive(Debug)]
pub(super) struct BadRow {
    pub(super) line: u64,
    pub(super) message: String,
    /// The place before it.
    pub(super) before: Position,
}

/// Some rows, in the input's order.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) rows: Vec<Parsed>,
    /// The place behind them.
    pub(super) end: Position,
    /// Set in the last chunk when the input ended before its end.
    pub(super) broken: Option<InputError>,
}

/// Starts the thread. It ends with the input, or when nobody receives any more.
pub(super) fn start(
    rows: Box<dyn Rows>,
    mapping: Mapping,
    from: Position,
    rate: Option<u64>,
) -> std::io::Result<Receiver<Chunk>> {
    let (sender, receiver) = channel(CHUNKS_WAITING);
    let reader = Reader {
        rows,
        mapping,
        sender,
        end: from,
        pace: rate.map(Pace::new),
        begun: Instant::now(),
    };
    std::thread::Builder::new().name("import-reader".to_owned()).spawn(move || reader.run())?;
    Ok(receiver)
}

struct Reader {
    rows: Box<dyn Rows>,
    mapping: Mapping,
    sender: Sender<Chunk>,
    end: Position,
    pace: Option<Pace>,
    begun: Instant,
}

impl Reader {
    fn run(mut self) {
        let records_max =
            self.pace.as_ref().map_or(CHUNK_RECORDS, |pace| pace.step().min(CHUNK_RECORDS));
        loop {
            let (chunk, more) = self.read_chunk(records_max);
            if let Some(pace) = &mut self.pace {
                let wait = pace.wait(self.begun.elapsed(), chunk.rows.len() as u64);
                std::thread::sleep(wait);
            }
            if self.sender.blocking_send(chunk).is_err() || !more {
                return;
            }
        }
    }

    fn read_chunk(&mut self, records_max: usize) -> (Chunk, bool) {
        let mut chunk = Chunk::default();
        let mut bytes = 0;
        let mut more = true;
        while chunk.rows.len() < records_max && bytes < CHUNK_BYTES {
            match self.rows.next() {
                Ok(Some(row)) => {
                    let before = std::mem::replace(&mut self.end, row.end);
                    let (mut key, mut value) = (Vec::new(), Vec::new());
                    let mapped = match row.content {
                        Ok(content) => self.mapping.apply(content, &mut key, &mut value),
                        Err(message) => Err(message.into()),
                    };
                    bytes += key.len() + value.len();
                    chunk.rows.push(match mapped {
                        Ok(()) => Parsed::Entry(Entry { key, value, line: row.line, before }),
                        Err(unusable) => {
                            let line = row.line + unusable.line_offset;
                            Parsed::Bad(BadRow { line, message: unusable.message, before })
                        }
                    });
                }
                Ok(None) => more = false,
                Err(error) => {
                    chunk.broken = Some(error);
                    more = false;
                }
            }
            // What has been read is not held back while the input is waited for.
            if !more || self.rows.drained() {
                break;
            }
        }
        chunk.end = self.end;
        (chunk, more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::import::ndjson::NdjsonRows;

    #[test]
    fn chunks_carry_every_row_in_order_with_its_place() {
        let input: String = (1..=2_000)
            .map(|i| if i % 7 == 0 { "{\n".into() } else { format!("{{\"id\":{i}}}\n") })
            .collect();
        let rows = Box::new(NdjsonRows::new(
            std::io::Cursor::new(input.clone()),
            Position::default(),
            1 << 20,
        ));
        let mapping = Mapping { key: "id".parse().unwrap(), value: None };
        let mut chunks = start(rows, mapping, Position::default(), None).unwrap();
        let (mut line, mut end) = (0, Position::default());
        while let Some(chunk) = chunks.blocking_recv() {
            assert!(chunk.rows.len() <= CHUNK_RECORDS && chunk.broken.is_none());
            for row in chunk.rows {
                line += 1;
                let (at, before) = match row {
                    Parsed::Entry(entry) => {
                        assert_eq!(entry.key, line.to_string().as_bytes());
                        (entry.line, entry.before)
                    }
                    Parsed::Bad(bad) => {
                        assert_eq!(line % 7, 0);
                        (bad.line, bad.before)
                    }
                };
                assert_eq!((at, before.records), (line, line - 1));
            }
            end = chunk.end;
        }
        assert_eq!(end, Position { offset: input.len() as u64, line: 2_000, records: 2_000 });
    }
}
