//! `stateside import` through the built binary, against a fake node: what a real one cannot be made to
//! do on demand. The end-to-end tests import the real data set into the real node.
#![allow(clippy::unwrap_used, reason = "a failed step fails its test")]

#[path = "../../client/tests/fake_node/mod.rs"]
mod fake_node;

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use fake_node::{FakeNode, Script};
use serde_json::Value;
use stateside_client::Reason;

fn import(file: &Path, node: &FakeNode, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stateside"));
    command.arg("import").arg(file).args(["--endpoint", &node.endpoint(), "-o", "json"]);
    command.args(more).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Exit code, summary, stderr.
fn ended(output: Output) -> (i32, Value, String) {
    let stderr = String::from_utf8(output.stderr).unwrap();
    let summary = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap_or(-1), summary, stderr)
}

fn run(file: &Path, node: &FakeNode, more: &[&str]) -> (i32, Value, String) {
    ended(import(file, node, more).output().unwrap())
}

/// Waits until something holds; fails after ten seconds.
#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn ndjson(directory: &Path, records: usize) -> PathBuf {
    let lines = (0..records).fold(String::new(), |mut text, id| {
        writeln!(text, "{{\"id\": {id}, \"name\": \"n{id}\"}}").unwrap();
        text
    });
    let file = directory.join("records.ndjson");
    fs::write(&file, lines).unwrap();
    file
}

fn checkpoint(file: &Path) -> PathBuf {
    PathBuf::from(format!("{}.stateside-import.json", file.display()))
}

fn stored(node: &FakeNode) -> usize {
    node.state.records.lock().unwrap().len()
}

/// A node with sixteen partitions, all on the port it listens on.
fn partitioned() -> FakeNode {
    let node = FakeNode::start();
    let step = 1_u64 << 60;
    let port = node.address.port();
    let partitions: Vec<_> =
        (0..16).map(|i| (i * step, (i + 1).wrapping_mul(step), port)).collect();
    let partitions: Vec<_> = partitions
        .iter()
        .map(|&(start, end, port)| (start, if start >> 60 == 15 { 0 } else { end }, port))
        .collect();
    node.state.set_topology("node", &partitions);
    node
}

#[test]
fn all_formats_end_in_the_same_records() {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in [
        (
            "a.ndjson",
            "{\"k\":\"x\",\"v\":\"1\"}\n{\"k\":\"y\",\"v\":\"2\"}\n{\"k\":\"x\",\"v\":\"3\"}\n",
        ),
        (
            "a.json",
            "[{\"k\":\"x\",\"v\":\"1\"},\n {\"k\":\"y\", \"v\":\"2\"},{\"k\":\"x\",\"v\":\"3\"}]",
        ),
        ("a.csv", "k,v\nx,1\ny,2\nx,3\n"),
    ] {
        let node = partitioned();
        let file = directory.path().join(name);
        fs::write(&file, content).unwrap();
        let (code, summary, stderr) = run(&file, &node, &["--key", "city/{k}"]);
        assert_eq!(code, 0, "{name}: {stderr}");
        assert_eq!(node.state.value(b"city/x"), Some(b"{\"k\":\"x\",\"v\":\"3\"}".to_vec()));
        assert_eq!(node.state.value(b"city/y"), Some(b"{\"k\":\"y\",\"v\":\"2\"}".to_vec()));
        assert_eq!((&summary["records"], &summary["replaced"]), (&3.into(), &1.into()));
        assert_eq!(summary["complete"], true);
        let (code, ..) = run(&file, &node, &["--key", "k", "--value", "v"]);
        assert_eq!((code, node.state.value(b"x")), (0, Some(b"3".to_vec())));
    }
}

#[test]
fn every_record_arrives_and_of_equal_keys_the_last_wins_across_batches() {
    let directory = tempfile::tempdir().unwrap();
    let lines: String =
        (0..6_000).map(|i| format!("{{\"id\":{},\"i\":{i}}}\n", i % 1_500)).collect();
    let file = directory.path().join("a.ndjson");
    fs::write(&file, lines).unwrap();
    for more in [&[][..], &["--no-routing"]] {
        let node = partitioned();
        let arguments = [&["--key", "id", "--value", "i", "--batch", "7"], more].concat();
        let (code, summary, stderr) = run(&file, &node, &arguments);
        assert_eq!((code, &summary["complete"]), (0, &true.into()), "{stderr}");
        for id in 0..1_500 {
            let expected = (4_500 + id).to_string().into_bytes();
            assert_eq!(node.state.value(id.to_string().as_bytes()), Some(expected), "{more:?}");
        }
    }
}

#[test]
fn stdin_is_read_as_it_comes() {
    let node = FakeNode::start();
    let mut child =
        import(Path::new("-"), &node, &["--key", "id"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"{\"id\":1}\n{\"id\":2}\n").unwrap();
    // The input is still open, and what it brought is stored already.
    wait_until("both records are stored", || stored(&node) == 2);
    stdin.write_all(b"{\"id\":3}").unwrap();
    drop(stdin);
    let (code, summary, _) = ended(child.wait_with_output().unwrap());
    assert_eq!((code, &summary["imported"]), (0, &3.into()));
}

fn start_slowly(file: &Path, node: &FakeNode) -> Child {
    let child = import(file, node, &["--key", "id", "--resume", "--rate", "4000"]).spawn().unwrap();
    let has_progress = || {
        let text = fs::read_to_string(checkpoint(file)).unwrap_or_default();
        let json: Value = serde_json::from_str(&text).unwrap_or_default();
        json["position"]["records"].as_u64().is_some_and(|records| records > 500)
    };
    wait_until("the checkpoint moves", has_progress);
    child
}

#[test]
fn an_import_killed_with_9_resumes_and_ends_complete() {
    let directory = tempfile::tempdir().unwrap();
    let file = ndjson(directory.path(), 8_000);
    let node = partitioned();
    let mut child = start_slowly(&file, &node);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(stored(&node) < 8_000);
    let (code, summary, stderr) = run(&file, &node, &["--key", "id", "--resume"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(summary["resumed_from"].as_u64().unwrap() > 500, "{stderr}");
    assert_eq!(stored(&node), 8_000);
    assert!(!checkpoint(&file).exists(), "complete: nothing to go on with");
}

#[test]
fn an_interrupted_import_stops_in_order_and_a_changed_input_is_not_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let file = ndjson(directory.path(), 8_000);
    let node = partitioned();
    let child = start_slowly(&file, &node);
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let (code, summary, stderr) = ended(child.wait_with_output().unwrap());
    assert_eq!((code, &summary["complete"]), (6, &false.into()), "{stderr}");
    assert!(stderr.contains("interrupted"), "{stderr}");

    let (code, _, stderr) = run(&file, &node, &["--key", "name", "--resume"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("would go on with --key 'name'"), "{stderr}");
    fs::OpenOptions::new().append(true).open(&file).unwrap().write_all(b"{\"id\":1}\n").unwrap();
    let (code, _, stderr) = run(&file, &node, &["--key", "id", "--resume"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("the input has changed"), "{stderr}");
}

#[test]
fn a_node_that_restarts_in_the_middle_costs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = ndjson(directory.path(), 8_000);
    let node = partitioned();
    let child = start_slowly(&file, &node);
    let (address, state) = node.die();
    let node = FakeNode::start_at(address, state);
    let (code, summary, stderr) = ended(child.wait_with_output().unwrap());
    assert_eq!((code, &summary["imported"]), (0, &8_000.into()), "{stderr}");
    assert_eq!(stored(&node), 8_000);
}

#[test]
fn a_bad_record_stops_the_import_with_its_line_or_is_skipped() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.json");
    fs::write(&file, "[{\"id\":1},\n{\"id\":null},\n\n{\"no\":1},{\"id\":\n x},\n{\"id\":2}]")
        .unwrap();
    let node = partitioned();
    let (code, summary, stderr) = run(&file, &node, &["--key", "id"]);
    assert_eq!((code, &summary["imported"]), (6, &1.into()), "{stderr}");
    assert!(stderr.contains("line 2: `id` is null"), "{stderr}");

    let node = partitioned();
    let (code, summary, stderr) = run(&file, &node, &["--key", "id", "--on-error", "skip"]);
    assert_eq!((code, &summary["imported"], &summary["errors"]), (6, &2.into(), &3.into()));
    let lines: Vec<Value> =
        stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let lines: Vec<_> = lines.iter().map(|line| line["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [2, 4, 5], "{stderr}");
    let (code, _, stderr) =
        run(&file, &node, &["--key", "id", "--on-error", "skip", "--max-errors", "2"]);
    assert_eq!(code, 6);
    assert!(stderr.contains("--max-errors"), "{stderr}");

    fs::write(&file, "[{\"id\":1},\n{\"id\":2}\n{\"id\":3}]").unwrap();
    let (code, summary, stderr) = run(&file, &partitioned(), &["--key", "id"]);
    assert_eq!((code, &summary["imported"]), (6, &2.into()));
    assert!(stderr.contains("line 3: expected `,` or `]`"), "{stderr}");
    let (code, _, stderr) = run(&directory.path().join("none.csv"), &node, &["--key", "id"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("cannot open"), "{stderr}");
    let csv = directory.path().join("a.csv");
    fs::write(&csv, "a,b\n1,2\n").unwrap();
    let (code, _, stderr) = run(&csv, &node, &["--key", "id"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("no column `id`; the columns are a, b"), "{stderr}");
}

#[test]
fn a_refusal_that_does_not_pass_stops_the_import_and_leaves_the_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let file = ndjson(directory.path(), 8_000);
    let node = partitioned();
    let child = start_slowly(&file, &node);
    node.state.script(Script::Refuse(Reason::DiskFull));
    let (code, summary, stderr) = ended(child.wait_with_output().unwrap());
    assert_eq!(code, 6, "{stderr}");
    assert!(stderr.contains("DISK_FULL") && stderr.contains("run it again to go on"), "{stderr}");
    assert!(summary["checkpoint"].is_string());
    let (code, ..) = run(&file, &node, &["--key", "id", "--resume"]);
    assert_eq!((code, stored(&node)), (0, 8_000));
    // With nothing stored the refusal is the exit code.
    node.state.script(Script::Refuse(Reason::DiskFull));
    let single = ndjson(directory.path(), 1);
    assert_eq!(run(&single, &node, &["--key", "id"]).0, 5);
}

#[test]
fn a_dry_run_counts_distinct_keys_and_needs_no_node() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.csv");
    fs::write(&file, "k,v\nx,1\ny,2\nx,3\n").unwrap();
    let node = FakeNode::start();
    let (code, summary, _) = run(&file, &node, &["--key", "k", "--dry-run"]);
    assert_eq!((code, &summary["distinct_keys"], &summary["records"]), (0, &2.into(), &3.into()));
    assert!(node.state.calls().is_empty());
}
