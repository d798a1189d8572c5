//! Waiting for a condition, with a deadline: tests do not sleep and hope.

use std::time::{Duration, Instant};

/// Pause between two looks at the condition.
const PAUSE: Duration = Duration::from_millis(10);

/// Asks `condition` until it answers.
///
/// # Panics
/// When `limit` has passed: the message says what was waited for.
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain until {what}");
        std::thread::sleep(PAUSE);
    }
}
