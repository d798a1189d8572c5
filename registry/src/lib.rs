//! Where the desired partition set of a node is declared.

mod replace;

pub use replace::{replace_file, sync_directory_of};
