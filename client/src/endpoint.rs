//! Where a node listens, as people write it: `HOST:PORT`, `http://HOST:PORT`, `unix:PATH`.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr, sync::Arc};

use crate::Error;

/// An address that a client connects to. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A TCP address; the host is a name or an address, IPv6 in brackets.
    Tcp {
        /// Name or address, without brackets.
        host: Arc<str>,
        /// Port, not 0.
        port: u16,
    },
    /// A Unix socket.
    Unix(Arc<PathBuf>),
}

impl Endpoint {
    /// A TCP address from its parts.
    pub fn tcp(host: &str, port: u16) -> Self {
        Self::Tcp { host: host.into(), port }
    }

    /// The endpoint that a node means by `core_address`, one of its answers to `Topology`. A node
    /// that listens on every interface cannot know under which name its clients reach it: an
    /// empty or unspecified host stands for the host of `self`, where that answer came from.
    /// Over a Unix socket there is no such host, and the answer is `self`.
    ///
    /// # Errors
    /// [`Error::InvalidEndpoint`] when the address is none.
    pub fn core(&self, core_address: &str) -> Result<Self, Error> {
        let (host, port) = split_host_port(core_address)
            .map_err(|why| Error::InvalidEndpoint { endpoint: core_address.into(), why })?;
        let anywhere =
            host.is_empty() || host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
        Ok(match (anywhere, self) {
            (false, _) => Self::tcp(host, port),
            (true, Self::Tcp { host, .. }) => Self::Tcp { host: Arc::clone(host), port },
            (true, Self::Unix(_)) => self.clone(),
        })
    }

    /// Whether only processes of this machine can be behind the endpoint.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } => {
                &**host == "localhost"
                    || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |why: &'static str| Error::InvalidEndpoint { endpoint: text.into(), why };
        if let Some(path) = text.strip_prefix("unix:") {
            // `unix:///run/x` is gRPC's other spelling of `unix:/run/x`.
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err(invalid("name the socket's path after unix:"));
            }
            return Ok(Self::Unix(Arc::new(PathBuf::from(path))));
        }
        if text.starts_with("https://") {
            return Err(invalid("TLS is not spoken here: use http:// or no scheme"));
        }
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = split_host_port(rest).map_err(invalid)?;
        if host.is_empty() {
            return Err(invalid("name a host before the port, such as 127.0.0.1:7400"));
        }
        Ok(Self::tcp(host, port))
    }
}

/// `host:port` or `[v6]:port`; the host may be empty.
fn split_host_port(text: &str) -> Result<(&str, u16), &'static str> {
    const FORM: &str = "write HOST:PORT, such as 127.0.0.1:7400, or unix:PATH";
    let (host, port) = text.rsplit_once(':').ok_or(FORM)?;
    let host = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.strip_suffix(']').ok_or("close the bracket of [IPV6]:PORT")?,
        None if host.contains(':') => return Err("write an IPv6 address as [ADDRESS]:PORT"),
        None => host,
    };
    if host.contains(['/', '@', ' ', '?', '#']) {
        return Err(FORM);
    }
    match port.parse() {
        Ok(0) | Err(_) => Err("the port is a number from 1 to 65535"),
        Ok(port) => Ok((host, port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> String {
        text.parse::<Endpoint>().map_or_else(|error| error.to_string(), |e| e.to_string())
    }

    #[test]
    fn every_spelling_of_an_endpoint_parses() {
        assert_eq!(parse("127.0.0.1:7400"), "127.0.0.1:7400");
        assert_eq!(parse("http://node-3.internal:7400/"), "node-3.internal:7400");
        assert_eq!(parse("[::1]:7400"), "[::1]:7400");
        assert_eq!(parse("unix:/run/stateside.sock"), "unix:/run/stateside.sock");
        assert_eq!(parse("unix:///run/stateside.sock"), "unix:/run/stateside.sock");
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_what_to_write_instead() {
        for (text, part) in [
            ("localhost", "HOST:PORT"),
            (":7400", "host before the port"),
            ("localhost:0", "1 to 65535"),
            ("localhost:70000", "1 to 65535"),
            ("::1:7400", "[ADDRESS]:PORT"),
            ("https://localhost:7400", "TLS"),
            ("unix:", "path"),
            ("a/b:7400", "HOST:PORT"),
            ("", "HOST:PORT"),
        ] {
            let said = parse(text);
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[test]
    fn a_core_address_without_a_host_takes_the_endpoints() {
        let core = |endpoint: &str, address: &str| {
            endpoint.parse::<Endpoint>().unwrap().core(address).map(|e| e.to_string())
        };
        assert_eq!(core("node-3:7400", ":7411"), Ok("node-3:7411".into()));
        assert_eq!(core("node-3:7400", "0.0.0.0:7411"), Ok("node-3:7411".into()));
        assert_eq!(core("[fe80::3]:7400", "[::]:7411"), Ok("[fe80::3]:7411".into()));
        assert_eq!(core("node-3:7400", "10.0.0.9:7411"), Ok("10.0.0.9:7411".into()));
        assert_eq!(core("unix:/run/s", ":7411"), Ok("unix:/run/s".into()));
        assert_eq!(core("unix:/run/s", "10.0.0.9:7411"), Ok("10.0.0.9:7411".into()));
        assert!(core("node-3:7400", "nonsense").is_err());
    }

    #[test]
    fn local_endpoints_are_known_as_such() {
        for (text, local) in
            [("localhost:1", true), ("127.0.0.9:1", true), ("unix:/x", true), ("10.1.1.1:1", false)]
        {
            assert_eq!(text.parse::<Endpoint>().unwrap().is_local(), local, "{text}");
        }
    }
}
