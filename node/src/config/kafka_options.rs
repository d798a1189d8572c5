//! Which of librdkafka's settings `kafka.options` may hold. Pure; librdkafka itself looks at names and
//! values when the client is made.

/// Settings that the promises rest upon: nobody else sets them.
const OWN: &[&str] = &[
    "bootstrap.servers",
    "enable.idempotence",
    "acks",
    "request.required.acks",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "retries",
    "message.send.max.retries",
    "transactional.id",
    "enable.auto.commit",
    "auto.offset.reset",
    "isolation.level",
    "enable.partition.eof",
    "message.max.bytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.kbytes",
    "group.id",
    "enable.gapless.guarantee",
];

/// Checks the options of a binary with TLS, or without.
///
/// # Errors
/// A sentence: which option cannot be, and what to do.
pub(crate) fn check(options: &[(String, String)], has_tls: bool) -> Result<(), String> {
    if let Some((name, _)) = options.iter().find(|(name, _)| OWN.contains(&name.as_str())) {
        return Err(format!("`{name}` is the node's own: its promises rest upon it"));
    }
    let value = |names: &[&str]| {
        let mut options = options.iter().rev();
        options.find(|(name, _)| names.contains(&name.as_str())).map(|(_, value)| value.as_str())
    };
    let protocol = value(&["security.protocol"]).unwrap_or_default().to_ascii_lowercase();
    let mechanism = value(&["sasl.mechanism", "sasl.mechanisms"]).unwrap_or_default();
    if protocol.starts_with("sasl_") && mechanism.is_empty() {
        return Err(format!(
            "`security.protocol={protocol}` needs sasl.mechanism: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
        ));
    }
    if mechanism.eq_ignore_ascii_case("GSSAPI") {
        return Err(
            "`sasl.mechanism=GSSAPI` (Kerberos) is not built in; use PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
                .to_owned(),
        );
    }
    if has_tls {
        return Ok(());
    }
    let needs_tls = |(name, value): &&(String, String)| match name.as_str() {
        "security.protocol" => protocol.ends_with("ssl"),
        "sasl.mechanism" | "sasl.mechanisms" => !value.eq_ignore_ascii_case("PLAIN"),
        other => other.starts_with("ssl."),
    };
    match options.iter().find(needs_tls) {
        None => Ok(()),
        Some((name, value)) => Err(format!(
            "`{name}={value}` needs TLS, which this binary has not: build it with the cargo feature kafka-tls, with OpenSSL's headers at hand (Debian: libssl-dev, pkg-config)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(lines: &str, has_tls: bool) -> Result<(), String> {
        let options: Vec<_> = lines
            .lines()
            .map(|line| line.split_once('=').unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        check(&options, has_tls)
    }

    #[test]
    fn settings_that_the_promises_rest_upon_are_not_for_others() {
        let refused = checked("linger.ms=5\nacks=1", true).unwrap_err();
        assert!(refused.contains("`acks` is the node's own"), "{refused}");
        checked("linger.ms=5", false).unwrap();
    }

    #[test]
    fn without_tls_what_needs_it_is_refused_and_named() {
        for needs in [
            "security.protocol=SSL",
            "security.protocol=sasl_ssl\nsasl.mechanism=PLAIN",
            "ssl.ca.location=/etc/ca.pem",
            "security.protocol=SASL_PLAINTEXT\nsasl.mechanisms=SCRAM-SHA-512",
        ] {
            checked(needs, true).unwrap();
            let refused = checked(needs, false).unwrap_err();
            assert!(refused.contains("kafka-tls"), "{refused}");
            let named = needs.lines().any(|line| refused.starts_with(&format!("`{line}`")));
            assert!(named, "{refused}");
        }
        checked("security.protocol=sasl_plaintext\nsasl.mechanism=PLAIN", false).unwrap();
        checked("security.protocol=plaintext", false).unwrap();
    }

    #[test]
    fn sasl_needs_a_mechanism_that_there_is() {
        let refused = checked("security.protocol=SASL_SSL", true).unwrap_err();
        assert!(refused.contains("needs sasl.mechanism"), "{refused}");
        let refused =
            checked("security.protocol=SASL_SSL\nsasl.mechanism=GSSAPI", true).unwrap_err();
        assert!(refused.contains("not built in"), "{refused}");
    }
}
