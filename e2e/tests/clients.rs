//! The behaviours of `cases.json` through clients in four languages, each against a node of its
//! own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{path::Path, process::Command};

use stateside_e2e::{
    cases,
    command_line::{run, stateside},
    config::Config,
    grpcurl::Grpcurl,
    node_process::Site,
    raw_http2::framed,
    requirements::{missing, target_folder, tool, workspace_root},
    tonic_caller::TonicCaller,
};

/// One core, so that Topology has 8 partitions; a memory limit that one case fills.
fn site() -> Site {
    Site::new(Config { memory_limit_mb: 64, ..Config::default() })
}

#[test]
fn tonic_passes_the_cases() {
    let site = site();
    let _node = site.start();
    let mut caller = TonicCaller::connect(&site.data_address());
    cases::run_all(&mut caller, "tonic").unwrap_or_else(|failed| panic!("{failed}"));
}

#[test]
fn grpcurl_passes_the_cases() {
    let Some(program) = tool("grpcurl_passes_the_cases", "grpcurl/grpcurl") else { return };
    let site = site();
    let _node = site.start();
    let mut caller = Grpcurl::new(&program, &site.data_address());
    cases::run_all(&mut caller, "grpcurl").unwrap_or_else(|failed| panic!("{failed}"));
}

#[test]
fn grpcurl_finds_the_control_plane_by_reflection() {
    let Some(program) = tool("grpcurl_finds_the_control_plane", "grpcurl/grpcurl") else { return };
    let site = site();
    let _node = site.start();
    let address = site.control_address();
    let grpcurl = |arguments: &[&str]| {
        run(Command::new(&program).arg("-plaintext").args(arguments)).ok().to_owned()
    };
    let services = grpcurl(&[&address, "list"]);
    for service in ["stateside.v1.ControlPlane", "grpc.health.v1.Health"] {
        assert!(services.lines().any(|line| line == service), "{services}");
    }
    let status = grpcurl(&[&address, "stateside.v1.ControlPlane/Status"]);
    assert!(status.contains("\"serving\""), "{status}");
    let health = grpcurl(&[&address, "grpc.health.v1.Health/Check"]);
    assert!(health.contains("SERVING"), "{health}");
}

#[test]
fn python_passes_the_cases() {
    let Some(python) = tool("python_passes_the_cases", "python/bin/python") else { return };
    let stubs = target_folder().join("e2e/python-stubs");
    make_python_stubs(&python, &stubs);
    let site = site();
    let _node = site.start();
    let ran = run(Command::new(python)
        .arg(workspace_root().join("e2e/clients/python/run_cases.py"))
        .arg(site.data_address())
        .arg(stubs)
        .arg("python"));
    print!("{}", ran.stdout);
    assert_eq!(ran.code, Some(0), "{}\n{}", ran.stdout, ran.stderr);
}

#[test]
fn node_passes_the_cases() {
    let Some(modules) = tool("node_passes_the_cases", "node/node_modules") else { return };
    let site = site();
    let _node = site.start();
    let ran = run(Command::new("node")
        .env("NODE_PATH", modules)
        .arg(workspace_root().join("e2e/clients/node/run_cases.js"))
        .arg(site.data_address())
        .arg("node"));
    print!("{}", ran.stdout);
    assert_eq!(ran.code, Some(0), "{}\n{}", ran.stdout, ran.stderr);
}

#[test]
fn h2load_is_served_at_full_speed_without_a_refusal() {
    let test = "h2load_is_served_at_full_speed";
    if Command::new("h2load").arg("--version").output().is_err() {
        missing(test, "h2load is not installed; `cargo xtask tools` does that");
        return;
    }
    let site = site();
    let node = site.start();
    stateside(&site, ["upsert", "k", "v"]).ok();
    let body = site.folder().join("get.body");
    // A GetRequest for the key `k`.
    std::fs::write(&body, framed(false, &[0x0a, 1, b'k'])).unwrap();
    let ran = run(Command::new("h2load")
        .args(["-c8", "-m32", "-t1", "-n50000", "-d"])
        .arg(body)
        .args(["-H", "content-type: application/grpc", "-H", "te: trailers"])
        .arg(format!("http://{}/stateside.v1.DataPlane/Get", site.data_address())));
    assert!(ran.ok().contains("status codes: 50000 2xx"), "{}", ran.stdout);
    let metrics = node.metrics();
    let refused = metrics.lines().filter(|line| line.starts_with("stateside_refused_total{"));
    assert!(refused.clone().all(|line| line.ends_with(" 0")), "{:?}", refused.collect::<Vec<_>>());
}

/// Messages and services from the `.proto` files, as a user of grpcio would make them.
fn make_python_stubs(python: &Path, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let root = workspace_root();
    run(Command::new(python)
        .args(["-m", "grpc_tools.protoc"])
        .arg(format!("-I{}", root.join("proto").display()))
        .arg(format!("-I{}", root.join("e2e/proto").display()))
        .arg(format!("--python_out={}", folder.display()))
        .args(["stateside/v1/data_plane.proto", "undefined.proto", "grpc/health/v1/health.proto"]))
    .ok();
}
