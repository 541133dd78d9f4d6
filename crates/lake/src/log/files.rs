//! The files of a log: their names, and the actions of a commit's.
//!
//! By the protocol, <https://github.com/delta-io/delta/blob/master/PROTOCOL.md>.

use std::path::{Path, PathBuf};

use alluvium_change::Result;
use serde_json::Value;

use crate::fs::{corrupt, io_error};

/// What a file of the log that belongs to a version is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFile {
    Commit,
    /// In one file.
    Checkpoint,
    /// In several files, or with a name that is its own.
    OtherCheckpoint,
    /// Checksums, and what else is of a version.
    Other,
}

impl LogFile {
    /// The version that the file `name` of a log belongs to, and what it is; none for other files.
    pub(crate) fn of_name(name: &str) -> Option<(u64, Self)> {
        let (version, rest) = name.split_at_checked(20)?;
        // Versions are signed to Delta.
        let version = version.parse::<i64>().ok()?.try_into().ok()?;
        let kind = match rest {
            ".json" => Self::Commit,
            ".checkpoint.parquet" => Self::Checkpoint,
            _ if rest.starts_with(".checkpoint.") => Self::OtherCheckpoint,
            _ if rest.starts_with('.') => Self::Other,
            _ => return None,
        };
        Some((version, kind))
    }
}

/// The log of the table in `dir`.
pub(super) fn log_dir(dir: &Path) -> PathBuf {
    dir.join("_delta_log")
}

/// The files in the log of the table in `dir` that belong to a version; none where there is no log.
pub(super) fn log_files(dir: &Path) -> Result<Vec<(u64, LogFile)>> {
    let log = log_dir(dir);
    let failed = |e| io_error("read", &log, e);
    let entries = match std::fs::read_dir(&log) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        files.extend(name.to_str().and_then(LogFile::of_name));
    }
    Ok(files)
}

/// The file of commit `version`.
pub(super) fn commit_path(dir: &Path, version: u64) -> PathBuf {
    log_dir(dir).join(format!("{version:020}.json"))
}

/// The actions of commit `version`, in order.
pub(super) fn read_commit(dir: &Path, version: u64) -> Result<Vec<Value>> {
    let path = commit_path(dir, version);
    let text = std::fs::read(&path).map_err(|e| io_error("read", &path, e))?;
    let lines = text.split(|byte| *byte == b'\n');
    lines
        .filter(|line| !line.is_empty())
        .map(|line| {
            serde_json::from_slice(line)
                .map_err(|e| corrupt(&path, "a line is not JSON").with_source(e))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_version_are_known_by_their_names() {
        let nine = "00000000000000000009";
        for (end, kind) in [
            (".json", LogFile::Commit),
            (".checkpoint.parquet", LogFile::Checkpoint),
            (
                ".checkpoint.0000000001.0000000002.parquet",
                LogFile::OtherCheckpoint,
            ),
            (
                ".checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.json",
                LogFile::OtherCheckpoint,
            ),
            (".crc", LogFile::Other),
        ] {
            assert_eq!(LogFile::of_name(&format!("{nine}{end}")), Some((9, kind)));
        }
    }

    #[test]
    fn other_files_are_of_no_version() {
        for name in [
            "_last_checkpoint",
            "x.tmp",
            "0000000000000000001x.json",
            "00000000000000000001json",
            "-0000000000000000001.json",
            "18446744073709551615.json",
        ] {
            assert_eq!(LogFile::of_name(name), None, "{name}");
        }
    }
}
