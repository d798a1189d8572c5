//! What gRPC needs of a request's headers: method, content type, timeout. All others pass
//! unread; `te: trailers` is not insisted on, as grpc-core does not.

use crate::{Method, Millis, endpoint::SessionConfig, rejection::Rejection};

/// Collected while a request's headers arrive.
#[derive(Clone, Copy, Default)]
pub(crate) struct RequestHead {
    method: Option<Method>,
    is_grpc: bool,
    is_post: bool,
    timeout_ms: Option<u64>,
    bad_timeout: bool,
    bytes: u32,
}

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
        // Lengths first: most fields that are not ours differ there.
        match name.len() {
            5 if name == b":path" => self.method = method(value, config.methods),
            7 if name == b":method" => self.is_post = value == b"POST",
            12 if name == b"content-type" => self.is_grpc = is_grpc(value),
            12 if name == b"grpc-timeout" => match timeout_ms(value) {
                Some(timeout_ms) => self.timeout_ms = Some(timeout_ms),
                None => self.bad_timeout = true,
            },
            _ => {}
        }
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

fn method(path: &[u8], methods: &[&str]) -> Option<Method> {
    // A handful of entries: comparing length, then bytes, beats hashing the path.
    let index = methods.iter().position(|method| method.as_bytes() == path)?;
    Some(Method(index as u16))
}

fn is_grpc(content_type: &[u8]) -> bool {
    let Some(rest) = content_type.strip_prefix(b"application/grpc") else { return false };
    let rest = rest.strip_prefix(b"+proto").unwrap_or(rest);
    rest.is_empty() || rest[0] == b';'
}

/// A `grpc-timeout` in milliseconds, rounded up: a call is not ended early.
fn timeout_ms(value: &[u8]) -> Option<u64> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let mut count = 0_u64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        count = count * 10 + u64::from(digit - b'0');
    }
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
