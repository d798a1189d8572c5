//! CPU time of a server, and which core may do what.

use std::fs;

/// The core of the server.
pub const SERVER_CPU: &str = "0";
/// The core of the load.
pub const LOAD_CPU: &str = "1";

/// User and system time that a process has used, seconds.
///
/// # Panics
/// When the process is gone.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the server runs");
    ticks(&stat).expect("proc(5) says what is in it") as f64 / TICKS_PER_SECOND
}

/// `USER_HZ`, which is 100 on every Linux that a program sees.
const TICKS_PER_SECOND: f64 = 100.0;

/// Fields 14 and 15; the second field is a name in parentheses that may hold blanks.
fn ticks(stat: &str) -> Option<u64> {
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_may_hold_blanks_and_parentheses() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 40 2 0 0";
        assert_eq!(ticks(stat), Some(42));
    }
}
