//! Where things lie: the workspace root, the build folder and what is kept in it.

use std::path::{Path, PathBuf};

/// The workspace's root: the folder above this crate's.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ lies in the workspace root")
}

/// Cargo's build folder.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Tools and packages that the tests need, each in a folder of its own.
pub(crate) fn tools() -> PathBuf {
    target().join("tools")
}

/// The node as people run it.
pub(crate) fn release_binary() -> PathBuf {
    target().join("release").join("stateside")
}

/// Output of the steps, one file each.
pub(crate) fn logs() -> PathBuf {
    target().join("xtask").join("logs")
}

/// Whether this is a CI run: there a missing tool is a failure, not a skipped step.
pub(crate) fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false" && value != "0")
}
