//! What a table's log says of its commits, one by one: for readers who ask when and what.
//!
//! Reads the JSON of single commits and nothing else, by the protocol,
//! <https://github.com/delta-io/delta/blob/master/PROTOCOL.md>. Invariant: what the log does not say is
//! none, never zero.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use alluvium_change::{Error, Result, code};
use serde_json::Value;

use super::committer::COPIED_ROWS;
use super::files::{LogFile, log_files, read_commit};

/// One commit of a Delta table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommitEntry {
    pub version: u64,
    /// Milliseconds since 1970.
    pub time_ms: Option<i64>,
    pub operation: Option<String>,
    /// That committed.
    pub program: Option<String>,
    /// Application ids and their new versions: see [`crate::read::position_of`].
    pub txns: BTreeMap<String, i64>,
    /// Whether rows are other rows afterwards; not so where files were only written anew.
    pub changes_rows: bool,
    pub files_added: u64,
    pub files_removed: u64,
    /// Bytes of the files added.
    pub bytes_added: u64,
    /// None where a file does not say how many rows it has.
    pub rows_added: Option<u64>,
    pub rows_deleted: Option<u64>,
}

/// The commits of a table that its log still has.
#[derive(Debug, Clone)]
pub struct History {
    dir: PathBuf,
    commits: BTreeSet<u64>,
    readable: Vec<RangeInclusive<u64>>,
}

impl History {
    /// Of the table in `dir`, as it is now.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn of(dir: &Path) -> Result<Self> {
        let (mut commits, mut checkpoints) = (BTreeSet::new(), BTreeSet::new());
        for (version, kind) in log_files(dir)? {
            match kind {
                LogFile::Commit => commits.insert(version),
                LogFile::Checkpoint | LogFile::OtherCheckpoint => checkpoints.insert(version),
                LogFile::Other => false,
            };
        }
        Ok(Self {
            dir: dir.to_owned(),
            readable: ranges(&commits, &checkpoints),
            commits,
        })
    }

    /// The versions of commits that are there, in order.
    pub fn versions(&self) -> impl DoubleEndedIterator<Item = u64> + '_ {
        self.commits.iter().copied()
    }

    /// Versions that can be read, by what the log says: in ranges, the newest first.
    #[must_use]
    pub fn readable(&self) -> &[RangeInclusive<u64>] {
        &self.readable
    }

    /// Whether `version` can be read, by what the log says.
    #[must_use]
    pub fn can_read(&self, version: u64) -> bool {
        self.readable().iter().any(|range| range.contains(&version))
    }

    /// # Errors
    /// `LAKE_VERSION` when `version` is not there any more, or not yet.
    pub fn check(&self, version: u64) -> Result<u64> {
        match self.can_read(version) {
            true => Ok(version),
            false => Err(self.gone(&format!("version {version}"))),
        }
    }

    /// The newest version that was committed at or before `time_ms`.
    ///
    /// # Errors
    /// `LAKE_VERSION` when there is none.
    pub fn at_time(&self, time_ms: i64) -> Result<u64> {
        self.newest_where(|entry| Some(entry.time_ms? <= time_ms))?
            .ok_or_else(|| self.gone("a version as old as that"))
    }

    /// Of the commits that can tell, which they do in order: the newest version before the first that
    /// is not.
    fn newest_where(&self, is: impl Fn(&CommitEntry) -> Option<bool>) -> Result<Option<u64>> {
        for range in &self.readable {
            let (mut low, mut high) = (*range.start(), *range.end() + 1);
            // All before `low` are; `high` and all after it are not. One that cannot tell is as the one before it.
            while low < high {
                let middle = low + (high - low) / 2;
                let told = (low..=middle).rev().find_map(|at| match self.entry(at) {
                    Ok(entry) => Some(Ok((at, is(&entry)?))),
                    Err(error) => Some(Err(error)),
                });
                match told.transpose()? {
                    Some((at, false)) => high = at,
                    _ => low = middle + 1,
                }
            }
            if low > *range.start() {
                return Ok(Some(low - 1));
            }
        }
        Ok(None)
    }

    fn gone(&self, what: &str) -> Error {
        let ranges: Vec<String> = self
            .readable()
            .iter()
            .map(|range| match range.start() == range.end() {
                true => range.start().to_string(),
                false => format!("{} to {}", range.start(), range.end()),
            })
            .collect();
        let message = format!("\"{}\" does not have {what}", self.dir.display());
        Error::new(&code::LAKE_VERSION, message)
            .with_detail(format!("versions that can be read: {}", ranges.join(", ")))
            .with_hint("ask for one that the detail names; how long versions stay: [maintain] all_versions")
    }

    /// The commit of one version.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn entry(&self, version: u64) -> Result<CommitEntry> {
        let mut commit = Actions::default();
        for action in read_commit(&self.dir, version)? {
            commit.take(&action);
        }
        Ok(commit.entry(version))
    }
}

/// A version needs every commit from the first one, or from a checkpoint, on.
fn ranges(commits: &BTreeSet<u64>, checkpoints: &BTreeSet<u64>) -> Vec<RangeInclusive<u64>> {
    let mut ranges: Vec<RangeInclusive<u64>> = Vec::new();
    for version in commits {
        let begins = *version == 0 || checkpoints.contains(version);
        match ranges.last_mut() {
            Some(range) if range.end() + 1 == *version => *range = *range.start()..=*version,
            _ if begins => ranges.push(*version..=*version),
            _ => {}
        }
    }
    ranges.reverse();
    ranges
}

/// What an action says of a data file.
#[derive(Debug, Default)]
struct Told {
    rows: Option<u64>,
    deleted: u64,
    bytes: u64,
}

impl Told {
    fn of(file: &Value) -> Self {
        let stats = file.get("stats").and_then(Value::as_str);
        let stats = stats.and_then(|stats| serde_json::from_str::<Value>(stats).ok());
        let number = |value: Option<&Value>, key: &str| value?.get(key)?.as_u64();
        Self {
            rows: number(stats.as_ref(), "numRecords"),
            deleted: number(file.get("deletionVector"), "cardinality").unwrap_or_default(),
            bytes: number(Some(file), "size").unwrap_or_default(),
        }
    }

    fn live_rows(&self) -> Option<u64> {
        self.rows?.checked_sub(self.deleted)
    }
}

/// What the actions of one commit say, as they come.
#[derive(Debug, Default)]
struct Actions {
    entry: CommitEntry,
    /// By path.
    added: HashMap<String, Told>,
    removed: HashMap<String, Told>,
    copied_rows: u64,
}

impl Actions {
    fn take(&mut self, action: &Value) {
        let text = |value: &Value, key: &str| Some(value.get(key)?.as_str()?.to_owned());
        if let Some(info) = action.get("commitInfo") {
            let time = info.get("inCommitTimestamp").or(info.get("timestamp"));
            self.entry.time_ms = time.and_then(Value::as_i64);
            self.entry.operation = text(info, "operation");
            self.entry.program = text(info, "engineInfo");
            let copied = info.pointer(&format!("/operationMetrics/{COPIED_ROWS}"));
            let copied = copied.and_then(|copied| copied.as_str()?.parse().ok());
            self.copied_rows = copied.unwrap_or_default();
        }
        if let Some(txn) = action.get("txn") {
            let version = txn.get("version").and_then(Value::as_i64);
            self.entry.txns.extend(text(txn, "appId").zip(version));
        }
        for (kind, files) in [("add", &mut self.added), ("remove", &mut self.removed)] {
            if let Some(file) = action.get(kind) {
                self.entry.changes_rows |= file.get("dataChange") != Some(&Value::Bool(false));
                files.insert(text(file, "path").unwrap_or_default(), Told::of(file));
            }
        }
    }

    fn entry(mut self, version: u64) -> CommitEntry {
        let (mut added, mut deleted) = (Some(0), Some(0));
        let sum = |total: Option<u64>, rows: Option<u64>| Some(total? + rows?);
        for (path, now) in &self.added {
            // The same file again, with other rows deleted.
            if let Some(before) = self.removed.get(path) {
                deleted = sum(deleted, now.deleted.checked_sub(before.deleted));
            } else {
                self.entry.files_added += 1;
                self.entry.bytes_added += now.bytes;
                added = sum(added, now.live_rows());
            }
        }
        for (path, before) in &self.removed {
            if !self.added.contains_key(path) {
                self.entry.files_removed += 1;
                deleted = sum(deleted, before.live_rows());
            }
        }
        let changed = |rows: Option<u64>| match self.entry.changes_rows {
            true => rows?.checked_sub(self.copied_rows),
            false => Some(0),
        };
        CommitEntry {
            version,
            rows_added: changed(added),
            rows_deleted: changed(deleted),
            ..self.entry
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use serde_json::json;

    use super::super::files::{commit_path, log_dir};
    use super::*;

    /// Commits at these times; none where a commit says none.
    fn table(times: &[(u64, Option<i64>)], checkpoints: &[u64]) -> (tempfile::TempDir, History) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(log_dir(dir.path())).unwrap();
        for (version, time_ms) in times {
            let text = json!({"commitInfo": {"timestamp": time_ms, "operation": "WRITE"}});
            std::fs::write(commit_path(dir.path(), *version), format!("{text}\n")).unwrap();
        }
        for version in checkpoints {
            let name = format!("{version:020}.checkpoint.parquet");
            std::fs::write(log_dir(dir.path()).join(name), "").unwrap();
        }
        let history = History::of(dir.path()).unwrap();
        (dir, history)
    }

    #[test]
    fn versions_need_their_commits_from_a_checkpoint_on() {
        let times: Vec<_> = [0, 1, 2, 4, 6, 7, 9].map(|version| (version, None)).into();
        let (_dir, history) = table(&times, &[1, 6, 8]);
        assert_eq!(history.readable(), [6..=7, 0..=2]);
        assert_eq!(history.check(7).unwrap(), 7);
        let error = history.check(4).unwrap_err();
        assert!(error.is(&code::LAKE_VERSION));
        assert_eq!(
            error.detail(),
            Some("versions that can be read: 6 to 7, 0 to 2")
        );
    }

    #[test]
    fn the_newest_version_of_a_time_is_found_across_gaps() {
        let old = [(3, Some(30))];
        let new = [
            (10, Some(100)),
            (11, None),
            (12, Some(120)),
            (13, Some(120)),
            (14, None),
            (15, Some(150)),
        ];
        let times: Vec<_> = old.into_iter().chain(new).collect();
        let (_dir, history) = table(&times, &[3, 10]);
        for (time_ms, version) in [
            (29, None),
            (30, Some(3)),
            (99, Some(3)),
            (100, Some(11)),
            (119, Some(11)),
            (120, Some(14)),
            (149, Some(14)),
            (150, Some(15)),
            (1000, Some(15)),
        ] {
            assert_eq!(history.at_time(time_ms).ok(), version, "{time_ms}");
        }
    }

    #[test]
    fn rows_are_counted_where_files_say_how_many_they_have() {
        let file = |kind: &str, path: &str, rows: Option<u64>, deleted: u64| {
            let stats = rows.map(|rows| json!({"numRecords": rows}).to_string());
            json!({kind: {"path": path, "size": 7, "dataChange": true, "stats": stats,
                "deletionVector": {"cardinality": deleted}}})
        };
        let entry = |actions: &[Value]| {
            let mut commit = Actions::default();
            actions.iter().for_each(|action| commit.take(action));
            commit.entry(9)
        };
        let told = entry(&[
            file("add", "a", Some(10), 4),
            file("remove", "a", Some(10), 1),
            file("add", "b", Some(5), 0),
            file("remove", "c", Some(8), 6),
            json!({"txn": {"appId": "alluvium/p/s/public.t", "version": 0x1_0000_0000_i64}}),
            json!({"txn": {"appId": "alluvium/p/s/public.t/copy_last", "version": 1}}),
        ]);
        let expected = CommitEntry {
            version: 9,
            txns: [
                ("alluvium/p/s/public.t".to_owned(), 0x1_0000_0000),
                ("alluvium/p/s/public.t/copy_last".to_owned(), 1),
            ]
            .into(),
            changes_rows: true,
            files_added: 1,
            files_removed: 1,
            bytes_added: 7,
            rows_added: Some(5),
            rows_deleted: Some(3 + 2),
            ..CommitEntry::default()
        };
        assert_eq!(told, expected);
        let copied = json!({"commitInfo": {"operationMetrics": {"numTargetRowsCopied": "6"}}});
        let rewritten = entry(&[
            copied,
            file("remove", "a", Some(10), 1),
            file("add", "b", Some(8), 0),
        ]);
        assert_eq!(
            (rewritten.rows_added, rewritten.rows_deleted),
            (Some(2), Some(3))
        );
        let mut moved = [file("remove", "a", Some(10), 1), file("add", "b", None, 0)];
        for (kind, action) in ["remove", "add"].into_iter().zip(&mut moved) {
            action[kind]["dataChange"] = false.into();
        }
        let moved = entry(&moved);
        assert_eq!(
            (moved.changes_rows, moved.rows_added, moved.rows_deleted),
            (false, Some(0), Some(0))
        );
        let unknown = entry(&[file("add", "b", None, 0)]);
        assert_eq!((unknown.rows_added, unknown.rows_deleted), (None, Some(0)));
    }
}
