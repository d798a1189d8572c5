//! Listening sockets: one set for the shared port, one for each core's own, a Unix socket.
//!
//! With `SO_REUSEPORT` every core listens on the shared port and the kernel spreads connections
//! over them. The hazard: a second process of the same user may join such a set, silently, and
//! take a share of the connections. So the first socket of a set is bound *exclusively*, which
//! fails when anybody holds the port, and is opened to its siblings only afterwards: nobody can
//! slip in between, and a port in use is an error that names it.
//!
//! ```text
//!   bind_shared ──► held: connecting is refused, the port is nobody else's ──► start_listening
//! ```
//! A node takes its ports before it recovers, and listens when it can answer: a client that comes
//! early is refused at once and tries again, where a listening socket would let it wait in the
//! backlog for as long as the recovery takes. The hazard: with `SO_REUSEADDR` on both sides the
//! kernel lets two sockets that do not listen yet bind one port, and the later `listen` would fail
//! after all the work of a recovery. So a port is held without that flag, which is needed only
//! for binding (the last run's connections in TIME_WAIT) and for the sockets accepted later.
//!
//! Options are set on the listener; Linux copies them to each accepted socket, which saves
//! system calls per connection.

use std::{
    fs::remove_file,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::fs::FileTypeExt},
    path::Path,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, getsockname, listen,
        socket_with, sockopt,
    },
};
use stateside_types::limits;

use super::error::ReactorError;

/// An idle peer is probed after this, so that the connections of a vanished VM go away.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;

/// Listens on `address`, for one core alone or (`reuse_port`) as a member of a set.
///
/// A set made with this directly does not notice strangers: prefer [`bind_shared`].
/// Port 0 takes a free one; `local_addr` of the socket tells which.
pub fn bind_tcp(address: SocketAddr, reuse_port: bool) -> Result<OwnedFd, ReactorError> {
    let attempt = || {
        let socket = tcp_socket(address)?;
        if reuse_port {
            sockopt::set_socket_reuseport(&socket, true)?;
        }
        bind(&socket, &address)?;
        listen(&socket, limits::LISTEN_BACKLOG)?;
        Ok(socket)
    };
    attempt().map_err(|errno| cannot_listen(address, errno))
}

/// Binds one socket for each of `cores` to `address` and returns the address too: with port 0 all
/// share the port that the first got. They do not listen yet.
///
/// # Errors
/// [`ReactorError::AddressInUse`] when any socket of any process is bound to the address, even
/// one with `SO_REUSEPORT`, and even one that does not listen yet.
pub fn bind_shared(
    address: SocketAddr,
    cores: usize,
) -> Result<(SocketAddr, Vec<OwnedFd>), ReactorError> {
    assert!(cores > 0, "a node has at least one core");
    let attempt = || {
        let first = tcp_socket(address)?;
        // Exclusive: fails while anybody holds the port.
        bind(&first, &address)?;
        // From here on the port is ours, and its siblings may join. The kernel looks at these
        // flags when another socket binds and when this one begins to listen.
        sockopt::set_socket_reuseport(&first, true)?;
        sockopt::set_socket_reuseaddr(&first, false)?;
        let bound = SocketAddr::try_from(getsockname(&first)?)?;
        let mut sockets = vec![first];
        for _ in 1..cores {
            let socket = tcp_socket(bound)?;
            sockopt::set_socket_reuseport(&socket, true)?;
            bind(&socket, &bound)?;
            sockopt::set_socket_reuseaddr(&socket, false)?;
            sockets.push(socket);
        }
        // Older kernels remember of a port that its first socket would share it, until one binds
        // that would not. Where others' connections in TIME_WAIT forbid that, we do without.
        let witness = tcp_socket(bound)?;
        sockopt::set_socket_reuseport(&witness, true)?;
        sockopt::set_socket_reuseaddr(&witness, false)?;
        let _ = bind(&witness, &bound);
        Ok((bound, sockets))
    };
    attempt().map_err(|errno| cannot_listen(address, errno))
}

/// Has sockets of [`bind_shared`] listen: clients may connect.
///
/// # Errors
/// [`ReactorError::AddressInUse`] when somebody got hold of the port all the same.
pub fn start_listening(address: SocketAddr, sockets: &[OwnedFd]) -> Result<(), ReactorError> {
    let attempt = || {
        for socket in sockets {
            // Inherited by accepted sockets: they must not keep the next start from binding.
            sockopt::set_socket_reuseaddr(socket, true)?;
            listen(socket, limits::LISTEN_BACKLOG)?;
        }
        Ok(())
    };
    attempt().map_err(|errno| cannot_listen(address, errno))
}

/// Refuses a `path` at which [`bind_unix`] would fail because somebody listens there or because it
/// is another kind of file. Makes nothing: until the node listens, connecting fails at once.
pub fn check_unix(path: &Path) -> Result<(), ReactorError> {
    let failed = |errno: Errno| ReactorError::CannotListenUnix {
        path: path.to_owned(),
        source: errno.into(),
    };
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    if path.symlink_metadata().is_ok() { check_stale(path, &address) } else { Ok(()) }
}

/// Listens on the Unix socket `path`. A socket that nobody listens on any more (its process was
/// killed) is replaced; one in use, and a file that is no socket, are errors and left alone.
/// Who may connect follows from the umask and the directory.
pub fn bind_unix(path: &Path) -> Result<OwnedFd, ReactorError> {
    let failed = |errno: Errno| ReactorError::CannotListenUnix {
        path: path.to_owned(),
        source: errno.into(),
    };
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let socket = stream_socket(AddressFamily::UNIX).map_err(failed)?;
    match bind(&socket, &address) {
        Ok(()) => {}
        Err(Errno::ADDRINUSE) => {
            check_stale(path, &address)?;
            remove_file(path).map_err(|source| ReactorError::CannotListenUnix {
                path: path.to_owned(),
                source,
            })?;
            bind(&socket, &address).map_err(failed)?;
        }
        Err(errno) => return Err(failed(errno)),
    }
    listen(&socket, limits::LISTEN_BACKLOG).map_err(failed)?;
    Ok(socket)
}

/// Whether what is at `path` may go: a socket that nobody listens on.
fn check_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), ReactorError> {
    let failed = |source| ReactorError::CannotListenUnix { path: path.to_owned(), source };
    let metadata = std::fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.file_type().is_socket() {
        return Err(ReactorError::NotASocket { path: path.to_owned() });
    }
    // Not blocking: connecting to a listener whose backlog is full would wait for it.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|errno| failed(errno.into()))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => Ok(()),
        // Connected, or refused for another reason (its backlog is full): somebody is there.
        _ => Err(ReactorError::SocketInUse { path: path.to_owned() }),
    }
}

/// A TCP socket with everything that listener and accepted sockets have in common.
fn tcp_socket(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = stream_socket(family)?;
    // A restart must not wait until the last connections have left TIME_WAIT.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Accepted sockets inherit these. Every send is a whole turn's answers: never wait for more.
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_PROBES)?;
    Ok(socket)
}

fn stream_socket(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

fn cannot_listen(address: SocketAddr, errno: Errno) -> ReactorError {
    match errno {
        Errno::ADDRINUSE => ReactorError::AddressInUse { address },
        errno => ReactorError::CannotListen { address, source: errno.into() },
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn any_port() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    fn is_in_use<T: std::fmt::Debug>(result: Result<T, ReactorError>, port: u16) -> bool {
        match result {
            Err(error @ ReactorError::AddressInUse { .. }) => {
                error.to_string().contains(&format!("127.0.0.1:{port}"))
            }
            other => panic!("expected the address to be in use: {other:?}"),
        }
    }

    #[test]
    fn a_shared_port_is_one_port_and_refuses_strangers() {
        let (address, sockets) = bind_shared(any_port(), 3).unwrap();
        assert_eq!(sockets.len(), 3);
        for socket in &sockets {
            assert_eq!(SocketAddr::try_from(getsockname(socket).unwrap()).unwrap(), address);
        }
        assert!(is_in_use(bind_shared(address, 3), address.port()), "a second set of ours");
        assert!(is_in_use(bind_tcp(address, false), address.port()), "a plain listener");
        drop(sockets);
        bind_shared(address, 2).expect("the port is free again at once");
    }

    /// Two nodes that recover at a time once both got the port; the slower one failed at the end.
    #[test]
    fn a_port_that_is_held_refuses_clients_and_strangers_until_it_listens() {
        for cores in [1, 3] {
            let (address, sockets) = bind_shared(any_port(), cores).unwrap();
            let refused = TcpStream::connect(address).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            assert!(is_in_use(bind_shared(address, cores), address.port()), "a node that starts");
            assert!(is_in_use(bind_tcp(address, false), address.port()), "a plain listener");
            start_listening(address, &sockets).unwrap();
            TcpStream::connect(address).unwrap();
            assert!(is_in_use(bind_shared(address, cores), address.port()), "while it listens");
        }
    }

    #[test]
    fn connections_of_the_last_run_do_not_keep_a_port() {
        let (address, mut sockets) = bind_shared(any_port(), 1).unwrap();
        start_listening(address, &sockets).unwrap();
        let ours = sockets.pop().unwrap();
        // Nor do those of another program.
        let others = bind_tcp(any_port(), false).unwrap();
        for listener in [ours, others] {
            let listener = TcpListener::from(listener);
            let address = listener.local_addr().unwrap();
            let mut client = TcpStream::connect(address).unwrap();
            // The side that closes first keeps the port in TIME_WAIT.
            drop(listener.accept().unwrap());
            assert_eq!(std::io::Read::read(&mut client, &mut [0]).unwrap(), 0);
            drop((client, listener));
            let (_, sockets) = bind_shared(address, 2).expect("TIME_WAIT is no owner");
            assert!(is_in_use(bind_shared(address, 2), address.port()), "but we are");
            start_listening(address, &sockets).unwrap();
        }
    }

    /// A process of the same user that uses SO_REUSEPORT could share our port silently.
    #[test]
    fn a_stranger_with_reuse_port_is_noticed() {
        let stranger = bind_tcp(any_port(), true).unwrap();
        let address = SocketAddr::try_from(getsockname(&stranger).unwrap()).unwrap();
        assert!(is_in_use(bind_shared(address, 2), address.port()));
    }

    #[test]
    fn connections_reach_every_socket_of_the_set() {
        let (address, sockets) = bind_shared(any_port(), 2).unwrap();
        start_listening(address, &sockets).unwrap();
        let listeners: Vec<_> = sockets.into_iter().map(TcpListener::from).collect();
        let clients: Vec<_> = (0..64).map(|_| TcpStream::connect(address).unwrap()).collect();
        let mut reached = Vec::new();
        for listener in &listeners {
            listener.set_nonblocking(true).unwrap();
            reached.push(std::iter::from_fn(|| listener.accept().ok()).count());
        }
        assert_eq!(reached.iter().sum::<usize>(), clients.len());
        assert!(reached.iter().all(|count| *count > 0), "{reached:?}");
    }

    #[test]
    fn accepted_sockets_inherit_no_delay_and_keepalive() {
        let listener = TcpListener::from(bind_tcp(any_port(), false).unwrap());
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(sockopt::tcp_nodelay(&accepted).unwrap());
        assert!(sockopt::socket_keepalive(&accepted).unwrap());
    }

    #[test]
    fn an_address_of_another_machine_is_an_error_that_names_it() {
        let error = bind_tcp("192.0.2.1:7400".parse().unwrap(), false).unwrap_err();
        assert!(error.to_string().contains("192.0.2.1:7400"), "{error}");
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stateside.sock");
        check_unix(&path).unwrap();
        let live = bind_unix(&path).unwrap();
        for refused in [check_unix(&path), bind_unix(&path).map(drop)] {
            assert!(matches!(refused, Err(ReactorError::SocketInUse { .. })));
        }
        // A process that is killed leaves the file behind.
        drop(live);
        check_unix(&path).unwrap();
        assert!(path.exists(), "checking changes nothing");
        let again = bind_unix(&path).unwrap();
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        drop(again);
    }

    #[test]
    fn a_file_in_the_place_of_the_unix_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        std::fs::write(&path, b"data").unwrap();
        for refused in [check_unix(&path), bind_unix(&path).map(drop)] {
            assert!(matches!(refused, Err(ReactorError::NotASocket { .. })));
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
        let long = directory.path().join("x".repeat(200));
        assert!(matches!(bind_unix(&long), Err(ReactorError::CannotListenUnix { .. })));
    }
}
