//! `kafka up|down`: a real broker for daily work. `cargo xtask kafka` installs what it needs first.
//!
//! What runs is noted in `target/kafka`: the process and its address. `up` beside a broker that
//! runs says where it is; `down` stops it and deletes its data.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use stateside_e2e::{
    kafka::{Broker, Kafka},
    requirements::target_folder,
    until::until,
};

fn main() -> ExitCode {
    let folder = target_folder().join("kafka");
    let outcome = match std::env::args().nth(1).as_deref() {
        Some("up") => up(&folder),
        Some("down") => down(&folder),
        _ => {
            eprintln!("kafka: say `up` or `down`");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("kafka: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn up(folder: &Path) -> Result<String, String> {
    if let Some((pid, address)) = running(folder) {
        return Ok(format!("Apache Kafka runs already: {address} (process {pid})"));
    }
    let kafka = Kafka::find()?;
    // What is left of a broker that was killed.
    let _ = fs::remove_dir_all(folder);
    let mut broker = Broker::create(kafka, folder)?;
    broker.start()?;
    let address = broker.address();
    let pid = broker.pid().ok_or("the broker has ended")?;
    let note = note(folder);
    fs::write(&note, format!("{pid} {address}\n"))
        .map_err(|error| format!("{}: {error}", note.display()))?;
    broker.let_go();
    Ok(format!(
        "Apache Kafka 4.1.0, KRaft, one broker: {address} (process {pid})\n\
         To serve with it: kafka.brokers = \"{address}\" and kafka.replication = 1\n\
         Its log: {}",
        folder.join("output.log").display()
    ))
}

fn down(folder: &Path) -> Result<String, String> {
    let Some((pid, address)) = running(folder) else {
        let _ = fs::remove_dir_all(folder);
        return Ok("no broker runs".to_owned());
    };
    // SAFETY: kill takes two numbers; `running` has seen that the process is our broker.
    if unsafe { libc::kill(pid, libc::SIGTERM) } != 0 {
        return Err(format!("process {pid} cannot be stopped"));
    }
    until("the broker has ended", Duration::from_secs(60), || {
        running(folder).is_none().then_some(())
    });
    fs::remove_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(format!("stopped {address}; its data is deleted"))
}

fn note(folder: &Path) -> PathBuf {
    folder.join("broker")
}

/// The broker that `up` noted, if that process still is one: numbers of processes are used again.
fn running(folder: &Path) -> Option<(i32, String)> {
    let text = fs::read_to_string(note(folder)).ok()?;
    let (pid, address) = text.trim().split_once(' ')?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let ours = folder.join("server.properties");
    let ours = ours.as_os_str().as_encoded_bytes();
    let is_ours = command.split(|byte| *byte == 0).any(|argument| argument == ours);
    is_ours.then_some((pid.parse().ok()?, address.to_owned()))
}
