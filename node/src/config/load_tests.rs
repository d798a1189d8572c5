//! Precedence, places and refusals, through files on disk.

use std::{fs, path::PathBuf};

use super::*;
use crate::config::{default_file, documentation, store_options};

struct World {
    dir: tempfile::TempDir,
    variables: Vec<(&'static str, String)>,
    overrides: Overrides,
}

impl World {
    fn new(file: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.toml");
        fs::write(&path, file).unwrap();
        let overrides = Overrides { config: Some(path), ..Overrides::default() };
        Self { dir, variables: Vec::new(), overrides }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("s.toml")
    }

    fn load(&self) -> Result<Loaded, ConfigErrors> {
        let variables = self.variables.clone();
        let surroundings = Surroundings {
            available_cores: 4,
            environment: Box::new(move |name| {
                variables.iter().find(|(have, _)| *have == name).map(|(_, value)| value.clone())
            }),
        };
        Loaded::load(&self.overrides, &surroundings)
    }

    /// The errors, with the file's folder cut off.
    fn errors(&self) -> Vec<String> {
        let folder = format!("{}/", self.dir.path().display());
        let errors = self.load().expect_err("the configuration is wrong");
        errors.0.iter().map(|error| error.to_string().replace(&folder, "")).collect()
    }
}

#[test]
fn a_flag_beats_the_environment_that_beats_the_file_that_beats_the_default() {
    let mut world = World::new("[node]\ncores = 2\n\n[partition]\nack = \"memory\"\n");
    let at =
        |loaded: &Loaded| (loaded.settings.node.cores, loaded.origin("node.cores").to_string());

    let loaded = world.load().unwrap();
    assert_eq!(at(&loaded), (2, format!("{}:2", world.path().display())));
    assert_eq!(loaded.settings.partition.ack, stateside_types::Ack::Memory);
    assert_eq!(loaded.settings.log.segment_mb, 64);
    assert_eq!(*loaded.origin("log.segment_mb"), Origin::Default);

    world.variables.push(("STATESIDE_CORES", "3".to_owned()));
    assert_eq!(at(&world.load().unwrap()), (3, "STATESIDE_CORES".to_owned()));
    world.overrides.cores = Some("1".to_owned());
    assert_eq!(at(&world.load().unwrap()), (1, "--cores".to_owned()));
    // Empty counts as not set, as shells and service files produce it.
    world.overrides.cores = None;
    world.variables[0].1.clear();
    assert_eq!(at(&world.load().unwrap()).0, 2);
}

#[test]
fn the_file_is_named_by_flag_or_variable() {
    let mut world = World::new("[logging]\nlevel = \"debug\"\n");
    let path = world.overrides.config.take().unwrap();
    assert_eq!(world.load().unwrap().settings.logging.level.as_str(), "info");
    world.variables.push(("STATESIDE_CONFIG", path.display().to_string()));
    assert_eq!(world.load().unwrap().settings.logging.level.as_str(), "debug");
    world.overrides.config = Some(world.dir.path().join("none.toml"));
    assert_eq!(world.errors(), ["none.toml: the configuration file does not exist"]);
}

#[test]
fn every_wrong_line_is_reported_with_its_number_and_the_known_keys() {
    let world = World::new(
        "[node]\ncors = 2\n\n[log]\nsegment_mb = 1\nmax_mb = \"much\"\n\n[colour]\nsky = 1\n\n\
         [store]\nsled = 4\n[store.tape]\nx = 1\n[metrics]\nlisten = \"localhost\"\n\
         [partition]\npipeline = [\"log\", \"clock\"]\nack = \"fsync\"\n",
    );
    assert_eq!(
        world.errors(),
        [
            "s.toml:2: unknown key `node.cors`; known in [node]: id, data_dir, cores, spin_us",
            "s.toml:5: log.segment_mb: 1 is not within 4 to 4096 MiB",
            "s.toml:6: log.max_mb: expected a whole number from 8 to 1048576",
            "s.toml:8: unknown key `colour`; known: [node], [data], [control], [metrics], [partition], [log], [kafka], [request_ids], [memory], [store], [registry], [drain], [logging]",
            "s.toml:12: `store.sled` is a section: write [store.sled]",
            "s.toml:13: unknown key `store.tape`; known in [store]: [sled], [lsm], [tiered]",
            "s.toml:16: metrics.listen: `localhost` is not IP:PORT, such as 127.0.0.1:7400, 0.0.0.0:7400 or [::1]:7400",
            "s.toml:18: partition.pipeline: in the pipeline log must come after clock",
            "s.toml:19: partition.ack: `fsync` is not an ack level: use `durable` or `memory`",
        ]
    );
}

#[cfg(all(feature = "kafka", not(feature = "kafka-tls")))]
#[test]
fn settings_that_need_tls_are_refused_by_a_binary_without_it() {
    let world = World::new(
        "[kafka]\nbrokers = \"k:9093\"\noptions = \"client.rack=a\\nsecurity.protocol=SASL_SSL\\nsasl.mechanism=PLAIN\"\n",
    );
    let errors = world.errors();
    let [error] = errors.as_slice() else { panic!("{errors:?}") };
    assert!(
        error.starts_with("s.toml:3: kafka.options: `security.protocol=SASL_SSL` needs TLS"),
        "{error}"
    );
    assert!(error.contains("kafka-tls"), "{error}");
}

#[test]
fn a_pipeline_with_options_is_read_shown_and_checked_line_by_line() {
    let filter = "{ stage = \"filter\", deny = [\"tmp/\"], rate_per_s = 100 }";
    let world = World::new(&format!(
        "[partition]\npipeline = [\n  {filter},\n  \"clock\", \"dispatcher\", \"log\", \"line-monitor\",\n]\n"
    ));
    let loaded = world.load().unwrap();
    assert_eq!(loaded.settings.partition.pipeline.len(), 5);
    let shown = loaded.show();
    assert!(shown.contains(&format!("pipeline = [{filter}, \"clock\", ")), "{shown}");
    // What `config show` prints is a configuration that says the same.
    let again = World::new(&shown).load().unwrap().settings.partition.pipeline;
    assert_eq!(again, loaded.settings.partition.pipeline);

    let sections = World::new(
        "[[partition.pipeline]]\nstage = \"filter\"\ndeny = \"tmp/\"\nrate_per_s = \"many\"\n",
    );
    assert_eq!(
        sections.errors(),
        ["s.toml:4: partition.pipeline: rate_per_s: expected a whole number from 1 to 1000000000"]
    );
    let unknown = World::new("[partition]\npipeline = [\n\"clock\",\n\"fast\",\n]\n");
    assert_eq!(
        unknown.errors(),
        [
            "s.toml:4: partition.pipeline: `fast` is not a pipeline stage; known: filter, sanitizer, enricher, clock, dispatcher, log, kafka-log, line-monitor"
        ]
    );
}

#[test]
fn flags_and_variables_are_checked_like_the_file() {
    let mut world = World::new("");
    world.variables.push(("STATESIDE_ACK", "never".to_owned()));
    world.overrides.cores = Some("0".to_owned());
    world.overrides.listen = Some("7400".to_owned());
    let errors = world.errors();
    assert!(errors[0].starts_with("STATESIDE_ACK: partition.ack: `never` is not an ack level"));
    assert!(errors[1].starts_with("--cores: node.cores: 0 is not within 1 to 1024"), "{errors:?}");
    assert!(errors[2].starts_with("--listen: data.listen: `7400` is not IP:PORT"));
}

#[test]
fn rules_between_settings_name_where_they_were_set() {
    let world = World::new("[control]\n\nlisten = \"127.0.0.1:7400\"\n");
    assert_eq!(
        world.errors(),
        ["s.toml:3: control.listen: 127.0.0.1:7400 is the address of data.listen too"]
    );
}

#[test]
fn what_is_not_toml_or_not_text_is_named_with_its_line() {
    let world = World::new("[node]\ncores = 2\ncores = 3\n");
    let errors = world.errors();
    assert!(errors[0].starts_with("s.toml:3: not TOML: duplicate key"), "{errors:?}");
    fs::write(world.path(), "[node\n").unwrap();
    assert!(world.errors()[0].starts_with("s.toml:1: not TOML"), "{:?}", world.errors());
    fs::write(world.path(), b"\xff\xfe").unwrap();
    assert_eq!(world.errors(), ["s.toml: the configuration file is not UTF-8 text"]);
    let folder = World {
        overrides: Overrides { config: Some(world.dir.path().into()), ..Overrides::default() },
        ..world
    };
    assert!(folder.errors()[0].ends_with("is no regular file"));
}

#[test]
fn dotted_keys_and_inline_tables_work_as_toml_says() {
    let world = World::new("node.cores = 1\nstore = { sled = { cache_mb = 5 } }\nlog.oops = 1\n");
    assert_eq!(
        world.errors(),
        ["s.toml:3: unknown key `log.oops`; known in [log]: segment_mb, max_mb, flush_after_ms"]
    );
    fs::write(world.path(), "node.cores = 1\nstore = { sled = { cache_mb = 5 } }\n").unwrap();
    let settings = world.load().unwrap().settings;
    assert_eq!((settings.node.cores, settings.store.sled.cache_mb), (1, 5));
}

#[test]
fn the_default_file_sets_nothing_and_each_of_its_lines_can_be_uncommented() {
    let world = World::new(&default_file());
    let plain = World::new("").load().unwrap();
    assert_eq!(world.load().unwrap().settings, plain.settings);

    // `#key = value` becomes a setting; documentation has a blank after the #.
    let is_key = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
    assert_eq!(default_file().lines().filter(is_key).count(), KEYS.len());
    let active: String = default_file()
        .lines()
        // Refused by a binary without the client, whatever its value.
        .filter(|line| cfg!(feature = "kafka") || !line.starts_with("#brokers"))
        .map(|line| if is_key(&line) { &line[1..] } else { line })
        .flat_map(|line| [line, "\n"])
        .collect();
    fs::write(world.path(), active).unwrap();
    let loaded = world.load().unwrap_or_else(|errors| panic!("{errors}"));
    for key in KEYS.iter().filter(|key| cfg!(feature = "kafka") || key.path != "kafka.brokers") {
        assert!(matches!(loaded.origin(key.path), Origin::File { .. }), "{}", key.path);
        if let crate::config::keys::Default::Is(value) = key.default {
            let shown = (key.get)(&loaded.settings).unwrap().to_string();
            assert_eq!(shown, value, "{}", key.path);
        }
    }
}

#[test]
fn what_is_shown_can_be_loaded_again_and_tells_origins() {
    let mut world = World::new("[log]\nsegment_mb = 8\n\n[data]\nunix_socket = \"/a \\\"b\\\"\"\n");
    world.overrides.cores = Some("2".to_owned());
    let loaded = world.load().unwrap();
    let shown = loaded.show();
    let line = |start: &str| shown.lines().find(|line| line.starts_with(start)).unwrap();
    assert!(line("segment_mb = 8").ends_with(&format!("# {}:2", world.path().display())));
    assert!(line("cores = 2").ends_with("# --cores"));
    assert!(line("max_mb = 1024").ends_with("# default"));
    assert!(line("# id is not set").ends_with("# default"));
    assert_eq!(loaded.shown().len(), KEYS.len());
    let again = World::new(&shown);
    assert_eq!(again.load().unwrap().settings, loaded.settings);
}

#[test]
fn documentation_of_the_configuration_is_current() {
    check_page("configuration.md", |_| documentation());
}

#[test]
fn documentation_of_the_stores_options_is_current() {
    const BEGIN: &str = "<!-- options of stores: made from the code, see the end of the page -->\n";
    const END: &str = "<!-- end of the options of stores -->\n";
    check_page("pipeline.md", |page| {
        let (before, rest) = page.split_once(BEGIN).expect("the page says where the table begins");
        let (_, after) = rest.split_once(END).expect("the page says where the table ends");
        format!("{before}{BEGIN}{}{END}{after}", store_options())
    });
}

/// A page in docs is what it should be, which may depend on what it is.
fn check_page(name: &str, expected: impl Fn(&str) -> String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let expected = expected(&committed);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, expected).unwrap();
        return;
    }
    assert!(
        committed == expected,
        "docs/{name} is out of date: UPDATE_DOCS=1 cargo test -p stateside-node documentation"
    );
}

#[test]
fn ports_and_hosts_follow_the_listen_address() {
    let loaded = World::new("").load().unwrap().settings;
    assert_eq!(loaded.core_port(stateside_types::CoreId(3)), 7413);
    assert_eq!(loaded.advertise_host(), "127.0.0.1");
    let any = World::new("[data]\nlisten = \"0.0.0.0:0\"\n").load().unwrap().settings;
    assert_eq!(any.core_port(stateside_types::CoreId(3)), 0);
    assert_eq!(any.advertise_host(), "");
}
