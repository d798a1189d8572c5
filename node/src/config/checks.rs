//! Rules between settings: each alone is fine, together they are not.

use std::net::SocketAddr;

use stateside_types::check_ack;

use super::{ConfigError, Settings, Surroundings, kafka_options, settings::PartitionSettings};
use crate::tiered_dirs::TieredDirs;

/// Longest path of a Unix socket on Linux, bytes (`sun_path` less its end).
const UNIX_SOCKET_PATH_BYTES_MAX: usize = 107;

/// Checks the rules; `place_of` tells where a key was set.
pub(super) fn check(settings: &Settings, place_of: impl Fn(&str) -> String) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    let mut fail = |key: &str, message: String| {
        errors.push(ConfigError { place: place_of(key), message: format!("{key}: {message}") });
    };
    let PartitionSettings { store, ack, pipeline, .. } = &settings.partition;
    let without_log = store.is_unlogged().then(|| pipeline.without_log());
    if let Err(error) = check_ack(*ack, without_log.as_ref().unwrap_or(pipeline)) {
        fail("partition.pipeline", error.to_string());
    }
    let without_client = "this binary has no Kafka client: build it with the cargo feature kafka";
    if settings.partition.pipeline.is_logged_in_kafka() {
        if !cfg!(feature = "kafka") {
            fail("partition.pipeline", without_client.to_owned());
        } else if settings.kafka.brokers.is_none() {
            fail("partition.pipeline", "kafka-log needs kafka.brokers".to_owned());
        }
    } else if settings.kafka.brokers.is_some() && !cfg!(feature = "kafka") {
        fail("kafka.brokers", without_client.to_owned());
    }
    if cfg!(feature = "kafka")
        && let Err(problem) =
            kafka_options::check(&settings.kafka.options, cfg!(feature = "kafka-tls"))
    {
        fail("kafka.options", problem);
    }
    if settings.log.max_mb < 2 * settings.log.segment_mb {
        fail(
            "log.max_mb",
            format!(
                "{} MiB are fewer than two segments of {} MiB",
                settings.log.max_mb, settings.log.segment_mb
            ),
        );
    }
    if let Some(path) = &settings.data.unix_socket {
        let length = path.as_os_str().len();
        if length > UNIX_SOCKET_PATH_BYTES_MAX {
            fail(
                "data.unix_socket",
                format!(
                    "the path has {length} bytes; a socket's has {UNIX_SOCKET_PATH_BYTES_MAX} at most"
                ),
            );
        }
    }
    let base = u32::from(settings.core_port_base());
    let cores = u32::from(settings.node.cores);
    if base > 0 && base + cores - 1 > u32::from(u16::MAX) {
        fail(
            "data.core_port_base",
            format!("{cores} cores from port {base} on end above {}", u16::MAX),
        );
    }
    check_ports(settings, base, &mut fail);
    if let Err(problem) = TieredDirs::new(settings).check() {
        fail(problem.key, problem.message);
    }
    errors
}

/// What works and may not be meant.
pub(super) fn warnings(settings: &Settings, surroundings: &Surroundings) -> Vec<String> {
    let mut warnings = Vec::new();
    let (cores, available) = (settings.node.cores, surroundings.available_cores);
    if cores > available {
        warnings.push(format!(
            "node.cores: {cores} cores share {available} CPUs; each core keeps a CPU busy, so {available} are faster"
        ));
    }
    if !settings.control.listen.ip().is_loopback() {
        warnings.push(format!(
            "control.listen: whoever reaches {} can remove partitions; keep it off open networks",
            settings.control.listen
        ));
    }
    warnings
}

/// No two listeners on the same port of the same interface. Port 0 is nobody's.
fn check_ports(settings: &Settings, base: u32, fail: &mut impl FnMut(&str, String)) {
    let listeners = [
        ("data.listen", settings.data.listen),
        ("control.listen", settings.control.listen),
        ("metrics.listen", settings.metrics.listen),
    ];
    for (at, (key, address)) in listeners.iter().enumerate() {
        for (other_key, other) in &listeners[..at] {
            if address.port() == other.port() && share_interface(*address, *other) {
                fail(key, format!("{address} is the address of {other_key} too"));
            }
        }
    }
    let last = base + u32::from(settings.node.cores) - 1;
    for (key, address) in listeners {
        let is_core_port = (base..=last).contains(&u32::from(address.port()));
        if base > 0 && is_core_port && share_interface(address, settings.data.listen) {
            fail(
                key,
                format!(
                    "port {} is one of the cores' own, {base} to {last} (data.core_port_base)",
                    address.port()
                ),
            );
        }
    }
}

fn share_interface(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() != 0
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use stateside_types::StoreKind;

    use super::*;

    fn surroundings() -> Surroundings {
        Surroundings { available_cores: 4, environment: Box::new(|_| None) }
    }

    fn errors_after(change: impl FnOnce(&mut Settings)) -> Vec<String> {
        let mut settings = Settings::defaults(&surroundings());
        change(&mut settings);
        check(&settings, |_| "here".to_owned()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_hold_together() {
        assert_eq!(errors_after(|_| ()), Vec::<String>::new());
        assert_eq!(warnings(&Settings::defaults(&surroundings()), &surroundings()), [""; 0]);
    }

    #[test]
    fn rules_between_settings_are_checked() {
        let one = |errors: Vec<String>, says: &str| {
            assert!(errors.len() == 1 && errors[0].contains(says), "{errors:?}");
        };
        one(
            errors_after(|s| s.partition.pipeline = Vec::new().into()),
            "ack durable needs the stage log",
        );
        one(
            errors_after(|s| s.partition.store = StoreKind::Counters),
            "partitions with the store counters have neither",
        );
        one(errors_after(|s| s.log.max_mb = 100), "fewer than two segments of 64 MiB");
        one(errors_after(|s| s.data.unix_socket = Some("/".repeat(108).into())), "108 bytes");
        one(errors_after(|s| s.control.listen.set_port(7400)), "the address of data.listen too");
        one(
            errors_after(|s| s.metrics.listen.set_port(7413)),
            "one of the cores' own, 7410 to 7413",
        );
        one(errors_after(|s| s.data.core_port_base = Some(65_533)), "end above 65535");
        one(
            errors_after(|s| {
                s.control.listen.set_ip([0, 0, 0, 0].into());
                s.metrics.listen.set_port(7401);
            }),
            "metrics.listen: 127.0.0.1:7401 is the address of control.listen too",
        );
        assert_eq!(errors_after(|s| s.metrics.listen.set_port(0)), [""; 0]);
        let tiered = |slow: &'static str, fast: &'static str| {
            errors_after(move |s| {
                (s.store.tiered.slow_dir, s.store.tiered.fast_dir) =
                    (Some(slow.into()), Some(fast.into()));
            })
        };
        assert_eq!(tiered("/slow", "/slow-not"), [""; 0]);
        one(tiered("/disk", "/disk/"), "fast_dir: /disk/ is store.tiered.slow_dir too");
        one(tiered("/disk/a", "/disk"), "fast_dir: /disk and store.tiered.slow_dir, /disk/a, lie");
        one(tiered("stateside-data", "/fast"), "slow_dir: stateside-data is the data directory");
        one(tiered("stateside-data/lsm/x", "/fast"), "slow_dir: stateside-data/lsm/x lies within");
    }

    #[test]
    fn more_cores_than_cpus_and_an_open_control_plane_are_warned_of() {
        let mut settings = Settings::defaults(&surroundings());
        settings.node.cores = 9;
        settings.control.listen.set_ip([0, 0, 0, 0].into());
        let warnings = warnings(&settings, &surroundings());
        assert!(warnings[0].starts_with("node.cores: 9 cores share 4 CPUs"));
        assert!(warnings[1].starts_with("control.listen"));
    }
}
