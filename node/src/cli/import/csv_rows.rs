//! CSV with a header row (RFC 4180). Cells are text; a record becomes a JSON object of strings.
//!
//! Written here rather than taken from a crate for three things that an import needs and the `csv` crate does
//! not give: the exact line of a record, offsets to read on from, and a bound on a record while it is
//! read. (A quote that is never closed makes the rest of the file one cell.) The crate serves as
//! the oracle of a property test.
//!
//! ```text
//!              ┌──────── delimiter ────────┐
//!              ▼                           │
//!  ─────► cell start ── other ──► bare ────┤
//!              │                           ├── line end ──► record
//!              │ quote        other        │
//!              ▼            ┌────────► bare┤
//!           quoted ◄─quote─► quote seen ───┘
//! ```

use std::io::{BufRead, BufReader, Read};

use super::rows::{Content, InputError, Position, Row, Rows, too_long};

/// One record's cells, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Cells {
    bytes: Vec<u8>,
    /// For each cell, where it ends.
    ends: Vec<usize>,
}

impl Cells {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.bytes[start..end])
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    fn end_cell(&mut self) {
        self.ends.push(self.bytes.len());
    }
}

/// Where the parser stands within a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    CellStart,
    Bare,
    Quoted,
    QuoteSeen,
    RecordEnd,
}

/// Records of a reader.
#[derive(Debug)]
pub(super) struct CsvRows<R> {
    input: BufReader<R>,
    delimiter: u8,
    names: Vec<String>,
    cells: Cells,
    position: Position,
    record_bytes_max: usize,
}

impl<R: Read> CsvRows<R> {
    /// Reads the header and stands before the first record.
    pub(super) fn new(input: R, delimiter: u8, max: usize) -> Result<Self, InputError> {
        let mut rows = Self::resume(input, delimiter, Position::default(), Vec::new(), max);
        let begun = rows.read_record()?;
        let line = begun.map_or(1, |(line, _)| line);
        if !matches!(begun, Some((_, true))) || rows.cells.iter().all(<[u8]>::is_empty) {
            let message = "expected a header row with the names of the columns";
            return Err(InputError::at(line, message));
        }
        for (index, name) in rows.cells.iter().enumerate() {
            let name = String::from_utf8(name.to_vec()).map_err(|_| {
                InputError::at(line, format!("the name of column {} is not UTF-8", index + 1))
            })?;
            if rows.names.contains(&name) {
                return Err(InputError::at(line, format!("two columns are named `{name}`")));
            }
            rows.names.push(name);
        }
        Ok(rows)
    }

    /// Reads on from `position`, where `input` stands, under the names that the header had.
    pub(super) fn resume(
        input: R,
        delimiter: u8,
        position: Position,
        names: Vec<String>,
        record_bytes_max: usize,
    ) -> Self {
        let input = BufReader::with_capacity(256 << 10, input);
        Self { input, delimiter, names, cells: Cells::default(), position, record_bytes_max }
    }

    /// Reads a record into `self.cells`: its line, and whether it is within the limit. `None` at
    /// the end of the input.
    fn read_record(&mut self) -> Result<Option<(u64, bool)>, InputError> {
        self.cells.clear();
        if !self.skip_line_ends()? {
            return Ok(None);
        }
        let line = self.position.line + 1;
        let from = self.position.offset;
        let mut state = State::CellStart;
        while state != State::RecordEnd {
            let cannot = |error| InputError::at(line, format!("cannot read on: {error}"));
            let buffer = self.input.fill_buf().map_err(cannot)?;
            if buffer.is_empty() {
                if state == State::Quoted {
                    return Err(InputError::at(line, "a quote of this record is never closed"));
                }
                self.cells.end_cell();
                break;
            }
            let too_long = self.position.offset - from > self.record_bytes_max as u64;
            if too_long && state == State::Quoted {
                let message =
                    format!("{}; is a quote not closed?", self::too_long(self.record_bytes_max));
                return Err(InputError::at(line, message));
            }
            if too_long {
                // Only its end is still of interest.
                self.cells.clear();
            }
            let mut taken = 0;
            for &byte in buffer {
                taken += 1;
                self.position.line += u64::from(byte == b'\n');
                state = Self::step(&mut self.cells, self.delimiter, state, byte);
                if state == State::RecordEnd {
                    break;
                }
            }
            self.input.consume(taken);
            self.position.offset += taken as u64;
        }
        let within = self.position.offset - from <= self.record_bytes_max as u64;
        Ok(Some((line, within)))
    }

    fn step(cells: &mut Cells, delimiter: u8, state: State, byte: u8) -> State {
        match (state, byte) {
            (State::Quoted, b'"') => return State::QuoteSeen,
            (State::Quoted, _) => {}
            (State::CellStart, b'"') => return State::Quoted,
            // Two quotes stand for one. Text behind a closing quote belongs to the cell.
            (State::QuoteSeen, b'"') => {
                cells.bytes.push(byte);
                return State::Quoted;
            }
            (_, b'\r' | b'\n') => {
                cells.end_cell();
                return State::RecordEnd;
            }
            (_, byte) if byte == delimiter => {
                cells.end_cell();
                return State::CellStart;
            }
            _ => {}
        }
        cells.bytes.push(byte);
        if state == State::Quoted { State::Quoted } else { State::Bare }
    }

    /// Passes over empty lines, the second byte of a line end of two, and the mark at the start of some
    /// files. False at the end of the input.
    fn skip_line_ends(&mut self) -> Result<bool, InputError> {
        loop {
            let line = self.position.line + 1;
            let buffer = self
                .input
                .fill_buf()
                .map_err(|error| InputError::at(line, format!("cannot read on: {error}")))?;
            match buffer.first() {
                None => return Ok(false),
                Some(b'\n') => self.position.line += 1,
                Some(b'\r') => {}
                Some(&byte)
                    if b"\xef\xbb\xbf".get(self.position.offset as usize) == Some(&byte) => {}
                Some(_) => return Ok(true),
            }
            self.input.consume(1);
            self.position.offset += 1;
        }
    }
}

impl<R: Read + Send> Rows for CsvRows<R> {
    fn next(&mut self) -> Result<Option<Row<'_>>, InputError> {
        let Some((line, within)) = self.read_record()? else { return Ok(None) };
        self.position.records += 1;
        let content = if !within {
            Err(too_long(self.record_bytes_max))
        } else if self.cells.len() == self.names.len() {
            Ok(Content::Cells { names: &self.names, cells: &self.cells })
        } else {
            Err(format!("{} cells under {} columns", self.cells.len(), self.names.len()))
        };
        Ok(Some(Row { line, content, end: self.position }))
    }

    fn drained(&self) -> bool {
        self.input.buffer().is_empty()
    }

    fn names(&self) -> Option<&[String]> {
        Some(&self.names)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1 << 20;

    type Seen = Vec<(u64, Result<Vec<Vec<u8>>, String>, Position)>;

    fn rest<R: Read + Send>(mut rows: CsvRows<R>) -> Seen {
        let mut seen = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            let cells = row.content.map(|content| match content {
                Content::Cells { cells, .. } => cells.iter().map(<[u8]>::to_vec).collect(),
                Content::Json(_) => panic!("CSV is no JSON"),
            });
            seen.push((row.line, cells, row.end));
        }
        seen
    }

    fn texts(cells: [&str; 2]) -> Result<Vec<Vec<u8>>, String> {
        Ok(cells.iter().map(|cell| cell.as_bytes().to_vec()).collect())
    }

    const SAMPLE: &str =
        "\u{feff}id,name\r\n1,\"a\nb\"\r\n\n2,\"say \"\"hi\"\", now\"\n3\n4,d\r\n\"\",x\"y\r\n5,e";

    #[test]
    fn records_have_their_lines_and_quoted_cells_may_span_them() {
        let rows = CsvRows::new(SAMPLE.as_bytes(), b',', MAX).unwrap();
        assert_eq!(rows.names(), Some(&["id".to_owned(), "name".to_owned()][..]));
        let seen = rest(rows);
        let cells: Vec<_> = seen.iter().map(|(line, cells, _)| (*line, cells.clone())).collect();
        assert_eq!(
            cells,
            [
                (2, texts(["1", "a\nb"])),
                (5, texts(["2", "say \"hi\", now"])),
                (6, Err("1 cells under 2 columns".into())),
                (7, texts(["4", "d"])),
                (8, texts(["", "x\"y"])),
                (9, texts(["5", "e"])),
            ]
        );
    }

    #[test]
    fn reading_on_from_any_record_gives_the_rest() {
        let rows = CsvRows::new(SAMPLE.as_bytes(), b',', MAX).unwrap();
        let names = rows.names().unwrap().to_vec();
        let all = rest(rows);
        for (index, (_, _, end)) in all.iter().enumerate() {
            let input = &SAMPLE.as_bytes()[end.offset as usize..];
            let seen = rest(CsvRows::resume(input, b',', *end, names.clone(), MAX));
            assert_eq!(seen, all[index + 1..], "after record {index}");
        }
    }

    #[test]
    fn a_quote_that_is_never_closed_ends_the_reading_and_a_long_record_costs_itself() {
        let mut input = b"id\n\"".to_vec();
        input.resize(8 << 20, b'x');
        let mut rows = CsvRows::new(&input[..], b',', 4096).unwrap();
        let error = rows.next().unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("quote"), "{error}");
        assert!(rows.position.offset < (1 << 20), "it did not read the whole file");
        let mut rows = CsvRows::new(&b"id\n\"x"[..], b',', 4096).unwrap();
        assert!(rows.next().unwrap_err().to_string().contains("never closed"));

        let mut input = b"id\n".to_vec();
        input.resize(1 << 20, b'x');
        input.extend_from_slice(b"\n7\n");
        let seen = rest(CsvRows::new(&input[..], b',', 4096).unwrap());
        assert!(seen[0].1.as_ref().unwrap_err().contains("longer than 4096"));
        assert_eq!(seen[1].1, Ok(vec![b"7".to_vec()]));
    }

    #[test]
    fn headers_that_cannot_be_used_are_refused() {
        for (input, part) in [("", "header"), ("\n\n", "header"), ("a,a\n", "two columns")] {
            let error = CsvRows::new(input.as_bytes(), b',', MAX).unwrap_err();
            assert!(error.to_string().contains(part), "{input}: {error}");
        }
        assert!(CsvRows::new(&b"a;b\n1;2\n"[..], b';', MAX).is_ok());
    }

    proptest! {
        /// The `csv` crate reads the same cells, whatever the input, as far as quotes are closed.
        #[test]
        fn cells_are_those_that_the_csv_crate_reads(
            body in prop::collection::vec(prop::sample::select(b"a\xc3,\"\r\n ".to_vec()), 0..80), capacity in 1..9_usize,
        ) {
            let mut input = b"h\n".to_vec();
            input.extend_from_slice(&body);
            let mut theirs = csv::ReaderBuilder::new().flexible(true).from_reader(&input[..]);
            let theirs: Vec<Vec<Vec<u8>>> = theirs
                .byte_records()
                .map(|record| record.unwrap().iter().map(<[u8]>::to_vec).collect())
                .collect();
            let mut rows = CsvRows::new(&input[..], b',', MAX).unwrap();
            rows.input = BufReader::with_capacity(capacity, &input[rows.position.offset as usize..]);
            let mut ours = Vec::new();
            loop {
                match rows.read_record() {
                    Ok(Some(_)) => ours.push(rows.cells.iter().map(<[u8]>::to_vec).collect::<Vec<_>>()),
                    Ok(None) => {
                        prop_assert_eq!(&ours, &theirs);
                        break;
                    }
                    Err(error) => {
                        prop_assert!(error.to_string().contains("never closed"));
                        prop_assert_eq!(&ours[..], &theirs[..theirs.len() - 1]);
                        break;
                    }
                }
            }
        }
    }
}
