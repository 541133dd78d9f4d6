//! What writing files anew leaves on the disk, for the versions that can still be read.

use std::collections::VecDeque;
use std::time::Duration;

/// Files that were replaced close together count as one.
const TOGETHER_MS: i64 = 1000;

/// Bytes of files that were replaced, by when.
#[derive(Debug, Default)]
pub(crate) struct KeptBytes(VecDeque<(i64, u64)>);

impl KeptBytes {
    pub(crate) fn add(&mut self, now_ms: i64, bytes: u64) {
        match self.0.back_mut() {
            Some((at, sum)) if now_ms - *at < TOGETHER_MS => *sum += bytes,
            _ => self.0.push_back((now_ms, bytes)),
        }
    }

    /// Of those that have not been kept for so long yet.
    pub(crate) fn within(&mut self, kept: Duration, now_ms: i64) -> u64 {
        let kept_ms = i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
        let is_gone = |(at, _): &(i64, u64)| now_ms.saturating_sub(*at) > kept_ms;
        while self.0.front().is_some_and(is_gone) {
            self.0.pop_front();
        }
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_long_enough_is_forgotten() {
        let mut kept = KeptBytes::default();
        for (at, bytes) in [(0, 1), (999, 2), (1000, 4), (5000, 8)] {
            kept.add(at, bytes);
        }
        let hour = Duration::from_secs(3600);
        assert_eq!(kept.within(hour, 5000), 15);
        assert_eq!(kept.within(Duration::from_secs(4), 5000), 12);
        assert_eq!(kept.within(hour, 5000), 12);
        assert_eq!(kept.within(Duration::ZERO, 5001), 0);
        assert!(kept.0.is_empty());
    }
}
