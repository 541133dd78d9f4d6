//! Removing what no version needs that can still be read: data files, deletion vectors, and the part
//! of the log before it.
//!
//! Versions of the last hour ([`RetentionSettings::all_versions`]) stay readable, each; of older ones
//! some, those of which there is a Delta checkpoint, spaced as the settings say. Nothing is removed
//! that the owner's table still goes by.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use alluvium_change::surroundings::now_ms;
use alluvium_change::{Result, failpoint};

use crate::fs::{self as durable, io_error};
use crate::log::{CHANGES_DIR, DeltaTable, LogFile, Names, TableAt, name_hash};
use crate::{LakeSettings, RetentionSettings};

/// Finds and removes what one table does not need any more; runs on any thread.
pub struct CleaningJob {
    table: TableAt,
    retention: RetentionSettings,
    /// Names of files that are written and that no commit names yet.
    staged: Vec<String>,
    fsync: bool,
    /// When it was ordered, in milliseconds since 1970: what was written since is not known to it.
    now_ms: i64,
    /// What old versions need, from the cleaning before.
    known: BTreeMap<u64, Names>,
}

/// Times of files lag behind the clock, a little.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// What was found, or removed.
#[derive(Debug, Default)]
pub struct Cleaned {
    pub data_files: Vec<PathBuf>,
    pub data_bytes: u64,
    pub log_files: Vec<PathBuf>,
    pub log_bytes: u64,
    /// Older versions that can be read, of those with a Delta checkpoint.
    pub old_versions: Vec<u64>,
    known: BTreeMap<u64, Names>,
}

impl CleaningJob {
    /// `before` is what came of the last one, whose knowledge is used again.
    pub(crate) fn of(
        table: &DeltaTable,
        lake: &LakeSettings,
        staged: Vec<String>,
        before: Option<Cleaned>,
    ) -> Self {
        Self {
            table: table.now(),
            retention: lake.retention,
            staged,
            fsync: lake.fsync,
            now_ms: now_ms(),
            known: before.map(|before| before.known).unwrap_or_default(),
        }
    }

    /// What would be removed. Removes nothing.
    ///
    /// # Errors
    /// The log or a directory cannot be read.
    pub fn find(&mut self) -> Result<Cleaned> {
        let RetentionSettings {
            all_versions,
            removed_files,
            ..
        } = self.retention;
        let before = |age: Duration| {
            if failpoint::is_planted("clean.too_eager") {
                return self.now_ms;
            }
            let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
            self.now_ms.saturating_sub(age)
        };
        let table = &self.table;
        let log = read_log(&table.log_dir())?;
        let plan = plan_log(
            &log,
            table.checkpoint_version(),
            &self.retention,
            self.now_ms,
        );
        let since_ms = before(all_versions.max(removed_files));
        let mut needed = table.names(since_ms)?;
        // The owner, or another program, may have committed since it was ordered.
        let newest = table.newest()?;
        if newest.version() != table.version() {
            needed.extend(newest.names(since_ms)?);
        }
        // The first of those that all stay may be one of the old ones later, and is older already than
        // what removed files are kept for.
        let keeps = |version: &u64| plan.old.contains(version) || plan.first == Some(*version);
        self.known.retain(|version, _| keeps(version));
        for version in plan.old.iter().chain(&plan.first) {
            let names = match self.known.entry(*version) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(table.at(*version)?.names(i64::MAX)?),
            };
            needed.extend(&*names);
        }
        needed.extend(self.staged.iter().map(|name| name_hash(name)));
        let mut cleaned = Cleaned {
            old_versions: plan.old.into_iter().collect(),
            known: std::mem::take(&mut self.known),
            ..Cleaned::default()
        };
        let log = log.iter().map(|entry| &entry.file);
        for file in log.filter(|file| plan.remove.contains(&file.name)) {
            cleaned.log_files.push(table.log_dir().join(&file.name));
            cleaned.log_bytes += file.bytes;
        }
        // Named by commits alone, of versions that can each be read.
        let feed = table.dir().join(CHANGES_DIR);
        let age = all_versions.max(removed_files).max(CLOCK_SLACK);
        if feed.is_dir() {
            for file in read_dir(&feed)? {
                if file.modified_ms < before(age) {
                    cleaned.data_files.push(feed.join(&file.name));
                    cleaned.data_bytes += file.bytes;
                }
            }
        }
        for file in read_dir(table.dir())? {
            let is_ours = [".parquet", ".bin"]
                .iter()
                .any(|end| file.name.ends_with(end));
            // Younger ones may be of a commit that is just being made.
            if is_ours
                && file.modified_ms < before(removed_files.max(CLOCK_SLACK))
                && !needed.contains(&name_hash(&file.name))
            {
                cleaned.data_files.push(table.dir().join(&file.name));
                cleaned.data_bytes += file.bytes;
            }
        }
        Ok(cleaned)
    }

    /// Removes what [`Self::find`] finds now. The log goes first: no version that is left ever names a
    /// file that is not there.
    ///
    /// # Errors
    /// As [`Self::find`]; a file cannot be removed.
    pub fn run(mut self) -> Result<Cleaned> {
        let cleaned = self.find()?;
        let log_dir = self.table.log_dir();
        failpoint::hit("clean.before_log");
        for path in &cleaned.log_files {
            durable::remove(path)?;
        }
        if self.fsync && !cleaned.log_files.is_empty() {
            durable::sync_dir(&log_dir)?;
        }
        failpoint::hit("clean.before_data");
        for path in &cleaned.data_files {
            durable::remove(path)?;
        }
        Ok(cleaned)
    }
}

/// A file of a directory.
#[derive(Debug, Clone)]
struct DirEntry {
    name: String,
    bytes: u64,
    modified_ms: i64,
}

fn read_dir(dir: &Path) -> Result<Vec<DirEntry>> {
    let failed = |e| io_error("read", dir, e);
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let metadata = match entry.metadata() {
            // Another program removed it just now.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            metadata => metadata.map_err(failed)?,
        };
        let (true, Some(name)) = (
            metadata.is_file(),
            entry.file_name().to_str().map(str::to_owned),
        ) else {
            continue;
        };
        let modified = metadata.modified().map_err(failed)?;
        let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        entries.push(DirEntry {
            name,
            bytes: metadata.len(),
            modified_ms: i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        });
    }
    Ok(entries)
}

/// A file of the log that belongs to a version.
#[derive(Debug, Clone)]
struct LogEntry {
    file: DirEntry,
    version: u64,
    kind: LogFile,
}

fn read_log(dir: &Path) -> Result<Vec<LogEntry>> {
    let entries = read_dir(dir)?;
    Ok(entries.into_iter().filter_map(log_entry).collect())
}

fn log_entry(file: DirEntry) -> Option<LogEntry> {
    let (version, kind) = LogFile::of_name(&file.name)?;
    Some(LogEntry {
        file,
        version,
        kind,
    })
}

/// What becomes of the log.
#[derive(Debug, Default, PartialEq, Eq)]
struct LogPlan {
    /// The version from which on all stay; it has a checkpoint.
    first: Option<u64>,
    /// Versions with a checkpoint that stay, of those before the first from which on all do.
    old: BTreeSet<u64>,
    remove: HashSet<String>,
}

/// Pure. `newest` is the last checkpoint that the table's owner goes by.
fn plan_log(
    log: &[LogEntry],
    newest: Option<u64>,
    retention: &RetentionSettings,
    now_ms: i64,
) -> LogPlan {
    let age = |modified_ms: i64| {
        Duration::from_millis(u64::try_from(now_ms.saturating_sub(modified_ms)).unwrap_or_default())
    };
    // A version's time is its commit's; a checkpoint is written later.
    let mut times: BTreeMap<u64, i64> = BTreeMap::new();
    for file in log {
        if matches!(file.kind, LogFile::Commit | LogFile::Checkpoint) {
            let modified_ms = file.file.modified_ms;
            let time = times.entry(file.version).or_insert(modified_ms);
            *time = (*time).min(modified_ms);
        }
    }
    // In other forms they are not relied on.
    let checkpoints: BTreeSet<u64> = log
        .iter()
        .filter(|file| file.kind == LogFile::Checkpoint && Some(file.version) <= newest)
        .map(|file| file.version)
        .collect();
    let is_old = |version: &u64| {
        let time = times.get(version).copied().unwrap_or(i64::MAX);
        age(time) > retention.all_versions
    };
    // All versions from this one on are kept.
    let Some(first) = checkpoints.iter().copied().rfind(is_old) else {
        return LogPlan::default();
    };
    let every_ms = i64::try_from(retention.old_versions_every.as_millis()).unwrap_or(i64::MAX);
    let mut old = BTreeSet::new();
    let mut periods = HashSet::new();
    for version in checkpoints.range(..first) {
        let Some(time) = times.get(version).copied() else {
            continue;
        };
        // The first of each period, which stays the first when later ones come.
        if age(time) <= retention.old_versions && periods.insert(time / every_ms.max(1)) {
            old.insert(*version);
        }
    }
    let stays = |file: &LogEntry| file.version >= first || old.contains(&file.version);
    let remove = log.iter().filter(|file| !stays(file));
    LogPlan {
        first: Some(first),
        remove: remove.map(|entry| entry.file.name.clone()).collect(),
        old,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;
    const DAY_MS: i64 = 24 * HOUR_MS;

    /// A commit each ten minutes, a checkpoint each hour, for so many days.
    fn log(days: i64) -> Vec<LogEntry> {
        let mut log = Vec::new();
        for version in 0..days * 144 {
            let entry = |end: &str| DirEntry {
                name: format!("{version:020}{end}"),
                bytes: 1,
                modified_ms: version * HOUR_MS / 6,
            };
            log.extend(log_entry(entry(".json")));
            if version % 6 == 0 && version > 0 {
                log.extend(log_entry(entry(".checkpoint.parquet")));
                log.extend(log_entry(entry(".crc")));
            }
        }
        log
    }

    #[test]
    fn of_old_versions_one_a_day_stays() {
        let log = log(10);
        let now = 10 * DAY_MS;
        let plan = plan_log(&log, Some(1434), &RetentionSettings::default(), now);
        // The newest checkpoint is of an hour ago, and older than that is the one before.
        let left: Vec<u64> = (432..1428).step_by(144).collect();
        assert_eq!(plan.old.iter().copied().collect::<Vec<_>>(), left);
        let kept: BTreeSet<u64> = log
            .iter()
            .filter(|entry| !plan.remove.contains(&entry.file.name))
            .map(|file| file.version)
            .collect();
        let expected: BTreeSet<u64> = left.into_iter().chain(1428..1440).collect();
        assert_eq!(kept, expected);
        // What stays does not change with time, but for what is too old.
        let later = plan_log(
            &log,
            Some(1434),
            &RetentionSettings::default(),
            now + DAY_MS,
        );
        assert!(plan.old.iter().skip(1).all(|old| later.old.contains(old)));
    }

    #[test]
    fn nothing_goes_that_the_owner_goes_by() {
        let log = log(1);
        for newest in [None, Some(0), Some(6)] {
            let settings = RetentionSettings::default();
            let plan = plan_log(&log, newest, &settings, 100 * DAY_MS);
            let first = newest.unwrap_or_default();
            for entry in log.iter().filter(|entry| entry.version >= first) {
                let name = &entry.file.name;
                assert!(!plan.remove.contains(name), "{newest:?} {name}");
            }
            assert_eq!(plan.remove.is_empty(), newest != Some(6), "{newest:?}");
        }
    }

    #[test]
    fn a_young_log_stays_whole() {
        let plan = plan_log(&log(1), Some(138), &RetentionSettings::default(), 0);
        assert_eq!(plan, LogPlan::default());
    }
}
