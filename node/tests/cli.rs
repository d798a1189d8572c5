//! The built binary: exit codes, what goes to stdout and what to stderr.
//!
//! Against a fake node where a node is needed at all: the verbs' own behaviour is meant here, the
//! end-to-end tests use the real one.
#![allow(clippy::unwrap_used, reason = "a failed step fails its test")]

#[path = "../../client/tests/fake_node/mod.rs"]
mod fake_node;

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use fake_node::{FakeNode, Script};
use serde_json::Value;
use stateside_client::Reason;

fn stateside(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stateside"));
    command.args(arguments).stdin(Stdio::null());
    command.env_remove("STATESIDE_ENDPOINT").env_remove("STATESIDE_CONTROL_ENDPOINT");
    command
}

fn run(arguments: &[&str]) -> Output {
    stateside(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn assert_ends(output: &Output, code: i32, said: &str) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(said), "`{said}` is not in: {stderr}");
}

/// An endpoint where nobody listens.
fn nowhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn a_wrong_command_line_exits_with_2_and_says_what_is_wrong() {
    for (arguments, said) in [
        (&["frobnicate"][..], "unrecognized subcommand"),
        (&["get"], "<KEY>"),
        (&["upsert", "k"], "required"),
        (&["upsert", "k", "v", "--value-file", "x"], "cannot be used"),
        (&["upsert", "k", "v", "--if-absent", "--if-version", "3"], "cannot be used"),
        (&["upsert", "k", "v", "--ack", "maybe"], "not an ack level"),
        (&["get", "k", "--timeout", "soon"], "not a duration"),
        (&["get", "k", "--endpoint", "localhost"], "HOST:PORT"),
        (&["remove", "a", "b", "--if-version", "3"], "one key"),
        (&["partition", "add", "--range", "9..7"], "empty"),
        (&["partition", "add"], "--range"),
        (&["partition", "remove"], "required"),
        (&["import", "x.csv"], "--key"),
        (&["import", "x.csv", "--key", "{a"], "not closed"),
        (&["import", "x.csv", "--key", "a", "--rate", "0"], "not a rate"),
        (&["import", "-", "--key", "a", "--resume", "--format", "csv"], "cannot be read again"),
        (&["import", "x.csv", "--key", "a", "--batch", "99999"], "16384"),
        (&["completions", "cobol"], "invalid value"),
    ] {
        let output = run(arguments);
        assert_ends(&output, 2, said);
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn every_verb_that_reaches_for_a_node_in_vain_exits_with_3() {
    let nowhere = nowhere();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.ndjson");
    std::fs::write(&file, "{\"id\":1}\n").unwrap();
    let file = file.to_str().unwrap();
    for arguments in [
        &["upsert", "k", "v"][..],
        &["get", "k"],
        &["remove", "k"],
        &["import", file, "--key", "id"],
        &["status"],
        &["partition", "list"],
        &["partition", "add", "--range", "0.."],
        &["partition", "remove", "1", "--yes"],
        &["partition", "snapshot", "1", "/tmp/x"],
        &["partition", "restore", "1", "/tmp/x", "--yes"],
    ] {
        let output = run(&[arguments, &["--endpoint", &nowhere]].concat());
        assert_ends(&output, 3, &format!("cannot reach {nowhere}: connection refused"));
        assert!(output.stdout.is_empty(), "{arguments:?}");

        let output = run(&[arguments, &["--endpoint", &nowhere, "-o", "json"]].concat());
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(error["error"]["exit_code"], 3);
    }
    let output = stateside(&["get", "k"]).env("STATESIDE_ENDPOINT", &nowhere).output().unwrap();
    assert_ends(&output, 3, &nowhere);
    let mut status = stateside(&["status"]);
    assert_ends(&status.env("STATESIDE_CONTROL_ENDPOINT", &nowhere).output().unwrap(), 3, &nowhere);
}

#[test]
fn help_documents_exit_codes_and_the_environment() {
    let help = run(&["--help"]);
    assert_ends(&help, 0, "");
    let help = text(&help.stdout);
    for part in ["Exit codes:", "  4  no record with this key", "Examples:", "  import "] {
        assert!(help.contains(part), "{part}");
    }
    let get = run(&["get", "--help"]);
    assert!(text(&get.stdout).contains("STATESIDE_ENDPOINT"));
    let serve = run(&["serve", "--help"]);
    for flag in
        ["--data-dir", "--cores", "--unix-socket", "STATESIDE_LISTEN", "13  serve: io_uring"]
    {
        assert!(text(&serve.stdout).contains(flag), "{flag}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]);
        assert!(script.status.success() && text(&script.stdout).contains("stateside"));
    }
}

#[test]
fn a_value_comes_back_as_the_bytes_that_went_in() {
    let node = FakeNode::start();
    let endpoint = ["--endpoint", &node.endpoint()];
    let bytes = b"\x00\xff no line end";
    let mut upsert = stateside(&["upsert", "bin", "-", endpoint[0], endpoint[1]])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    upsert.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = upsert.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(text(&output.stdout).starts_with("KEY  VERSION  TIME"));

    let get = run(&[&["get", "bin"][..], &endpoint].concat());
    assert_eq!((get.status.code(), &get.stdout[..]), (Some(0), &bytes[..]));
    let get = run(&[&["get", "bin", "absent", "-o", "json"][..], &endpoint].concat());
    let json: Value = serde_json::from_slice(&get.stdout).unwrap();
    assert_eq!(json["records"][0]["value_base64"], "AP8gbm8gbGluZSBlbmQ=");
    assert_eq!(json["records"][0]["version"], 1);
    assert_eq!(json["records"][1]["found"], false);

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("value");
    std::fs::write(&file, "from a file").unwrap();
    let arguments = ["upsert", "f", "--value-file", file.to_str().unwrap(), "-o", "json"];
    let output = run(&[&arguments[..], &endpoint].concat());
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["key"], &json["version"]), (&"f".into(), &2.into()));
    let get = run(&[&["get", "bin", "f"][..], &endpoint].concat());
    assert!(text(&get.stdout).contains("from a file"));

    let remove = run(&[&["remove", "f", "bin"][..], &endpoint].concat());
    assert!(remove.status.success());
    let get = run(&[&["get", "f"][..], &endpoint].concat());
    assert_eq!((get.status.code(), get.stdout.len(), get.stderr.len()), (Some(4), 0, 0));
}

#[test]
fn a_refusal_exits_with_5_and_its_reason() {
    let node = FakeNode::start();
    let endpoint = ["--endpoint", &node.endpoint()];
    node.state.script(Script::Refuse(Reason::ConditionFailed));
    let output = run(&[&["upsert", "k", "v", "--if-absent"][..], &endpoint].concat());
    assert_ends(&output, 5, "error: CONDITION_FAILED: ");
    node.state.script(Script::Refuse(Reason::ConditionFailed));
    let output =
        run(&[&["remove", "k", "--if-version", "3", "-o", "json"][..], &endpoint].concat());
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["reason"], "CONDITION_FAILED");
    assert_eq!(output.status.code(), Some(5));
    let output = run(&[&["get", ""][..], &endpoint].concat());
    assert_ends(&output, 5, "EMPTY_KEY");
}

#[test]
fn the_wrong_port_is_told_as_such() {
    let node = FakeNode::start();
    let output = run(&["status", "--endpoint", &node.endpoint()]);
    assert_ends(&output, 1, "is this the node's other port?");
}
