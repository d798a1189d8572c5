//! Writes that wait for the store that their partition changes to: the newest in memory, the oldest
//! in a file when they are many.
//!
//! ```text
//!   trail ─► in memory ─► (8 MiB: the pool writes them) ─► in the file ─┐
//!                └──────────────────────────────────────────────────────┴─► rounds
//! ```
//! The file has no name: it is gone with the process, as is the copy that needs it. Nothing is read
//! from it that was not written by this process, and every write in it has a checksum.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use stateside_partition::TrailPiece;
use stateside_types::{Sequence, limits::STORE_CHANGE_SPILL_BYTES};

/// Waits in the file.
#[derive(Clone, Copy)]
pub(crate) struct Spilled {
    offset: u64,
    bytes: usize,
    last: Sequence,
}

/// Some of what waits, in its order.
pub(crate) enum Portion {
    InMemory(Vec<u8>),
    InFile(Arc<File>, Spilled),
}

/// Pieces on their way to the file.
pub(crate) struct Spill {
    file: Option<Arc<File>>,
    offset: u64,
    pieces: Vec<TrailPiece>,
}

/// See the file's header. Lives on the partition's core.
#[derive(Default)]
pub(crate) struct Backlog {
    spilled: VecDeque<Spilled>,
    /// On their way to the file; between the two others in age.
    spilling_bytes: usize,
    in_memory: VecDeque<TrailPiece>,
    memory_bytes: usize,
    file_bytes: usize,
    file: Option<Arc<File>>,
    file_end: u64,
}

impl Backlog {
    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.memory_bytes + self.spilling_bytes + self.file_bytes
    }

    /// How many of them in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.memory_bytes + self.spilling_bytes
    }

    /// Whether the oldest can be had at once.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.spilled.is_empty() && self.spilling_bytes == 0
    }

    /// Whether the pool writes some of it to the file.
    pub(crate) fn is_spilling(&self) -> bool {
        self.spilling_bytes > 0
    }

    pub(crate) fn push(&mut self, piece: TrailPiece) {
        self.memory_bytes += piece.bytes.len();
        self.in_memory.push_back(piece);
    }

    /// What is to be written to the file now.
    pub(crate) fn spill(&mut self) -> Option<Spill> {
        if self.is_spilling() || self.memory_bytes < STORE_CHANGE_SPILL_BYTES {
            return None;
        }
        self.spilling_bytes = std::mem::take(&mut self.memory_bytes);
        let pieces = std::mem::take(&mut self.in_memory).into();
        Some(Spill { file: self.file.clone(), offset: self.file_end, pieces })
    }

    /// It has been written.
    pub(crate) fn spilled(&mut self, file: Arc<File>, spilled: Vec<Spilled>) {
        self.file_bytes += std::mem::take(&mut self.spilling_bytes);
        if let Some(last) = spilled.last() {
            self.file_end = last.offset + last.bytes as u64;
        }
        self.spilled.extend(spilled);
        self.file = Some(file);
    }

    /// Takes about so many bytes of the oldest, up to what is durable.
    pub(crate) fn take(&mut self, bytes: usize, durable: Sequence) -> Vec<Portion> {
        let mut portions = Vec::new();
        let mut taken = 0;
        while taken < bytes
            && let Some(&spilled) = self.spilled.front()
            && spilled.last <= durable
        {
            let file = self.file.clone().expect("what was spilled is in a file");
            portions.push(Portion::InFile(file, spilled));
            taken += spilled.bytes;
            self.file_bytes -= spilled.bytes;
            self.spilled.pop_front();
        }
        while taken < bytes && self.is_in_memory() {
            let Some(piece) = self.take_piece(durable) else { break };
            taken += piece.bytes.len();
            portions.push(Portion::InMemory(piece.bytes));
        }
        portions
    }

    /// Takes the oldest piece, if it is in memory and durable.
    pub(crate) fn take_piece(&mut self, durable: Sequence) -> Option<TrailPiece> {
        let is_next = |piece: &TrailPiece| self.is_in_memory() && piece.last <= durable;
        self.in_memory.front().filter(|piece| is_next(piece))?;
        let piece = self.in_memory.pop_front()?;
        self.memory_bytes -= piece.bytes.len();
        Some(piece)
    }

    /// Gives back what is left of the piece that was taken last.
    pub(crate) fn put_back(&mut self, piece: TrailPiece) {
        self.memory_bytes += piece.bytes.len();
        self.in_memory.push_front(piece);
    }
}

impl Spill {
    /// Writes the pieces; on the blocking pool. The file is made below `directory` when there is none.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn write(self, directory: &Path) -> io::Result<(Arc<File>, Vec<Spilled>)> {
        let file = match self.file {
            Some(file) => file,
            None => Arc::new(nameless(directory)?),
        };
        let mut offset = self.offset;
        let mut spilled = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            file.write_all_at(&piece.bytes, offset)?;
            spilled.push(Spilled { offset, bytes: piece.bytes.len(), last: piece.last });
            offset += piece.bytes.len() as u64;
        }
        Ok((file, spilled))
    }
}

impl Portion {
    /// The bytes; on the blocking pool.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn read(self) -> io::Result<Vec<u8>> {
        match self {
            Self::InMemory(bytes) => Ok(bytes),
            Self::InFile(file, Spilled { offset, bytes, .. }) => {
                let mut buffer = vec![0; bytes];
                file.read_exact_at(&mut buffer, offset)?;
                Ok(buffer)
            }
        }
    }
}

/// A file that nobody else can open. Its name goes at once; after a crash in between, the sweep at
/// the start removes it.
fn nameless(directory: &Path) -> io::Result<File> {
    fs::create_dir_all(directory)?;
    let path = directory.join("store-change.tmp");
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(last: u64, bytes: usize) -> TrailPiece {
        TrailPiece { bytes: vec![last as u8; bytes], last: Sequence(last) }
    }

    fn read(portions: Vec<Portion>) -> Vec<u8> {
        portions.into_iter().map(|portion| portion.read().unwrap()[0]).collect()
    }

    #[test]
    fn the_oldest_comes_out_first_wherever_it_waits() {
        let directory = tempfile::tempdir().unwrap();
        let mut backlog = Backlog::default();
        let mut next = 1;
        let mut seen = Vec::new();
        for turn in 0..40 {
            for _ in 0..5 {
                backlog.push(piece(next, 1 << 20));
                next += 1;
            }
            if let Some(spill) = backlog.spill() {
                // While it is written, what came after it does not overtake it.
                let ahead = read(backlog.take(2 << 20, Sequence(next)));
                seen.extend(ahead);
                assert!(backlog.take_piece(Sequence(next)).is_none());
                backlog.push(piece(next, 1 << 20));
                next += 1;
                let (file, spilled) = spill.write(directory.path()).unwrap();
                backlog.spilled(file, spilled);
            }
            if turn % 3 == 0 {
                seen.extend(read(backlog.take(7 << 20, Sequence(next))));
            }
            assert_eq!(backlog.bytes(), (next as usize - 1 - seen.len()) << 20);
        }
        seen.extend(read(backlog.take(usize::MAX, Sequence(next))));
        assert_eq!(seen, (1..next).map(|last| last as u8).collect::<Vec<_>>());
        assert_eq!((backlog.bytes(), backlog.memory_bytes()), (0, 0));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "the file has no name");
    }

    #[test]
    fn what_is_not_durable_waits() {
        let mut backlog = Backlog::default();
        (1..=4).for_each(|last| backlog.push(piece(last, 10)));
        assert_eq!(read(backlog.take(100, Sequence(2))), [1, 2]);
        assert!(backlog.take(100, Sequence(2)).is_empty());
        assert_eq!(backlog.take_piece(Sequence(3)).unwrap().last, Sequence(3));
        assert_eq!(backlog.bytes(), 10);
    }
}
