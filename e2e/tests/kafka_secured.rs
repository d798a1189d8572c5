//! The log in Kafka behind TLS, a password and rights: what a node says while it may not, that it goes
//! on by itself when it may, and that it needs no more than `docs/kafka.md` says.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use stateside_e2e::{
    command_line::stateside,
    config::Config,
    kafka::{Broker, Kafka},
    kafka_guard::{Guard, PASSWORD, USER},
    node_process::{Node, Site, http_get},
    requirements,
    rpc::Failure,
    until::until,
};

use crate::kafka::{LIMIT, Load, check_all, connect, in_kafka, runtime, started};

/// What the node's user needs, as `docs/kafka.md` has it; `Write` apart.
const RIGHTS: [&str; 4] = ["Describe", "DescribeConfigs", "Read", "Create"];

fn site(guard: &Guard, options: &str) -> Site {
    let more = format!("kafka.options = \"{options}\"\n");
    Site::new(Config { node_id: "a", more: in_kafka(&guard.address(), &more), ..Config::default() })
}

fn rights(broker: &Broker, change: &str, operations: &[&str], resource: [&str; 2]) {
    let user = format!("User:{USER}");
    let mut arguments = vec![change, "--allow-principal", &user, resource[0], resource[1]];
    if change == "--remove" {
        arguments.push("--force");
    }
    arguments.extend(operations.iter().flat_map(|operation| ["--operation", operation]));
    broker.tool("org.apache.kafka.tools.AclCommand", &arguments).unwrap();
}

/// Waits until `/readyz` says so.
fn until_not_ready(node: &Node<'_>, says: &str) {
    until(&format!("/readyz says `{says}`"), LIMIT, || {
        let (status, body) = http_get(&node.site().metrics_address(), "/readyz")?;
        (status == 503 && body.contains(says)).then_some(())
    });
}

#[test]
fn kafka_behind_tls_a_password_and_rights_is_used_with_those_that_are_documented() {
    let test = "kafka_behind_tls";
    let folder = tempfile::tempdir().unwrap();
    let Some(kafka) = Kafka::find_for(test) else { return };
    let (mut broker, guard) = Broker::create_guarded(kafka, &folder.path().join("kafka")).unwrap();
    broker.start().unwrap();
    let right = guard.options("SCRAM-SHA-512", PASSWORD, &guard.certificate);
    let mut at = site(&guard, &right);
    at.serve_command();
    let check = stateside(&at, ["config", "check", "--config", "stateside.toml"]);
    if check.code != Some(0) {
        check.failed_clearly(&["kafka.options", "needs TLS", "kafka-tls"]);
        return requirements::missing(test, "the binary is built without TLS (libssl-dev)");
    }

    // Whom it does not trust, and who does not trust it.
    let wrong = [
        (PASSWORD, &guard.other_certificate, "certificate verify failed"),
        ("guessed", &guard.certificate, "Authentication failed"),
    ];
    for (password, certificate, says) in wrong {
        let options = guard.options("SCRAM-SHA-512", password, certificate);
        let other = site(&guard, &options);
        until_not_ready(&other.launch(), says);
    }

    // Known, and may nothing: each right that is missing is asked for, and taken when it comes.
    let topic = ["--topic", "stateside"];
    let mut node = at.launch();
    until_not_ready(&node, "opening: 8 of 8 partitions");
    rights(&broker, "--add", &["Read"], ["--group", "stateside-a"]);
    rights(&broker, "--add", &RIGHTS, topic);
    until_not_ready(&node, "cannot claim its log in Kafka");
    rights(&broker, "--add", &["Write"], topic);
    node.wait_until_ready();

    // Taken away under load, and given back: nobody has to touch the node.
    let runtime = runtime();
    let load = Load::start(&runtime, &at, "a", 16);
    load.until_written(500);
    rights(&broker, "--remove", &["Write"], topic);
    let refused = |reason: &str, says: &str| {
        until(&format!("{reason}: {says}"), LIMIT, || {
            let refusals = load.refusals.lock().unwrap();
            let is_it = |f: &&Failure| f.reason == reason && f.message.contains(says);
            refusals.iter().find(is_it).cloned()
        })
    };
    let unknown = refused("LOG_UNAVAILABLE", "Topic authorization failed");
    assert!(unknown.message.contains("its outcome is unknown"), "{unknown:?}");
    let later = refused("PARTITION_STARTING", "Topic authorization failed");
    assert!(later.retry_after.is_some(), "{later:?}");
    rights(&broker, "--add", &["Write"], topic);
    load.until_written(500);
    let (known, _) = load.end(&runtime);
    check_all(&runtime, &at, &known);

    // The same with another mechanism, after a crash.
    node.kill();
    drop(node);
    let other = guard.options("PLAIN", PASSWORD, &guard.certificate);
    at.config.more = at.config.more.replace(&right, &other);
    let node = started(&at);
    check_all(&runtime, &at, &known);
    drop((connect(&runtime, &at), node));
}
