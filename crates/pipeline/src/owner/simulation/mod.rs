//! A deterministic simulation of one table's owner: the real owner, merge, index, care and commits, on
//! a disk that fails and with a clock that stands still, on one thread.
//!
//! ```text
//! seed ─► plan: steps ─► world: source, disk, owner ─► laws, after each step
//! ```
//!
//! A seed that fails prints itself, the shortest list of its steps that still fails, and what was done
//! to the disk. `ALLUVIUM_SEEDS=100000` runs more, `ALLUVIUM_SEED=7` one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking"
)]

mod disk;
mod foreign;
mod laws;
mod log;
mod plan;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use alluvium_change::failpoint;

use plan::{Step, shrink, steps};
use world::World;

/// Each step reads logs and files whole: a fifth of the time is taking memory and giving it back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEEDS: u64 = 10_000;
/// Lists of steps that are tried to find a shorter one.
const MOST_ATTEMPTS: u64 = 300;

/// What went wrong, and what was done until then.
#[derive(Debug)]
struct Failure {
    law: String,
    trace: Vec<String>,
}

fn run(seed: u64, steps: &[Step]) -> Result<Vec<String>, Failure> {
    let mut world = World::new(seed);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        for step in steps {
            world.step(*step)?;
        }
        world.finish()
    }));
    let law = match ran {
        Ok(Ok(())) => return Ok(world.disk.trace()),
        Ok(Err(law)) => law,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            format!("panicked: {}", text.unwrap_or_default())
        }
    };
    Err(Failure {
        law,
        trace: world.disk.trace(),
    })
}

/// A seed that fails, as short as it can be made.
fn explain(seed: u64) -> String {
    let attempts = AtomicU64::new(0);
    let short = shrink(steps(seed), |steps| {
        attempts.fetch_add(1, Ordering::Relaxed) < MOST_ATTEMPTS && run(seed, steps).is_err()
    });
    let Err(failure) = run(seed, &short) else {
        return format!("seed {seed} failed once, and not again");
    };
    format!(
        "seed {seed}: {}\nsteps: {short:#?}\ntrace:\n{}",
        failure.law,
        failure.trace.join("\n")
    )
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs seeds on all cores until one fails.
fn first_failure(seeds: std::ops::Range<u64>, mistake: Option<&'static str>) -> Option<u64> {
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let failed = Mutex::new(None);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        // Each waits for the kernel's threads now and then.
        for _ in 0..4 * cores {
            scope.spawn(|| {
                failpoint::plant(mistake);
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    if run(seed, &steps(seed)).is_err() {
                        stop.store(true, Ordering::Relaxed);
                        *failed.lock().unwrap() = Some(seed);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap()
}

#[test]
fn no_seed_breaks_a_law() {
    if let Some(seed) = from_environment("ALLUVIUM_SEED") {
        match run(seed, &steps(seed)) {
            Ok(trace) => eprintln!("{}", trace.join("\n")),
            Err(_) => panic!("{}", explain(seed)),
        }
        return;
    }
    let seeds = from_environment("ALLUVIUM_SEEDS").unwrap_or(SEEDS);
    if let Some(seed) = first_failure(0..seeds, None) {
        eprintln!("seed {seed} fails");
        panic!("{}", explain(seed));
    }
}

#[test]
fn a_seed_repeats_itself() {
    for seed in [1, 2, 3, 4, 5] {
        let first = run(seed, &steps(seed)).unwrap();
        let second = run(seed, &steps(seed)).unwrap();
        let differing = first.iter().zip(&second).find(|(a, b)| a != b);
        assert_eq!(differing, None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}

#[test]
fn each_planted_mistake_is_found() {
    for mistake in failpoint::MISTAKES {
        let found = first_failure(0..2_000, Some(mistake));
        let Some(seed) = found else {
            panic!("{mistake} was not found");
        };
        eprintln!("{mistake}: found by seed {seed}");
    }
}
