//! Bounds frames that ask for work and carry none: PING and SETTINGS floods, rapid reset
//! (CVE-2023-44487), empty DATA (CVE-2019-9518), PRIORITY. Frames that the library skips, of unknown
//! types or for closed streams, are not counted: they cost less than the bytes they take.
//!
//! A token bucket that refills with time, and with answers: a client that is served may cancel and
//! ping in proportion. libnghttp2 has limits of its own, but they read the wall clock.

use stateside_types::limits::{CONTROL_FRAMES_BURST, CONTROL_FRAMES_PER_S};

use crate::{
    Millis,
    nghttp2::{FrameHead, frame},
};

pub(crate) struct ControlFrames {
    tokens: u32,
    /// Until when refills have been credited.
    credited: Millis,
}

impl ControlFrames {
    pub(crate) const fn new(now: Millis) -> Self {
        Self { tokens: CONTROL_FRAMES_BURST, credited: now }
    }

    /// Whether the frame costs a token. WINDOW_UPDATE does not: a client that reads much sends
    /// many, and each is cheaper to handle than to send.
    pub(crate) const fn costs(head: FrameHead) -> bool {
        match head.kind {
            frame::HEADERS | frame::WINDOW_UPDATE => false,
            frame::DATA => head.length == 0 && head.flags & frame::FLAG_END_STREAM == 0,
            _ => true,
        }
    }

    /// Pays for one frame. False: the peer floods.
    pub(crate) fn spend(&mut self, now: Millis) -> bool {
        if self.tokens == 0 {
            let elapsed_ms = now.0.saturating_sub(self.credited.0);
            let refill = elapsed_ms.saturating_mul(u64::from(CONTROL_FRAMES_PER_S)) / 1_000;
            self.tokens = u32::try_from(refill).unwrap_or(u32::MAX).min(CONTROL_FRAMES_BURST);
            self.credited = now;
        }
        let paid = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        paid
    }

    /// An answer's frame allows a control frame more.
    pub(crate) fn earn(&mut self) {
        self.tokens = (self.tokens + 1).min(CONTROL_FRAMES_BURST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_paid_then_time_and_answers_refill() {
        let mut frames = ControlFrames::new(Millis(0));
        for _ in 0..CONTROL_FRAMES_BURST {
            assert!(frames.spend(Millis(0)));
        }
        assert!(!frames.spend(Millis(0)));
        frames.earn();
        assert!(frames.spend(Millis(0)));
        assert!(!frames.spend(Millis(0)));
        let served = (0..5_000).filter(|_| frames.spend(Millis(2_000))).count();
        assert_eq!(served, 2 * CONTROL_FRAMES_PER_S as usize);
    }
}
