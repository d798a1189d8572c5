//! What gRPC needs of a request's headers: method, content type, timeout. `te: trailers` is not
//! insisted on, as grpc-core does not.
//!
//! Also HTTP's own rules for fields (RFC 9113, sections 8.2 and 8.3). libnghttp2 would check them, at
//! 15 % of a small call's instructions; here it is 4 %. A request that breaks them is
//! reset, not answered: whatever sent it is no HTTP/2 client.

use crate::{Method, Millis, endpoint::SessionConfig, rejection::Rejection};

/// Collected while a request's headers arrive.
#[derive(Clone, Copy, Default)]
pub(crate) struct RequestHead {
    method: Option<Method>,
    timeout_ms: Option<u64>,
    content_length: Option<u64>,
    bytes: u32,
    /// Pseudo-header fields seen, one bit each.
    pseudo_seen: u8,
    regular_seen: bool,
    is_grpc: bool,
    is_post: bool,
    bad_timeout: bool,
    malformed: bool,
}

const PATH: u8 = 1;
const METHOD: u8 = 2;
const SCHEME: u8 = 4;
const AUTHORITY: u8 = 8;

impl RequestHead {
    /// Takes one header field.
    #[inline]
    pub(crate) fn field(&mut self, name: &[u8], value: &[u8], config: &SessionConfig) {
        // HTTP/2's own measure of a header list: RFC 9113, section 6.5.2.
        let size = (name.len() + value.len() + 32) as u32;
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > config.header_bytes_max {
            return;
        }
        if let [b':', ..] = name {
            return self.pseudo(name, value, config);
        }
        self.regular_seen = true;
        // Lengths first: most fields that are not ours differ there. What is compared with all that
        // it may be, or parsed, needs no check of its own.
        match name.len() {
            2 if name == b"te" => self.malformed |= value != b"trailers",
            12 if name == b"content-type" => self.is_grpc = is_grpc(value),
            12 if name == b"grpc-timeout" => match timeout_ms(value) {
                Some(timeout_ms) => self.timeout_ms = Some(timeout_ms),
                None => self.bad_timeout = true,
            },
            14 if name == b"content-length" => {
                let length = decimal(value);
                self.malformed |= length.is_none()
                    || self.content_length.is_some_and(|other| Some(other) != length);
                self.content_length = length;
            }
            _ => self.trailer(name, value),
        }
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8], config: &SessionConfig) {
        let bit = match name {
            b":path" => {
                self.method = method(value, config.methods);
                self.malformed |= value.is_empty();
                PATH
            }
            b":method" => {
                self.is_post = value == b"POST";
                METHOD
            }
            b":scheme" => {
                self.malformed |= !is_value(value);
                SCHEME
            }
            b":authority" => {
                self.malformed |= !is_value(value);
                AUTHORITY
            }
            _ => return self.malformed = true,
        };
        self.malformed |= self.regular_seen || self.pseudo_seen & bit != 0;
        self.pseudo_seen |= bit;
    }

    /// Takes a field that means nothing here, as all of a request's trailers: it has to be one.
    #[inline]
    pub(crate) fn trailer(&mut self, name: &[u8], value: &[u8]) {
        self.malformed |= !is_name(name) || !is_value(value) || is_of_the_connection(name);
    }

    /// HTTP's rules do not hold.
    pub(crate) fn is_malformed(&self) -> bool {
        const NEEDED: u8 = PATH | METHOD | SCHEME;
        self.malformed || self.pseudo_seen & NEEDED != NEEDED
    }

    /// The request's announced length is not that of its body.
    pub(crate) fn contradicts(&self, body_bytes: usize) -> bool {
        self.content_length.is_some_and(|length| length != body_bytes as u64)
    }

    /// All fields are there: the call they ask for.
    pub(crate) fn finish(
        &self,
        config: &SessionConfig,
        now: Millis,
    ) -> Result<(Method, Millis), Rejection> {
        if self.bytes > config.header_bytes_max {
            return Err(Rejection::HeadersTooLarge);
        }
        if self.is_malformed() {
            return Err(Rejection::Malformed);
        }
        if !self.is_post {
            return Err(Rejection::NotPost);
        }
        if !self.is_grpc {
            return Err(Rejection::NotGrpc);
        }
        let method = self.method.ok_or(Rejection::UnknownMethod)?;
        if self.bad_timeout {
            return Err(Rejection::BadTimeout);
        }
        Ok((method, self.timeout_ms.map_or(Millis::NEVER, |timeout_ms| now.plus(timeout_ms))))
    }
}

/// Bytes that may be in the name of a field: visible ASCII without capitals and colons.
const IN_NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        table[byte as usize] = !byte.is_ascii_uppercase() && byte != b':';
        byte += 1;
    }
    table
};

#[inline]
fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|byte| IN_NAME[usize::from(*byte)])
}

/// No NUL, CR, LF, and no blanks around it.
#[inline]
fn is_value(value: &[u8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let [first, .., last] = value else {
        return !matches!(value, [b'\0' | b'\n' | b'\r' | b' ' | b'\t']);
    };
    if matches!(first, b' ' | b'\t') || matches!(last, b' ' | b'\t') {
        return false;
    }
    // Eight bytes at a time: the top bit of each lane says that its byte, or a lane below it,
    // is under 0x20. Such values are rare, and looked at again one by one.
    let (chunks, rest) = value.as_chunks::<8>();
    let mut control = rest.iter().any(|byte| *byte < 0x20);
    for chunk in chunks {
        let lanes = u64::from_ne_bytes(*chunk);
        control |= lanes.wrapping_sub(ONES * 0x20) & !lanes & (ONES * 0x80) != 0;
    }
    !control || !value.iter().any(|byte| matches!(byte, b'\0' | b'\n' | b'\r'))
}

/// Fields of HTTP/1 connections, which HTTP/2 forbids.
fn is_of_the_connection(name: &[u8]) -> bool {
    matches!(
        name,
        b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade"
    )
}

fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0, |number, byte| {
        byte.is_ascii_digit().then(|| number * 10 + u64::from(byte - b'0'))
    })
}

fn method(path: &[u8], methods: &[&str]) -> Option<Method> {
    // A handful of entries: comparing length, then bytes, beats hashing the path.
    let index = methods.iter().position(|method| method.as_bytes() == path)?;
    Some(Method(index as u16))
}

fn is_grpc(content_type: &[u8]) -> bool {
    let Some(rest) = content_type.strip_prefix(b"application/grpc") else { return false };
    let rest = rest.strip_prefix(b"+proto").unwrap_or(rest);
    rest.is_empty() || rest[0] == b';' && is_value(rest)
}

/// A `grpc-timeout` in milliseconds, rounded up: a call is not ended early.
fn timeout_ms(value: &[u8]) -> Option<u64> {
    let (unit, digits) = value.split_last()?;
    if digits.len() > 8 {
        return None;
    }
    let count = decimal(digits)?;
    Some(match unit {
        b'H' => count * 3_600_000,
        b'M' => count * 60_000,
        b'S' => count * 1_000,
        b'm' => count,
        b'u' => count.div_ceil(1_000),
        b'n' => count.div_ceil(1_000_000),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_in_every_unit_round_up() {
        for (text, expected) in [
            ("1H", Some(3_600_000)),
            ("2M", Some(120_000)),
            ("3S", Some(3_000)),
            ("4m", Some(4)),
            ("1001u", Some(2)),
            ("1n", Some(1)),
            ("0m", Some(0)),
            ("99999999H", Some(99_999_999 * 3_600_000)),
            ("100000000m", None),
            ("m", None),
            ("", None),
            ("5", None),
            ("5s", None),
            ("-5m", None),
            ("5 m", None),
        ] {
            assert_eq!(timeout_ms(text.as_bytes()), expected, "{text:?}");
        }
    }

    fn head(fields: &[(&str, &str)]) -> Result<(Method, Millis), Rejection> {
        let config = SessionConfig::new(&["/test.v1.Test/Echo"]);
        let mut head = RequestHead::default();
        for (name, value) in fields {
            head.field(name.as_bytes(), value.as_bytes(), &config);
        }
        head.finish(&config, Millis(7))
    }

    const GOOD: [(&str, &str); 5] = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/test.v1.Test/Echo"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];

    #[test]
    fn requests_that_break_the_rules_of_http_are_malformed() {
        assert_eq!(head(&GOOD), Ok((Method(0), Millis::NEVER)));
        for missing in 0..3 {
            let mut fields = GOOD.to_vec();
            fields.remove(missing);
            assert_eq!(head(&fields), Err(Rejection::Malformed), "{missing}");
        }
        for (at, name, value) in [
            (3, ":path", "/test.v1.Test/Echo"),
            (3, ":status", "200"),
            (5, ":authority", "late"),
            (5, "X-Upper", "x"),
            (5, "x y", "x"),
            (5, "x:y", "x"),
            (5, "", "x"),
            (5, "n\u{e4}me", "x"),
            (5, "x-line", "a\r\nb"),
            (5, "x-nul", "a\0b"),
            (5, "x-blank", " a"),
            (5, "x-blank", "a\t"),
            (5, "x-long", "more than eight bytes, then\r\n: and more"),
            (5, "x-one", "\n"),
            (5, "te", "gzip"),
            (5, "connection", "close"),
            (5, "transfer-encoding", "chunked"),
            (5, "content-length", "x"),
        ] {
            let mut fields = GOOD.to_vec();
            fields.insert(at, (name, value));
            assert_eq!(head(&fields), Err(Rejection::Malformed), "{name}: {value}");
        }
        let mut fields = GOOD.to_vec();
        fields.extend([
            ("x-fine", ""),
            ("x-tab", "tabs\tare fine inside of a value"),
            ("x-also", "\u{e4} b"),
            ("grpc-timeout", "5m"),
        ]);
        assert_eq!(head(&fields), Ok((Method(0), Millis(12))));
    }

    #[test]
    fn content_types_of_grpc_with_protobuf_are_taken_and_no_others() {
        for yes in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"]
        {
            assert!(is_grpc(yes.as_bytes()), "{yes}");
        }
        for no in [
            "application/grpc-web",
            "application/grpc+json",
            "application/json",
            "",
            "application/grp",
        ] {
            assert!(!is_grpc(no.as_bytes()), "{no}");
        }
    }
}
