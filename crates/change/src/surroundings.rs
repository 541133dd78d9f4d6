//! The clock and chance, as this process meets them. A simulation puts its own in their place, thread
//! by thread, so that what happened once happens again.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where a simulated clock begins: 2030-01-01.
const BEGINNING_MS: i64 = 1_893_456_000_000;

struct Simulated {
    began: Instant,
    elapsed: Duration,
    chance: u64,
}

/// Set for ever by the first simulation; until then a look at the clock costs one load more.
static ANY: AtomicBool = AtomicBool::new(false);

thread_local! {
    static SIMULATED: RefCell<Option<Simulated>> = const { RefCell::new(None) };
}

fn simulated<T>(look: impl FnOnce(&mut Simulated) -> T) -> Option<T> {
    if !ANY.load(Ordering::Relaxed) {
        return None;
    }
    SIMULATED.with_borrow_mut(|simulated| simulated.as_mut().map(look))
}

/// Milliseconds since 1970, never going back within the process.
#[must_use]
pub fn now_ms() -> i64 {
    let since = simulated(|s| s.elapsed).map(|elapsed| {
        let elapsed = i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX);
        BEGINNING_MS.saturating_add(elapsed)
    });
    since.unwrap_or_else(|| {
        static LAST: AtomicI64 = AtomicI64::new(0);
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(i64::MAX);
        LAST.fetch_max(now, Ordering::Relaxed).max(now)
    })
}

/// A point in time that only ever grows.
#[must_use]
pub fn instant() -> Instant {
    simulated(|s| s.began + s.elapsed).unwrap_or_else(Instant::now)
}

/// In a simulation, 128 bits that its seed gives; else none.
#[must_use]
pub fn simulated_chance() -> Option<u128> {
    simulated(|s| {
        (u128::from(next_random(&mut s.chance)) << 64) | u128::from(next_random(&mut s.chance))
    })
}

/// From here on this thread's clock stands still until [`advance`], and chance follows from `seed`.
pub fn simulate(seed: u64) {
    ANY.store(true, Ordering::Relaxed);
    SIMULATED.set(Some(Simulated {
        began: Instant::now(),
        elapsed: Duration::ZERO,
        chance: seed,
    }));
}

/// Moves this thread's simulated clock.
pub fn advance(by: Duration) {
    simulated(|s| s.elapsed += by);
}

/// This thread has the real clock and chance again.
pub fn end_simulation() {
    SIMULATED.set(None);
}

/// `SplitMix64`, as published by Sebastiano Vigna: the next of a row of numbers that `state` gives.
pub fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulation_repeats_itself_and_ends() {
        let run = || {
            simulate(7);
            let before = (now_ms(), instant());
            advance(Duration::from_millis(1500));
            let after = (now_ms(), instant());
            assert_eq!(after.0 - before.0, 1500);
            assert_eq!(after.1 - before.1, Duration::from_millis(1500));
            (after.0, simulated_chance(), simulated_chance())
        };
        let first = run();
        assert_eq!(first, run());
        assert_ne!(first.1, first.2);
        std::thread::spawn(|| assert_eq!(simulated_chance(), None))
            .join()
            .ok();
        end_simulation();
        assert_eq!(simulated_chance(), None);
        assert!(now_ms() < BEGINNING_MS, "or it is 2030");
    }
}
