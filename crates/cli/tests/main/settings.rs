//! Settings that change nothing of what arrives: how often is committed, how much memory there is, how
//! the server sends transactions.

use std::fmt::Debug;

use alluvium_testkit::PgCluster;

use crate::setup::Setup;

/// How often is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cadence {
    /// Every 10 ms, whatever a commit takes.
    Quick,
    /// As without a setting.
    Adaptive,
    /// Every 2 seconds, or when all has come that is waited for.
    Slow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Memory {
    /// As without a setting.
    Default,
    /// As little as is taken: running transactions are spilled, key indexes live on disk.
    Least,
}

/// How the server sends a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Sending {
    /// Protocol 1: when it has committed.
    Protocol1,
    /// Protocol 2, with so much memory at the server that no transaction is sent while it runs.
    Protocol2,
    /// Protocol 2, with so little that each of more than some dozen rows comes in pieces.
    InPieces,
    /// The same, and those of two phases when they are prepared.
    Prepared,
}

/// In which form values are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Tuples {
    /// As without a setting.
    Auto,
    /// Only for tables that allow it.
    Binary,
}

/// Files are written anew as soon as that can be, and nothing stays that is not needed.
const MAINTAIN: &str = "[maintain]\ncpu_percent = 100\nsmall_files = 2\nall_versions = \"0s\"\n\
                        removed_files = \"0s\"\nold_versions = \"0s\"\n";

/// One choice of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Settings {
    pub cadence: Cadence,
    pub memory: Memory,
    pub sending: Sending,
    pub tuples: Tuples,
}

/// `all` of the matrix, or a part of it when that is asked for: `ALLUVIUM_TEST_MATRIX=all`; `2/5` for the
/// second of five parts; `merge.` for the cases that name it. See `make crashmatrix`.
pub(crate) fn part_asked_for<T: Debug>(mut all: Vec<T>) -> Option<Vec<T>> {
    let wanted = std::env::var("ALLUVIUM_TEST_MATRIX").ok()?;
    if let Some((part, of)) = wanted.split_once('/') {
        let (part, of): (usize, usize) = (part.parse().unwrap(), of.parse().unwrap());
        assert!((1..=of).contains(&part), "there is no part {wanted}");
        return Some(all.into_iter().skip(part - 1).step_by(of).collect());
    }
    all.retain(|case| wanted == "all" || format!("{case:?}").contains(&wanted));
    Some(all)
}

impl Settings {
    pub(crate) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for tuples in [Tuples::Binary, Tuples::Auto] {
            for memory in [Memory::Least, Memory::Default] {
                for cadence in [Cadence::Quick, Cadence::Adaptive, Cadence::Slow] {
                    let sendings = [
                        Sending::InPieces,
                        Sending::Protocol2,
                        Sending::Protocol1,
                        Sending::Prepared,
                    ];
                    all.extend(sendings.map(|sending| Self {
                        cadence,
                        memory,
                        sending,
                        tuples,
                    }));
                }
            }
        }
        all
    }

    /// All that tables of any types can have.
    pub(crate) fn of_any_types() -> Vec<Self> {
        let mut all = Self::all();
        all.retain(|settings| settings.tuples == Tuples::Auto);
        all
    }

    /// Of those each value of each once, or the part of all that is asked for.
    pub(crate) fn of_any_types_to_test() -> Vec<Self> {
        let of = |cadence, memory, sending| Self {
            cadence,
            memory,
            sending,
            tuples: Tuples::Auto,
        };
        part_asked_for(Self::of_any_types()).unwrap_or_else(|| {
            vec![
                of(Cadence::Quick, Memory::Least, Sending::Prepared),
                of(Cadence::Adaptive, Memory::Default, Sending::Protocol1),
                of(Cadence::Slow, Memory::Least, Sending::InPieces),
            ]
        })
    }

    pub(crate) fn comes_in_pieces(self) -> bool {
        matches!(self.sending, Sending::InPieces | Sending::Prepared)
    }

    /// Sets up server and project for the next runs. `more` is what the project file says besides.
    pub(crate) fn apply(self, setup: &Setup, tables: &str, more: &str) {
        let server_memory = if self.comes_in_pieces() {
            "64kB"
        } else {
            "64MB"
        };
        let sql =
            format!("ALTER DATABASE postgres SET logical_decoding_work_mem = '{server_memory}'");
        setup.pg.execute(&sql).unwrap();
        let cadence = match self.cadence {
            Cadence::Quick => "min_interval_ms = 10\nmax_interval_ms = 10\n",
            Cadence::Adaptive => "",
            Cadence::Slow => "min_interval_ms = 2000\nmax_interval_ms = 2000\n",
        };
        let memory = match self.memory {
            Memory::Default => "",
            Memory::Least => "[limits]\nmemory = \"128MiB\"\nindex_memory = \"1KiB\"\n",
        };
        let project = format!(
            "[commit]\n{cadence}delta_checkpoint_every_commits = 3\n{MAINTAIN}{memory}{more}"
        );
        setup.configure(tables, &project);
        setup.set_in_source(match self.sending {
            Sending::Protocol1 => "protocol = 1",
            Sending::Protocol2 | Sending::InPieces => "protocol = 2",
            Sending::Prepared => "two_phase = true",
        });
        if self.tuples == Tuples::Binary {
            setup.set_in_source("tuples = \"binary\"");
        }
    }

    /// What was set had its effect on all that was sent since the slot was made, and on the index of
    /// the lake's table `keyed`.
    pub(crate) fn assert_in_effect(self, setup: &Setup, keyed: &str) {
        assert_eq!(streamed(&setup.pg) > 0, self.comes_in_pieces(), "{self:?}");
        let index = setup.dir.path().join(".alluvium/index").join(keyed);
        assert_eq!(
            index.join("manifest").exists(),
            self.memory == Memory::Least,
            "{self:?}"
        );
    }
}

/// Transactions that the server sent in pieces, committed or not.
pub(crate) fn streamed(pg: &PgCluster) -> u64 {
    if pg.version() < 14 {
        return 0;
    }
    let count = "SELECT coalesce(sum(stream_txns), 0) FROM pg_stat_replication_slots";
    pg.query_text(count).unwrap().trim().parse().unwrap()
}
