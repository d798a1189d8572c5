//! Tells an HTTP/2 client from everything else that connects to the port, by its first bytes.

/// What every HTTP/2 client sends first. Source: RFC 9113, section 3.4.
pub(crate) const CLIENT_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The answer to plain HTTP/1.
pub(crate) const HTTP1_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    content-length: 69\r\n\
    connection: close\r\n\
    \r\n\
    This port speaks gRPC (HTTP/2 without TLS). Use a gRPC client for it.";

/// The first bytes of a connection, until they say what it is.
#[derive(Default)]
pub(crate) struct Preface {
    bytes: [u8; CLIENT_PREFACE.len()],
    length: usize,
}

/// What the bytes so far say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<'a> {
    /// Nothing yet.
    Undecided,
    /// HTTP/2; after the preface comes this.
    Http2(&'a [u8]),
    /// An HTTP/1 request line.
    Http1,
    /// Something else: TLS, or noise.
    Foreign,
}

impl Preface {
    /// Takes the next bytes.
    pub(crate) fn read<'a>(&mut self, bytes: &'a [u8]) -> Verdict<'a> {
        let count = bytes.len().min(self.bytes.len() - self.length);
        let (head, rest) = bytes.split_at(count);
        self.bytes[self.length..self.length + count].copy_from_slice(head);
        self.length += count;
        let so_far = &self.bytes[..self.length];
        if CLIENT_PREFACE.starts_with(so_far) {
            return if self.length == CLIENT_PREFACE.len() {
                Verdict::Http2(rest)
            } else {
                Verdict::Undecided
            };
        }
        // A method of HTTP/1 is capital letters and a blank; the longest in use has 7.
        let letters = so_far.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
        match so_far.get(letters) {
            None if letters < 10 => Verdict::Undecided,
            Some(b' ') if letters >= 3 => Verdict::Http1,
            _ => Verdict::Foreign,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_http1_answer_states_its_length() {
        let text = str::from_utf8(HTTP1_ANSWER).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
    }

    #[test]
    fn clients_are_told_apart_also_byte_by_byte() {
        let whole = |bytes: &'static [u8]| Preface::default().read(bytes);
        assert_eq!(whole(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrest"), Verdict::Http2(b"rest"));
        assert_eq!(whole(b"GET / HTTP/1.1\r\n\r\n"), Verdict::Http1);
        assert_eq!(whole(b"POST /x HTTP/1.1\r\n"), Verdict::Http1);
        assert_eq!(whole(b"PRI * HTTP/1.1\r\n"), Verdict::Http1);
        assert_eq!(whole(b"\x16\x03\x01\x02\x00\x01"), Verdict::Foreign);
        assert_eq!(whole(b"\0\0\0"), Verdict::Foreign);
        assert_eq!(whole(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"), Verdict::Foreign);

        for (bytes, expected) in [
            (&b"GET / HTTP/1.1"[..], Verdict::Http1),
            (b"PUT / HTTP/1.1", Verdict::Http1),
            (&CLIENT_PREFACE[..], Verdict::Http2(b"")),
            (b"\x16\x03\x01", Verdict::Foreign),
        ] {
            let mut preface = Preface::default();
            let verdict = bytes
                .iter()
                .map(|byte| preface.read(std::slice::from_ref(byte)))
                .find(|verdict| *verdict != Verdict::Undecided);
            assert_eq!(verdict, Some(expected));
        }
    }
}
