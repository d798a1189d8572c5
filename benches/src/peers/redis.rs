//! Redis, from memory or with every write on disk before its answer (`appendfsync always`).
//! Background saving and rewriting of the append-only file are off: they would fork during a run.

use std::{
    fs,
    io::{BufRead, BufReader, BufWriter, Read, Write},
    net::TcpStream,
    path::Path,
};

use stateside_e2e::ports;

use super::{Counters, Server};
use crate::{
    loads::redis_benchmark::RedisBenchmark,
    process::{SERVER_CPU, ServerProcess, pinned},
};

/// When a write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When it is applied.
    None,
    /// When it is on disk.
    Always,
}

/// Redis as a process.
pub struct Redis {
    port: u16,
    process: ServerProcess,
}

impl Redis {
    /// Starts it with its files in `folder`.
    ///
    /// # Errors
    /// It does not listen.
    pub fn start(folder: &Path, durability: Durability) -> Result<Self, String> {
        let port = ports::free_block();
        let data = folder.join(format!("redis-{port}"));
        fs::create_dir_all(&data).map_err(|error| format!("{}: {error}", data.display()))?;
        let appendonly = if durability == Durability::Always { "yes" } else { "no" };
        let mut command = pinned(SERVER_CPU, "redis-server");
        command
            .args(["--bind", "127.0.0.1", "--save", "", "--appendfsync", "always"])
            .args(["--auto-aof-rewrite-percentage", "0", "--appendonly", appendonly])
            .arg("--port")
            .arg(port.to_string())
            .arg("--dir")
            .arg(&data);
        let address = format!("127.0.0.1:{port}");
        let process = ServerProcess::start(&mut command, &address, &data.join("output.log"))?;
        Ok(Self { port, process })
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The load that sends this command.
    pub fn load(&self, connections: u32, depth: u32, command: &[&str]) -> RedisBenchmark {
        RedisBenchmark::new(self.port, connections, depth, command)
    }

    /// Sets every key to the same value, pipelined, and sees that they are there.
    ///
    /// # Errors
    /// They are not.
    pub fn fill(&self, keys: impl Iterator<Item = Vec<u8>>, value: &[u8]) -> Result<(), String> {
        let said = |error: std::io::Error| format!("redis: {error}");
        let stream = self.connect()?;
        let answers = stream.try_clone().map_err(said)?;
        let mut requests = BufWriter::with_capacity(1 << 20, stream);
        // Answers are read by another thread: Redis stops reading from a client that does not.
        let reading = std::thread::spawn(move || {
            let mut answers = BufReader::with_capacity(1 << 20, answers);
            let mut line = String::new();
            let mut count = 0_u64;
            while answers.read_line(&mut line).is_ok_and(|bytes| bytes > 0) && line == "+OK\r\n" {
                count += 1;
                line.clear();
            }
            count
        });
        let mut sent = 0;
        for key in keys {
            write_command(&mut requests, &[b"SET", &key, value]).map_err(said)?;
            sent += 1;
        }
        // QUIT is answered +OK too, then the connection ends.
        write_command(&mut requests, &[b"QUIT"]).map_err(said)?;
        requests.flush().map_err(said)?;
        match reading.join() {
            Ok(count) if count == sent + 1 => Ok(()),
            _ => Err(format!("redis did not take {sent} writes")),
        }
    }

    /// One command, its answer as text.
    ///
    /// # Errors
    /// No connection.
    pub fn ask(&self, words: &[&[u8]]) -> Result<String, String> {
        let mut stream = self.connect()?;
        let mut answer = Vec::new();
        write_command(&mut stream, words)
            .and_then(|()| write_command(&mut stream, &[b"QUIT"]))
            .and_then(|()| stream.read_to_end(&mut answer))
            .map_err(|error| format!("redis: {error}"))?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn connect(&self) -> Result<TcpStream, String> {
        TcpStream::connect(("127.0.0.1", self.port)).map_err(|error| format!("redis: {error}"))
    }
}

fn write_command(to: &mut impl Write, words: &[&[u8]]) -> std::io::Result<()> {
    write!(to, "*{}\r\n", words.len())?;
    for word in words {
        write!(to, "${}\r\n", word.len())?;
        to.write_all(word)?;
        to.write_all(b"\r\n")?;
    }
    Ok(())
}

impl Server for Redis {
    fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn counters(&self) -> Result<Counters, String> {
        let text = self.ask(&[b"INFO", b"stats"])?;
        let refused = text
            .lines()
            .find_map(|line| line.strip_prefix("total_error_replies:")?.trim().parse().ok())
            .ok_or("redis does not tell how many errors it answered")?;
        Ok(Counters { refused, ..Counters::default() })
    }
}
