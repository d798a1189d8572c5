//! The walk-through of the README: the node serves with the stage, and everything that knows
//! stages knows it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use stateside_e2e::{node_process::http_get, ports::free_block, until::until};

const READY_LIMIT: Duration = Duration::from_secs(60);
const BINARY: &str = env!("CARGO_BIN_EXE_stateside-example-own-stage");

/// Ends with the test, whatever becomes of it.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).output().unwrap()
}

fn serve(folder: &Path, config: &Path, first_port: u16) -> Node {
    let address = |offset: u16| format!("127.0.0.1:{}", first_port + offset);
    let child = Command::new(BINARY)
        .arg("serve")
        .arg("--config")
        .arg(config)
        .arg("--data-dir")
        .arg(folder.join("data"))
        .args(["--listen", &address(0), "--control-listen", &address(1)])
        .args(["--metrics-listen", &address(2), "--cores", "1"])
        .stdin(Stdio::null())
        .stderr(fs::File::create(folder.join("output")).unwrap())
        .spawn()
        .unwrap();
    let mut node = Node(child);
    until("the node serves", READY_LIMIT, || {
        if let Some(status) = node.0.try_wait().unwrap() {
            panic!(
                "it ended with {status}: {}",
                fs::read_to_string(folder.join("output")).unwrap()
            );
        }
        // Not a connection to the data plane: the kernel keeps a killed node's sockets for a while.
        let (status, _) = http_get(&address(2), "/readyz")?;
        (status == 200).then_some(())
    });
    node
}

#[test]
fn a_node_serves_with_a_stage_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("stateside.toml");
    let write = |stage: &str| {
        let text = format!(
            "data.core_port_base = 0\n[partition]\npipeline = [\n  {stage},\n  \
             \"clock\", \"dispatcher\", \"log\", \"line-monitor\",\n]\n"
        );
        fs::write(&config, text).unwrap();
    };
    write("{ stage = \"text\", line_max = 2 }");
    let wrong = run(&["config", "check", "--config", config.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        said.contains(":4: partition.pipeline: the stage text has no option `line_max`"),
        "{said}"
    );
    write("{ stage = \"text\", prefix = \"note/\", lines_max = 2 }");

    let first_port = free_block();
    let endpoint = format!("127.0.0.1:{first_port}");
    let upsert = |key: &str, value: &str| run(&["upsert", key, value, "--endpoint", &endpoint]);
    let get = |key: &str| run(&["get", key, "--endpoint", &endpoint]);
    let node = serve(folder.path(), &config, first_port);
    assert!(upsert("note/1", "milk  \nbread\t").status.success());
    assert_eq!(get("note/1").stdout, b"milk\nbread");
    let refused = upsert("note/1", "a\nb\nc");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("stage `text`: the text has too many lines"), "{said}");
    assert!(upsert("else", "a\nb\nc  ").status.success());
    let (_, metrics) = http_get(&format!("127.0.0.1:{}", first_port + 2), "/metrics").unwrap();
    let sum = |name: &str| -> u64 {
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    assert_eq!(sum("stateside_stage_changed_total{"), 1);
    assert_eq!(sum("stateside_stage_refused_total{"), 1);

    // kill -9: manifest and log are read back by a process that knows the stage.
    drop(node);
    let _node = serve(folder.path(), &config, first_port);
    assert_eq!(get("note/1").stdout, b"milk\nbread");
}
