//! What a run was taken on: a number without its machine is none.

use std::{fs, path::Path};

use serde_json::{Value, json};
use stateside_e2e::{node_process::binary, requirements::workspace_root};

use crate::peers::{PEERS, version_of};

/// The machine and everything that ran on it.
pub struct Machine {
    /// UTC.
    pub taken: String,
    facts: Vec<(&'static str, String)>,
}

impl Machine {
    /// Looks around. `folder` is where the servers keep their data.
    pub fn describe(folder: &Path) -> Self {
        let unknown = || "unknown".to_owned();
        let ask = |command: &[&str]| version_of(command).unwrap_or_else(unknown);
        let mut facts = vec![
            ("CPU", cpu().unwrap_or_else(unknown)),
            ("memory", memory().unwrap_or_else(unknown)),
            ("kernel", ask(&["uname", "-sr"])),
            ("data on", file_system(folder).unwrap_or_else(unknown)),
            (
                "stateside",
                format!("{}, {}", ask(&[&binary().to_string_lossy(), "--version"]), commit()),
            ),
            ("load", ask(&["h2load", "--version"])),
        ];
        facts.extend(PEERS.iter().map(|peer| {
            let version = version_of(peer.version).unwrap_or_else(|| "not installed".to_owned());
            (peer.name, version)
        }));
        Self { taken: ask(&["date", "-u", "+%Y-%m-%d %H:%M UTC"]), facts }
    }

    /// A list for people.
    pub fn lines(&self) -> String {
        let lines: Vec<String> =
            self.facts.iter().map(|(name, fact)| format!("- {name}: {fact}")).collect();
        lines.join("\n")
    }

    /// For the JSON file.
    pub fn json(&self) -> Value {
        let mut value = json!({ "taken": self.taken });
        for (name, fact) in &self.facts {
            value[*name] = json!(fact);
        }
        value
    }
}

fn cpu() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let models: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, model)| model.trim())
        .collect();
    Some(format!("{} x {}", models.len(), models.first()?))
}

fn memory() -> Option<String> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(format!("{:.0} GiB", kib / f64::from(1 << 20)))
}

/// The mount with the longest path above the folder.
fn file_system(folder: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let folder = folder.canonicalize().ok()?;
    let fields = |line: &str| -> Option<(String, String, String)> {
        let mut fields = line.split(' ').map(str::to_owned);
        Some((fields.next()?, fields.next()?, fields.next()?))
    };
    let (device, mount, kind) = mounts
        .lines()
        .filter_map(fields)
        .filter(|(_, mount, _)| folder.starts_with(mount))
        .max_by_key(|(_, mount, _)| mount.len())?;
    Some(format!("{kind} on {device}, mounted at {mount}"))
}

/// What was built, as far as git can tell.
fn commit() -> String {
    let root = workspace_root().to_string_lossy().into_owned();
    version_of(&["git", "-C", &root, "describe", "--always", "--dirty"])
        .filter(|commit| !commit.is_empty())
        .map_or("no commit known".to_owned(), |commit| format!("commit {commit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_that_runs_the_tests_is_known() {
        assert!(cpu().is_some_and(|cpu| !cpu.starts_with('0')));
        assert!(memory().is_some());
        assert!(file_system(Path::new("/")).is_some_and(|found| found.ends_with("at /")));
    }
}
