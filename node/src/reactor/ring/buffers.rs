//! The receive buffers that all connections of a core share: the kernel picks one when data
//! arrives, so an idle connection holds none.
//!
//! ```text
//!           take (a completion names it)
//!  kernel ───────────────────────────────► lent
//!    ▲                                       │ give_back
//!    └──── published in the buffer ring ◄────┘
//! ```
//!
//! Turned down: buffers that the kernel fills with several receives one after the other
//! (`IOU_PBUF_RING_INC`, Linux 6.12). They cost the same at 1 to 1,000 connections, need counting,
//! and are young kernel code.
//!
//! # Safety
//! The kernel writes into the buffers whenever a receive is armed. This file keeps the promise
//! that a byte range is readable here only between the completion that names it and its
//! `give_back`, during which the kernel does not touch it: a [`ReceivedBuffer`] cannot be copied,
//! and is consumed when it is given back. The memory is unmapped after the ring is closed
//! (`Uring` drops the two in that order).

use std::{
    ptr::NonNull,
    sync::atomic::{AtomicU16, Ordering},
};

use io_uring::types::BufRingEntry;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::reactor::error::ReactorError;

/// What the ring of entries is aligned to.
const PAGE_BYTES: usize = 4 << 10;
/// Buffers start this much apart beyond their size: with a power of two between them, the first
/// lines of all would fall into the same few sets of the processor's caches.
const COLOUR_BYTES: usize = 192;

/// Received bytes, lent by the ring. Read them with `CoreRing::bytes`, then give them back.
#[derive(Debug)]
#[must_use = "a buffer that is not given back is lost to the core"]
pub struct ReceivedBuffer {
    id: u16,
    len: u32,
}

impl ReceivedBuffer {
    /// Number of bytes received.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether nothing was received; events never carry such a buffer.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The buffers and the ring that tells the kernel which are free.
pub(super) struct ProvidedBuffers {
    /// The mapping: the buffers, the ring of entries.
    mapping: NonNull<u8>,
    mapping_bytes: usize,
    entries: NonNull<BufRingEntry>,
    /// Which buffers are lent.
    lent: Vec<bool>,
    buffer_bytes: u32,
    tail: u16,
    in_kernel: usize,
}

impl ProvidedBuffers {
    /// Maps `count` (a power of two) buffers, not yet known to any ring.
    pub(super) fn map(count: u16, buffer_bytes: u32) -> Result<Self, ReactorError> {
        assert!(count.is_power_of_two() && count <= 1 << 15, "the kernel takes such counts only");
        assert!(buffer_bytes > 0, "a receive needs room");
        let stride = buffer_bytes as usize + COLOUR_BYTES;
        let data_bytes = (stride * usize::from(count)).next_multiple_of(PAGE_BYTES);
        let entries_bytes =
            (size_of::<BufRingEntry>() * usize::from(count)).next_multiple_of(PAGE_BYTES);
        let mapping_bytes = data_bytes + entries_bytes;
        // SAFETY: a fresh private mapping at an address of the kernel's choice replaces nothing.
        let mapping = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                mapping_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .map_err(|errno| ReactorError::io("mapping receive buffers", errno))?;
        let mapping = NonNull::new(mapping.cast::<u8>()).expect("a mapping is never at zero");
        // SAFETY: data_bytes + entries_bytes == mapping_bytes, so both stay inside.
        let entries = unsafe { mapping.add(data_bytes).cast() };
        Ok(Self {
            mapping,
            mapping_bytes,
            entries,
            lent: vec![true; usize::from(count)],
            buffer_bytes,
            tail: 0,
            in_kernel: 0,
        })
    }

    /// Address of the entries: what is registered with the ring.
    pub(super) fn entries_address(&self) -> u64 {
        self.entries.as_ptr() as u64
    }

    /// Number of buffers.
    pub(super) fn count(&self) -> u16 {
        self.lent.len() as u16
    }

    /// Hands all buffers to the kernel. Once, after registering.
    pub(super) fn publish_all(&mut self) {
        assert_eq!(self.tail, 0, "buffers are published once");
        for id in 0..self.count() {
            self.publish(id);
        }
    }

    /// Buffers that the kernel can still fill.
    pub(super) fn in_kernel(&self) -> usize {
        self.in_kernel
    }

    /// Takes what a completion says: `len` bytes in buffer `id`.
    pub(super) fn take(&mut self, id: u16, len: u32) -> ReceivedBuffer {
        let lent = &mut self.lent[usize::from(id)];
        assert!(!*lent, "the kernel fills only buffers that it was given");
        assert!(len <= self.buffer_bytes, "the kernel stays inside the buffer");
        *lent = true;
        self.in_kernel -= 1;
        ReceivedBuffer { id, len }
    }

    /// The bytes of a lent buffer.
    pub(super) fn bytes(&self, buffer: &ReceivedBuffer) -> &[u8] {
        // SAFETY: `take` checked that len lies inside the buffer, which lies inside the mapping.
        // The kernel has written these bytes and does not touch them again before the buffer is
        // published anew, which needs this ReceivedBuffer back by value (`give_back`), and that
        // the borrow of `self` here has ended.
        unsafe {
            std::slice::from_raw_parts(self.start_of(buffer.id).as_ptr(), buffer.len as usize)
        }
    }

    /// Takes a lent buffer back; the kernel may overwrite it from now on.
    pub(super) fn give_back(&mut self, buffer: ReceivedBuffer) {
        self.publish(buffer.id);
    }

    fn publish(&mut self, id: u16) {
        let lent = std::mem::replace(&mut self.lent[usize::from(id)], false);
        assert!(lent, "a buffer goes back once");
        let address = self.start_of(id).as_ptr() as u64;
        let slot = usize::from(self.tail & (self.count() - 1));
        // SAFETY: `slot` is below the number of entries. The kernel reads an entry only after the
        // tail below has passed it, and every entry between its head and the tail is one it was
        // given: at most `count` are out at a time, so this one is free. `resv`, where the
        // tail lives in entry 0, is not written by the setters.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(slot);
            entry.set_addr(address);
            entry.set_len(self.buffer_bytes);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        self.in_kernel += 1;
        // SAFETY: the tail is a u16 inside our mapping, aligned, shared with the kernel, which
        // treats it as an atomic too. Release: it sees the entry before the tail.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    fn start_of(&self, id: u16) -> NonNull<u8> {
        assert!(usize::from(id) < self.lent.len(), "buffer ids come from this ring");
        let stride = self.buffer_bytes as usize + COLOUR_BYTES;
        // SAFETY: id < count, and the mapping holds count * stride bytes of buffers.
        unsafe { self.mapping.add(usize::from(id) * stride) }
    }
}

impl Drop for ProvidedBuffers {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone; the ring that wrote into it is closed already (see
        // the file's head), and no borrow of `bytes` outlives `self`.
        let unmapped = unsafe { munmap(self.mapping.as_ptr().cast(), self.mapping_bytes) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers(count: u16) -> ProvidedBuffers {
        let mut buffers = ProvidedBuffers::map(count, 4096).unwrap();
        buffers.publish_all();
        buffers
    }

    #[test]
    fn a_buffer_goes_back_when_it_is_given_back() {
        let mut buffers = buffers(4);
        assert_eq!(buffers.in_kernel(), 4);
        let lent = buffers.take(2, 4096);
        assert_eq!((lent.len(), buffers.in_kernel()), (4096, 3));
        assert_eq!(buffers.bytes(&lent).len(), 4096);
        buffers.give_back(lent);
        assert_eq!(buffers.in_kernel(), 4);
    }

    #[test]
    #[should_panic(expected = "only buffers that it was given")]
    fn a_completion_with_a_lent_buffer_is_a_bug() {
        let mut buffers = buffers(2);
        let _lent = buffers.take(0, 1);
        let _again = buffers.take(0, 1);
    }

    #[test]
    #[should_panic(expected = "stays inside the buffer")]
    fn a_completion_beyond_the_buffer_is_a_bug() {
        let _ = buffers(2).take(0, 4097);
    }
}
