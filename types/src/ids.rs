//! Newtypes for every number that could be mistaken for another.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// Names a partition within a fleet.
    PartitionId(u32)
);
id!(
    /// A core of this node, counted from 0: one pinned executor thread.
    CoreId(u16)
);
id!(
    /// Bumped at every change of a partition's owner, range or base content. A node never
    /// gives the same epoch to two partitions, so a partition that is removed and added
    /// again under its old id cannot be confused with its former self.
    Epoch(u64)
);
id!(
    /// Position of a write batch in its partition: 1 for the first, then without gaps. Also
    /// the version of every record that the batch wrote. 0 stands for "before any write".
    Sequence(u64)
);

impl Sequence {
    /// Before any write.
    pub const ZERO: Self = Self(0);

    /// The sequence after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        // A partition that wrote a billion batches a second would take 584 years to get there.
        assert!(self.0 != u64::MAX, "sequence numbers are exhausted");
        Self(self.0 + 1)
    }
}

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        assert!(self.0 != u64::MAX, "epochs are exhausted");
        Self(self.0 + 1)
    }
}
