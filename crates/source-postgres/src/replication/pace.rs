//! When to read at once, and when to let the buffers fill first.
//!
//! The server sends change by change. To be woken for each costs both sides more than the change
//! itself, so a stream that runs fast is read in bulk, a nap apart; a slow one is read at once. The
//! stream does not say how much is still to come: its rate does.

use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_millis(4);
/// So much in a window (4 MB/s, some 30 000 changes a second) is a backlog being worked off.
const BUSY_BYTES: usize = 16 << 10;
/// A read of so much found the buffers full enough.
const FULL_BYTES: usize = 128 << 10;
/// What the nap adds to a change's age is small beside what a backlog adds.
pub(super) const NAP: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    window_bytes: usize,
    busy: bool,
    last_bytes: usize,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            window_bytes: 0,
            // A stream begins with what has waited for it.
            busy: true,
            last_bytes: 0,
        }
    }

    /// Notes a read.
    pub(super) fn read(&mut self, now: Instant, bytes: usize) {
        self.last_bytes = bytes;
        self.window_bytes += bytes;
        let passed = now.saturating_duration_since(self.since);
        if passed >= WINDOW {
            // Reads may be far apart: what counts is the rate.
            let windows = passed.as_nanos() / WINDOW.as_nanos();
            self.busy = self.window_bytes as u128 >= BUSY_BYTES as u128 * windows;
            self.since = now;
            self.window_bytes = 0;
        }
    }

    /// Whether the next read should wait a [`NAP`].
    pub(super) fn should_nap(&self) -> bool {
        self.busy && self.last_bytes < FULL_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(reads: &[(u64, usize)]) -> bool {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for &(at_micros, bytes) in reads {
            pace.read(start + Duration::from_micros(at_micros), bytes);
        }
        pace.should_nap()
    }

    #[test]
    fn a_fast_stream_is_napped_for_and_a_slow_one_is_not() {
        // What a stream begins with may be a backlog.
        assert!(after(&[]));
        let fast: Vec<_> = (0..2000).map(|n| (n * 10, 200)).collect();
        assert!(after(&fast));
        let slow: Vec<_> = (0..2000).map(|n| (n * 100, 150)).collect();
        assert!(!after(&slow));
        // After a pause it is read at once again.
        let paused: Vec<_> = fast.iter().copied().chain([(2_000_000, 200)]).collect();
        assert!(!after(&paused));
        // Full buffers are not waited for.
        let full: Vec<_> = (0..100).map(|n| (n * 2000, FULL_BYTES)).collect();
        assert!(!after(&full));
    }
}
