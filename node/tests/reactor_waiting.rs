//! Sleeping and waking: in the ring, and in glommio while other futures live on the core.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod reactor_support;

use std::{
    cell::Cell,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use reactor_support::{PATIENCE, drive, small};
use rustix::time::{ClockId, clock_gettime};
use stateside_node::reactor::{
    BlockingPool, CoreConfig, CoreExecutor, CoreRing, Event, FailureHook, RingConfig, Waker,
    bind_tcp, sleep, spawn_local,
};
use stateside_types::CoreId;

fn hook() -> FailureHook {
    Arc::new(|error| panic!("{error}"))
}

/// Ticks so rare that only a completion or a wake-up can end a sleep in time.
fn no_ticks() -> RingConfig {
    let never = Duration::from_secs(3600);
    RingConfig { tick_busy: never, tick_idle: never, ..small() }
}

/// What the echo core of these tests does beside its sockets.
#[derive(Clone, Copy, PartialEq)]
enum Company {
    Alone,
    /// A future that lives as long as the core.
    LocalTask,
}

struct EchoCore {
    core: CoreExecutor<u64>,
    address: SocketAddr,
    waker: Waker,
    stop: Arc<AtomicU64>,
    /// Turns that were told of a wake-up.
    woken: Arc<AtomicU64>,
}

impl EchoCore {
    fn start(config: RingConfig, company: Company) -> Self {
        let (ready, is_ready) = mpsc::channel();
        let stop = Arc::new(AtomicU64::new(0));
        let woken = Arc::new(AtomicU64::new(0));
        let (stopped, woken_here) = (Arc::clone(&stop), Arc::clone(&woken));
        let core = CoreConfig { core: CoreId(0), cpu: None };
        let core = CoreExecutor::start(core, hook(), move || async move {
            let mut ring = CoreRing::new(config, Instant::now()).unwrap();
            let socket = std::net::TcpListener::from(
                bind_tcp("127.0.0.1:0".parse().unwrap(), false).unwrap(),
            );
            let address = socket.local_addr().unwrap();
            ring.listen(socket.into());
            ready.send((address, ring.waker())).unwrap();
            if company == Company::LocalTask {
                drop(spawn_local(async {
                    loop {
                        sleep(Duration::from_secs(3600)).await;
                    }
                }));
            }
            let mut events = Vec::new();
            while stopped.load(Ordering::Acquire) == 0 {
                ring.wait(None).await.unwrap();
                let turn = ring.turn(Instant::now(), &mut events).unwrap();
                if turn.woken {
                    woken_here.fetch_add(1, Ordering::Release);
                }
                for event in events.drain(..) {
                    if let Event::Received { connection, buffer } = event {
                        let mut bytes = ring.bytes(&buffer).to_vec();
                        ring.give_back(buffer);
                        ring.send(connection, &mut bytes);
                    }
                }
            }
            ring.counters().sleeps
        });
        let core = core.unwrap();
        let (address, waker) = is_ready.recv().unwrap();
        Self { core, address, waker, stop, woken }
    }

    fn stop(self) -> u64 {
        self.stop.store(1, Ordering::Release);
        self.waker.wake();
        self.core.join().unwrap()
    }
}

#[test]
fn received_bytes_end_a_sleep_that_no_tick_would_end() {
    for company in [Company::Alone, Company::LocalTask] {
        let core = EchoCore::start(no_ticks(), company);
        let mut client = TcpStream::connect(core.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        for round in 0..300u32 {
            client.write_all(&round.to_le_bytes()).unwrap();
            let mut echo = [0; 4];
            client.read_exact(&mut echo).unwrap();
            assert_eq!(echo, round.to_le_bytes());
        }
        let sleeps = core.stop();
        assert!(sleeps > 10, "the core slept between requests: {sleeps}");
    }
}

/// Every wake-up is answered although the core sleeps without ticks; a lost one would hang.
#[test]
fn wakers_end_a_sleep_that_no_tick_would_end() {
    for company in [Company::Alone, Company::LocalTask] {
        let core = EchoCore::start(no_ticks(), company);
        let began = Instant::now();
        let mut seen = 0;
        for round in 0..2_000 {
            core.waker.wake();
            let deadline = Instant::now() + PATIENCE;
            loop {
                let now = core.woken.load(Ordering::Acquire);
                if now > seen {
                    seen = now;
                    break;
                }
                assert!(
                    Instant::now() < deadline,
                    "wake-up {round} was lost, alone: {}",
                    company == Company::Alone
                );
                std::hint::spin_loop();
            }
        }
        println!("{:?} a wake-up, alone: {}", began.elapsed() / 2_000, company == Company::Alone);
        core.stop();
    }
}

#[test]
fn spinning_before_sleeping_answers_the_same() {
    let config = RingConfig { spin: Duration::from_micros(50), ..no_ticks() };
    let core = EchoCore::start(config, Company::Alone);
    let mut client = TcpStream::connect(core.address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    for round in 0..300u32 {
        client.write_all(&round.to_le_bytes()).unwrap();
        let mut echo = [0; 4];
        client.read_exact(&mut echo).unwrap();
    }
    core.stop();
}

/// A local task gets its turns while clients keep the core busy, and the clients theirs.
#[test]
fn a_local_task_and_busy_sockets_share_the_core() {
    let core = CoreConfig { core: CoreId(0), cpu: None };
    let core = CoreExecutor::start(core, hook(), move || async move {
        let mut ring = CoreRing::new(no_ticks(), Instant::now()).unwrap();
        let steps = Rc::new(Cell::new(0u32));
        let counted = Rc::clone(&steps);
        let task = spawn_local(async move {
            for _ in 0..50 {
                sleep(Duration::from_micros(100)).await;
                counted.set(counted.get() + 1);
            }
        });
        let waker = ring.waker();
        let mut events = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while steps.get() < 50 {
            assert!(Instant::now() < deadline, "the task got {} turns", steps.get());
            waker.wake(); // there is always something to do
            ring.wait(None).await.unwrap();
            ring.turn(Instant::now(), &mut events).unwrap();
        }
        task.await.unwrap();
    });
    core.unwrap().join().unwrap();
}

#[test]
fn the_tick_comes_without_any_event_and_slows_down_when_nothing_happens() {
    let config = RingConfig {
        tick_busy: Duration::from_millis(1),
        tick_idle: Duration::from_millis(20),
        ..small()
    };
    let start = Instant::now();
    let mut ring = CoreRing::new(config, start).unwrap();
    let mut events = Vec::new();
    let mut ticks = Vec::new();
    while ticks.len() < 30 {
        assert!(start.elapsed() < PATIENCE, "{ticks:?}");
        drive(ring.wait(None)).unwrap();
        let now = Instant::now();
        if ring.turn(now, &mut events).unwrap().tick {
            ticks.push(now.duration_since(start));
        }
    }
    let long = Duration::from_millis(15);
    assert!(ticks[5] < Duration::from_millis(200), "short ticks at first: {ticks:?}");
    assert!(ticks[29] - ticks[28] > long, "long ones in the end: {ticks:?}");
}

#[test]
fn a_deadline_of_the_caller_ends_a_sleep() {
    let mut ring = CoreRing::new(no_ticks(), Instant::now()).unwrap();
    ring.turn(Instant::now(), &mut Vec::new()).unwrap();
    let until = Instant::now() + Duration::from_millis(5);
    while Instant::now() < until {
        drive(ring.wait(Some(until))).unwrap();
        ring.turn(Instant::now(), &mut Vec::new()).unwrap();
    }
    assert!(until.elapsed() < PATIENCE);
    drive(ring.wait(Some(until))).unwrap(); // passed already: no sleep
}

/// An idle node costs almost nothing: here with the default ticks, over a third of a second.
#[test]
fn an_idle_core_uses_less_than_one_percent_of_a_cpu() {
    for company in [Company::Alone, Company::LocalTask] {
        let core = CoreConfig { core: CoreId(0), cpu: None };
        let core = CoreExecutor::start(core, hook(), move || async move {
            let start = Instant::now();
            let mut ring = CoreRing::new(RingConfig::default(), start).unwrap();
            if company == Company::LocalTask {
                drop(spawn_local(sleep(Duration::from_secs(3600))));
            }
            let mut events = Vec::new();
            let mut measured = None;
            loop {
                ring.wait(None).await.unwrap();
                let now = Instant::now();
                ring.turn(now, &mut events).unwrap();
                match measured {
                    // Beyond the busy ticks that follow the start.
                    None if now - start > Duration::from_millis(150) => {
                        measured = Some((now, thread_cpu()));
                    }
                    Some((since, cpu)) if now - since > Duration::from_millis(350) => {
                        break (thread_cpu() - cpu).as_secs_f64() / (now - since).as_secs_f64();
                    }
                    _ => {}
                }
            }
        });
        let share = core.unwrap().join().unwrap();
        let limit = if company == Company::Alone { 0.01 } else { 0.03 };
        assert!(share < limit, "{:.2} % of a CPU", share * 100.0);
    }
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The way a store that blocks is called: job out, result through a channel, core woken.
#[test]
fn a_blocking_call_wakes_the_core_with_its_result() {
    let pool = BlockingPool::new(2, hook());
    let used = pool.clone();
    let core = CoreConfig { core: CoreId(0), cpu: None };
    let core = CoreExecutor::start(core, hook(), move || async move {
        let mut ring = CoreRing::new(no_ticks(), Instant::now()).unwrap();
        let (answer, answers) = mpsc::sync_channel(8);
        let waker = ring.waker();
        let job = move || {
            answer.send(std::thread::current().name().map(str::to_owned)).unwrap();
            waker.wake();
        };
        assert!(used.submit(Box::new(job)).is_ok());
        let mut events = Vec::new();
        loop {
            ring.wait(None).await.unwrap();
            if ring.turn(Instant::now(), &mut events).unwrap().woken
                && let Ok(name) = answers.try_recv()
            {
                break name;
            }
        }
    });
    assert_eq!(core.unwrap().join().unwrap().as_deref(), Some("blocking-0"));
    pool.shutdown();
}
