//! A file that is written once from its start to its end, past the page cache where the file system
//! takes that.
//!
//! A snapshot through the page cache costs its CPU a copy, a page of memory for every 4 KiB and the
//! writing back, mostly in the kernel, where a core that shares the CPU cannot take it back; and it drives
//! out of the cache what others read. A direct write costs a copy, and then waits for the disk.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use stateside_pipeline::log::AlignedBuffer;

use crate::reactor::start_writeback;

/// Written at a time.
const WRITE_BYTES: usize = 256 << 10;

/// The file and what has been gathered for its next write. Lives on the blocking pool's threads.
pub(crate) struct SequentialFile {
    file: File,
    is_direct: bool,
    buffer: AlignedBuffer,
    filled: usize,
    written: u64,
}

impl SequentialFile {
    /// Makes the file.
    ///
    /// # Errors
    /// It exists, or what the system says.
    pub(crate) fn create_new(path: &Path) -> io::Result<Self> {
        let open =
            |flags| OpenOptions::new().write(true).create_new(true).custom_flags(flags).open(path);
        let (file, is_direct) = match open(libc::O_DIRECT) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                // Some systems have made the file all the same.
                let _ = std::fs::remove_file(path);
                (open(0)?, false)
            }
            opened => (opened?, true),
        };
        let buffer = AlignedBuffer::zeroed(WRITE_BYTES);
        Ok(Self { file, is_direct, buffer, filled: 0, written: 0 })
    }

    /// Appends `bytes`, part of which may wait for more.
    ///
    /// # Errors
    /// What the system says. The file is of no use then.
    pub(crate) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(WRITE_BYTES - self.filled));
            self.buffer[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == WRITE_BYTES {
                self.write()?;
            }
        }
        Ok(())
    }

    /// Writes what is left and makes the file durable, but for its name.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        if self.filled > 0 {
            // Less than a block cannot go past the cache.
            self.write_through_cache()?;
            self.write()?;
        }
        self.file.sync_all()
    }

    fn write(&mut self) -> io::Result<()> {
        let bytes = &self.buffer[..self.filled];
        match self.file.write_all_at(bytes, self.written) {
            // Some file systems open a file for direct writes and then refuse them.
            Err(error) if self.is_direct && error.kind() == io::ErrorKind::InvalidInput => {
                self.write_through_cache()?;
                self.file.write_all_at(&self.buffer[..self.filled], self.written)?;
            }
            written => written?,
        }
        if !self.is_direct {
            start_writeback(&self.file, self.written, self.filled);
        }
        self.written += self.filled as u64;
        self.filled = 0;
        Ok(())
    }

    fn write_through_cache(&mut self) -> io::Result<()> {
        if self.is_direct {
            fcntl_setfl(&self.file, fcntl_getfl(&self.file)? - OFlags::DIRECT)?;
            self.is_direct = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_appended_is_in_the_file_whatever_the_pieces() {
        let directory = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..3 * WRITE_BYTES as u32 + 777).map(|at| (at / 3) as u8).collect();
        for length in [0, 1, 4096, WRITE_BYTES - 1, WRITE_BYTES, WRITE_BYTES + 1, bytes.len()] {
            for piece in [1_000, WRITE_BYTES, 10 * WRITE_BYTES] {
                let path = directory.path().join(format!("{length}-{piece}"));
                let mut file = SequentialFile::create_new(&path).unwrap();
                bytes[..length].chunks(piece).for_each(|piece| file.append(piece).unwrap());
                file.finish().unwrap();
                assert!(std::fs::read(&path).unwrap() == bytes[..length], "{length} by {piece}");
            }
        }
    }

    #[test]
    fn a_file_that_exists_is_left_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "mine").unwrap();
        let kind = SequentialFile::create_new(file.path()).map(drop).unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(file.path()).unwrap(), b"mine");
    }

    #[test]
    fn a_full_disk_is_told_as_such() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = SequentialFile::create_new(&directory.path().join("file")).unwrap();
        file.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = file.append(&vec![1; WRITE_BYTES]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn where_direct_writes_are_refused_it_goes_on_through_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut file = SequentialFile::create_new(&path).unwrap();
        if !file.is_direct {
            return; // it went through the cache from the start
        }
        // A direct write to an offset between blocks is refused as by a file system that takes none.
        file.append(&[1; 100]).unwrap();
        file.write_through_cache().unwrap();
        file.write().unwrap();
        fcntl_setfl(&file.file, fcntl_getfl(&file.file).unwrap() | OFlags::DIRECT).unwrap();
        file.is_direct = true;
        file.append(&vec![2; 2 * WRITE_BYTES]).unwrap();
        assert!(!file.is_direct);
        file.finish().unwrap();
        let read = std::fs::read(&path).unwrap();
        assert!(read[..100] == [1; 100] && read[100..] == vec![2; 2 * WRITE_BYTES]);
    }
}
