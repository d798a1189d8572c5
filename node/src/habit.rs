//! Doing what pays only sometimes.

/// Times that it is left out between two tries while it does not pay.
const LEFT_OUT: u32 = 64;
/// The average moves by this share, a power of two: the last dozen counts.
const SHIFT: u32 = 3;
/// Fixed point of the share.
const ONE: u32 = 256;

/// Done every time while at least half of the last times paid, and otherwise once after every
/// [`LEFT_OUT`] times without, to learn whether that has changed. Pure: asked before, told afterwards.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Habit {
    /// Share of the times that paid, in [`ONE`]s.
    paid: u32,
    until_try: u32,
}

impl Habit {
    /// Whether to do it this time.
    pub(crate) fn wants(&mut self) -> bool {
        if self.paid >= ONE / 2 {
            return true;
        }
        let tries = self.until_try == 0;
        self.until_try = if tries { LEFT_OUT } else { self.until_try - 1 };
        tries
    }

    /// It was done, and paid or did not.
    pub(crate) fn done(&mut self, paid: bool) {
        self.paid -= self.paid >> SHIFT;
        if paid {
            self.paid += ONE >> SHIFT;
            if self.paid < ONE / 2 {
                // Worth another try at once.
                self.until_try = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often of 1,000 times it is done when it pays or does not.
    fn done(habit: &mut Habit, pays: bool) -> usize {
        let times = (0..1_000).filter(|_| {
            let wants = habit.wants();
            if wants {
                habit.done(pays);
            }
            wants
        });
        times.count()
    }

    #[test]
    fn what_pays_is_done_and_what_does_not_is_tried_now_and_then() {
        let mut habit = Habit::default();
        assert_eq!(done(&mut habit, true), 1_000);
        assert!(done(&mut habit, false) < 30);
        assert!((15..=16).contains(&done(&mut habit, false)), "one in LEFT_OUT + 1");
        assert!(done(&mut habit, true) > 900, "it comes back");
    }
}
