//! The crash matrix: the process is killed at each step, at every setting of cadence, memory and
//! protocol; it goes on, and every row is compared.
//!
//! The tests run a selection in which each crash point meets each setting, and all settings meet each
//! other. `make crashmatrix` runs them all.

use std::collections::{HashMap, HashSet};

use alluvium_change::failpoint;
use alluvium_testkit::PgCluster;

use crate::rebuild::bronze_rebuilds_silver;
use crate::settings::{Memory, Sending, Settings, part_asked_for};
use crate::setup::{ABORT, CAUGHT_UP, Setup};

/// A place to crash at, and the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Case {
    point: &'static str,
    /// At the second one something has been written already.
    hits: u64,
    settings: Settings,
}

/// What the selection brings together.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Pair {
    /// A crash point and one setting, or how often it is met. The setting by its name.
    Point(&'static str, String),
    /// Two settings.
    Settings(String, String),
}

impl Case {
    /// All that can be.
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for point in failpoint::NAMES {
            for hits in [1, 2] {
                for settings in Settings::all() {
                    all.push(Self {
                        point,
                        hits,
                        settings,
                    });
                }
            }
        }
        all.retain(Case::can_be);
        all
    }

    fn can_be(&self) -> bool {
        let is_least = self.settings.memory == Memory::Least;
        let in_pieces = self.settings.comes_in_pieces();
        match self.point {
            "stream.spilled" => in_pieces && is_least,
            "stream.committed" | "stream.replayed" => in_pieces,
            // Small indexes in memory are not saved.
            "index.before_manifest" | "index.after_manifest" => is_least,
            _ => true,
        }
    }

    /// A second hit need not come, so that it shows nothing of the settings.
    fn pairs(&self) -> HashSet<Pair> {
        if self.hits > 1 {
            return HashSet::from([Pair::Point(self.point, format!("{} hits", self.hits))]);
        }
        let Settings {
            cadence,
            memory,
            sending,
            tuples,
        } = self.settings;
        let names = [
            format!("{cadence:?}"),
            format!("{memory:?}"),
            format!("{sending:?}"),
            format!("{tuples:?}"),
        ];
        let mut pairs = HashSet::new();
        for (at, name) in names.iter().enumerate() {
            pairs.insert(Pair::Point(self.point, name.clone()));
            let others = names[at + 1..].iter();
            pairs.extend(others.map(|other| Pair::Settings(name.clone(), other.clone())));
        }
        pairs
    }

    /// As few as are needed for every pair there can be.
    fn selection() -> Vec<Self> {
        let all: Vec<_> = Self::all()
            .into_iter()
            .map(|case| (case, case.pairs()))
            .collect();
        let mut left: HashSet<&Pair> = all.iter().flat_map(|(_, pairs)| pairs).collect();
        let mut often: HashMap<Settings, usize> = HashMap::new();
        let mut selected = Vec::new();
        while !left.is_empty() {
            let worth = |(case, pairs): &&(Self, HashSet<Pair>)| {
                let new = pairs.iter().filter(|pair| left.contains(pair)).count();
                (new, std::cmp::Reverse(often.get(&case.settings).copied()))
            };
            let (best, pairs) = all.iter().max_by_key(worth).unwrap();
            for pair in pairs {
                left.remove(pair);
            }
            *often.entry(best.settings).or_default() += 1;
            selected.push(*best);
        }
        selected
    }
}

#[test]
fn the_selection_brings_all_settings_and_crash_points_together() {
    let met = |cases: &[Case]| -> HashSet<Pair> { cases.iter().flat_map(Case::pairs).collect() };
    let (selected, all) = (Case::selection(), Case::all());
    assert_eq!(met(&selected), met(&all));
    assert!(selected.iter().all(|case| all.contains(case)));
    for point in failpoint::NAMES {
        let of_point = selected.iter().filter(|case| case.point == *point);
        // One for each cadence at least, and one that crashes later.
        assert!(of_point.count() >= 4, "{point}");
    }
}

/// One server for all; a new table, project and slot for each.
fn crash_everywhere(memory: Memory) {
    let pg = PgCluster::start(None, &[]).unwrap();
    let setup = Setup::on(pg, "", "\"public.*\"", "");
    let cases = part_asked_for(Case::all()).unwrap_or_else(Case::selection);
    for case in cases {
        if case.settings.memory == memory {
            eprintln!("{case:?}");
            crash(&setup, case);
        }
    }
}

#[test]
fn a_crash_at_each_step_loses_nothing() {
    crash_everywhere(Memory::Default);
}

/// The server's pieces are spilled, every key index is on disk.
#[test]
fn a_crash_at_each_step_loses_nothing_with_the_least_memory() {
    crash_everywhere(Memory::Least);
}

fn crash(setup: &Setup, case: Case) {
    let pg = &setup.pg;
    pg.execute("DROP TABLE IF EXISTS a, b").unwrap();
    pg.execute(
        "CREATE TABLE a (id int PRIMARY KEY, v text, big text);
         ALTER TABLE a ALTER COLUMN big SET STORAGE EXTERNAL;
         CREATE TABLE b (n int, v text);
         ALTER TABLE b REPLICA IDENTITY FULL;
         INSERT INTO a SELECT g, 'v' || g, repeat('x', 3000) FROM generate_series(1, 300) g;
         INSERT INTO b SELECT g % 7, 'b' FROM generate_series(1, 300) g;",
    )
    .unwrap();
    setup.start_anew();
    case.settings.apply(setup, "\"public.*\"", "");
    let armed = format!("{}:{}", case.point, case.hits);
    // Care of the files comes in its own time.
    let of_care = ["compact.", "clean."]
        .iter()
        .any(|of| case.point.starts_with(of));
    let crash = |must: bool| {
        let must = must && case.hits == 1;
        let args: &[&str] = if of_care && must { &["run"] } else { CAUGHT_UP };
        let ended = setup.alluvium_with(args, &[("ALLUVIUM_CRASH_AT", &armed)]);
        let crashed = ended.signal() == Some(ABORT);
        // A second hit need not come.
        assert!(
            crashed || (ended.code() == Some(0) && !must),
            "{case:?}: {}",
            ended.stderr
        );
        crashed
    };
    let prepared = case.settings.sending == Sending::Prepared;
    let of_copy = case.point.starts_with("copy.");
    // While the tables are copied, which then goes on with other rows; while changes are followed.
    let crashed = crash(of_copy);
    change(pg, 1, prepared);
    if crashed {
        setup.catch_up();
    }
    change(pg, 2, prepared);
    if case.point.starts_with("resync.") {
        setup.alluvium(&["resync", "--all"]).success().unwrap();
    }
    // Delta checkpoints come every few commits.
    let now_and_then = case.point.starts_with("checkpoint.") && crashed;
    crash(!of_copy && !now_and_then);
    change(pg, 3, prepared);
    setup.catch_up();
    setup.assert_equal();
    bronze_rebuilds_silver(setup, "a", Some("id"));
    bronze_rebuilds_silver(setup, "b", None);
    case.settings.assert_in_effect(setup, "a");
}

/// One large transaction, half of it rolled back, in two phases or one, and six small ones.
fn change(pg: &PgCluster, round: i32, prepared: bool) {
    let end = if prepared {
        "PREPARE TRANSACTION 'p'"
    } else {
        "COMMIT"
    };
    pg.execute(&format!(
        "BEGIN;
         INSERT INTO a SELECT {round} * 5000 + 20000 + g, 'large', repeat('z', 10000) FROM generate_series(1, 300) g;
         SAVEPOINT s;
         INSERT INTO a SELECT {round} * 5000 + 30000 + g, 'gone', repeat('z', 10000) FROM generate_series(1, 300) g;
         ROLLBACK TO s;
         UPDATE a SET v = 'round {round}' WHERE id % 5 = {round};
         UPDATE a SET id = id + 1000 WHERE id % 11 = {round};
         DELETE FROM a WHERE id % 13 = {round};
         INSERT INTO a VALUES ({round} + 10000, 'new', 'small');
         DELETE FROM b WHERE ctid IN (SELECT ctid FROM b WHERE n = {round} LIMIT 10);
         INSERT INTO b VALUES ({round}, 'b'), ({round}, 'b');
         {end}"
    ))
    .unwrap();
    if prepared {
        pg.execute("COMMIT PREPARED 'p'").unwrap();
    }
    for n in 0..6 {
        let update = format!("UPDATE a SET v = '{round}.{n}' WHERE id = {n} + 2");
        pg.execute(&update).unwrap();
    }
}
