//! A real Apache Kafka broker: KRaft, one process that is broker and controller, on the loopback,
//! from the jars that `cargo xtask tools` fetches.
//!
//! ```text
//!   Broker::create ─► format ─► start ─► (answers, and says that it has started) ─► kill ─► start …
//! ```
//! The port stays the same from start to start, as a broker's does; data and output lie in one
//! folder. Tests drop theirs; `cargo xtask kafka up` leaves its own running.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{kafka_guard::Guard, requirements};

/// How long a broker may take until it serves: a Java machine on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(120);
/// What a broker prints when it takes requests.
const STARTED: &str = "Kafka Server started";

/// Java and the broker's jars.
#[derive(Clone, Debug)]
pub struct Kafka {
    libraries: PathBuf,
}

impl Kafka {
    /// What is needed to run a broker.
    ///
    /// # Errors
    /// A sentence: what is missing, and what to do.
    pub fn find() -> Result<Self, String> {
        let java = Command::new("java").arg("-version").output();
        if !java.is_ok_and(|output| output.status.success()) {
            return Err("Java 17 or later is not on this machine; install it (Debian: openjdk-17-jre-headless)".to_owned());
        }
        let libraries = requirements::tools_folder().join("kafka").join("libs");
        if !libraries.is_dir() {
            return Err("Apache Kafka is not installed; `cargo xtask tools` does that, with Maven"
                .to_owned());
        }
        Ok(Self { libraries })
    }

    /// As [`Self::find`]; what is missing is reported as the reason why the test is skipped.
    ///
    /// # Panics
    /// When something is missing and `CI` is set.
    pub fn find_for(test: &str) -> Option<Self> {
        Self::find().map_err(|problem| requirements::missing(test, &problem)).ok()
    }

    /// A Java program of Kafka's.
    pub fn java(&self, class: &str) -> Command {
        let mut command = Command::new("java");
        // Small and quick to start: a broker for tests, and tools that run for a second.
        command
            .args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg(format!("{}/*", self.libraries.display()))
            .arg(class)
            .stdin(Stdio::null());
        command
    }
}

/// A broker's folder and ports. Killed when dropped, unless it was let go.
#[derive(Debug)]
pub struct Broker {
    kafka: Kafka,
    folder: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Broker {
    /// A broker with an empty log in `folder`, not running yet.
    ///
    /// # Errors
    /// A sentence: the folder cannot be written, or formatting failed.
    pub fn create(kafka: Kafka, folder: &Path) -> Result<Self, String> {
        Self::create_with(kafka, folder, None)
    }

    /// As [`Self::create`], with a second door that asks for TLS, a password and rights.
    ///
    /// # Errors
    /// As [`Self::create`]; or no certificate can be made.
    pub fn create_guarded(kafka: Kafka, folder: &Path) -> Result<(Self, Guard), String> {
        let failed = |error: io::Error| format!("{}: {error}", folder.display());
        fs::create_dir_all(folder).map_err(failed)?;
        let guard = Guard::make(folder, free_ports().map_err(failed)?.0)?;
        Ok((Self::create_with(kafka, folder, Some(&guard))?, guard))
    }

    fn create_with(kafka: Kafka, folder: &Path, guard: Option<&Guard>) -> Result<Self, String> {
        let failed = |error: io::Error| format!("{}: {error}", folder.display());
        fs::create_dir_all(folder).map_err(failed)?;
        let (port, controller) = free_ports().map_err(failed)?;
        let properties = folder.join("server.properties");
        let text = server_properties(port, controller, &folder.join("data"), guard);
        fs::write(&properties, text).map_err(failed)?;
        let broker = Self { kafka, folder: folder.to_owned(), port, child: None };
        let id = broker.run("kafka.tools.StorageTool", &["random-uuid"])?;
        let id = id.lines().last().unwrap_or_default().trim().to_owned();
        let properties = properties.display().to_string();
        let mut format = vec!["format", "-t", &id, "-c", &properties];
        let credentials = Guard::credentials();
        if guard.is_some() {
            format.extend(["--add-scram", &credentials]);
        }
        broker.run("kafka.tools.StorageTool", &format)?;
        Ok(broker)
    }

    /// `host:port`, for clients.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The process's id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts the broker and waits until it serves.
    ///
    /// # Errors
    /// A sentence, with the end of what it printed.
    pub fn start(&mut self) -> Result<(), String> {
        assert!(self.child.is_none(), "the broker runs already");
        let log = self.log();
        let file = fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let errors = file.try_clone().map_err(|error| format!("{}: {error}", log.display()))?;
        let mut command = self.kafka.java("kafka.Kafka");
        command
            .arg(self.folder.join("server.properties"))
            .stdout(Stdio::from(file))
            .stderr(Stdio::from(errors))
            // A Ctrl-C on the terminal is not meant for a broker that stays.
            .process_group(0);
        let mut child = command.spawn().map_err(|error| format!("java did not start: {error}"))?;
        let deadline = Instant::now() + START_LIMIT;
        while !self.serves() {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("the broker ended with {status}:\n{}", self.end_of_log()));
            }
            if Instant::now() >= deadline {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!(
                    "the broker does not serve after {START_LIMIT:?}:\n{}",
                    self.end_of_log()
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child = Some(child);
        Ok(())
    }

    /// SIGKILL. It can be started again.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Leaves the broker running beyond this program's end; its process id.
    pub fn let_go(mut self) -> Option<u32> {
        self.child.take().map(|child| child.id())
    }

    /// Runs one of Kafka's own tools against this broker, such as
    /// `org.apache.kafka.tools.TopicCommand`.
    ///
    /// # Errors
    /// What it printed, when it failed.
    pub fn tool(&self, class: &str, arguments: &[&str]) -> Result<String, String> {
        let address = self.address();
        let mut all = vec!["--bootstrap-server", address.as_str()];
        all.extend(arguments);
        self.run(class, &all)
    }

    fn run(&self, class: &str, arguments: &[&str]) -> Result<String, String> {
        let output = self
            .kafka
            .java(class)
            .args(arguments)
            .output()
            .map_err(|error| format!("java did not start: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        Err(format!("{class} failed:\n{text}{}", String::from_utf8_lossy(&output.stderr)))
    }

    fn serves(&self) -> bool {
        fs::read_to_string(self.log()).is_ok_and(|text| text.contains(STARTED))
            && TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
    }

    fn log(&self) -> PathBuf {
        self.folder.join("output.log")
    }

    fn end_of_log(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Two ports that nobody listens on.
fn free_ports() -> io::Result<(u16, u16)> {
    let one = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok((one.local_addr()?.port(), other.local_addr()?.port()))
}

fn server_properties(port: u16, controller: u16, data: &Path, guard: Option<&Guard>) -> String {
    let (door, more) = match guard {
        None => (String::new(), String::new()),
        Some(guard) => (format!(",SASL_SSL://{}", guard.address()), guard.properties()),
    };
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{door}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}{door}\n\
         controller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL\n\
         log.dirs={}\n\
         offsets.topic.replication.factor=1\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         auto.create.topics.enable=false\n\
         num.partitions=1\n{more}",
        data.display()
    )
}
