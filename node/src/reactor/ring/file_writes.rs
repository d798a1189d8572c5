//! Positioned file writes under way on the ring: each owns its buffer and a share of its file
//! until the kernel is done, and goes on after a short write.
//!
//! # Safety
//! The kernel (and a disk's DMA) reads the bytes until the completion has been taken. So a slot
//! here holds a share of them, which keeps them where they are and as they are
//! ([`StableBytes`]), and [`CoreRing`](super::CoreRing) empties these slots before it drops:
//! memory reused too early would put foreign bytes on the disk.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};

use rustix::io::Errno;
use stateside_pipeline::log::{AlignedBuffer, PendingWrite};

use super::{
    token::{Kind, Token},
    uring::{Completion, Uring},
};

/// How what was written gets from the disk's cache to where it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// With the write (`RWF_DSYNC`): nothing more to do where the disk writes through its cache. Where
    /// it cannot, a worker of the kernel flushes, on the CPU that heard the disk; twice it waits there
    /// for whoever has that CPU.
    InWrite,
    /// As an operation of its own after the write, by a thread of the ring, on the core's CPU: that is
    /// two switches more, and nobody to wait for but the core.
    Apart,
}

/// Bytes that the kernel may read while they are shared.
///
/// # Safety
/// While an `Rc` of the value exists, `stable_bytes` returns the same memory with the same content,
/// whatever is done with other shares of it.
pub unsafe trait StableBytes {
    /// The bytes.
    fn stable_bytes(&self) -> &[u8];
}

// SAFETY: the buffer owns its memory, and nothing changes it through a shared reference.
unsafe impl StableBytes for AlignedBuffer {
    fn stable_bytes(&self) -> &[u8] {
        self
    }
}

// SAFETY: the write owns its group's memory, and nothing changes it through a shared reference.
unsafe impl StableBytes for PendingWrite {
    fn stable_bytes(&self) -> &[u8] {
        self.bytes()
    }
}

/// One write.
struct FileWrite {
    file: Rc<OwnedFd>,
    offset: u64,
    /// Bytes written so far.
    done: usize,
    bytes: Rc<dyn StableBytes>,
    flush: Flush,
    token: u64,
}

impl FileWrite {
    /// All bytes are written, so what is under way is their flush.
    fn is_flushing(&self) -> bool {
        self.done == self.bytes.stable_bytes().len()
    }
}

/// A write that has ended.
pub(super) struct EndedWrite {
    pub(super) token: u64,
    pub(super) result: io::Result<()>,
}

/// All writes under way on one ring.
#[derive(Default)]
pub(super) struct FileWrites {
    slots: Vec<Option<FileWrite>>,
    free: Vec<u32>,
}

impl FileWrites {
    /// Writes under way.
    pub(super) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether a thread of the ring is flushing, for which it needs the core's CPU.
    pub(super) fn is_flushing(&self) -> bool {
        self.slots.iter().flatten().any(FileWrite::is_flushing)
    }

    /// Starts to write all of `bytes`.
    pub(super) fn start(
        &mut self,
        uring: &mut Uring,
        file: Rc<OwnedFd>,
        offset: u64,
        bytes: Rc<dyn StableBytes>,
        flush: Flush,
        token: u64,
    ) {
        let write = FileWrite { file, offset, done: 0, bytes, flush, token };
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        assert!(slot.is_none(), "a free slot holds no write");
        submit(uring, index, slot.insert(write));
    }

    /// Takes a completion. Some when the write has ended, for good or bad.
    pub(super) fn complete(
        &mut self,
        uring: &mut Uring,
        completion: &Completion,
    ) -> Option<EndedWrite> {
        let index = completion.token.index;
        let slot = &mut self.slots[index as usize];
        let write = slot.as_mut().expect("a write's slot is kept until its completion");
        let length = write.bytes.stable_bytes().len();
        let is_flushed = completion.token.kind == Kind::FileFlush;
        let result = match completion.outcome() {
            Ok(_) if is_flushed => Ok(()),
            Ok(0) if write.done < length => Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                write.done += count as usize;
                assert!(write.done <= length, "the kernel writes what it was given");
                if write.done < length || write.flush == Flush::Apart {
                    submit(uring, index, write);
                    return None;
                }
                Ok(())
            }
            Err(error) => match completion.errno() {
                // Nothing was done and nothing is wrong: once more.
                Some(Errno::INTR | Errno::AGAIN) => {
                    submit(uring, index, write);
                    return None;
                }
                _ => Err(error),
            },
        };
        let write = slot.take().expect("it was there a moment ago");
        self.free.push(index);
        Some(EndedWrite { token: write.token, result })
    }
}

/// Submits what comes next: the rest of the bytes, then their flush.
fn submit(uring: &mut Uring, index: u32, write: &FileWrite) {
    let rest = &write.bytes.stable_bytes()[write.done..];
    if write.is_flushing() {
        uring.flush_file(write.file.as_fd(), Token::new(Kind::FileFlush, index, 0));
        return;
    }
    // The kernel takes at most 2 GiB a write; the rest follows as after any short write.
    let len = rest.len().min(1 << 30) as u32;
    let token = Token::new(Kind::FileWrite, index, 0);
    // SAFETY: the slot's share keeps the bytes until `complete` has the completion (the slot may
    // move within the Vec, the bytes do not), and CoreRing's drop waits for all completions.
    unsafe {
        uring.write_file(
            write.file.as_fd(),
            rest.as_ptr(),
            len,
            write.offset + write.done as u64,
            write.flush == Flush::InWrite,
            token,
        );
    }
}
