//! House rules that neither rustfmt nor clippy knows: pure crates stay pure, files stay
//! readable, exceptions carry a reason.
//!
//! It looks at text, not at syntax: a rule here has to be one that a plain search can decide.
//! What follows `#[cfg(test)]` is exempt from the purity rules, tests may use files and clocks.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Longest source file, in lines. Generated code is exempt.
const FILE_LINES_MAX: usize = 800;

/// Crates, or parts of them, that do no IO, read no clock, draw no randomness, never await.
/// `statestore` and `partition-mgr` have files that touch the disk; each is named. So are the files
/// of the load generator that decide what is called, when, and what the figures say.
const PURE: &[&str] = &[
    "types/src",
    "wire/src",
    "router/src",
    "pipeline/src",
    "partition/src",
    "partition-mgr/src/plan.rs",
    "partition-mgr/src/placement.rs",
    "node/src/cli/bench/inserts.rs",
    "node/src/cli/bench/records.rs",
    "node/src/cli/bench/schedule.rs",
    "node/src/cli/bench/statistics.rs",
    "node/src/cli/bench/steps.rs",
    "node/src/cli/bench/workload.rs",
    "node/src/cli/bench/zipfian.rs",
];

/// What gives an impure line away, and what to do instead.
const IMPURE: &[(&str, &str)] = &[
    ("Instant::now", "take the time as a parameter"),
    ("SystemTime::now", "take the time as a parameter"),
    ("thread::sleep", "return an effect with a deadline"),
    ("thread_rng", "take a seeded generator as a parameter"),
    ("rand::random", "take a seeded generator as a parameter"),
    ("std::fs", "return an effect; the node does IO"),
    ("std::net", "return an effect; the node does IO"),
    (".await", "return an effect; nothing here waits"),
];

/// Reads every Rust file under the workspace root and names what breaks a rule.
///
/// # Errors
/// A folder or file could not be read.
pub(crate) fn violations(root: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for path in rust_files(root)? {
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        found.extend(violations_in(&name, &fs::read_to_string(&path)?));
    }
    Ok(found)
}

fn violations_in(name: &str, text: &str) -> Vec<String> {
    if name.contains("/generated/") {
        return Vec::new();
    }
    let mut found = Vec::new();
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        found.push(format!("{name}: {lines} lines; at most {FILE_LINES_MAX}, divide it"));
    }
    if !text.starts_with("//!") {
        found.push(format!("{name}: starts without a `//!` header that says what it is and why"));
    }
    let pure = PURE.iter().any(|prefix| name.starts_with(prefix)) && !is_test(name);
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        if line.trim_start().starts_with("#[cfg(test)]") {
            break;
        }
        if code.contains("#[allow(")
            && !code.contains("reason")
            && !attribute_has_reason(text, index)
        {
            found.push(format!("{name}:{}: an exception carries its reason", index + 1));
        }
        if !pure {
            continue;
        }
        for (sign, instead) in IMPURE {
            if code.contains(sign) {
                found.push(format!("{name}:{}: `{sign}` in a pure crate; {instead}", index + 1));
            }
        }
    }
    found
}

/// Files that only tests compile: `tests/`, `*_tests.rs`, and the worlds that they simulate.
fn is_test(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    name.contains("/tests/")
        || file == "tests.rs"
        || file.ends_with("_tests.rs")
        || file.starts_with("simulated_")
}

/// An attribute may run over several lines, or have its reason in a comment beside or above it.
fn attribute_has_reason(text: &str, index: usize) -> bool {
    let lines: Vec<&str> = text.lines().collect();
    let ends = lines[index..].iter().position(|line| line.contains(")]")).unwrap_or(0) + index;
    let commented = |line: &str| line.contains("// ");
    lines[index..=ends].iter().any(|line| line.contains("reason") || commented(line))
        || (index > 0 && commented(lines[index - 1]))
}

fn rust_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && name != "node_modules" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_in_a_pure_crate_is_named_with_its_line() {
        let text = "//! x\nfn f() {\n    std::time::Instant::now();\n}\n";
        let found = violations_in("partition/src/machine.rs", text);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("partition/src/machine.rs:3: `Instant::now`"), "{found:?}");
        assert!(violations_in("node/src/main.rs", text).is_empty());
        assert!(violations_in("pipeline/src/log/writer_tests.rs", text).is_empty());
    }

    #[test]
    fn comments_and_tests_may_speak_of_clocks() {
        let text = "//! x\n// not Instant::now\n#[cfg(test)]\nmod t { use std::fs; }\n";
        assert!(violations_in("types/src/a.rs", text).is_empty());
    }

    #[test]
    fn long_files_and_missing_headers_are_named() {
        let long = format!("//! x\n{}", "\n".repeat(FILE_LINES_MAX));
        assert!(violations_in("node/src/a.rs", &long)[0].contains("divide it"));
        assert!(violations_in("node/src/a.rs", "fn f() {}")[0].contains("header"));
        assert!(violations_in("proto/src/generated/a.rs", &long[5..]).is_empty());
    }

    #[test]
    fn an_exception_without_a_reason_is_named() {
        let bare = "//! x\n#[allow(dead_code)]\nfn f() {}\n";
        assert!(violations_in("node/src/a.rs", bare)[0].contains("carries its reason"));
        for good in [
            "//! x\n#[allow(dead_code, reason = \"y\")]\nfn f() {}\n",
            "//! x\n#[allow(dead_code)] // y\nfn f() {}\n",
            "//! x\n// y\n#[allow(dead_code)]\nfn f() {}\n",
            "//! x\n#[allow(\n    dead_code,\n    reason = \"y\"\n)]\nfn f() {}\n",
        ] {
            assert!(violations_in("node/src/a.rs", good).is_empty(), "{good}");
        }
    }
}
