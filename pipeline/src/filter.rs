//! The filter stage: refuses writes by the prefix of their keys, the size of their values, and
//! their rate.
//!
//! A refused write leaves no trace: the filter stands before everything that records, and takes
//! tokens only in the second pass, when nothing can refuse the write any more.
//!
//! Hazard: rate and burst hold in each partition, for a partition knows nothing of its siblings.
//! The keys of a prefix are spread over all of them unless a routing key keeps them together.

use stateside_types::{
    Change, Reason, Refusal, StageKind, StageSpec, WallClock, WriteEntry,
    limits::{BATCH_BYTES_MAX, RETRY_RATE_MS_MAX},
};

use crate::{
    OptionDefinition, OptionError, OptionKind, Outlet, PREFIX, Prefixes, Progress, Stage,
    StageDefinition, Write,
    rate::{RateBy, RateLimit, Short},
};

const RATE_MAX: i64 = 1_000_000_000;

const ALLOW: OptionDefinition = OptionDefinition {
    name: "allow",
    kind: OptionKind::Texts,
    default: "every key",
    doc: "Keys must begin with one of these prefixes; writes of others are refused with FILTERED.",
};
const DENY: OptionDefinition = OptionDefinition {
    name: "deny",
    kind: OptionKind::Texts,
    default: "no key",
    doc: "Writes of keys that begin with one of these prefixes are refused with FILTERED.",
};
const VALUE_BYTES_MAX: OptionDefinition = OptionDefinition {
    name: "value_bytes_max",
    kind: OptionKind::Integer(0, BATCH_BYTES_MAX as i64),
    default: "no limit of its own",
    doc: "Larger values are refused with FILTERED. Bytes.",
};
const RATE_PER_S: OptionDefinition = OptionDefinition {
    name: "rate_per_s",
    kind: OptionKind::Integer(1, RATE_MAX),
    default: "no limit",
    doc: "Entries written a second, in each partition, for each prefix of `prefix` (or for all keys). Beyond: OVERLOADED, with the time until a retry can pass. A batch counts all its entries and passes whole or not at all.",
};
const BURST: OptionDefinition = OptionDefinition {
    name: "burst",
    kind: OptionKind::Integer(1, RATE_MAX),
    default: "as many as `rate_per_s`",
    doc: "Entries that may come at once after a pause. A batch with more is refused with FILTERED.",
};
const RATE_BY: OptionDefinition = OptionDefinition {
    name: "rate_by",
    kind: OptionKind::Text,
    default: "one rate for each prefix of `prefix`",
    doc: "A separator: each beginning of a key up to and including the first separator behind the prefix has a rate of its own, 4,096 at a time in each partition; further ones share one.",
};

pub(crate) const DEFINITION: StageDefinition = StageDefinition {
    kind: StageKind::Filter,
    doc: "Refuses writes, removes included, by key prefix, value size and rate.",
    options: &[PREFIX, ALLOW, DENY, VALUE_BYTES_MAX, RATE_PER_S, BURST, RATE_BY],
    build: |spec| Ok(Box::new(Filter::new(spec)?)),
};

/// See the module's header.
#[derive(Debug)]
struct Filter {
    prefix: Prefixes,
    allow: Prefixes,
    deny: Prefixes,
    value_bytes_max: usize,
    rate: Option<RateLimit>,
    rate_by: Option<Box<[u8]>>,
}

impl Filter {
    fn new(spec: &StageSpec) -> Result<Self, OptionError> {
        let prefix = Prefixes::read(spec, &PREFIX)?;
        let number = |option: &OptionDefinition| {
            spec.integer(option.name).and_then(|number| u64::try_from(number).ok())
        };
        let rate = number(&RATE_PER_S)
            .map(|rate| RateLimit::new(rate, number(&BURST).unwrap_or(rate), prefix.len().max(1)));
        let rate_by: Option<Box<[u8]>> = spec.text(RATE_BY.name).map(|text| text.as_bytes().into());
        for (option, is_set) in [(&BURST, number(&BURST).is_some()), (&RATE_BY, rate_by.is_some())]
        {
            if is_set && rate.is_none() {
                return Err(option.wrong("it needs rate_per_s"));
            }
        }
        if rate_by.as_deref().is_some_and(<[u8]>::is_empty) {
            return Err(RATE_BY.wrong("a separator has at least one byte"));
        }
        let filter = Self {
            allow: Prefixes::read(spec, &ALLOW)?,
            deny: Prefixes::read(spec, &DENY)?,
            value_bytes_max: number(&VALUE_BYTES_MAX)
                .map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX)),
            prefix,
            rate,
            rate_by,
        };
        if filter.allow.is_empty()
            && filter.deny.is_empty()
            && filter.rate.is_none()
            && filter.value_bytes_max == usize::MAX
        {
            let message = "a filter needs one of allow, deny, value_bytes_max, rate_per_s";
            return Err(OptionError { option: None, message: message.to_owned() });
        }
        Ok(filter)
    }

    #[inline]
    fn check_entry(&self, at: usize, entry: &WriteEntry<'_>) -> Result<(), Refusal> {
        if !self.deny.is_empty()
            && let Some(prefix) = self.deny.find(entry.key)
        {
            let prefix = shown(self.deny.get(prefix));
            return Err(filtered(at, format!("keys that begin with `{prefix}` are denied")));
        }
        if !self.allow.is_empty() && self.allow.find(entry.key).is_none() {
            let key = shown(entry.key);
            return Err(filtered(at, format!("the key `{key}` begins with no allowed prefix")));
        }
        if let Change::Put(value) = entry.change
            && value.len() > self.value_bytes_max
        {
            let (bytes, most) = (value.len(), self.value_bytes_max);
            return Err(filtered(
                at,
                format!("the value has {bytes} bytes, {most} are let through"),
            )
            .with("limit", most));
        }
        Ok(())
    }

    fn check_rate(&mut self, entries: &[WriteEntry<'_>], now: WallClock) -> Result<(), Refusal> {
        let Some(rate) = &mut self.rate else { return Ok(()) };
        rate.begin(now);
        for entry in entries {
            let slot = match self.prefix.find(entry.key) {
                Some(slot) => slot,
                None if self.prefix.is_empty() => 0,
                None => continue,
            };
            let by = match &self.rate_by {
                None => RateBy::Slot(slot),
                Some(separator) => {
                    let prefix =
                        if self.prefix.is_empty() { 0 } else { self.prefix.get(slot).len() };
                    RateBy::Beginning(beginning(entry.key, prefix, separator))
                }
            };
            rate.ask(by, now);
        }
        rate.check(now).map_err(refuse_rate)
    }
}

impl Stage for Filter {
    fn kind(&self) -> StageKind {
        StageKind::Filter
    }

    fn admit(&mut self, write: &Write<'_>, _: &mut dyn Outlet) -> Result<(), Refusal> {
        for (at, entry) in write.entries.iter().enumerate() {
            if self.prefix.select(entry.key) {
                self.check_entry(at, entry)?;
            }
        }
        self.check_rate(write.entries, write.now)
    }

    fn accept(&mut self, _: &mut Write<'_>, _: &mut dyn Outlet) -> Progress {
        if let Some(rate) = &mut self.rate {
            rate.take();
        }
        Progress::Done
    }
}

/// The key up to and including the first separator behind the prefix; without one just the
/// prefix: such keys share a bucket.
fn beginning<'a>(key: &'a [u8], prefix: usize, separator: &[u8]) -> &'a [u8] {
    let rest = &key[prefix..];
    let found = match separator {
        [byte] => rest.iter().position(|other| other == byte),
        _ => rest.windows(separator.len()).position(|window| window == separator),
    };
    &key[..found.map_or(prefix, |at| prefix + at + separator.len())]
}

fn refuse_rate(short: Short) -> Refusal {
    let asked = short.asked;
    match short.enough_in_ms {
        None => Refusal::new(
            Reason::Filtered,
            format!(
                "{asked} entries of one batch are more than the stage ever lets through at once"
            ),
        ),
        Some(ms) => {
            let message = format!("the rate is used up for {ms} ms");
            let retry = u32::try_from(ms).unwrap_or(u32::MAX).min(RETRY_RATE_MS_MAX);
            let mut refusal = Refusal::new(Reason::Overloaded, message);
            refusal.retry_after_ms = Some(retry);
            refusal
        }
    }
}

fn filtered(entry: usize, message: String) -> Refusal {
    Refusal::new(Reason::Filtered, message).with("entry", entry)
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).into_owned()
}

#[cfg(test)]
mod tests {
    use stateside_types::OptionValue;

    use super::*;
    use crate::{
        read_stage,
        stage::tests::{Nowhere, write_of},
    };

    fn text(text: &str) -> OptionValue {
        OptionValue::Text(text.to_owned())
    }

    fn filter(options: &[(&str, OptionValue)]) -> Result<Filter, OptionError> {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        Filter::new(&read_stage("filter", options.collect())?)
    }

    fn put<'a>(key: &'a str, value: &'a [u8]) -> WriteEntry<'a> {
        WriteEntry::put(key.as_bytes(), value)
    }

    const REMOVE: WriteEntry<'_> = WriteEntry::remove(b"tmp/x");

    fn admit(filter: &mut Filter, entries: &[WriteEntry<'_>], now: u64) -> Result<(), Refusal> {
        let mut write = write_of(entries, now);
        filter.admit(&write, &mut Nowhere)?;
        filter.accept(&mut write, &mut Nowhere);
        Ok(())
    }

    #[test]
    fn prefixes_are_allowed_and_denied_and_others_passed_over() {
        let mut filter = filter(&[
            ("prefix", OptionValue::Texts(vec!["user/".to_owned(), "tmp/".to_owned()])),
            ("allow", text("user/")),
            ("deny", text("user/0")),
        ])
        .unwrap();
        assert_eq!(admit(&mut filter, &[put("user/7", b""), put("else", b"")], 0), Ok(()));
        let denied = admit(&mut filter, &[put("user/7", b""), put("user/01", b"")], 0).unwrap_err();
        assert_eq!(denied.reason, Reason::Filtered);
        assert_eq!(denied.metadata, [("entry".into(), "1".to_owned())]);
        assert!(denied.message.contains("begin with `user/0` are denied"), "{denied}");
        let other = admit(&mut filter, &[REMOVE], 0).unwrap_err();
        assert!(other.message.contains("the key `tmp/x` begins with no allowed prefix"), "{other}");
    }

    #[test]
    fn large_values_are_refused_and_removals_have_none() {
        let mut filter = filter(&[("value_bytes_max", OptionValue::Integer(3))]).unwrap();
        assert_eq!(admit(&mut filter, &[put("k", b"123"), REMOVE], 0), Ok(()));
        let refusal = admit(&mut filter, &[put("k", b"1234")], 0).unwrap_err();
        assert_eq!(refusal.reason, Reason::Filtered);
        assert_eq!(refusal.metadata[1], ("limit".into(), "3".to_owned()));
    }

    #[test]
    fn a_rate_holds_for_each_prefix_and_says_when_to_retry() {
        let mut filter = filter(&[
            ("prefix", OptionValue::Texts(vec!["a/".to_owned(), "b/".to_owned()])),
            ("rate_per_s", OptionValue::Integer(10)),
            ("burst", OptionValue::Integer(2)),
        ])
        .unwrap();
        let (a, b) = (put("a/1", b""), put("b/1", b""));
        assert_eq!(admit(&mut filter, &[a, b, put("c", b""), a], 50), Ok(()));
        let refusal = admit(&mut filter, &[b, b], 50).unwrap_err();
        assert_eq!((refusal.reason, refusal.retry_after_ms), (Reason::Overloaded, Some(100)));
        // The refused batch took nothing of b's one token, and others pass as ever.
        assert_eq!(admit(&mut filter, &[b, put("c", b"")], 50), Ok(()));
        let never = admit(&mut filter, &[a, a, a], 9_000).unwrap_err();
        assert_eq!((never.reason, never.retry_after_ms), (Reason::Filtered, None));
    }

    #[test]
    fn a_separator_gives_each_tenant_a_rate() {
        let mut filter = filter(&[
            ("prefix", text("t/")),
            ("rate_per_s", OptionValue::Integer(1)),
            ("rate_by", text("::")),
        ])
        .unwrap();
        for (key, passes) in [
            ("t/1::x", true),
            ("t/1::y", false),
            ("t/2::x", true),
            ("t/none", true),
            ("t/other", false),
            ("else", true),
        ] {
            assert_eq!(admit(&mut filter, &[put(key, b"")], 0).is_ok(), passes, "{key}");
        }
    }

    #[test]
    fn options_that_make_no_filter_are_refused() {
        for (options, says) in [
            (vec![], "needs one of allow, deny"),
            (vec![("prefix", text("x"))], "needs one of allow, deny"),
            (vec![("burst", OptionValue::Integer(1)), ("deny", text("x"))], "burst: it needs rate"),
            (vec![("deny", text("hex:1"))], "deny: `hex:1` is not"),
            (vec![("rate_per_s", OptionValue::Integer(0))], "0 is not within 1 to"),
            (
                vec![("rate_per_s", OptionValue::Integer(1)), ("rate_by", text(""))],
                "a separator has at least one byte",
            ),
        ] {
            let error = filter(&options).unwrap_err();
            assert!(error.message.contains(says), "{error}");
        }
    }
}
