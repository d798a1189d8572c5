//! Which crate may import which, and where a foreign runtime may live: the *Workspace* table of
//! the architecture, checked against what the manifests declare.
//!
//! Imports point up the table only. Without the check one convenient `use` turns two siblings
//! into one crate, and a runtime that has leaked into a pure crate cannot be taken out again.

use serde_json::Value;

/// What a crate may import from the workspace.
enum Imports {
    /// These and no others.
    Only(&'static [&'static str]),
    /// All crates but these.
    AllBut(&'static [&'static str]),
}

use Imports::{AllBut, Only};

/// Crates that only drive the binary or measure it: nothing may import them but each other.
const OUTER: &[&str] = &[
    "node",
    "sim",
    "e2e",
    "benches",
    "counts",
    "xtask",
    "example-own-stage",
    "example-stream-join",
];

/// The table, in its order. Dev-dependencies follow it too.
const TABLE: &[(&str, Imports)] = &[
    ("types", Only(&[])),
    ("proto", Only(&["types"])),
    // Sans-IO and without a word of Stateside, but for the one table of limits.
    ("wire", Only(&["types"])),
    ("router", Only(&["types"])),
    ("statestore", Only(&["types"])),
    ("pipeline", Only(&["types"])),
    ("partition", Only(&["types", "pipeline", "statestore"])),
    ("partition-mgr", Only(&["types", "router", "pipeline", "partition"])),
    // The pipeline knows which options its stages take.
    ("registry", Only(&["types", "pipeline"])),
    ("client", Only(&["types", "proto", "router"])),
    ("node", AllBut(OUTER)),
    ("sim", AllBut(OUTER)),
    // Looks at the node from outside: only the contract and the placement of keys.
    ("e2e", Only(&["types", "proto", "router"])),
    ("benches", AllBut(&["counts", "xtask"])),
    // Counts the node from inside; what it asks of other crates must not exceed what the node asks,
    // or the release build of the node would not serve it.
    ("counts", Only(&["node", "proto"])),
    ("xtask", Only(&[])),
    // What an embedding binary sees: the node alone. Its test drives that binary.
    ("example-own-stage", Only(&["node", "e2e"])),
    // What an application sees: the client alone. Its test drives the node too.
    ("example-stream-join", Only(&["client", "e2e"])),
];

/// Where a foreign runtime may be declared, and why not elsewhere. Tests may use any.
const HOMES: &[(&str, &[&str], &str)] = &[
    (
        "glommio-ng",
        &["node"],
        "one home, node's reactor module, so that another executor can replace it",
    ),
    ("io-uring", &["node"], "sockets and rings belong to node's reactor module"),
    (
        "tokio",
        &["node", "client", "e2e", "benches", "example-stream-join"],
        "cores run no second runtime; it serves the control plane and clients",
    ),
    (
        "tonic",
        &["node", "client", "proto", "e2e", "benches"],
        "the data plane does not go through it; proto needs its codec traits",
    ),
    ("libnghttp2-sys", &["wire"], "its unsafe calls are argued in one file"),
    ("sled", &["statestore", "benches"], "one store file; the comparison of engines"),
    ("fjall", &["statestore", "benches"], "one store file; the comparison of engines"),
    ("redb", &["benches"], "the comparison of engines"),
    ("rdkafka", &["pipeline", "node"], "one file behind a feature"),
];

/// A package of the workspace as cargo describes it.
#[derive(Debug)]
pub(crate) struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

/// A dependency that a manifest declares.
#[derive(Debug)]
struct Dependency {
    name: String,
    /// Only for tests, benches and examples.
    is_dev: bool,
}

/// Reads the output of `cargo metadata --no-deps`.
///
/// # Errors
/// A sentence when it is not that.
pub(crate) fn packages(metadata: &str) -> Result<Vec<Package>, String> {
    let value: Value = serde_json::from_str(metadata)
        .map_err(|error| format!("cargo metadata printed no JSON: {error}"))?;
    let list = value["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    Ok(list
        .iter()
        .map(|package| Package {
            name: text(&package["name"]),
            dependencies: package["dependencies"]
                .as_array()
                .map(|all| all.iter().map(dependency).collect())
                .unwrap_or_default(),
        })
        .collect())
}

/// What breaks the table, a sentence each.
pub(crate) fn violations(packages: &[Package]) -> Vec<String> {
    packages.iter().flat_map(violations_of).collect()
}

fn violations_of(package: &Package) -> Vec<String> {
    let Some(folder) = package.name.strip_prefix("stateside-") else {
        return vec![format!("{}: packages of the workspace are called stateside-*", package.name)];
    };
    let Some((_, imports)) = TABLE.iter().find(|(name, _)| *name == folder) else {
        return vec![format!(
            "{folder}: not in the table; add it to ARCHITECTURE.md and xtask/src/dependency_direction.rs"
        )];
    };
    let mut found = Vec::new();
    for dependency in &package.dependencies {
        let name = dependency.name.as_str();
        if let Some(other) = name.strip_prefix("stateside-") {
            let allowed = match imports {
                Only(names) => names.contains(&other),
                AllBut(names) => !names.contains(&other),
            };
            // A crate that names itself does so to turn on its own features in tests.
            if !allowed && other != folder {
                found.push(format!("{folder} must not import {other}"));
            }
        }
        for (foreign, homes, reason) in HOMES {
            if name == *foreign && !dependency.is_dev && !homes.contains(&folder) {
                found.push(format!(
                    "{folder} must not depend on {foreign} (homes: {}): {reason}",
                    homes.join(", ")
                ));
            }
        }
    }
    found
}

fn dependency(declared: &Value) -> Dependency {
    Dependency { name: text(&declared["name"]), is_dev: declared["kind"] == "dev" }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[&str]) -> Package {
        Package {
            name: format!("stateside-{name}"),
            dependencies: dependencies
                .iter()
                .map(|name| Dependency { name: (*name).to_owned(), is_dev: false })
                .collect(),
        }
    }

    #[test]
    fn imports_that_the_table_names_pass() {
        let good = [
            package("types", &["thiserror"]),
            package(
                "partition",
                &["stateside-types", "stateside-pipeline", "stateside-statestore"],
            ),
            package("node", &["stateside-wire", "stateside-client", "glommio-ng", "tokio"]),
            package("benches", &["stateside-node", "stateside-e2e", "tonic"]),
        ];
        assert_eq!(violations(&good), Vec::<String>::new());
    }

    #[test]
    fn an_import_between_siblings_or_downwards_is_named() {
        assert_eq!(
            violations(&[package("router", &["stateside-statestore"])]),
            ["router must not import statestore"]
        );
        assert_eq!(
            violations(&[package("types", &["stateside-node"])]),
            ["types must not import node"]
        );
        assert_eq!(
            violations(&[package("node", &["stateside-e2e"])]),
            ["node must not import e2e"]
        );
    }

    #[test]
    fn a_foreign_runtime_outside_its_home_is_named() {
        let found = violations(&[package("partition", &["tokio"])]);
        assert!(found.len() == 1 && found[0].starts_with("partition must not depend on tokio"));
        let mut tested_with_tokio = package("wire", &["tokio"]);
        tested_with_tokio.dependencies[0].is_dev = true;
        assert!(violations(&[tested_with_tokio]).is_empty());
    }

    #[test]
    fn a_crate_that_the_table_does_not_know_is_named() {
        assert!(violations(&[package("extras", &[])])[0].starts_with("extras: not in the table"));
        let foreign = Package { name: "extras".to_owned(), dependencies: Vec::new() };
        assert!(violations(&[foreign])[0].contains("called stateside-*"));
    }

    #[test]
    fn the_table_only_points_up() {
        let mut above: Vec<&str> = Vec::new();
        for (name, imports) in TABLE {
            if let Only(names) = imports {
                for other in *names {
                    assert!(above.contains(other), "{name} imports {other}, which stands below it");
                }
            }
            above.push(name);
        }
    }

    #[test]
    fn cargo_metadata_is_read() {
        let metadata = r#"{"packages":[{"name":"stateside-types","dependencies":[
            {"name":"thiserror","kind":null},{"name":"proptest","kind":"dev"}]}]}"#;
        let packages = packages(metadata).unwrap();
        assert_eq!(packages[0].name, "stateside-types");
        let kinds = packages[0].dependencies.iter().map(|d| (d.name.as_str(), d.is_dev));
        assert!(kinds.eq([("thiserror", false), ("proptest", true)]));
        assert!(super::packages("{}").is_err() && super::packages("no").is_err());
    }
}
