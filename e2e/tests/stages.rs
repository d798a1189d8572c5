//! Stages with options, from outside: what clients are told, what is left behind, what the
//! metrics say, and changing them while the node runs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, time::Duration};

use prost::Message as _;
use stateside_e2e::{
    command_line::stateside,
    config::Config,
    exposition::Page,
    node_process::{Node, Site},
    rpc::{self, Data, Failure},
    until::until,
};
use stateside_proto::{
    FILE_DESCRIPTOR_SET,
    v1::{Ack, RequestId, UpsertEntry, UpsertRequest},
};
use tokio::runtime::Runtime;
use tonic::Status;

/// The manager looks at the registry file twice a second.
const CHANGE_LIMIT: Duration = Duration::from_secs(20);
const BACK: &str = "\"clock\", \"dispatcher\", \"log\", \"line-monitor\"";

fn on<T>(work: impl Future<Output = T>) -> T {
    Runtime::new().unwrap().block_on(work)
}

/// One partition, so that a rate is a rate of the node.
fn site(pipeline: &str) -> Site {
    let mut site = Site::new(Config::default());
    let registry = site.folder().join("registry.toml");
    fs::write(&registry, "[[partition]]\nid = 0\nrange = \"0..\"\n").unwrap();
    site.config.more = format!(
        "registry.file = \"{}\"\npartition.pipeline = [{pipeline}, {BACK}]\n",
        registry.display()
    );
    site
}

/// One call, never repeated.
async fn upsert(data: &mut Data, entries: Vec<UpsertEntry>) -> Result<u64, Status> {
    let request = UpsertRequest { entries, ack: Ack::Default.into(), ..UpsertRequest::default() };
    Ok(data.upsert(request).await?.into_inner().results[0].version)
}

async fn refusal(data: &mut Data, entries: Vec<UpsertEntry>) -> (Failure, String) {
    let status = upsert(data, entries).await.unwrap_err();
    (Failure::from(&status), status.message().to_owned())
}

fn page(node: &Node<'_>) -> Page {
    Page::parse(&node.metrics()).unwrap()
}

#[test]
fn a_filter_refuses_with_its_name_and_leaves_no_trace() {
    let site = site(
        "{ stage = \"filter\", deny = [\"tmp/\"], value_bytes_max = 8 }, \
         { stage = \"filter\", name = \"tenants\", prefix = \"t/\", rate_by = \"/\", rate_per_s = 1, burst = 2 }",
    );
    let mut node = site.start();
    on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        assert_eq!(upsert(&mut data, vec![rpc::entry("a", "1")]).await.unwrap(), 1);
        let batch = vec![rpc::entry("b", "1"), rpc::entry("tmp/x", "1")];
        let (failure, message) = refusal(&mut data, batch).await;
        assert_eq!(
            (failure.code.as_str(), failure.reason.as_str()),
            ("INVALID_ARGUMENT", "FILTERED")
        );
        assert_eq!((&*failure.metadata["stage"], &*failure.metadata["entry"]), ("filter", "1"));
        assert_eq!(failure.retry_after, None);
        assert!(message.contains("keys that begin with `tmp/` are denied"), "{message}");
        let (failure, _) = refusal(&mut data, vec![rpc::entry("b", "123456789")]).await;
        assert_eq!((failure.reason.as_str(), &*failure.metadata["limit"]), ("FILTERED", "8"));
        // A filter stands before the conditions: it tells nothing of the records.
        let known = UpsertEntry { if_absent: true, ..rpc::entry("tmp/x", "1") };
        assert_eq!(refusal(&mut data, vec![known]).await.0.reason, "FILTERED");

        let of = |key: &str| vec![rpc::entry(key, "1")];
        assert_eq!(upsert(&mut data, of("t/1/a")).await.unwrap(), 2);
        assert_eq!(upsert(&mut data, of("t/1/b")).await.unwrap(), 3);
        let (failure, _) = refusal(&mut data, of("t/1/c")).await;
        assert_eq!(
            (failure.code.as_str(), failure.reason.as_str()),
            ("RESOURCE_EXHAUSTED", "OVERLOADED")
        );
        assert_eq!(&*failure.metadata["stage"], "tenants");
        let wait = failure.retry_after.unwrap();
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(1), "{wait:?}");
        // Another tenant is not held up, and no version was lost to what was refused.
        assert_eq!(upsert(&mut data, of("t/2/a")).await.unwrap(), 4);
        assert!(!rpc::get(&mut data, "b").await.unwrap().found);
    });
    let page = page(&node);
    for (stage, writes) in [("filter", 3.0), ("tenants", 1.0)] {
        let labels = [("partition", "0"), ("stage", stage)];
        assert_eq!(page.sum("stateside_stage_refused_total", &labels), writes, "{stage}");
    }
    node.kill();
    let mut node = site.start();
    on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        assert!(!rpc::get(&mut data, "b").await.unwrap().found);
        assert_eq!(rpc::get(&mut data, "t/2/a").await.unwrap().version, 4);
        let (failure, _) = refusal(&mut data, vec![rpc::entry("tmp/x", "1")]).await;
        assert_eq!(failure.reason, "FILTERED");
    });
    node.terminate();
}

#[test]
fn values_are_changed_before_they_are_logged_and_a_restart_finds_them_as_they_were_read() {
    let site = site(
        "{ stage = \"sanitizer\", prefix = \"order/\", drop = [\"/card/cvc\"], mask = [\"/card/number\"] }, \
         { stage = \"enricher\", prefix = \"order/\", timestamp = \"at\", node = \"by\", set = { v = 2 } }",
    );
    let mut node = site.start();
    let order = r#"{"card":{"number":"4111","cvc":7},"by":"mallory"}"#;
    let before = std::time::SystemTime::now();
    let unix_ms = |time: std::time::SystemTime| {
        time.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
    };
    let written = on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        let batch = vec![rpc::entry("order/1", order), rpc::entry("plain", order)];
        upsert(&mut data, batch).await.unwrap();
        let (failure, message) = refusal(&mut data, vec![rpc::entry("order/2", "{]")]).await;
        assert_eq!(failure.reason, "VALUE_UNREADABLE");
        assert!(message.contains("stage `sanitizer`: the value is not JSON"), "{message}");
        assert_eq!(rpc::get(&mut data, "plain").await.unwrap().value, order.as_bytes());
        rpc::get(&mut data, "order/1").await.unwrap().value
    });
    let json: serde_json::Value = serde_json::from_slice(&written).unwrap();
    assert_eq!(json["card"], serde_json::json!({ "number": "***" }));
    assert_eq!((&json["by"], &json["v"]), (&"node-under-test".into(), &2.into()));
    let at = json["at"].as_u64().unwrap();
    // The node reads its clock once a turn, and a turn that waits may have begun a while ago.
    assert!(at + 1_000 >= unix_ms(before) && at <= unix_ms(std::time::SystemTime::now()), "{at}");
    let page = page(&node);
    for (stage, values) in [("sanitizer", 1.0), ("enricher", 1.0)] {
        let labels = [("partition", "0"), ("stage", stage)];
        assert_eq!(page.sum("stateside_stage_changed_total", &labels), values, "{stage}");
    }
    node.kill();
    let mut node = site.start();
    on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        assert_eq!(rpc::get(&mut data, "order/1").await.unwrap().value, written);
        assert!(!rpc::get(&mut data, "order/2").await.unwrap().found);
    });
    node.terminate();
}

#[test]
fn a_partitions_stages_change_while_it_is_written_to() {
    let site = site("{ stage = \"filter\", deny = [\"tmp/\"] }");
    let registry = site.folder().join("registry.toml");
    let mut node = site.start();
    on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        assert!(upsert(&mut data, vec![rpc::entry("tmp/x", "1")]).await.is_err());
        let own = format!(
            "[[partition]]\nid = 0\nrange = \"0..\"\npipeline = [{BACK}]\n\n\
             [[partition.pipeline]]\nstage = \"filter\"\n"
        );
        // Wrong twice over: the file is refused, and what was in force stays.
        fs::write(&registry, own).unwrap();
        until("the broken file is noticed", CHANGE_LIMIT, || {
            (page(&node).sum("stateside_registry_broken", &[]) == 1.0).then_some(())
        });
        assert!(upsert(&mut data, vec![rpc::entry("tmp/x", "1")]).await.is_err());
        let mut own = "[[partition]]\nid = 0\nrange = \"0..\"\n".to_owned();
        own += "[[partition.pipeline]]\nstage = \"filter\"\ndeny = \"other/\"\n";
        for stage in ["clock", "dispatcher", "log", "line-monitor"] {
            own += &format!("[[partition.pipeline]]\nstage = \"{stage}\"\n");
        }
        fs::write(&registry, own).unwrap();
        // Written to without a pause meanwhile.
        let limit = std::time::Instant::now() + CHANGE_LIMIT;
        while upsert(&mut data, vec![rpc::entry("tmp/x", "1")]).await.is_err() {
            assert!(std::time::Instant::now() < limit, "the change was not carried out");
            upsert(&mut data, vec![rpc::entry("busy", "1")]).await.unwrap();
        }
        let (failure, _) = refusal(&mut data, vec![rpc::entry("other/x", "1")]).await;
        assert_eq!(failure.reason, "FILTERED");
    });
    let listed = stateside(&site, ["partition", "list", "-o", "json"]).json();
    let stages = &listed["partitions"][0]["stages"];
    assert_eq!(stages[0], "{ stage = \"filter\", deny = [\"other/\"] }");
    assert_eq!(stages[1], "clock");
    node.terminate();
}

#[test]
fn a_wrong_stage_is_told_with_file_and_line_before_anything_starts() {
    let mut site = Site::new(Config::default());
    for (stage, says) in [
        ("\"filtr\"", "`filtr` is not a pipeline stage; known: filter"),
        ("{ stage = \"filter\", dney = [\"x\"] }", "the stage filter has no option `dney`"),
        ("{ stage = \"filter\", rate_per_s = 0 }", "rate_per_s: 0 is not within 1 to"),
        ("{ stage = \"filter\", burst = 5, deny = \"x\" }", "burst: it needs rate_per_s"),
    ] {
        site.config.more = format!("partition.pipeline = [\n{stage},\n{BACK}]\n");
        let text = site.config.to_toml(0);
        let line = 1 + text.split(stage).next().unwrap().matches('\n').count();
        let mut node = site.launch();
        assert_eq!(node.wait().code(), Some(10), "{}", node.output());
        let expected = format!("stateside.toml:{line}: partition.pipeline: {says}");
        assert!(node.output().contains(&expected), "{expected}\n{}", node.output());
    }
}

#[test]
fn protobuf_fields_are_named_as_in_the_schema() {
    // Its own contract is the schema: the values are requests.
    let sanitizer = |set: &str, drop: &str| {
        format!(
            "{{ stage = \"sanitizer\", format = \"protobuf\", descriptor_set = \"{set}\", \
             message = \"stateside.v1.UpsertRequest\", drop = \"{drop}\", mask = \"/request_id/client\" }}"
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("contract.binpb");
    fs::write(&set, FILE_DESCRIPTOR_SET).unwrap();
    let set = set.display().to_string();
    let mut site = site(&sanitizer(&set, "/entries/value"));
    let request = |value: &str, client: &str| UpsertRequest {
        entries: vec![rpc::entry("k", value), rpc::entry("l", value)],
        routing_key: b"r".to_vec(),
        request_id: Some(RequestId { client: client.into(), number: 7, settled: 0 }),
        ..UpsertRequest::default()
    };
    let mut node = site.start();
    on(async {
        let mut data = rpc::data(&site.data_address()).await.unwrap();
        let written = vec![rpc::entry("a", request("secret", "me").encode_to_vec())];
        upsert(&mut data, written).await.unwrap();
        let record = rpc::get(&mut data, "a").await.unwrap();
        assert_eq!(UpsertRequest::decode(&*record.value).unwrap(), request("", "***"));
    });
    node.kill();
    drop(node);
    // What is in force has numbers.
    let shown = stateside(&site, ["config", "show", "--config", "stateside.toml"]);
    assert!(shown.ok().contains("drop = [\"/1/2\"], mask = [\"/6/1\"]"), "{shown:?}");
    for (set, drop, says) in [
        (
            &*set,
            "/entries/vlaue",
            "stateside.v1.UpsertEntry has no field `vlaue`; it has key, value",
        ),
        (&*set, "/entries/value/x", "field `value` of stateside.v1.UpsertEntry is no message"),
        ("/nowhere/x.binpb", "/entries", "descriptor_set: /nowhere/x.binpb: cannot be read"),
    ] {
        site.config.more = format!("partition.pipeline = [\n{}, {BACK}]\n", sanitizer(set, drop));
        site.serve_command();
        let text = fs::read_to_string(site.folder().join("stateside.toml")).unwrap();
        let line = 1 + text.lines().position(|line| line.contains("sanitizer")).unwrap();
        let checked = stateside(&site, ["config", "check", "--config", "stateside.toml"]);
        checked.failed_clearly(&[&format!("stateside.toml:{line}: partition.pipeline: "), says]);
    }
}
