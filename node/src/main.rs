//! The `stateside` binary.

fn main() {}
