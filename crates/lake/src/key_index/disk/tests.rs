//! The index, in memory and on disk, against a map: under random histories, with the power cut
//! between each two writes, with every byte of its files damaged.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod model;

use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;

use self::model::{Power, Session, Setting, Step, Table, run, stand};
use super::*;

fn changes(keys: u128) -> impl Strategy<Value = Step> {
    // Some beyond 64 bits, where the key is wide.
    let key = (0..keys, any::<bool>()).prop_map(|(key, high)| key << if high { 70 } else { 0 });
    let change = (key, prop::bool::weighted(0.75));
    prop::collection::vec(change, 1..30).prop_map(Step::Change)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => changes(300),
        6 => Just(Step::Commit),
        3 => (1_usize..4).prop_map(Step::Compact),
        1 => Just(Step::Drop),
        2 => Just(Step::Close),
        1 => (2_usize..5).prop_map(Step::RemoveFiles),
        1 => Just(Step::Truncate),
        1 => Just(Step::Crowd),
    ]
}

fn narrow(steps: &[Step]) -> Vec<Step> {
    let narrow = |step: &Step| match step {
        Step::Change(changes) => Step::Change(
            changes
                .iter()
                .map(|(key, write)| (key & u128::from(u64::MAX), *write))
                .collect(),
        ),
        other => other.clone(),
    };
    steps.iter().map(narrow).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn equals_a_map_through_crashes(
        steps in prop::collection::vec(step(), 1..40),
        cuts in prop::collection::vec(0_i64..200, 0..4),
        // Always on disk; in memory first; always in memory.
        memory_bytes in prop_oneof![Just(0_usize), Just(MEMORY_OF_ONE), Just(usize::MAX)],
        dies: bool,
    ) {
        for (width, steps) in [(KeyWidth::Wide, steps.clone()), (KeyWidth::Narrow, narrow(&steps))] {
            let setting = Setting { memory_bytes, width, dies };
            run(&steps, setting, &Power::cut_after(&cuts));
        }
    }
}

/// With so much an index of a few keys is in memory, until there are other tables.
const MEMORY_OF_ONE: usize = 40_000;

/// Enough for spills, merges, saves and closes.
fn long_history() -> Vec<Step> {
    let mut random = 7_u64;
    let mut next = |below: u64| {
        random = crate::key_index::sharded::mix(random);
        random % below
    };
    let mut steps = Vec::new();
    for round in 0..30 {
        let changes = (0..20).map(|_| (u128::from(next(150)), next(4) > 0));
        steps.push(Step::Change(changes.collect()));
        if round % 2 == 0 {
            steps.push(Step::Commit);
        }
        match round {
            5 | 13 | 25 => steps.push(Step::Crowd),
            9 | 20 => steps.push(Step::Close),
            15 => steps.push(Step::RemoveFiles(3)),
            3 | 7 | 11 | 17 | 23 | 27 => steps.push(Step::Compact(1 + round % 3)),
            _ => {}
        }
    }
    steps
}

/// The process dies between each two writes of a history, and again at the writes of the starts after
/// that: the index is right, and one that was saved is read back.
#[test]
fn a_crash_between_each_two_writes_costs_nothing() {
    let steps = long_history();
    // On disk from the first key on; in memory first; in memory, and saved.
    for (memory_bytes, in_memory, on_disk) in [
        (0, false, true),
        (MEMORY_OF_ONE, true, true),
        (usize::MAX, true, false),
    ] {
        let setting = |writes: i64| Setting {
            memory_bytes,
            width: [KeyWidth::Narrow, KeyWidth::Wide][usize::from(writes % 2 == 0)],
            dies: true,
        };
        let power = Power::cut_after(&[]);
        let whole = run(&steps, setting(0), &power);
        assert!(whole.restored, "the saved index was read back");
        assert_eq!(
            (whole.was_in_memory, whole.was_on_disk),
            (in_memory, on_disk)
        );
        let used = power.writes();
        assert!(used > 10, "{used} writes");
        // Merges run beside: a few writes more or less.
        for writes in 0..used {
            let again = [writes % 5, writes % 13, writes % 3];
            let cuts = [&[writes][..], &again[..]].concat();
            let seen = run(&steps, setting(writes), &Power::cut_after(&cuts));
            assert!(seen.table.version <= whole.table.version);
        }
    }
}

/// A saved index of several runs.
fn saved(dir: &Path, memory_bytes: usize) -> Table {
    let mut table = Table::default();
    let mut session = Session::open(dir, memory_bytes, KeyWidth::Narrow, &mut table, None);
    for step in narrow(&long_history()) {
        if matches!(step, Step::Change(_) | Step::Commit | Step::Compact(_)) {
            session.step(&step).unwrap();
        }
    }
    session.close();
    table
}

#[test]
fn damage_anywhere_is_found() {
    for memory_bytes in [0, usize::MAX] {
        let dir = tempfile::tempdir().unwrap();
        let mut table = saved(dir.path(), memory_bytes);
        fn open<'a>(dir: &Path, memory_bytes: usize, table: &'a mut Table) -> Session<'a> {
            Session::open(dir, memory_bytes, KeyWidth::Narrow, table, None)
        }
        let opens = |table: &mut Table| {
            let mut session = open(dir.path(), memory_bytes, table);
            // Damage of a block shows when that is read.
            if session.restored && session.index.retain(&|_| true).is_err() {
                drop(session);
                assert!(
                    !open(dir.path(), memory_bytes, table).restored,
                    "what is damaged is rebuilt"
                );
                return false;
            }
            session.restored
        };
        // What no manifest names goes.
        drop(open(dir.path(), memory_bytes, &mut table));
        let files: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        let whole: Vec<_> = files
            .iter()
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .collect();
        assert!(opens(&mut table));
        let restore = || {
            for (path, bytes) in &whole {
                std::fs::write(path, bytes).unwrap();
            }
        };
        for (path, bytes) in &whole {
            // Every byte of short files, and enough of long ones to meet every part.
            let step = (bytes.len() / 400).max(1) | 1;
            for at in (0..bytes.len()).step_by(step) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << (at % 8);
                std::fs::write(path, &damaged).unwrap();
                assert!(!opens(&mut table), "byte {at} of {}", path.display());
                restore();
            }
            for length in (0..bytes.len()).step_by(bytes.len() / 40 + 1) {
                std::fs::write(path, &bytes[..length]).unwrap();
                assert!(!opens(&mut table), "{length} bytes of {}", path.display());
                restore();
            }
            std::fs::remove_file(path).unwrap();
            assert!(!opens(&mut table), "without {}", path.display());
            restore();
        }
        assert!(opens(&mut table), "as it was");
    }
}

#[test]
fn an_index_of_something_else_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let table = saved(dir.path(), 0);
    let home = Home::new(dir.path().to_owned(), false);
    let read = |stand: &Stand, width| read_manifest(&home, stand, width);
    let now = stand(table.version);
    assert!(read(&now, KeyWidth::Narrow).is_ok());
    assert!(read(&stand(table.version + 5), KeyWidth::Narrow).is_ok());
    let ahead = read(&stand(table.version - 1), KeyWidth::Narrow).unwrap_err();
    assert_eq!(ahead, "the index is ahead of the table");
    let other = Stand {
        table_id: "8".to_owned(),
        ..now.clone()
    };
    assert_eq!(
        read(&other, KeyWidth::Narrow).unwrap_err(),
        "the index is of another table"
    );
    let other = Stand {
        key: "[id2]".to_owned(),
        ..now.clone()
    };
    assert_eq!(
        read(&other, KeyWidth::Narrow).unwrap_err(),
        "the index is of another key"
    );
    let manifest = read(&now, KeyWidth::Wide).unwrap();
    assert!(manifest.open_runs(&home).is_err(), "of another width");
}

/// Rows that are deleted in the log and live in another history: a lake that went back in time and
/// on from there.
#[test]
fn another_history_of_the_same_files_is_found() {
    for memory_bytes in [0, usize::MAX] {
        let dir = tempfile::tempdir().unwrap();
        let mut table = saved(dir.path(), memory_bytes);
        // As many rows, but one other: of a key that is nowhere now. (One that is somewhere may have been
        // where it comes back to, and the index may know that.)
        let live: BTreeSet<Key> = table.live().map(|(key, _, _)| key).collect();
        let swapped = table.files.values_mut().find_map(|file| {
            let key_at = |row: u64| file.keys[usize::try_from(row).unwrap()];
            let back = file
                .deleted
                .iter()
                .find(|row| !live.contains(&key_at(*row)))?;
            let gone = (0..file.keys.len() as u64).find(|row| !file.deleted.contains(*row))?;
            file.deleted.remove(back);
            file.deleted.insert(gone);
            Some(())
        });
        assert!(swapped.is_some(), "the history deletes keys");
        table.version += 1;
        let session = Session::open(dir.path(), memory_bytes, KeyWidth::Narrow, &mut table, None);
        assert!(!session.restored);
    }
}

#[test]
fn runs_stay_few_and_forget_what_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::new(dir.path().to_owned(), false);
    let mut index = DiskIndex::new(home, KeyWidth::Narrow, 8_000);
    for round in 0..200_u32 {
        let keys: Vec<Key> = (0..50).map(|n| Key::from(round % 40 * 50 + n)).collect();
        index.prepare(&keys).unwrap();
        for (row, key) in (0..).zip(&keys) {
            let at = Location {
                segment: round,
                row,
            };
            index.insert(*key, at).unwrap();
        }
        index.settle().unwrap();
        assert!(
            index.runs.len() <= MOST_RUNS + 1,
            "{} runs",
            index.runs.len()
        );
        assert!(index.memory_bytes() < 60_000, "{}", index.memory_bytes());
    }
    assert_eq!(index.len(), 2000);
    index.adopt_merge().unwrap();
    for key in 0..2000 {
        index.remove(key).unwrap();
        index.settle().unwrap();
    }
    assert_eq!(index.len(), 0);
    index.retain(&|_| true).unwrap();
    assert_eq!(
        index.runs.iter().map(|held| held.run.entries).sum::<u64>(),
        0
    );
    assert_eq!(index.get(5).unwrap(), None);
}

/// A snapshot is taken shard by shard while commits go on: what changed in between is found in the
/// files.
#[test]
fn a_snapshot_taken_over_many_commits_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let mut table = Table::default();
    let mut session = Session::open(dir.path(), usize::MAX, KeyWidth::Wide, &mut table, None);
    let mut taken = 0;
    let mut last = Vec::new();
    for round in 0..20_000_u64 {
        let mut keys = (0..8).map(|n| crate::key_index::sharded::mix(round * 8 + n));
        let changes = keys
            .by_ref()
            .map(|key| (u128::from(key % 290), key % 5 > 0));
        session.change(&changes.collect::<Vec<_>>()).unwrap();
        session.commit();
        let manifest = std::fs::read(dir.path().join("manifest")).unwrap_or_default();
        taken += usize::from(manifest != last);
        last = manifest;
        if taken == 4 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    assert_eq!(taken, 4, "snapshots were finished");
    session.check().unwrap();
    drop(session);
    let session = Session::open(dir.path(), usize::MAX, KeyWidth::Wide, &mut table, None);
    assert!(session.restored);
}
