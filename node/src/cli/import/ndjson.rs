//! NDJSON: one JSON value a line.

use std::io::{BufRead, BufReader, Read};

use super::rows::{Content, InputError, Position, Row, Rows, too_long};

/// Lines of a reader. Empty lines are no records.
#[derive(Debug)]
pub(super) struct NdjsonRows<R> {
    input: BufReader<R>,
    line: Vec<u8>,
    position: Position,
    record_bytes_max: usize,
}

impl<R: Read> NdjsonRows<R> {
    /// Reads on from `position`, where `input` stands.
    pub(super) fn new(input: R, position: Position, record_bytes_max: usize) -> Self {
        let input = BufReader::with_capacity(256 << 10, input);
        Self { input, line: Vec::new(), position, record_bytes_max }
    }

    /// Reads one line into `self.line` without its end, at most one byte more than a record may
    /// have. False at the end of the input.
    fn read_line(&mut self) -> std::io::Result<bool> {
        self.line.clear();
        let limit = self.record_bytes_max as u64 + 2; // a line end may be two bytes
        let mut read = self.input.by_ref().take(limit).read_until(b'\n', &mut self.line)? as u64;
        if read == 0 {
            return Ok(false);
        }
        if self.line.pop_if(|last| *last == b'\n').is_some() {
            self.line.pop_if(|last| *last == b'\r');
        } else if read == limit {
            // The rest of an overlong line is passed over in pieces.
            let mut rest = Vec::new();
            loop {
                rest.clear();
                let piece = self.input.by_ref().take(64 << 10).read_until(b'\n', &mut rest)?;
                read += piece as u64;
                if piece == 0 || rest.last() == Some(&b'\n') {
                    break;
                }
            }
        }
        self.position.offset += read;
        self.position.line += 1;
        Ok(true)
    }
}

impl<R: Read + Send> Rows for NdjsonRows<R> {
    fn next(&mut self) -> Result<Option<Row<'_>>, InputError> {
        loop {
            let first = self.position.offset == 0;
            let more = self.read_line().map_err(|error| {
                InputError::at(self.position.line + 1, format!("cannot read on: {error}"))
            })?;
            if !more {
                return Ok(None);
            }
            if first && self.line.starts_with(b"\xef\xbb\xbf") {
                self.line.drain(..3);
            }
            if !self.line.iter().all(u8::is_ascii_whitespace) {
                break;
            }
        }
        self.position.records += 1;
        let content = if self.line.len() > self.record_bytes_max {
            Err(too_long(self.record_bytes_max))
        } else {
            Ok(Content::Json(&self.line))
        };
        Ok(Some(Row { line: self.position.line, content, end: self.position }))
    }

    fn drained(&self) -> bool {
        self.input.buffer().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8], from: Position) -> Vec<(u64, Result<String, String>, Position)> {
        let mut rows = NdjsonRows::new(&input[from.offset as usize..], from, 10);
        let mut seen = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            let content = row.content.map(|content| match content {
                Content::Json(text) => String::from_utf8(text.to_vec()).unwrap(),
                Content::Cells { .. } => panic!("NDJSON has no cells"),
            });
            seen.push((row.line, content, row.end));
        }
        seen
    }

    #[test]
    fn lines_are_numbered_and_empty_ones_are_no_records() {
        let input = b"\xef\xbb\xbf{\"a\":1}\r\n\n  \n{\"a\":2}";
        let seen = lines(input, Position::default());
        let texts: Vec<_> =
            seen.iter().map(|(line, text, _)| (*line, text.clone().unwrap())).collect();
        assert_eq!(texts, [(1, "{\"a\":1}".into()), (4, "{\"a\":2}".into())]);
        assert_eq!(seen[1].2, Position { offset: input.len() as u64, line: 4, records: 2 });
    }

    #[test]
    fn a_line_above_the_limit_is_an_error_of_its_own_and_the_next_line_is_read() {
        let mut input = vec![b'x'; 200_000];
        input.extend_from_slice(b"\n{\"a\":2}\n0123456789\r\n01234567890\n");
        let seen = lines(&input, Position::default());
        let good: Vec<_> = seen.iter().map(|(line, text, _)| (*line, text.is_ok())).collect();
        assert_eq!(good, [(1, false), (2, true), (3, true), (4, false)]);
    }

    #[test]
    fn reading_on_from_any_record_gives_the_rest() {
        let input = b"{\"a\":1}\n\n{\"a\":2}\r\n{\"a\":3}\n";
        let all = lines(input, Position::default());
        for (index, (_, _, end)) in all.iter().enumerate() {
            assert_eq!(lines(input, *end), all[index + 1..]);
        }
    }
}
