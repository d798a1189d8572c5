//! What can go wrong between a core and its kernel, each in one sentence that says what to do.
//!
//! All of these concern the environment: they end the start of the process (or the process),
//! and the text is all that the operator sees. What concerns one connection is an
//! [`Event`](super::Event), not an error.

use std::{io, net::SocketAddr, path::PathBuf};

/// A failure of the environment that a core cannot work around.
#[derive(Debug, thiserror::Error)]
pub enum ReactorError {
    /// The kernel has no io_uring at all (ENOSYS).
    #[error(
        "this kernel has no io_uring: run Linux 6.1 or later, and not under gVisor or a similar sandbox"
    )]
    UringMissing,

    /// io_uring exists and this process may not use it (EPERM, EACCES).
    #[error("io_uring is forbidden: {by}")]
    UringForbidden {
        /// What forbids it, and how to allow it.
        by: String,
    },

    /// io_uring lacks what the network ring needs.
    #[error("the kernel's io_uring is too old (it lacks {missing}): run Linux 6.1 or later")]
    KernelTooOld {
        /// The missing feature.
        missing: &'static str,
    },

    /// The limit on locked memory is too low for the rings of the cores.
    #[error(
        "the limit on locked memory is too low ({limit_kib} KiB for all processes of this user, \
         each core takes about {core_kib} KiB): raise it with LimitMEMLOCK=, --ulimit memlock= \
         or ulimit -l, or run fewer cores"
    )]
    MemlockTooLow {
        /// The limit of this process.
        limit_kib: u64,
        /// What one core takes.
        core_kib: u64,
    },

    /// Another socket listens on the address.
    #[error("{address} is in use by another process: stop it, or listen on another address")]
    AddressInUse {
        /// The address that was asked for.
        address: SocketAddr,
    },

    /// The address cannot be bound for another reason.
    #[error("cannot listen on {address}: {source}")]
    CannotListen {
        /// The address that was asked for.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },

    /// A process listens on the Unix socket.
    #[error("the socket {} is in use by another process", path.display())]
    SocketInUse {
        /// The path that was asked for.
        path: PathBuf,
    },

    /// The path holds something that is no socket; it is left alone.
    #[error("{} exists and is not a socket: remove it, or choose another path", path.display())]
    NotASocket {
        /// The path that was asked for.
        path: PathBuf,
    },

    /// The Unix socket cannot be bound for another reason.
    #[error("cannot listen on the socket {}: {source}", path.display())]
    CannotListenUnix {
        /// The path that was asked for.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// A core's thread, executor or ring could not be made, or the ring broke.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },

    /// A core's code panicked: a bug. The process must end, for its siblings would go on serving
    /// as if this core's partitions did not exist.
    #[error("{thread} panicked: {message}")]
    Panicked {
        /// The thread's name.
        thread: String,
        /// The panic's message.
        message: String,
    },
}

impl ReactorError {
    /// An error of the kernel while doing `what`.
    pub(super) fn io(what: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Io { what, source: source.into() }
    }
}

/// The text of a panic's payload.
pub(super) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a payload that is no text".to_owned()
    }
}
