//! What other commands ask of a running pipeline: small files in `.alluvium/requests/`, read by
//! the pipeline and removed when done. A request made while nothing runs waits for the next run.

use std::path::{Path, PathBuf};

use alluvium_change::{Error, Result, TableId, code, encode_path_segment};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::status::now_micros;

/// Copy a table afresh, or compare some of its rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resync {
    pub schema: String,
    pub table: String,
    /// A condition in SQL: only rows for which it holds are compared, and set right.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub predicate: Option<String>,
}

/// A request and the file that holds it.
#[derive(Debug)]
pub struct Pending {
    pub table: TableId,
    /// Only rows for which this holds.
    pub predicate: Option<String>,
    file: PathBuf,
}

impl Pending {
    /// The request was taken into the lake: it need not be asked again.
    pub fn finish(&self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// What is done to the files of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CareKind {
    Optimize,
    Vacuum,
    Checkpoint,
}

#[derive(Debug, Serialize, Deserialize)]
struct Care {
    kind: CareKind,
    schema: String,
    table: String,
}

/// Care that was asked for; its file is there until it is finished.
#[derive(Debug)]
pub struct PendingCare {
    pub kind: CareKind,
    pub table: TableId,
    pub file: PathBuf,
}

impl PendingCare {
    /// It was done, or cannot be.
    pub fn finish(&self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("requests")
}

fn care_directory(state_dir: &Path) -> PathBuf {
    directory(state_dir).join("care")
}

/// Asks that `table` be copied afresh, or that its rows for which `predicate` holds be compared with the
/// source and set right.
///
/// # Errors
/// The project's state directory cannot be written.
pub fn ask_resync(state_dir: &Path, table: &TableId, predicate: Option<&str>) -> Result<()> {
    let request = Resync {
        schema: table.schema.clone(),
        table: table.name.clone(),
        predicate: predicate.map(str::to_owned),
    };
    let name = match predicate {
        None => file_name("resync", table),
        Some(predicate) => {
            let mark = xxh3_64(predicate.as_bytes());
            file_name(&format!("rows-{mark:016x}"), table)
        }
    };
    leave(&directory(state_dir), &name, &request).map(|_| ())
}

/// Asks that a running pipeline cares for the files of `table`. The file that is answered is gone when
/// that is done.
///
/// # Errors
/// The project's state directory cannot be written.
pub fn ask_care(state_dir: &Path, kind: CareKind, table: &TableId) -> Result<PathBuf> {
    let request = Care {
        kind,
        schema: table.schema.clone(),
        table: table.name.clone(),
    };
    // The pipeline knows requests by their names: a second one that comes soon after is not the first.
    let (kind, asker, now) = (format!("{kind:?}"), std::process::id(), now_micros());
    let name = file_name(&format!("{}-{asker}-{now}", kind.to_lowercase()), table);
    leave(&care_directory(state_dir), &name, &request)
}

fn file_name(what: &str, table: &TableId) -> String {
    let (schema, name) = (&table.schema, &table.name);
    format!(
        "{what}-{}--{}.json",
        encode_path_segment(schema),
        encode_path_segment(name)
    )
}

fn leave(directory: &Path, name: &str, request: &impl Serialize) -> Result<PathBuf> {
    let text = serde_json::to_string(request)
        .map_err(|error| Error::bug("a request cannot be written as JSON").with_source(error))?;
    let temporary = directory.join(format!(".{name}"));
    let file = directory.join(name);
    std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::write(&temporary, text))
        .and_then(|()| std::fs::rename(&temporary, &file))
        .map_err(|error| {
            Error::new(
                &code::LAKE_READ_ONLY,
                format!("cannot write to \"{}\"", directory.display()),
            )
            .with_detail(error.to_string())
        })?;
    Ok(file)
}

/// The requests that wait. A file that cannot be read is passed over.
#[must_use]
pub fn pending(state_dir: &Path) -> Vec<Pending> {
    let read = |(file, request): (PathBuf, Resync)| Pending {
        table: TableId::new(request.schema, request.table),
        predicate: request.predicate,
        file,
    };
    waiting(&directory(state_dir))
        .into_iter()
        .map(read)
        .collect()
}

/// Care that was asked for and is not finished.
#[must_use]
pub fn pending_care(state_dir: &Path) -> Vec<PendingCare> {
    let read = |(file, request): (PathBuf, Care)| PendingCare {
        kind: request.kind,
        table: TableId::new(request.schema, request.table),
        file,
    };
    let waiting = waiting(&care_directory(state_dir));
    waiting.into_iter().map(read).collect()
}

fn waiting<T: for<'a> Deserialize<'a>>(directory: &Path) -> Vec<(PathBuf, T)> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let read = |file: PathBuf| {
        let name = file.file_name()?.to_str()?;
        if name.starts_with('.') {
            return None;
        }
        let request = serde_json::from_str(&std::fs::read_to_string(&file).ok()?).ok()?;
        Some((file, request))
    };
    entries
        .flatten()
        .filter_map(|entry| read(entry.path()))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn a_request_waits_until_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let table = TableId::new("public", "odd/name");
        ask_resync(dir.path(), &table, None).unwrap();
        ask_resync(dir.path(), &table, None).unwrap();
        std::fs::write(directory(dir.path()).join("junk.json"), "{").unwrap();
        let waiting = pending(dir.path());
        assert_eq!(waiting.len(), 1);
        assert_eq!(waiting[0].table, table);
        waiting[0].finish();
        assert!(pending(dir.path()).is_empty());
    }

    #[test]
    fn rows_are_asked_for_by_each_condition() {
        let dir = tempfile::tempdir().unwrap();
        let table = TableId::new("public", "orders");
        for predicate in ["id < 5", "id > 9", "id < 5"] {
            ask_resync(dir.path(), &table, Some(predicate)).unwrap();
        }
        ask_resync(dir.path(), &table, None).unwrap();
        let waiting = pending(dir.path());
        let mut predicates: Vec<_> = waiting.iter().map(|p| p.predicate.as_deref()).collect();
        predicates.sort_unstable();
        assert_eq!(predicates, [None, Some("id < 5"), Some("id > 9")]);
    }

    #[test]
    fn care_is_asked_for_apart_from_copies() {
        let dir = tempfile::tempdir().unwrap();
        let table = TableId::new("public", "orders");
        let vacuum = ask_care(dir.path(), CareKind::Vacuum, &table).unwrap();
        ask_care(dir.path(), CareKind::Optimize, &table).unwrap();
        assert!(pending(dir.path()).is_empty());
        let waiting = pending_care(dir.path());
        assert_eq!(waiting.len(), 2);
        for care in waiting {
            assert_eq!(care.kind == CareKind::Vacuum, care.file == vacuum);
            assert_eq!(care.table, table);
            care.finish();
        }
        assert!(!vacuum.exists());
    }
}
