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

/// CPU time so far, in ticks of the kernel's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTimes {
    /// Of all CPUs.
    all: u64,
    /// Of that, nothing to do.
    idle: u64,
    /// This process and the children that have ended.
    own: u64,
}

impl CpuTimes {
    /// None where the kernel does not tell.
    pub fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        Self::parse(&stat, &fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// `user nice system idle iowait irq softirq steal`, see proc(5): guest times are in user's.
    /// Of the process, fields 14 to 17.
    fn parse(machine: &str, process: &str) -> Option<Self> {
        let line = machine.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let all: Vec<u64> = numbers(line.split_whitespace().take(8))?;
        let after_name = process.rsplit_once(')')?.1;
        let own: Vec<u64> = numbers(after_name.split_whitespace().skip(11).take(4))?;
        let idle = all.get(3)? + all.get(4)?;
        Some(Self { all: all.iter().sum(), idle, own: own.iter().sum() })
    }

    /// The share of the machine's CPU time since `before` that went to others: other processes,
    /// and the host's other machines.
    pub fn share_of_others_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all);
        let known = self.idle.saturating_sub(before.idle) + self.own.saturating_sub(before.own);
        all.saturating_sub(known) as f64 / all.max(1) as f64
    }
}

fn numbers<'t>(words: impl Iterator<Item = &'t str>) -> Option<Vec<u64>> {
    words.map(|word| word.parse().ok()).collect()
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
    fn what_neither_idles_nor_is_ours_is_of_others() {
        let times = |machine, own| {
            CpuTimes::parse(machine, &format!("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 {own} 0 1 0 0"))
                .unwrap()
        };
        let before = times("cpu  10 0 0 0 0 0 0 0 0 0\ncpu0 1 2\n", 10);
        let after = times("cpu  60 10 0 20 10 0 0 10 9 9\n", 40);
        assert_eq!(after.share_of_others_since(before), 0.4);
        assert_eq!(CpuTimes::parse("cpu 1 2\n", ""), None);
        assert!(CpuTimes::now().is_some());
    }

    #[test]
    fn the_machine_that_runs_the_tests_is_known() {
        assert!(cpu().is_some_and(|cpu| !cpu.starts_with('0')));
        assert!(memory().is_some());
        assert!(file_system(Path::new("/")).is_some_and(|found| found.ends_with("at /")));
    }
}
