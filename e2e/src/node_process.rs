//! A `stateside serve` process: started on free ports in a data directory of its own, watched
//! until it is ready, killed when the test ends, its output shown when the test fails.
//!
//! ```text
//!   launch ──► Node (running) ──► kill / terminate / wait ──► Stopped ──► launch again
//! ```

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{config::Config, ports, requirements::profile_folder, until::until};

/// How long a node may take until it serves. Generous: machines that run tests are slow at times.
pub const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long a node may take to end after it was asked to.
pub const EXIT_LIMIT: Duration = Duration::from_secs(30);

/// The binary under test.
///
/// # Panics
/// When it has not been built in this profile.
pub fn binary() -> PathBuf {
    let path = match std::env::var_os("STATESIDE_BIN") {
        Some(path) => PathBuf::from(path),
        None => profile_folder().join("stateside"),
    };
    assert!(
        path.exists(),
        "{} is missing: build it with `cargo build --release -p stateside-node` (or without \
         --release for a test run without), or use `cargo xtask e2e`",
        path.display()
    );
    path
}

/// Where a node lives: its data directory, its ports, its configuration. Outlives the process, so
/// that a test can kill it and start it again.
pub struct Site {
    /// Holds everything; removed at the end.
    folder: TempDir,
    data_dir: PathBuf,
    first_port: u16,
    /// May be changed between two launches.
    pub config: Config,
    /// Program and arguments in front of the binary, e.g. `taskset -c 0`.
    pub prefix: Vec<String>,
    /// Run in the process before it becomes the node. Must not allocate or lock.
    pub before_exec: Option<fn() -> std::io::Result<()>>,
}

impl Site {
    /// A new, empty place.
    ///
    /// # Panics
    /// When there is no temporary folder or no free port.
    pub fn new(config: Config) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("stateside-e2e-")
            .tempdir()
            .expect("a temporary folder can be made");
        let data_dir = folder.path().join("data");
        Self {
            folder,
            data_dir,
            first_port: ports::free_block(),
            config,
            prefix: Vec::new(),
            before_exec: None,
        }
    }

    /// The same with its data directory elsewhere, e.g. on a small disk.
    #[must_use]
    pub fn with_data_dir(mut self, data_dir: PathBuf) -> Self {
        self.data_dir = data_dir;
        self
    }

    /// The node's data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// A folder for the test's own files, removed at the end.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `host:port` of the data plane.
    pub fn data_address(&self) -> String {
        self.address(0)
    }

    /// `host:port` of the control plane.
    pub fn control_address(&self) -> String {
        self.address(1)
    }

    /// `host:port` of metrics and probes.
    pub fn metrics_address(&self) -> String {
        self.address(2)
    }

    /// The port of core 0; core n has this + n.
    pub fn core_port_base(&self) -> u16 {
        self.first_port + 3
    }

    fn address(&self, offset: u16) -> String {
        format!("127.0.0.1:{}", self.first_port + offset)
    }

    /// The command line of `serve` here. Writes the configuration file.
    ///
    /// # Panics
    /// When the configuration file cannot be written.
    pub fn serve_command(&self) -> Command {
        let config = self.folder.path().join("stateside.toml");
        fs::write(&config, self.config.to_toml(self.core_port_base()))
            .expect("the test's folder is writable");
        let mut command = match self.prefix.split_first() {
            None => Command::new(binary()),
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(binary());
                command
            }
        };
        command
            .arg("serve")
            .arg("--data-dir")
            .arg(&self.data_dir)
            .arg("--config")
            .arg(config)
            .args(["--listen", &self.data_address()])
            .args(["--control-listen", &self.control_address()])
            .args(["--metrics-listen", &self.metrics_address()])
            .stdin(Stdio::null());
        if let Some(before_exec) = self.before_exec {
            // SAFETY: between fork and exec it neither allocates nor locks, as the field demands.
            unsafe { command.pre_exec(before_exec) };
        }
        command
    }

    /// Starts the node and waits until it serves.
    ///
    /// # Panics
    /// When it ends instead, or takes too long; with what it printed.
    pub fn start(&self) -> Node<'_> {
        let mut node = self.launch();
        node.wait_until_ready();
        node
    }

    /// Starts the node and does not wait.
    ///
    /// # Panics
    /// When the process cannot be started.
    pub fn launch(&self) -> Node<'_> {
        let output = self.folder.path().join("output.log");
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&output)
            .expect("the test's folder is writable");
        let from = file.metadata().map_or(0, |metadata| metadata.len());
        let errors = file.try_clone().expect("a file handle can be doubled");
        let child = self
            .serve_command()
            .stdout(Stdio::from(file))
            .stderr(Stdio::from(errors))
            .spawn()
            .expect("the binary starts");
        Node { site: self, child, output, output_from: from, ended: None }
    }
}

/// A running node. Killed when dropped.
pub struct Node<'s> {
    site: &'s Site,
    child: Child,
    output: PathBuf,
    /// Where this launch's output begins.
    output_from: u64,
    ended: Option<ExitStatus>,
}

impl Node<'_> {
    /// The place that it was started in.
    pub fn site(&self) -> &Site {
        self.site
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What this launch printed so far.
    pub fn output(&self) -> String {
        let bytes = fs::read(&self.output).unwrap_or_default();
        let from = usize::try_from(self.output_from).unwrap_or(0).min(bytes.len());
        String::from_utf8_lossy(&bytes[from..]).into_owned()
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Panics
    /// When the process ends instead, or the limit passes; with what it printed.
    pub fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + READY_LIMIT;
        while !self.is_ready() {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the node ended with {status} instead of serving:\n{}", self.output());
            }
            if Instant::now() >= deadline {
                panic!("the node does not serve after {READY_LIMIT:?}:\n{}", self.output());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until no partition is on its way any more: those with logs in Kafka are opened while the
    /// node serves others.
    ///
    /// # Panics
    /// When the limit passes; with what the node printed.
    pub fn wait_until_all_serve(&self) {
        let deadline = Instant::now() + READY_LIMIT;
        while self.metrics().lines().any(|line| {
            line.starts_with("stateside_partition_state{")
                && line.contains("state=\"init\"")
                && line.ends_with(" 1")
        }) {
            assert!(
                Instant::now() < deadline,
                "partitions are not open after {READY_LIMIT:?}:\n{}",
                self.output()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether `/readyz` answers 200.
    pub fn is_ready(&self) -> bool {
        http_get(&self.site.metrics_address(), "/readyz").is_some_and(|(status, _)| status == 200)
    }

    /// The text of `/metrics`.
    ///
    /// # Panics
    /// When it is not served.
    pub fn metrics(&self) -> String {
        let answer = http_get(&self.site.metrics_address(), "/metrics");
        let (status, body) = answer.expect("the metrics port answers");
        assert_eq!(status, 200, "{body}");
        body
    }

    /// Ends the process at once: SIGKILL.
    pub fn kill(&mut self) -> ExitStatus {
        // It may have ended by itself; waiting tells how.
        let _ = self.child.kill();
        self.reap()
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("process ids fit");
        // SAFETY: kill takes two numbers; the child is not reaped yet, so the id is its own.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "the node is gone:\n{}", self.output());
    }

    /// Waits for the process to end by itself.
    ///
    /// # Panics
    /// When it does not; with what it printed.
    pub fn wait(&mut self) -> ExitStatus {
        let status = until_exit(&mut self.child, EXIT_LIMIT);
        let status = status.unwrap_or_else(|| {
            panic!("the node still runs after {EXIT_LIMIT:?}:\n{}", self.output())
        });
        self.ended = Some(status);
        status
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.wait()
    }

    /// Whether the process still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn reap(&mut self) -> ExitStatus {
        let status = self.child.wait().expect("a child can be waited for");
        self.ended = Some(status);
        status
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- output of the node ----\n{}----", self.output());
        }
    }
}

/// Waits for a child to end; None when it does not within `limit`.
pub fn until_exit(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            _ => return None,
        }
    }
}

/// A GET over HTTP/1.1: status and body, or None when there is no answer.
pub fn http_get(address: &str, path: &str) -> Option<(u16, String)> {
    let address: SocketAddr = address.parse().ok()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// Waits until nobody listens at the site's data port: the kernel has taken the sockets down.
pub fn wait_until_port_is_free(site: &Site) {
    let port: u16 =
        site.data_address().rsplit(':').next().and_then(|p| p.parse().ok()).unwrap_or(0);
    until("the data port is free", EXIT_LIMIT, || {
        std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok().map(drop)
    });
}
