//! A timer that is on time to some microseconds. Tokio's own counts milliseconds: calls that are due
//! every 100 µs would leave in bunches, and the wait would be taken for the node's latency.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    io::{Errno, read},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use tokio::io::unix::AsyncFd;

/// Belongs to one thread of the generator, and to its runtime.
#[derive(Debug)]
pub(super) struct Timer {
    fd: AsyncFd<OwnedFd>,
    armed_for: Option<Instant>,
}

impl Timer {
    /// Inside a runtime.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // SAFETY: an OwnedFd is open until it is dropped, always names the same descriptor, and
        // AsyncFd keeps it to itself.
        let fd = unsafe { AsyncFd::register(fd) }?;
        Ok(Self { fd, armed_for: None })
    }

    /// Waits until `at`. May be dropped and called again, with the same or another time.
    pub(super) async fn until(&mut self, at: Instant) -> io::Result<()> {
        if self.armed_for != Some(at) {
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.arm(left)?;
            self.armed_for = Some(at);
        }
        let mut expirations = [0_u8; 8];
        loop {
            let mut ready = self.fd.readable().await?;
            match read(self.fd.get_ref(), &mut expirations) {
                Ok(_) => {
                    self.armed_for = None;
                    return Ok(());
                }
                Err(Errno::AGAIN | Errno::INTR) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Forgets an earlier time, expired or not.
    fn arm(&self, left: Duration) -> io::Result<()> {
        let it_value =
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec { it_interval, it_value };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_waits_until_the_time_and_can_be_aimed_anew() {
        let mut timer = Timer::new().unwrap();
        let begun = Instant::now();
        let far = begun + Duration::from_secs(60);
        let near = begun + Duration::from_micros(500);
        tokio::select! {
            biased;
            _ = timer.until(far) => panic!("a minute has not passed"),
            () = std::future::ready(()) => {}
        }
        timer.until(near).await.unwrap();
        assert!(Instant::now() >= near);
        timer.until(begun).await.unwrap();
        let again = Instant::now() + Duration::from_micros(100);
        timer.until(again).await.unwrap();
        assert!(Instant::now() >= again);
    }
}
