//! The behaviours of `cases.json` through clients in four languages, each against a node of its
//! own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{path::Path, process::Command};

use stateside_e2e::{
    cases,
    command_line::run,
    config::Config,
    grpcurl::Grpcurl,
    node_process::Site,
    requirements::{target_folder, tool, workspace_root},
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
