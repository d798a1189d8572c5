//! `open-loop http2|resp ADDRESS RATE SECONDS CONNECTIONS REQUEST [PATH]`: the same request at a rate that
//! does not wait for answers, and how long each took, counted from when it was due. `open-loop pauses SECONDS`: no
//! calls; what of the core's time goes where a server could not help it.
//!
//! Arrivals are random (Poisson): as many clients that know nothing of each other make them. A call that could not be
//! sent in time, because the server or this program was busy, has waited since it was due; leaving that out is called
//! coordinated omission. One thread looks at clock and sockets without ever sleeping, so it is late by microseconds.
//!
//! It speaks just enough HTTP/2 and RESP to send one request and to see that its answer is the expected one,
//! because a client for everything would take longer for a call than the servers do.

mod http2;
mod resp;

use std::{
    collections::VecDeque,
    fs,
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
    process::ExitCode,
    time::{Duration, Instant},
};

/// Calls that are due in this time are made and their times left out: connections, caches, branch predictors.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long the last answers are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is no pause yet.
const PAUSE: Duration = Duration::from_micros(500);
const READ_BYTES: usize = 64 << 10;
/// Always the same arrivals: runs differ in the servers alone.
const SEED: u64 = 42;

/// One connection's side of a protocol. Calls are numbered in the order in which they are sent.
trait Session {
    /// What comes before the first request.
    fn hello(&mut self, out: &mut Vec<u8>);

    /// Appends a request; false: not while so many are under way.
    fn request(&mut self, out: &mut Vec<u8>) -> bool;

    /// Takes what came. `done` is told the number of each call that has been answered as it should be;
    /// `out` gets what has to be said in return.
    ///
    /// # Errors
    /// A call failed, or this is not the protocol.
    fn receive(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        done: &mut dyn FnMut(u64),
    ) -> Result<(), String>;
}

struct Connection {
    stream: TcpStream,
    session: Box<dyn Session>,
    /// Not written yet.
    out: Vec<u8>,
    /// When the calls that may not be sent yet were due.
    waiting: VecDeque<Instant>,
    /// When the calls under way were due, by number from `first` on; None: answered.
    under_way: VecDeque<Option<Instant>>,
    first: u64,
}

/// What is asked for on the command line.
struct Asked {
    protocol: String,
    address: String,
    rate: f64,
    length: Duration,
    connections: usize,
    request: Vec<u8>,
    path: String,
}

/// What a run showed.
#[derive(Default)]
struct Times {
    /// Calls answered.
    calls: u64,
    /// From when a call was due to its answer, nanoseconds; without those of the warm-up.
    each: Vec<u64>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, seconds] = &arguments[..]
        && let ("pauses", Ok(seconds)) = (word.as_str(), seconds.parse())
    {
        let (share, longest) = pauses(Duration::from_secs(seconds));
        println!("share {share:.5} longest {:.1}", longest.as_nanos() as f64 / 1e3);
        return ExitCode::SUCCESS;
    }
    let Some(asked) = asked(&arguments) else {
        eprintln!("usage: open-loop http2|resp ADDRESS RATE SECONDS CONNECTIONS REQUEST [PATH]");
        return ExitCode::from(2);
    };
    match run(&asked) {
        Ok(Times { calls, mut each }) => {
            each.sort_unstable();
            let at = |share: f64| {
                let last = each.len().saturating_sub(1);
                each.get((last as f64 * share) as usize).map_or(0.0, |ns| *ns as f64 / 1e3)
            };
            let seconds = (WARM_UP + asked.length).as_secs_f64();
            let (p50, p99, p999) = (at(0.5), at(0.99), at(0.999));
            println!("calls {calls} seconds {seconds} p50 {p50:.1} p99 {p99:.1} p999 {p999:.1}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("open-loop: {}: {problem}", asked.address);
            ExitCode::FAILURE
        }
    }
}

/// The share of the time that is lost in pauses, and the longest of them.
fn pauses(length: Duration) -> (f64, Duration) {
    let begun = Instant::now();
    let (mut last, mut lost, mut longest) = (begun, Duration::ZERO, Duration::ZERO);
    while last - begun < length {
        let now = Instant::now();
        let pause = now - last;
        longest = longest.max(pause);
        if pause > PAUSE {
            lost += pause;
        }
        last = now;
    }
    (lost.as_secs_f64() / length.as_secs_f64(), longest)
}

fn asked(arguments: &[String]) -> Option<Asked> {
    let [protocol, address, rate, seconds, connections, request, path @ ..] = arguments else {
        return None;
    };
    Some(Asked {
        protocol: protocol.clone(),
        address: address.clone(),
        rate: rate.parse().ok().filter(|rate| *rate > 0.0)?,
        length: Duration::from_secs_f64(seconds.parse().ok()?),
        connections: connections.parse().ok().filter(|count| *count > 0)?,
        request: fs::read(request).ok()?,
        path: path.first().cloned().unwrap_or_default(),
    })
}

fn run(asked: &Asked) -> Result<Times, String> {
    let said = |error: io::Error| error.to_string();
    let mut connections = Vec::new();
    for _ in 0..asked.connections {
        connections.push(Connection::open(asked).map_err(said)?);
    }
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut gap = || Duration::from_secs_f64(-(1.0 - random.f64()).ln() / asked.rate);
    let mut times = Times::default();
    let begun = Instant::now();
    let (counted_from, end) = (begun + WARM_UP, begun + WARM_UP + asked.length);
    let mut due = begun + gap();
    let (mut turn, mut bytes) = (0, vec![0; READ_BYTES]);
    loop {
        let now = Instant::now();
        while due <= now && due < end {
            let connection = &mut connections[turn % asked.connections];
            turn += 1;
            connection.waiting.push_back(due);
            due += gap();
        }
        let mut is_over = due >= end;
        for connection in &mut connections {
            connection.send().map_err(said)?;
            connection.receive(&mut bytes, counted_from, &mut times)?;
            is_over &= connection.waiting.is_empty() && connection.under_way.is_empty();
        }
        if is_over {
            return Ok(times);
        }
        if now > end + PATIENCE {
            return Err(format!("calls are not answered after {PATIENCE:?}"));
        }
    }
}

impl Connection {
    fn open(asked: &Asked) -> io::Result<Self> {
        let mut stream = TcpStream::connect(&asked.address)?;
        stream.set_nodelay(true)?;
        let mut session: Box<dyn Session> = if asked.protocol == "resp" {
            Box::new(resp::Resp::new(&asked.request))
        } else {
            Box::new(http2::Http2::new(&asked.address, &asked.path, &asked.request))
        };
        let mut out = Vec::new();
        session.hello(&mut out);
        stream.write_all(&out)?;
        stream.set_nonblocking(true)?;
        out.clear();
        Ok(Self {
            stream,
            session,
            out,
            waiting: VecDeque::new(),
            under_way: VecDeque::new(),
            first: 0,
        })
    }

    fn send(&mut self) -> io::Result<()> {
        while let Some(&due) = self.waiting.front() {
            if !self.session.request(&mut self.out) {
                break;
            }
            self.waiting.pop_front();
            self.under_way.push_back(Some(due));
        }
        if self.out.is_empty() {
            return Ok(());
        }
        match self.stream.write(&self.out) {
            Ok(written) => drop(self.out.drain(..written)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn receive(
        &mut self,
        bytes: &mut [u8],
        counted_from: Instant,
        times: &mut Times,
    ) -> Result<(), String> {
        if self.under_way.is_empty() {
            return Ok(());
        }
        let read = match self.stream.read(bytes) {
            Ok(0) => return Err("the connection was closed".to_owned()),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let now = Instant::now();
        let Self { session, out, under_way, first, .. } = self;
        session.receive(&bytes[..read], out, &mut |call| {
            let place = call.checked_sub(*first).and_then(|at| under_way.get_mut(at as usize));
            let due = place.and_then(Option::take).expect("each call is answered once");
            times.calls += 1;
            if due >= counted_from {
                times.each.push((now - due).as_nanos() as u64);
            }
        })?;
        while let Some(None) = under_way.front() {
            under_way.pop_front();
            *first += 1;
        }
        Ok(())
    }
}
