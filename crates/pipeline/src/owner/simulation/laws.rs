//! What must hold after each step.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use alluvium_change::{Lsn, TableSchema, surroundings};
use alluvium_lake::{LakeSettings, MergeMode, Owner, RetentionSettings, SilverSettings, read};
use alluvium_testkit::history::{Row, item_rows_of, read_columns, read_files, sorted};
use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;

use super::super::command::Shown;
use super::foreign::{self, Deed, Found};
use super::log::{Log, State};
use super::world::{Law, Transaction, shown};

/// Bronze's columns that say which change of the source a row is.
const PLACE: [&str; 2] = ["_commit_lsn", "_event_serial"];

/// A version of silver.
#[derive(Debug, Clone)]
struct Seen {
    version: u64,
    state: State,
    committed_ms: i64,
}

pub(super) struct Laws {
    log: Log,
    bronze: PathBuf,
    app_id: String,
    retention: RetentionSettings,
    has_vectors: bool,
    feeds_changes: bool,
    /// In order, from the first on.
    seen: Vec<Seen>,
    durable: Lsn,
}

impl Laws {
    pub(super) fn new(
        root: &Path,
        owner: &Owner,
        settings: &LakeSettings,
        silver: &SilverSettings,
    ) -> Self {
        Self {
            log: Log::new(&root.join("silver").join(&owner.name)),
            bronze: root.join("bronze").join(&owner.name),
            app_id: owner.app_id(),
            retention: settings.retention,
            has_vectors: silver.merge_mode == MergeMode::DeletionVectors,
            feeds_changes: silver.change_data_feed,
            seen: Vec::new(),
            durable: Lsn::ZERO,
        }
    }

    /// The source was told, or could be told, that all up to here is durable.
    pub(super) fn durable(&mut self, position: Lsn) {
        self.durable = self.durable.max(position);
    }

    /// Nothing is lost that was said to be durable.
    pub(super) fn kept(&self, position: Lsn) -> Law {
        if position < self.durable {
            return Err(format!(
                "it starts at {position}, but was durable up to {}",
                self.durable
            ));
        }
        Ok(())
    }

    /// Versions that a crash took are another's now; the last may be another, too.
    pub(super) fn started(&mut self, version: u64) {
        self.seen.retain(|seen| seen.version < version);
    }

    fn lsn(&self, state: &State, suffix: &str) -> Option<u64> {
        let version = state.txns.get(&format!("{}{suffix}", self.app_id))?;
        (*version >= 0).then(|| Lsn::from_txn_version(*version).0)
    }

    /// Where the source was when it had exactly the rows of a version. None while the table is copied,
    /// until its rows of several snapshots have become one, and where another program made it.
    fn exact_position(&self, state: &State) -> Option<u64> {
        if state.is_foreign {
            return None;
        }
        let settled = self.lsn(state, "/reconcile_until").unwrap_or(0);
        self.lsn(state, "").filter(|position| *position >= settled)
    }

    /// Each new version is what the source was at its position, and positions grow.
    pub(super) fn check_versions(
        &mut self,
        newest: u64,
        rows_at: impl Fn(u64, usize) -> Vec<Row>,
    ) -> Law {
        let next = self.seen.last().map_or(0, |seen| seen.version + 1);
        for version in next..=newest {
            let before = self.seen.last().map(|seen| seen.state.clone());
            let before = before.unwrap_or_default();
            let was = self.lsn(&before, "");
            let was_exact = self.exact_position(&before).is_some();
            let state = self.log.next(before.clone(), version)?;
            // A version is looked at again after a start: what it fed may be too old by then.
            let kept_ms = i64::try_from(self.retention.all_versions.as_millis()).unwrap();
            let age_ms = surroundings::now_ms() - self.log.committed_ms(version);
            if self.feeds_changes && age_ms <= kept_ms {
                let of = |e| format!("version {version}: {e}");
                self.log.check_feed(&before, &state).map_err(of)?;
            }
            let is = self.lsn(&state, "");
            if is.is_some() && is < was {
                return Err(format!("version {version} is at {is:?}, after {was:?}"));
            }
            if !self.has_vectors && state.files.values().any(Option::is_some) {
                return Err(format!("version {version} has deletion vectors"));
            }
            if was_exact && !state.is_foreign && self.exact_position(&state).is_none() {
                return Err(format!(
                    "version {version} is that of no moment, after {was:?}"
                ));
            }
            if let Some(position) = self.exact_position(&state) {
                let what = format!("version {version} at {position}");
                let rows = self.log.rows(&state).map_err(|e| format!("{what}: {e}"))?;
                compare(&rows, &rows_at(position, state.columns), &what)?;
            }
            self.seen.push(Seen {
                version,
                state,
                committed_ms: self.log.committed_ms(version),
            });
        }
        Ok(())
    }

    /// Columns of the newest version that were added later.
    pub(super) fn columns(&self) -> usize {
        self.seen.last().map_or(0, |seen| seen.state.columns)
    }

    pub(super) fn silver(&self) -> &Path {
        self.log.dir()
    }

    /// Another program commits to silver.
    pub(super) fn foreign(
        &mut self,
        deed: Deed,
        schema: &TableSchema,
        name: &str,
        now_ms: i64,
    ) -> Law {
        let Some(newest) = self.seen.last().cloned() else {
            return Ok(());
        };
        let rows = self.log.rows(&newest.state)?;
        let earlier: Vec<&State> = self.seen.iter().map(|seen| &seen.state).collect();
        let found = Found {
            dir: self.log.dir(),
            version: newest.version,
            state: &newest.state,
            rows: &rows,
            earlier: &earlier,
            now_ms,
        };
        foreign::commit(deed, &found, schema, name);
        Ok(())
    }

    /// Versions that were current within the retention.
    fn promised(&self, now_ms: i64) -> Vec<&Seen> {
        let kept_ms = i64::try_from(self.retention.all_versions.as_millis()).unwrap();
        let next = self.seen.iter().skip(1).map(|seen| seen.committed_ms);
        let until = next.chain([i64::MAX]);
        let seen = self.seen.iter().zip(until);
        seen.filter(|(_, until)| *until > now_ms.saturating_sub(kept_ms))
            .map(|(seen, _)| seen)
            .collect()
    }

    /// No version within the retention lost a file.
    pub(super) fn check_files(&self, now_ms: i64) -> Law {
        for seen in self.promised(now_ms) {
            let lacks = |e| format!("version {}: {e}", seen.version);
            self.log.check_files(&seen.state).map_err(lacks)?;
        }
        Ok(())
    }

    /// A version within the retention can be read, whole.
    pub(super) fn read_old(
        &self,
        nth: usize,
        now_ms: i64,
        rows_at: impl Fn(u64, usize) -> Vec<Row>,
    ) -> Law {
        let promised = self.promised(now_ms);
        let nth = nth.checked_rem(promised.len());
        let Some(seen) = nth.and_then(|at| promised.get(at)) else {
            return Ok(());
        };
        let age_ms = now_ms - seen.committed_ms;
        let what = format!("version {}, {age_ms} ms later", seen.version);
        let table = self.open(Some(seen.version))?;
        let columns = seen.state.columns;
        let rows = widened(item_rows_of(&read_files(&table.files)), columns);
        match self.exact_position(&seen.state) {
            Some(position) => compare(&rows, &rows_at(position, columns), &what),
            None => Ok(()),
        }
    }

    /// As the program reads it.
    fn open(&self, version: Option<u64>) -> Result<read::TableVersion, String> {
        read::open_table(self.log.dir(), version)
            .map_err(|error| format!("version {version:?} cannot be opened: {}", shown(&error)))
    }

    /// In the end silver is the source, and bronze has each change once.
    pub(super) fn finished(&mut self, log: &[Transaction]) -> Law {
        let rows = log.last().map(|tx| tx.rows.clone()).unwrap_or_default();
        let state = self.seen.last().map(|seen| seen.state.clone());
        let state = state.unwrap_or_default();
        compare(&self.log.rows(&state)?, &rows, "in the end")?;
        let table = self.open(None)?;
        if table.num_rows() != rows.len() as u64 || table.files.len() != state.files.len() {
            return Err("the log is read in two ways".to_owned());
        }
        let bronze = read::open_table(&self.bronze, None).map_err(|error| shown(&error))?;
        let mut found = Vec::new();
        for batch in read_columns(&bronze.files, Some(&PLACE)) {
            let column = |name: &str| batch.column_by_name(name).cloned().unwrap();
            let (lsns, serials) = (column(PLACE[0]), column(PLACE[1]));
            let (lsns, serials) = (
                lsns.as_primitive::<Int64Type>(),
                serials.as_primitive::<Int64Type>(),
            );
            for at in 0..batch.num_rows() {
                // Copied rows, and the mark that a copy began, have none.
                if serials.is_valid(at) {
                    found.push((lsns.value(at), serials.value(at)));
                }
            }
        }
        let once: BTreeSet<_> = found.iter().copied().collect();
        if once.len() != found.len() {
            return Err("bronze has a change twice".to_owned());
        }
        let lsn_of = |tx: &Transaction| Lsn(tx.lsn).as_txn_version();
        let all = log.iter().flat_map(|tx| {
            let serials = 0..i64::try_from(tx.changes.len()).unwrap();
            serials.map(move |serial| (lsn_of(tx), serial))
        });
        let all: BTreeSet<_> = all.collect();
        if all != once {
            let missing = all.difference(&once).next();
            let more = once.difference(&all).next();
            return Err(format!("bronze lacks {missing:?}, and has {more:?}"));
        }
        Ok(())
    }
}

/// Rows of files that may be from before columns that were added: they have none of it.
fn widened(rows: Vec<Row>, columns: usize) -> Vec<Row> {
    let nothing = vec![None; columns];
    sorted(rows.into_iter().map(|row| row.widened(&nothing)))
}

fn compare(found: &[Row], expected: &[Row], what: &str) -> Law {
    if found == expected {
        return Ok(());
    }
    let missing = expected.iter().find(|row| !found.contains(row));
    let more = found.iter().find(|row| !expected.contains(row));
    Err(format!(
        "{what}: {} rows instead of {}, lacks {missing:?}, has {more:?}",
        found.len(),
        expected.len()
    ))
}

/// A query within the program sees what the source had after the last transaction that was sent.
pub(super) fn check_view(shown: Shown, expected: &[Row], columns: usize) -> Law {
    match shown {
        Shown::Table(view) => {
            let mut batches = read_files(&view.files);
            batches.extend(view.rows.iter().cloned());
            compare(
                &widened(item_rows_of(&batches), columns),
                expected,
                "a view",
            )
        }
        Shown::Ahead | Shown::No => Ok(()),
    }
}
