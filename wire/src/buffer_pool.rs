//! Message buffers that go round: a core's steady traffic allocates none. One pool serves all
//! sessions of a core, so ten thousand idle connections keep nothing.

use stateside_types::limits::{BUFFER_POOL_BYTES_MAX, POOLED_BUFFER_BYTES_MAX};

/// Empty buffers with capacity, last in first out: the warmest is used next.
#[derive(Default)]
pub(crate) struct BufferPool {
    buffers: Vec<Vec<u8>>,
    capacity_bytes: usize,
}

impl BufferPool {
    /// An empty buffer.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let Some(buffer) = self.buffers.pop() else { return Vec::new() };
        self.capacity_bytes -= buffer.capacity();
        buffer
    }

    /// Keeps a buffer for reuse, unless it has none to offer or the pool is full.
    pub(crate) fn give(&mut self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        if capacity == 0
            || capacity > POOLED_BUFFER_BYTES_MAX
            || self.capacity_bytes + capacity > BUFFER_POOL_BYTES_MAX
        {
            return;
        }
        buffer.clear();
        self.capacity_bytes += capacity;
        self.buffers.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty_and_the_pool_stays_bounded() {
        let mut pool = BufferPool::default();
        pool.give(vec![7; 100]);
        let buffer = pool.take();
        assert!(buffer.is_empty() && buffer.capacity() >= 100);

        pool.give(Vec::with_capacity(POOLED_BUFFER_BYTES_MAX + 1));
        pool.give(Vec::new());
        assert_eq!(pool.buffers.len(), 0);

        for _ in 0..2 * BUFFER_POOL_BYTES_MAX / POOLED_BUFFER_BYTES_MAX {
            pool.give(Vec::with_capacity(POOLED_BUFFER_BYTES_MAX));
        }
        assert!(pool.capacity_bytes <= BUFFER_POOL_BYTES_MAX);
        while pool.take().capacity() > 0 {}
        assert_eq!(pool.capacity_bytes, 0);
    }
}
