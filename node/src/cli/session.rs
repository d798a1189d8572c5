//! `--session FILE`: a session that goes on from command to command.
//!
//! The file has the latest token of each partition, in hexadecimal, one a line. It is replaced whole, so a
//! command that is killed leaves the tokens that it found.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use clap::Args;
use stateside_client::Session;

use super::failure::Failure;
use crate::exit::Exit;

/// The session of a command.
#[derive(Args, Debug)]
pub(super) struct SessionArgs {
    /// Keep what the command wrote or read in this file: reads with the same file see that or later,
    /// also with `mode = "split"`, or fail if a crash took it back.
    #[arg(long, value_name = "FILE")]
    session: Option<PathBuf>,
}

impl SessionArgs {
    /// The session of the file, or a new one if there is no such file; none without the option.
    pub(super) fn open(&self) -> Result<Option<Session>, Failure> {
        let Some(path) = &self.session else { return Ok(None) };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed("read", path, error)),
        };
        let tokens = text.lines().map(from_hex).collect::<Option<Vec<_>>>().ok_or_else(|| {
            failed("read", path, "a line of it is no token in hexadecimal; name another file")
        })?;
        Ok(Some(Session::from_tokens(tokens)))
    }

    /// Writes what the session knows now.
    pub(super) fn save(&self, session: Option<&Session>) -> Result<(), Failure> {
        let (Some(path), Some(session)) = (&self.session, session) else { return Ok(()) };
        let mut text = String::new();
        for token in session.tokens() {
            token.iter().for_each(|byte| write!(text, "{byte:02x}").expect("strings grow"));
            text.push('\n');
        }
        let mut new = path.clone().into_os_string();
        new.push(format!(".{}.new", std::process::id()));
        let new = PathBuf::from(new);
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, path))
            .map_err(|error| failed("write", path, error))
    }
}

fn from_hex(line: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = line.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

fn failed(what: &str, path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failure, format!("cannot {what} the session {}: {why}", path.display()))
}
