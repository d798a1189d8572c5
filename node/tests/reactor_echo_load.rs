//! A crude measurement of the ring: an echo core under load from one client thread. Not run by
//! default; see `--ignored --nocapture`, in release mode, for the table.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod reactor_support;

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use rustix::{
    event::epoll,
    time::{ClockId, clock_gettime},
};
use stateside_node::reactor::{
    ConnectionId, CoreConfig, CoreExecutor, CoreRing, Event, RingConfig, RingCounters, bind_tcp,
    cpus_allowed, sleep, spawn_local,
};
use stateside_types::CoreId;

const MESSAGE_BYTES: usize = 64;

/// What the server thread did during one run.
struct Served {
    cpu: Duration,
    turns: u64,
    sends: u64,
    counters: RingCounters,
}

#[derive(Clone)]
struct Variant {
    name: &'static str,
    config: RingConfig,
    /// A local task lives beside the sockets, so the core sleeps in glommio.
    in_glommio: bool,
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

async fn serve(variant: Variant, ready: mpsc::Sender<SocketAddr>, stop: Arc<AtomicBool>) -> Served {
    let mut ring = CoreRing::new(variant.config, Instant::now()).unwrap();
    let socket = TcpListener::from(bind_tcp("127.0.0.1:0".parse().unwrap(), false).unwrap());
    ready.send(socket.local_addr().unwrap()).unwrap();
    ring.listen(socket.into());
    if variant.in_glommio {
        drop(spawn_local(sleep(Duration::from_secs(3600))));
    }
    let mut events: Vec<Event> = Vec::new();
    // One answer per connection and turn, as a session would.
    let mut answers: Vec<Vec<u8>> = Vec::new();
    let mut dirty: Vec<ConnectionId> = Vec::new();
    let (mut turns, mut sends) = (0, 0);
    let start = thread_cpu();
    while !stop.load(Ordering::Relaxed) {
        ring.wait(None).await.unwrap();
        ring.turn(Instant::now(), &mut events).unwrap();
        turns += 1;
        for event in events.drain(..) {
            if let Event::Received { connection, buffer } = event {
                let index = connection.index();
                if index >= answers.len() {
                    answers.resize_with(index + 1, Vec::new);
                }
                if answers[index].is_empty() {
                    dirty.push(connection);
                }
                answers[index].extend_from_slice(ring.bytes(&buffer));
                ring.give_back(buffer);
            }
        }
        for connection in dirty.drain(..) {
            sends += 1;
            ring.send(connection, &mut answers[connection.index()]);
        }
    }
    Served { cpu: thread_cpu() - start, turns, sends, counters: ring.counters() }
}

/// Keeps `depth` messages under way on each of `connections`; returns how many were answered.
fn load(address: SocketAddr, connections: usize, depth: usize, time: Duration) -> u64 {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let mut clients: Vec<(TcpStream, usize)> = Vec::new();
    let batch = vec![7u8; MESSAGE_BYTES * depth];
    for number in 0..connections {
        let client = TcpStream::connect(address).unwrap();
        client.set_nodelay(true).unwrap();
        client.set_nonblocking(true).unwrap();
        let data = epoll::EventData::new_u64(number as u64);
        epoll::add(&poll, &client, data, epoll::EventFlags::IN).unwrap();
        clients.push((client, 0));
    }
    for (client, _) in &mut clients {
        client.write_all(&batch).unwrap();
    }
    let mut ready = Vec::with_capacity(256);
    let mut chunk = vec![0u8; 64 << 10];
    let (mut answered, start) = (0u64, Instant::now());
    let limit = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    while start.elapsed() < time {
        ready.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut ready), Some(&limit)).unwrap();
        for event in &ready {
            let (client, partial) = &mut clients[event.data.u64() as usize];
            match client.read(&mut chunk) {
                Ok(0) => panic!("the server closed"),
                Ok(count) => {
                    let whole = (*partial + count) / MESSAGE_BYTES;
                    *partial = (*partial + count) % MESSAGE_BYTES;
                    answered += whole as u64;
                    client.write_all(&batch[..whole * MESSAGE_BYTES]).unwrap();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    answered
}

fn measure(variant: &Variant, connections: usize, depth: usize, time: Duration) {
    let cpus = cpus_allowed().unwrap();
    let (ready, address) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let (stopping, served_variant) = (Arc::clone(&stop), variant.clone());
    let core = CoreConfig { core: CoreId(0), cpu: cpus.first().copied() };
    let failed = Arc::new(|error| panic!("{error}"));
    let core =
        CoreExecutor::start(core, failed, move || serve(served_variant, ready, stopping)).unwrap();
    let address = address.recv().unwrap();
    let client = std::thread::spawn(move || load(address, connections, depth, time));
    let answered = client.join().unwrap();
    stop.store(true, Ordering::Relaxed);
    let Served { cpu, turns, sends, counters } = core.join().unwrap();
    let each = |count: u64| count as f64 / answered as f64;
    println!(
        "{connections:>4} x {depth:<3} {:<28} {:>8.0}/s  {:>5.2} us  turns {:.3}  sends {:.3}  \
         sleeps {:.3}  out of buffers {}",
        variant.name,
        answered as f64 / time.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / answered as f64,
        each(turns),
        each(sends),
        each(counters.sleeps),
        counters.out_of_buffers,
    );
}

#[test]
#[ignore = "a measurement, not a check"]
fn echo_under_load() {
    let seconds = std::env::var("SECONDS_EACH").map_or(2.0, |text| text.parse().unwrap());
    let only = std::env::var("VARIANT").ok();
    let base = RingConfig::default;
    let spin = |us| RingConfig { spin: Duration::from_micros(us), ..base() };
    let variants = [
        Variant { name: "sleep in the ring", config: base(), in_glommio: false },
        Variant { name: "sleep in glommio", config: base(), in_glommio: true },
        Variant { name: "spin 10 us", config: spin(10), in_glommio: false },
        Variant { name: "spin 50 us", config: spin(50), in_glommio: false },
    ];
    println!("conns x depth                        requests/s  server CPU each");
    for (connections, depth) in [(1, 1), (50, 1), (8, 32), (1_000, 1)] {
        for variant in &variants {
            if only.as_deref().is_none_or(|only| variant.name.contains(only)) {
                measure(variant, connections, depth, Duration::from_secs_f64(seconds));
            }
        }
    }
}
