//! Amounts on the command line: durations and rates.

use std::time::Duration;

use stateside_types::limits::TTL_MS_MAX;

/// `500ms`, `10s`, `2m`, `1h`; a bare number is seconds. Not zero.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    match parse_duration_or_none(text)? {
        Duration::ZERO => Err(format!("`{text}` leaves no time at all")),
        some => Ok(some),
    }
}

/// A time to live: as above, and days: `30d`. Up to a hundred years.
pub(super) fn parse_ttl(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time to live such as 500ms, 10s, 2m, 1h or 30d");
    match parse(text, Duration::from_millis(TTL_MS_MAX)) {
        Ok(ttl) if ttl >= Duration::from_millis(1) => Ok(ttl),
        Ok(_) => Err(format!("`{text}` is no time at all")),
        Err(Unusable::TooLong) => Err(format!("`{text}` is longer than a hundred years")),
        Err(Unusable::NoDuration) => Err(wrong()),
    }
}

/// The same, where no time at all makes sense too.
pub(super) fn parse_duration_or_none(text: &str) -> Result<Duration, String> {
    parse(text, MAX).map_err(|unusable| match unusable {
        Unusable::TooLong => format!("`{text}` is longer than a day"),
        Unusable::NoDuration => format!("`{text}` is not a duration such as 500ms, 10s, 2m or 1h"),
    })
}

enum Unusable {
    NoDuration,
    TooLong,
}

fn parse(text: &str, max: Duration) -> Result<Duration, Unusable> {
    let split = text.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit.trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(Unusable::NoDuration),
    };
    let number: f64 = number.parse().map_err(|_| Unusable::NoDuration)?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if duration <= max => Ok(duration),
        _ => Err(Unusable::TooLong),
    }
}

const MAX: Duration = Duration::from_secs(24 * 3_600);

/// Records per second: `5000`, `5000/s`, `5k/s`. Not zero.
pub(super) fn parse_rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a rate such as 5000/s or 5k/s");
    let number = text.strip_suffix("/s").unwrap_or(text).trim();
    let (number, factor) = match number.strip_suffix(['k', 'K']) {
        Some(thousands) => (thousands, 1_000),
        None => (number, 1),
    };
    let number: u64 = number.replace('_', "").parse().map_err(|_| wrong())?;
    number.checked_mul(factor).filter(|&rate| rate > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_parse() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "s", "0", "0ms", "5 parsecs", "-1s", "25h", "1e9"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_duration_or_none("0s"), Ok(Duration::ZERO));
        assert!(parse_duration_or_none("0 parsecs").is_err());
    }

    #[test]
    fn times_to_live_parse() {
        assert_eq!(parse_ttl("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_ttl("30d"), Ok(Duration::from_secs(30 * 86_400)));
        for wrong in ["", "0", "0.1ms", "forever", "36501d"] {
            assert!(parse_ttl(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_parse() {
        assert_eq!(parse_rate("5000/s"), Ok(5_000));
        assert_eq!(parse_rate("5k"), Ok(5_000));
        assert_eq!(parse_rate("1_000"), Ok(1_000));
        for wrong in ["", "0", "0/s", "many", "-3", "99999999999999999999k"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }
}
