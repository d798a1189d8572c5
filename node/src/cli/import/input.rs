//! The input itself: a file or stdin, its format, and what tells one file from another.

use std::{
    fs::File,
    io::{Chain, Cursor, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use stateside_router::key_hash;
use stateside_types::limits::IMPORT_RECORD_BYTES_MAX;

use super::{
    csv_rows::CsvRows,
    json_array::JsonArrayRows,
    ndjson::NdjsonRows,
    rows::{InputError, Position, Rows},
};

/// How much of a file's beginning tells it from others.
const HEAD_BYTES: usize = 64 << 10;

/// How records are written.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum InputFormat {
    /// One JSON object a line.
    Ndjson,
    /// One JSON array of objects.
    Json,
    /// Rows of cells under a header row.
    Csv,
}

/// Where records come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Stdin,
    File(PathBuf),
}

/// Tells whether a file is still the one that an import began with.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Identity {
    bytes: u64,
    modified_unix_ns: i128,
    /// xxh3-64 of the first 64 KiB, hexadecimal.
    head_hash: String,
}

/// An input that is open, at its start, its first bytes known.
pub(super) struct Opened {
    pub(super) rows: Box<dyn Rows>,
    /// Size, when it is known beforehand.
    pub(super) bytes: Option<u64>,
    pub(super) format: InputFormat,
}

impl Input {
    /// `-` is stdin.
    pub(super) fn new(path: &Path) -> Self {
        if path == Path::new("-") { Self::Stdin } else { Self::File(path.to_owned()) }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Stdin => "stdin".to_owned(),
            Self::File(path) => path.display().to_string(),
        }
    }

    /// What tells the file from others; `None` for stdin and for pipes, which cannot be read again.
    pub(super) fn identity(&self) -> Result<Option<Identity>, InputError> {
        let Self::File(path) = self else { return Ok(None) };
        let mut file = self.open_file(path)?;
        let wrong = |error: std::io::Error| self.cannot("read", &error);
        let metadata = file.metadata().map_err(wrong)?;
        if !metadata.is_file() {
            return Ok(None);
        }
        let mut head = Vec::new();
        file.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(wrong)?;
        Ok(Some(Identity {
            bytes: metadata.len(),
            modified_unix_ns: i128::from(metadata.mtime()) * 1_000_000_000
                + i128::from(metadata.mtime_nsec()),
            head_hash: format!("{:016x}", key_hash(&head).0),
        }))
    }

    /// Opens the input at `from`. Without a `format` the name's ending decides, else the first byte.
    pub(super) fn open(
        &self,
        format: Option<InputFormat>,
        delimiter: u8,
        from: Position,
    ) -> Result<Opened, InputError> {
        match self {
            Self::Stdin => {
                let (head, stdin) = self.peek(std::io::stdin())?;
                let format = format.map_or_else(|| self.detect(&head), Ok)?;
                let source = Cursor::new(head).chain(stdin);
                Ok(Opened { rows: start(source, format, delimiter)?, bytes: None, format })
            }
            Self::File(path) => {
                let file = self.open_file(path)?;
                let metadata = file.metadata().map_err(|error| self.cannot("read", &error))?;
                let bytes = metadata.is_file().then_some(metadata.len());
                let (head, mut file) = self.peek(file)?;
                let format = format.map_or_else(|| self.detect(&head), Ok)?;
                if from.records == 0 {
                    let source: Chain<_, _> = Cursor::new(head).chain(file);
                    return Ok(Opened { rows: start(source, format, delimiter)?, bytes, format });
                }
                let names = match format {
                    // The header is where it was; the records are read from further down.
                    InputFormat::Csv => {
                        let again = self.open_file(path)?;
                        let rows = CsvRows::new(again, delimiter, IMPORT_RECORD_BYTES_MAX)?;
                        rows.names().unwrap_or_default().to_vec()
                    }
                    _ => Vec::new(),
                };
                file.seek(SeekFrom::Start(from.offset))
                    .map_err(|error| self.cannot("seek in", &error))?;
                let max = IMPORT_RECORD_BYTES_MAX;
                let rows: Box<dyn Rows> = match format {
                    InputFormat::Ndjson => Box::new(NdjsonRows::new(file, from, max)),
                    InputFormat::Json => Box::new(JsonArrayRows::new(file, from, max)),
                    InputFormat::Csv => {
                        Box::new(CsvRows::resume(file, delimiter, from, names, max))
                    }
                };
                Ok(Opened { rows, bytes, format })
            }
        }
    }

    fn open_file(&self, path: &Path) -> Result<File, InputError> {
        File::open(path).map_err(|error| self.cannot("open", &error))
    }

    fn cannot(&self, what: &str, error: &std::io::Error) -> InputError {
        InputError::at(0, format!("cannot {what} {}: {error}", self.name()))
    }

    /// Reads the first bytes: enough to see what begins, whatever blank space is before it.
    fn peek<R: Read>(&self, mut source: R) -> Result<(Vec<u8>, R), InputError> {
        let mut head = Vec::new();
        while first_byte(&head).is_none() && head.len() < 4096 {
            let before = head.len();
            head.resize(before + 512, 0);
            let read =
                source.read(&mut head[before..]).map_err(|error| self.cannot("read", &error))?;
            head.truncate(before + read);
            if read == 0 {
                break;
            }
        }
        Ok((head, source))
    }

    fn detect(&self, head: &[u8]) -> Result<InputFormat, InputError> {
        let extension = match self {
            Self::File(path) => path.extension().and_then(|e| e.to_str()).unwrap_or_default(),
            Self::Stdin => "",
        };
        match (extension.to_ascii_lowercase().as_str(), first_byte(head)) {
            ("ndjson" | "jsonl", _) => Ok(InputFormat::Ndjson),
            ("csv", _) => Ok(InputFormat::Csv),
            // A `.json` file of one object a line is common enough.
            ("json", Some(b'{')) => Ok(InputFormat::Ndjson),
            ("json", _) => Ok(InputFormat::Json),
            (_, Some(b'[')) => Ok(InputFormat::Json),
            (_, Some(b'{')) => Ok(InputFormat::Ndjson),
            _ => Err(InputError::at(
                0,
                format!(
                    "cannot tell the format of {}; give --format ndjson, json or csv",
                    self.name()
                ),
            )),
        }
    }
}

fn first_byte(head: &[u8]) -> Option<u8> {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    head.iter().copied().find(|byte| !byte.is_ascii_whitespace())
}

fn start(
    source: impl Read + Send + 'static,
    format: InputFormat,
    delimiter: u8,
) -> Result<Box<dyn Rows>, InputError> {
    let (from, max) = (Position::default(), IMPORT_RECORD_BYTES_MAX);
    Ok(match format {
        InputFormat::Ndjson => Box::new(NdjsonRows::new(source, from, max)),
        InputFormat::Json => Box::new(JsonArrayRows::new(source, from, max)),
        InputFormat::Csv => Box::new(CsvRows::new(source, delimiter, max)?),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn detect(name: &str, content: &str) -> Result<InputFormat, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        let opened = Input::new(&path).open(None, b',', Position::default());
        opened.map(|opened| opened.format).map_err(|error| error.to_string())
    }

    #[test]
    fn the_format_follows_from_the_name_or_the_first_byte() {
        assert_eq!(detect("a.ndjson", "{}"), Ok(InputFormat::Ndjson));
        assert_eq!(detect("a.JSONL", "{}"), Ok(InputFormat::Ndjson));
        assert_eq!(detect("a.json", " \n[{}]"), Ok(InputFormat::Json));
        assert_eq!(detect("a.json", "{}\n{}"), Ok(InputFormat::Ndjson));
        assert_eq!(detect("a.csv", "a,b\n"), Ok(InputFormat::Csv));
        assert_eq!(detect("dump", "\u{feff}[]"), Ok(InputFormat::Json));
        assert!(detect("dump", "a,b\n").unwrap_err().contains("--format"));
        assert!(
            Input::File("/nowhere/x.csv".into()).open(None, b',', Position::default()).is_err()
        );
    }

    #[test]
    fn a_changed_file_has_another_identity() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.csv");
        fs::write(&path, "a\n1\n").unwrap();
        let input = Input::new(&path);
        let before = input.identity().unwrap();
        assert_eq!(input.identity().unwrap(), before);
        fs::write(&path, "a\n2\n").unwrap();
        assert_ne!(input.identity().unwrap(), before);
        assert_eq!(Input::Stdin.identity().unwrap(), None);
    }

    #[test]
    fn every_format_is_read_on_from_every_record() {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("a.ndjson", "{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n"),
            ("a.json", "[{\"a\":1},\n{\"a\":2},\n{\"a\":3}\n]"),
            ("a.csv", "a\n1\n2\n3\n"),
        ] {
            let path = directory.path().join(name);
            fs::write(&path, content).unwrap();
            let input = Input::new(&path);
            let ends = |from: Position| {
                let mut rows = input.open(None, b',', from).unwrap().rows;
                let mut ends = Vec::new();
                while let Some(row) = rows.next().unwrap() {
                    ends.push((row.line, row.end));
                }
                ends
            };
            let all = ends(Position::default());
            assert_eq!(all.len(), 3, "{name}");
            for (index, (_, end)) in all.iter().enumerate() {
                assert_eq!(ends(*end), all[index + 1..], "{name}");
            }
        }
    }
}
