//! The io_uring of a core, with its receive buffers: the one file that talks to the kernel's
//! rings. Everything above it is safe code.
//!
//! # Safety
//! Submission entries name memory and descriptors by number; the kernel trusts them. Entries
//! made here refer to no memory of ours but the registered receive buffers, which live as long as
//! the ring (dropped after it: field order), except [`Uring::write_file`], which is unsafe and
//! says what its caller must keep. Descriptors are resolved when an entry is submitted, so a
//! caller keeps one open until the operation has completed; closing one earlier is a bug but
//! not a memory error.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    time::Duration,
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::io::Errno;

use super::{
    buffers::{ProvidedBuffers, ReceivedBuffer},
    token::{Kind, Token},
};
use crate::reactor::{error::ReactorError, probe::explain_setup};

/// The one group of provided buffers.
const BUFFER_GROUP: u16 = 0;
/// `IORING_ENTER_GETEVENTS`: run deferred work; without it nothing ever completes.
const ENTER_GETEVENTS: u32 = 1;

/// A completion, decoded.
pub(super) struct Completion {
    pub(super) token: Token,
    /// Bytes, a descriptor, or a negated errno.
    pub(super) result: i32,
    /// The multishot operation goes on.
    pub(super) more: bool,
    /// What was received, already taken from the kernel.
    pub(super) buffer: Option<ReceivedBuffer>,
}

impl Completion {
    /// The result as an io::Result.
    pub(super) fn outcome(&self) -> io::Result<u32> {
        if self.result < 0 {
            Err(io::Error::from_raw_os_error(-self.result))
        } else {
            Ok(self.result as u32)
        }
    }

    /// The socket that an accept has accepted.
    pub(super) fn into_accepted(self) -> Option<OwnedFd> {
        assert!(
            self.token.kind == Kind::Accept && !self.token.cancels,
            "only an accept's result is a descriptor"
        );
        // SAFETY: the kernel has just made this descriptor for us, nothing else owns it, and
        // `self` is consumed, so it is owned once.
        (self.result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(self.result) })
    }

    pub(super) fn errno(&self) -> Option<Errno> {
        (self.result < 0).then(|| Errno::from_raw_os_error(-self.result))
    }
}

/// The ring of one core.
pub(super) struct Uring {
    // Order matters: the ring is closed before the buffers that it writes into are unmapped.
    ring: IoUring,
    buffers: ProvidedBuffers,
    /// Entries that found the submission queue full; they go first at the next `enter`.
    overflow: VecDeque<squeue::Entry>,
    /// Operations that will complete at least once more (cancellations not counted).
    in_flight: usize,
}

fn make_ring(submissions: u32, completions: u32) -> Result<IoUring, ReactorError> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        // Tells without a system call whether deferred work waits: for spinning.
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(completions)
        .dontfork()
        .build(submissions)
        .map_err(explain_setup)
}

fn register(ring: &IoUring, buffers: &ProvidedBuffers) -> io::Result<()> {
    // SAFETY: the entries are mapped, aligned to a page, `count` of them, and live until the
    // ring is closed: the caller keeps `buffers` beside the ring and drops it afterwards.
    unsafe {
        ring.submitter().register_buf_ring_with_flags(
            buffers.entries_address(),
            buffers.count(),
            BUFFER_GROUP,
            0,
        )
    }
}

/// Tries everything that a core's ring needs, on a small ring that is closed again.
pub(crate) fn probe_ring() -> Result<(), ReactorError> {
    let ring = make_ring(4, 8)?;
    let needs = |met: bool, missing| {
        if met { Ok(()) } else { Err(ReactorError::KernelTooOld { missing }) }
    };
    // Without NODROP completions could be lost when the queue is full.
    needs(ring.params().is_feature_nodrop(), "IORING_FEAT_NODROP")?;
    needs(ring.params().is_feature_ext_arg(), "IORING_FEAT_EXT_ARG")?;
    let mut supported = io_uring::Probe::new();
    ring.submitter().register_probe(&mut supported).map_err(explain_setup)?;
    for (code, missing) in [
        (opcode::Accept::CODE, "IORING_OP_ACCEPT"),
        (opcode::Recv::CODE, "IORING_OP_RECV"),
        (opcode::PollAdd::CODE, "IORING_OP_POLL_ADD"),
        (opcode::AsyncCancel::CODE, "IORING_OP_ASYNC_CANCEL"),
        (opcode::Write::CODE, "IORING_OP_WRITE"),
        (opcode::Fsync::CODE, "IORING_OP_FSYNC"),
    ] {
        needs(supported.is_supported(code), missing)?;
    }
    let buffers = ProvidedBuffers::map(2, 4096)?;
    let registered = register(&ring, &buffers);
    drop(ring); // before the buffers
    registered.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::INVAL) => ReactorError::KernelTooOld { missing: "IORING_REGISTER_PBUF_RING" },
        _ => explain_setup(error),
    })
}

impl Uring {
    /// A ring for the calling thread, with `buffers` registered and published.
    pub(super) fn new(
        submissions: u32,
        completions: u32,
        mut buffers: ProvidedBuffers,
    ) -> Result<Self, ReactorError> {
        let ring = make_ring(submissions, completions)?;
        register(&ring, &buffers).map_err(explain_setup)?;
        buffers.publish_all();
        Ok(Self { ring, buffers, overflow: VecDeque::new(), in_flight: 0 })
    }

    pub(super) fn buffers(&self) -> &ProvidedBuffers {
        &self.buffers
    }

    pub(super) fn give_back(&mut self, buffer: ReceivedBuffer) {
        self.buffers.give_back(buffer);
    }

    /// Operations that will complete at least once more.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Accepts on `listener` until cancelled or failed.
    pub(super) fn accept_all(&mut self, listener: BorrowedFd<'_>, token: Token) {
        // No SOCK_NONBLOCK: a receive on the ring of such a socket would fail with EAGAIN
        // instead of waiting. Sends ask for MSG_DONTWAIT one by one.
        self.start(
            opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd()))
                .flags(libc::SOCK_CLOEXEC)
                .build()
                .user_data(token.encode()),
        );
    }

    /// Receives from `socket` into provided buffers until cancelled, ended, or out of buffers.
    pub(super) fn receive_all(&mut self, socket: BorrowedFd<'_>, token: Token) {
        self.start(
            opcode::RecvMulti::new(types::Fd(socket.as_raw_fd()), BUFFER_GROUP)
                .build()
                .user_data(token.encode()),
        );
    }

    /// Completes once when `socket` has room to send, or has failed.
    pub(super) fn poll_writable(&mut self, socket: BorrowedFd<'_>, token: Token) {
        let events = libc::POLLOUT as u32;
        self.start(
            opcode::PollAdd::new(types::Fd(socket.as_raw_fd()), events)
                .build()
                .user_data(token.encode()),
        );
    }

    /// Completes each time `descriptor` becomes readable anew.
    pub(super) fn poll_readable_all(&mut self, descriptor: BorrowedFd<'_>, token: Token) {
        let events = libc::POLLIN as u32;
        self.start(
            opcode::PollAdd::new(types::Fd(descriptor.as_raw_fd()), events)
                .multi(true)
                .build()
                .user_data(token.encode()),
        );
    }

    /// Writes `len` bytes at `start` to `offset` of `file`; `is_durable`: they are on disk when it
    /// has completed.
    ///
    /// # Safety
    /// The bytes must stay valid and unchanged until the operation's completion has been taken,
    /// even if the ring is to be dropped before.
    pub(super) unsafe fn write_file(
        &mut self,
        file: BorrowedFd<'_>,
        start: *const u8,
        len: u32,
        offset: u64,
        is_durable: bool,
        token: Token,
    ) {
        self.start(
            opcode::Write::new(types::Fd(file.as_raw_fd()), start, len)
                .offset(offset)
                .rw_flags(if is_durable { libc::RWF_DSYNC } else { 0 })
                .build()
                .user_data(token.encode()),
        );
    }

    /// Brings to disk what completed writes have put into `file`.
    pub(super) fn flush_file(&mut self, file: BorrowedFd<'_>, token: Token) {
        self.start(
            opcode::Fsync::new(types::Fd(file.as_raw_fd()))
                .flags(types::FsyncFlags::DATASYNC)
                .build()
                .user_data(token.encode()),
        );
    }

    /// Asks for the end of the operation `token`, whose last completion comes as always. The
    /// request itself completes only when it found nothing to cancel: because the operation is
    /// over, or because it is just being run and must be asked again.
    pub(super) fn cancel(&mut self, token: Token) {
        let own = token.cancellation();
        self.push(
            opcode::AsyncCancel::new(token.encode())
                .build()
                .flags(squeue::Flags::SKIP_SUCCESS)
                .user_data(own.encode()),
        );
    }

    /// Asks for the end of everything.
    pub(super) fn cancel_all(&mut self) {
        let own = Token::new(Kind::Wake, 0, 0).cancellation();
        self.push(
            opcode::AsyncCancel2::new(types::CancelBuilder::any())
                .build()
                .flags(squeue::Flags::SKIP_SUCCESS)
                .user_data(own.encode()),
        );
    }

    fn start(&mut self, entry: squeue::Entry) {
        self.in_flight += 1;
        self.push(entry);
    }

    fn push(&mut self, entry: squeue::Entry) {
        if !self.overflow.is_empty() {
            self.overflow.push_back(entry); // order matters: a cancel follows what it cancels
            return;
        }
        // SAFETY: what entries refer to is valid as the file's head and `write_file` say.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.overflow.push_back(entry);
        }
    }

    fn refill_submissions(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.overflow.front() {
            // SAFETY: as in `push`.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.overflow.pop_front();
        }
    }

    /// Submits, runs deferred work, and returns at once.
    pub(super) fn enter(&mut self) -> Result<(), ReactorError> {
        loop {
            self.refill_submissions();
            let count = self.ring.submission().len() as u32;
            // SAFETY: the arguments are a number of entries that are in the queue, no wait, and
            // a flag; there is no extra argument.
            let entered = unsafe {
                self.ring.submitter().enter::<libc::sigset_t>(count, 0, ENTER_GETEVENTS, None)
            };
            Self::tolerate(entered)?;
            // Entries beyond the queue's size: submit them too, unless the kernel takes none.
            if self.overflow.is_empty() || !self.ring.submission().is_empty() {
                return Ok(());
            }
        }
    }

    /// Submits what has been queued and nothing else.
    pub(super) fn submit(&mut self) -> Result<(), ReactorError> {
        self.refill_submissions();
        let count = self.ring.submission().len() as u32;
        // SAFETY: as in `enter`, without the flag.
        let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(count, 0, 0, None) };
        Self::tolerate(entered)
    }

    /// Submits, runs deferred work, and sleeps until something completes, at most `patience`.
    pub(super) fn enter_and_wait(&mut self, patience: Duration) -> Result<(), ReactorError> {
        if !self.overflow.is_empty() {
            return self.enter();
        }
        let limit = types::Timespec::from(patience);
        let arguments = types::SubmitArgs::new().timespec(&limit);
        Self::tolerate(self.ring.submitter().submit_with_args(1, &arguments))
    }

    /// Sorts what `io_uring_enter` may say in the course of things from what it may not.
    fn tolerate(entered: io::Result<usize>) -> Result<(), ReactorError> {
        let Err(error) = entered else { return Ok(()) };
        match Errno::from_io_error(&error) {
            // Time is up; a signal; no memory for now; the completion queue must be emptied
            // first. All are tried again with the next turn.
            Some(Errno::TIME | Errno::INTR | Errno::AGAIN | Errno::BUSY) => Ok(()),
            _ => Err(ReactorError::io("entering the io_uring", error)),
        }
    }

    /// Whether the kernel has deferred work for us. A hint, for spinning.
    pub(super) fn has_deferred_work(&mut self) -> bool {
        self.ring.submission().taskrun()
    }

    /// Whether completions wait.
    pub(super) fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Whether completions wait in the kernel because the queue was full.
    pub(super) fn has_overflown(&mut self) -> bool {
        self.ring.submission().cq_overflow()
    }

    /// The next completion.
    pub(super) fn next_completion(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        let flags = entry.flags();
        let token = Token::decode(entry.user_data());
        let result = entry.result();
        let more = cqueue::more(flags);
        // A buffer belongs to us as soon as it is named, with data or without.
        let buffer =
            cqueue::buffer_select(flags).map(|id| self.buffers.take(id, result.max(0) as u32));
        if !more && !token.cancels {
            self.in_flight -= 1;
        }
        Some(Completion { token, result, more, buffer })
    }

    /// Lets completions signal `eventfd`; silent until [`signal_completions`](Self::signal_completions).
    pub(super) fn register_eventfd(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        self.signal_completions(false);
        // There is one already if the wait that made it was dropped half-way.
        let _ = self.ring.submitter().unregister_eventfd();
        self.ring.submitter().register_eventfd(eventfd.as_raw_fd())
    }

    /// Switches the signals of the registered eventfd.
    pub(super) fn signal_completions(&mut self, on: bool) {
        let queue = self.ring.completion();
        if on { queue.enable_eventfd() } else { queue.disable_eventfd() }
    }
}
