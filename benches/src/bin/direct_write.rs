//! `direct-write FILE SECONDS`: durable writes of one block, one at a time, and the nanoseconds
//! that each took, on stdout. What the disk does without any server around it.
//!
//! The file is written full of zeroes first, as the log's segments are: a write into blocks that
//! exist commits no metadata.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

const BLOCK: usize = 4096;
/// A log segment's default size.
const FILE_BYTES: u64 = 64 << 20;
const ZEROES: usize = 1 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted = match arguments.as_slice() {
        [file, seconds] => seconds.parse().ok().map(|seconds| (file, Duration::from_secs(seconds))),
        _ => None,
    };
    let Some((file, length)) = wanted else {
        eprintln!("usage: direct-write FILE SECONDS");
        return ExitCode::from(2);
    };
    match measure(Path::new(file), length).and_then(|times| print(&times)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("direct-write: {file}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(path: &Path, length: Duration) -> io::Result<Vec<u128>> {
    fill(path)?;
    let file =
        OpenOptions::new().write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(path)?;
    let mut memory = vec![b'w'; 2 * BLOCK];
    let aligned = memory.as_ptr().align_offset(BLOCK);
    let block = &mut memory[aligned..aligned + BLOCK];
    let mut times = Vec::new();
    let begun = Instant::now();
    let mut at = 0;
    while begun.elapsed() < length {
        let before = Instant::now();
        file.write_all_at(block, at)?;
        times.push(before.elapsed().as_nanos());
        at = (at + BLOCK as u64) % FILE_BYTES;
    }
    Ok(times)
}

fn fill(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    let zeroes = vec![0; ZEROES];
    for _ in 0..FILE_BYTES / ZEROES as u64 {
        file.write_all(&zeroes)?;
    }
    file.sync_all()
}

fn print(times: &[u128]) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for time in times {
        writeln!(out, "{time}")?;
    }
    out.flush()
}
