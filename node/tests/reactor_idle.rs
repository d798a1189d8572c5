//! Ten thousand idle connections. Alone in its binary: it uses up most descriptors.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod reactor_support;

use std::{net::TcpStream, time::Duration};

use reactor_support::{Driver, Mode, drive};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stateside_node::reactor::{Closing, RingConfig, raise_limits};

const WANTED: u64 = 10_000;

/// Descriptors for both ends of `WANTED` connections; fewer connections where the limit is firm.
fn affordable() -> usize {
    raise_limits();
    let needed = WANTED * 2 + 200;
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < needed) {
        // Only a privileged process may.
        let _ =
            setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum: Some(needed) });
    }
    let open = getrlimit(Resource::Nofile).current.unwrap_or(needed).min(needed);
    ((open - 200) / 2) as usize
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn idle_connections_cost_little_memory_and_no_time() {
    let count = affordable();
    let mut driver = Driver::new(RingConfig::default(), Mode::Echo);
    let mut clients = Vec::with_capacity(count);
    driver.accepted.reserve(count);
    driver.received.reserve(count);
    driver.settle();
    let (before, descriptors) = (resident_bytes(), open_descriptors());
    while clients.len() < count {
        clients.push(TcpStream::connect(driver.address).unwrap());
        if clients.len() % 100 == 0 {
            let connected = clients.len();
            driver.until("a hundred more", |driver| driver.accepted.len() == connected);
        }
    }
    driver.until("all", |driver| driver.accepted.len() == count);
    let resident = resident_bytes().saturating_sub(before) / count;
    let ours = driver.ring.connection_memory_bytes() / count;
    println!("{count} idle connections: {ours} B of ours each, {resident} B resident each");
    assert!(ours <= 80, "{ours} B a connection");
    assert!(resident <= 512, "{resident} B a connection, the test's own records included");

    // Nothing happens, so nothing is done: the ring sleeps from tick to tick.
    driver.settle();
    driver.time_shift = Duration::from_secs(1);
    driver.turn();
    drive(driver.ring.wait(None)).unwrap();
    driver.turn();
    assert_eq!(driver.last_turn.completions, 0);

    // And each of them still works.
    for (number, client) in clients.iter_mut().enumerate().step_by(997) {
        use std::io::Write;
        client.write_all(&(number as u32).to_le_bytes()).unwrap();
        let mut pulled = Vec::new();
        driver.until("an echo", |_| {
            Driver::pull_some(client, &mut pulled);
            pulled == (number as u32).to_le_bytes()
        });
    }
    drop(clients);
    driver.until("the end of all", |driver| driver.peer_closed.len() == count);
    for (number, id) in driver.peer_closed.clone().into_iter().enumerate() {
        let how = if number % 2 == 0 { Closing::Graceful } else { Closing::Abort };
        driver.ring.close(id, how);
    }
    driver.settle();
    assert_eq!(driver.ring.connections(), 0);
    assert_eq!(open_descriptors(), descriptors, "descriptors leak");
}
