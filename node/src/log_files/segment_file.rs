//! One segment's file, open for the log's writes: direct where that works.
//!
//! Over zero-filled blocks a direct, synchronous 4 KiB write takes half as long as an append with
//! `fdatasync`: nothing about the file changes, so no journal is involved. That is why a file is
//! really filled with zeros: after `fallocate` alone each first write would have to record that its
//! extent holds data now.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
};

use stateside_pipeline::log::{AlignedBuffer, BLOCK_BYTES, Generation, SegmentHeader};

/// How much is filled with zeros at a time.
pub(super) const FILL_BYTES: usize = 1 << 20;

/// A prepared segment: full size, headed, and durable as such. Moves from the keeper to the core
/// that writes it, and is closed there.
#[derive(Debug)]
pub struct SegmentFile {
    file: File,
    generation: Generation,
    bytes: u64,
    is_direct: bool,
}

impl SegmentFile {
    /// The segment.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether writes bypass the page cache.
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Writes durably and waits, as tests do that have no ring.
    #[cfg(test)]
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let count = self.file.write_at(bytes, offset)?;
        self.file.sync_data()?;
        Ok(count)
    }

    /// Opens a full-size file and gives it its header.
    pub(super) fn head(path: &Path, header: &SegmentHeader, try_direct: bool) -> io::Result<Self> {
        let mut block = AlignedBuffer::zeroed(BLOCK_BYTES);
        header.encode(&mut block);
        let (file, is_direct) = with_direct(try_direct, |flags| {
            let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
            // Some file systems open a file for direct writes and then refuse them.
            file.write_all_at(&block, 0)?;
            file.sync_data()?;
            Ok(file)
        })?;
        Ok(Self { file, generation: header.generation, bytes: header.segment_bytes, is_direct })
    }
}

impl AsFd for SegmentFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for SegmentFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Creates a file of `bytes` zeros, durable but for its name. `between` is called after every
/// `FILL_BYTES`; its error ends the work.
pub(super) fn fill(
    path: &Path,
    bytes: u64,
    try_direct: bool,
    mut between: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    let zeros = AlignedBuffer::zeroed(FILL_BYTES);
    let first = bytes.min(FILL_BYTES as u64) as usize;
    let (file, _) = with_direct(try_direct, |flags| {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(flags)
            .open(path)?;
        file.write_all_at(&zeros[..first], 0)?;
        Ok(file)
    })?;
    let mut done = first as u64;
    while done < bytes {
        between()?;
        let count = (bytes - done).min(FILL_BYTES as u64) as usize;
        file.write_all_at(&zeros[..count], done)?;
        done += count as u64;
    }
    file.sync_all()
}

/// Runs `with` with the flag for direct writes, and again without where the file system does not
/// take it. Returns whether it took it.
fn with_direct<T>(
    try_direct: bool,
    mut with: impl FnMut(i32) -> io::Result<T>,
) -> io::Result<(T, bool)> {
    if try_direct {
        match with(libc::O_DIRECT) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            other => return other.map(|value| (value, true)),
        }
    }
    with(0).map(|value| (value, false))
}
