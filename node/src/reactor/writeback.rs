//! Writing a file's pages back while it grows.

use std::{fs::File, os::fd::AsRawFd};

/// Has the kernel start to write back what was written to `file` from `offset` on, `length` bytes.
/// It promises nothing: only an fsync makes a file durable. Without it all pages wait for that
/// fsync, which then keeps its CPU for milliseconds, in the kernel, where a core that shares the CPU
/// cannot take it back.
///
/// Where a file system cannot do that, nothing happens; what goes wrong is told by the fsync too.
pub fn start_writeback(file: &File, offset: u64, length: usize) {
    // SAFETY: takes numbers only, and the descriptor is open for as long as `file` is borrowed.
    unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            offset as i64,
            length as i64,
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}
