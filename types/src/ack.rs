//! What a write's acknowledgement promises.

use std::{fmt, str::FromStr};

/// What must hold before a write is acknowledged. Ordered: a request may ask for more
/// than its partition's default, never for less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ack {
    /// The write is applied in memory; a crash may lose it.
    Memory,
    /// The write is on disk (or wherever the log stage keeps it).
    #[default]
    Durable,
}

impl Ack {
    /// The name used in configuration and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Durable => "durable",
        }
    }
}

impl fmt::Display for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Ack {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "memory" => Ok(Self::Memory),
            "durable" => Ok(Self::Durable),
            other => Err(format!("`{other}` is not an ack level: use `durable` or `memory`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_can_only_raise_the_default() {
        assert_eq!(Ack::Memory.max(Ack::Durable), Ack::Durable);
        assert_eq!(Ack::Durable.max(Ack::Memory), Ack::Durable);
        assert_eq!("durable".parse(), Ok(Ack::Durable));
        assert!("fsync".parse::<Ack>().is_err());
    }
}
