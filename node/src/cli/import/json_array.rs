//! A JSON array of any size, one element at a time.
//!
//! The scanner only finds where elements begin and end; each element is parsed on its own later. So one
//! that is malformed inside costs one record, and memory is bounded by the largest element.
//!
//! ```text
//!          '['            element            ','
//!  start ─────► first ───────────► behind ─────────► after comma ─┐
//!                 │ ']'              │ ']'   ▲                    │ element
//!                 └──────► end ◄─────┘       └────────────────────┘
//! ```

use std::io::{BufRead, BufReader, Read};

use super::rows::{Content, InputError, Position, Row, Rows, too_long};

/// Where the scanner stands between elements.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Start,
    First,
    Behind,
    AfterComma,
    End,
}

/// Elements of the array that a reader holds.
#[derive(Debug)]
pub(super) struct JsonArrayRows<R> {
    input: BufReader<R>,
    state: State,
    element: Vec<u8>,
    position: Position,
    record_bytes_max: usize,
}

/// Where the scanner stands within an element.
#[derive(Default)]
struct Inside {
    begun: bool,
    depth: u64,
    string: bool,
    escape: bool,
    /// A number or word: ends before what follows it.
    scalar: bool,
    /// Above the limit: passed over, not kept.
    too_long: bool,
}

impl<R: Read> JsonArrayRows<R> {
    /// Reads on from `position`, where `input` stands: the start, or the end of an element.
    pub(super) fn new(input: R, position: Position, record_bytes_max: usize) -> Self {
        Self {
            input: BufReader::with_capacity(256 << 10, input),
            state: if position.records == 0 { State::Start } else { State::Behind },
            element: Vec::new(),
            position: Position { line: position.line.max(1), ..position },
            record_bytes_max,
        }
    }

    /// Passes over everything up to the next element; false at the end of the array.
    fn find_element(&mut self) -> Result<bool, InputError> {
        loop {
            let Some(byte) = self.peek()? else {
                return match self.state {
                    State::End => Ok(false),
                    State::Start => Err(self.error("the input is empty: expected a JSON array")),
                    _ => Err(self.error("the input ends before the array's closing `]`")),
                };
            };
            let next = match (self.state, byte) {
                (_, b' ' | b'\t' | b'\r' | b'\n') => self.state,
                (State::Start, 0xef | 0xbb | 0xbf) if self.position.offset < 3 => State::Start,
                (State::Start, b'[') => State::First,
                (State::Start, _) => {
                    return Err(self.error("expected `[`: a JSON array of objects (for one object a line use --format ndjson)"));
                }
                (State::First | State::Behind, b']') => State::End,
                (State::AfterComma, b']') => {
                    return Err(self.error("expected an element after `,`"));
                }
                (State::Behind, b',') => State::AfterComma,
                (State::Behind, _) => {
                    return Err(self.error("expected `,` or `]` after an element"));
                }
                (State::End, _) => return Err(self.error("text after the array's closing `]`")),
                (State::First | State::AfterComma, b',' | b':' | b'}') => {
                    return Err(
                        self.error(&format!("expected an element, found `{}`", byte as char))
                    );
                }
                (State::First | State::AfterComma, _) => return Ok(true),
            };
            self.state = next;
            self.input.consume(1);
            self.position.offset += 1;
            self.position.line += u64::from(byte == b'\n');
        }
    }

    /// Reads the element that begins here into `self.element`; false when it is too long.
    fn read_element(&mut self) -> Result<bool, InputError> {
        self.element.clear();
        let mut inside = Inside::default();
        loop {
            let (taken, ended) = {
                let buffer = self.input.fill_buf().map_err(|error| {
                    InputError::at(self.position.line, format!("cannot read on: {error}"))
                })?;
                if buffer.is_empty() {
                    return Err(self.error("the input ends in the middle of an element"));
                }
                let (taken, ended) = inside.scan(buffer);
                let piece = &buffer[..taken];
                self.position.line += piece.iter().filter(|&&byte| byte == b'\n').count() as u64;
                if self.element.len() + taken > self.record_bytes_max {
                    inside.too_long = true;
                    self.element.clear();
                } else if !inside.too_long {
                    self.element.extend_from_slice(piece);
                }
                (taken, ended)
            };
            self.input.consume(taken);
            self.position.offset += taken as u64;
            if ended {
                self.state = State::Behind;
                self.position.records += 1;
                return Ok(!inside.too_long);
            }
        }
    }

    fn peek(&mut self) -> Result<Option<u8>, InputError> {
        let line = self.position.line;
        let buffer = self
            .input
            .fill_buf()
            .map_err(|error| InputError::at(line, format!("cannot read on: {error}")))?;
        Ok(buffer.first().copied())
    }

    fn error(&self, message: &str) -> InputError {
        InputError::at(self.position.line, message)
    }
}

impl Inside {
    /// How many of these bytes belong to the element, and whether it ends with them.
    fn scan(&mut self, buffer: &[u8]) -> (usize, bool) {
        for (at, &byte) in buffer.iter().enumerate() {
            if self.string {
                match byte {
                    _ if self.escape => self.escape = false,
                    b'\\' => self.escape = true,
                    b'"' => {
                        self.string = false;
                        if self.depth == 0 {
                            return (at + 1, true);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b',' | b']' | b'}' | b' ' | b'\t' | b'\r' | b'\n' if self.scalar => {
                    return (at, true);
                }
                b'"' if !self.scalar => self.string = true,
                b'{' | b'[' if !self.scalar => self.depth += 1,
                b'}' | b']' => {
                    // Which bracket closes which is for the parser to check.
                    self.depth -= 1;
                    if self.depth == 0 {
                        return (at + 1, true);
                    }
                }
                _ if !self.begun => self.scalar = true,
                _ => {}
            }
            self.begun = true;
        }
        (buffer.len(), false)
    }
}

impl<R: Read + Send> Rows for JsonArrayRows<R> {
    fn next(&mut self) -> Result<Option<Row<'_>>, InputError> {
        if !self.find_element()? {
            return Ok(None);
        }
        let line = self.position.line;
        let content = match self.read_element()? {
            true => Ok(Content::Json(&self.element)),
            false => Err(too_long(self.record_bytes_max)),
        };
        Ok(Some(Row { line, content, end: self.position }))
    }

    fn drained(&self) -> bool {
        self.input.buffer().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Hands out at most `step` bytes at a time, the first time at most `first`.
    struct Pieces<'a> {
        rest: &'a [u8],
        first: usize,
        step: usize,
    }

    impl Read for Pieces<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let length = self.first.min(self.rest.len()).min(out.len());
            let length = if length == 0 { self.step.min(self.rest.len()) } else { length };
            self.first = 0;
            out[..length].copy_from_slice(&self.rest[..length]);
            self.rest = &self.rest[length..];
            Ok(length)
        }
    }

    type Seen = (Vec<(u64, Result<String, String>, Position)>, Option<InputError>);

    fn elements(input: &[u8], from: Position, first: usize, step: usize) -> Seen {
        let pieces = Pieces { rest: &input[from.offset as usize..], first, step };
        let mut rows = JsonArrayRows::new(pieces, from, 60);
        let mut seen = Vec::new();
        loop {
            match rows.next() {
                Ok(Some(row)) => {
                    let content = row.content.map(|content| match content {
                        Content::Json(text) => String::from_utf8_lossy(text).into_owned(),
                        Content::Cells { .. } => panic!("JSON has no cells"),
                    });
                    seen.push((row.line, content, row.end));
                }
                Ok(None) => return (seen, None),
                Err(error) => return (seen, Some(error)),
            }
        }
    }

    fn texts(input: &str) -> (Vec<String>, Option<String>) {
        let (seen, error) = elements(input.as_bytes(), Position::default(), 0, 4096);
        let texts = seen.into_iter().map(|(_, text, _)| text.unwrap_or_else(|e| e)).collect();
        (texts, error.map(|error| error.to_string()))
    }

    const SAMPLE: &str = "\u{feff} [ {\"a\": \"]},[{\\\"\", \"b\": [1, {\"c\": \"\\\\\"}]},\n\n  12.5e3 ,\"x,]\",[],\ttrue\r\n, {\"ä\":\"ü\"} ] \n";

    #[test]
    fn elements_are_found_whatever_they_hold() {
        let expected = [
            "{\"a\": \"]},[{\\\"\", \"b\": [1, {\"c\": \"\\\\\"}]}",
            "12.5e3",
            "\"x,]\"",
            "[]",
            "true",
            "{\"ä\":\"ü\"}",
        ];
        assert_eq!(texts(SAMPLE), (expected.map(str::to_owned).to_vec(), None));
        assert_eq!(texts("[]"), (vec![], None));
        assert_eq!(texts("[1]"), (vec!["1".into()], None));
    }

    #[test]
    fn the_same_is_found_when_the_input_is_split_at_any_byte() {
        let whole = elements(SAMPLE.as_bytes(), Position::default(), 0, usize::MAX);
        for split in 1..SAMPLE.len() {
            assert_eq!(elements(SAMPLE.as_bytes(), Position::default(), split, usize::MAX), whole);
        }
        for step in 1..8 {
            assert_eq!(elements(SAMPLE.as_bytes(), Position::default(), 0, step), whole);
        }
    }

    #[test]
    fn reading_on_from_any_element_gives_the_rest_with_the_same_lines() {
        let (all, _) = elements(SAMPLE.as_bytes(), Position::default(), 0, 16);
        for (index, (_, _, end)) in all.iter().enumerate() {
            let (rest, error) = elements(SAMPLE.as_bytes(), *end, 0, 16);
            assert_eq!(rest, all[index + 1..]);
            assert_eq!(error, None);
        }
    }

    #[test]
    fn what_is_no_array_is_refused_with_its_line() {
        for (input, count, part) in [
            ("", 0, "empty"),
            ("{\"a\":1}", 0, "line 1: expected `[`"),
            ("[1\n,2", 2, "ends in the middle"),
            ("[1 ,", 1, "ends before"),
            ("[1 2]", 1, "expected `,` or `]`"),
            ("[1,]", 1, "after `,`"),
            ("[,]", 0, "found `,`"),
            ("[1]\n\nx", 1, "line 3: text after"),
            ("[{\"a\":\n\"b", 0, "line 2: the input ends in the middle"),
        ] {
            let (seen, error) = texts(input);
            let error = error.unwrap_or_default();
            assert!(error.contains(part), "{input}: {error}");
            assert!(seen.len() <= count, "{input}");
        }
    }

    #[test]
    fn a_malformed_or_overlong_element_costs_one_record() {
        let long = "9".repeat(100);
        let input = format!("[{{\"a\":1]\n, {{\"b\": {long}}}, {{\"c\":3}}]");
        let (seen, error) = texts(&input);
        assert_eq!(seen, ["{\"a\":1]", "the record is longer than 60 bytes", "{\"c\":3}"]);
        assert_eq!(error, None);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_never_panic(
            input in prop::collection::vec(prop::sample::select(b"[]{},:\"\\ \n1a\xc3".to_vec()), 0..60), step in 1..9_usize,
        ) {
            let whole = elements(&input, Position::default(), 0, usize::MAX);
            prop_assert_eq!(elements(&input, Position::default(), 0, step), whole);
        }
    }
}
