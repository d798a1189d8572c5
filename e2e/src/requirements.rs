//! What a test needs beyond Rust, and how it says that it could not run.
//!
//! libtest knows no skipped test: such a test prints a line that starts with `SKIPPED` and
//! passes, and `cargo xtask test` lists these lines in its summary. With `CI` set a missing tool
//! fails the test instead; a missing privilege is only reported, CI cannot install that.

use std::path::{Path, PathBuf};

/// The workspace's root folder.
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("e2e/ lies in the workspace root")
}

/// The folder where `cargo xtask tools` puts what it installs.
pub fn tools_folder() -> PathBuf {
    match std::env::var_os("STATESIDE_E2E_TOOLS") {
        Some(folder) => folder.into(),
        None => target_folder().join("tools"),
    }
}

/// Cargo's build folder: this program runs from inside it.
pub fn target_folder() -> PathBuf {
    profile_folder().parent().expect("a profile's folder lies in the build folder").to_owned()
}

/// The folder of this build's profile, where the `stateside` binary is.
pub fn profile_folder() -> PathBuf {
    let own = std::env::current_exe().expect("the running program has a path");
    let folder = own.parent().expect("a program lies in a folder");
    if folder.ends_with("deps") {
        folder.parent().unwrap_or(folder).to_owned()
    } else {
        folder.to_owned()
    }
}

/// A file that `cargo xtask tools` installs; None when it is not there, which is reported.
///
/// # Panics
/// When it is missing and `CI` is set.
pub fn tool(test: &str, path_in_tools: &str) -> Option<PathBuf> {
    let path = tools_folder().join(path_in_tools);
    if path.exists() {
        return Some(path);
    }
    missing(test, &format!("{path_in_tools} is not installed; `cargo xtask tools` does that"));
    None
}

/// Reports that something is missing that could have been installed.
///
/// # Panics
/// When `CI` is set: CI runs every test.
pub fn missing(test: &str, reason: &str) {
    let in_ci = std::env::var("CI").is_ok_and(|v| !v.is_empty() && v != "false" && v != "0");
    assert!(!in_ci, "{test}: {reason}, and CI runs every test");
    skipped(test, reason);
}

/// Reports that a test could not run here.
pub fn skipped(test: &str, reason: &str) {
    println!("SKIPPED {test}: {reason}");
}

/// Whether this process may mount file systems.
pub fn is_root() -> bool {
    // SAFETY: geteuid reads a number of the process and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Raises this process's limit of open files to `wanted`; answers whether it could.
pub fn raise_open_files(wanted: u64) -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that outlives both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return false;
        }
        if limit.rlim_cur >= wanted {
            return true;
        }
        limit.rlim_cur = wanted;
        limit.rlim_max = limit.rlim_max.max(wanted);
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
    }
}
