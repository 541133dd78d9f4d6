//! What other commands ask of a running pipeline: small files in `.alluvium/requests/`, read by
//! the pipeline and removed when done. A request made while nothing runs waits for the next run.

use std::path::{Path, PathBuf};

use alluvium_change::{Error, Result, TableId, code, encode_path_segment};
use serde::{Deserialize, Serialize};

/// Copy a table afresh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resync {
    pub schema: String,
    pub table: String,
}

/// A request and the file that holds it.
#[derive(Debug)]
pub struct Pending {
    pub table: TableId,
    file: PathBuf,
}

impl Pending {
    /// The request was taken into the lake: it need not be asked again.
    pub fn finish(&self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("requests")
}

/// Asks that `table` be copied afresh.
///
/// # Errors
/// The project's state directory cannot be written.
pub fn ask_resync(state_dir: &Path, table: &TableId) -> Result<()> {
    let request = Resync {
        schema: table.schema.clone(),
        table: table.name.clone(),
    };
    let text = serde_json::to_string(&request)
        .map_err(|error| Error::bug("a request cannot be written as JSON").with_source(error))?;
    let directory = directory(state_dir);
    let name = format!(
        "resync-{}--{}.json",
        encode_path_segment(&table.schema),
        encode_path_segment(&table.name)
    );
    let temporary = directory.join(format!(".{name}"));
    std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::write(&temporary, text))
        .and_then(|()| std::fs::rename(&temporary, directory.join(name)))
        .map_err(|error| {
            Error::new(
                &code::LAKE_READ_ONLY,
                format!("cannot write to \"{}\"", directory.display()),
            )
            .with_detail(error.to_string())
        })
}

/// The requests that wait. A file that cannot be read is passed over.
#[must_use]
pub fn pending(state_dir: &Path) -> Vec<Pending> {
    let Ok(entries) = std::fs::read_dir(directory(state_dir)) else {
        return Vec::new();
    };
    let read = |file: PathBuf| {
        let name = file.file_name()?.to_str()?;
        if name.starts_with('.') {
            return None;
        }
        let request: Resync = serde_json::from_str(&std::fs::read_to_string(&file).ok()?).ok()?;
        Some(Pending {
            table: TableId::new(request.schema, request.table),
            file,
        })
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
        ask_resync(dir.path(), &table).unwrap();
        ask_resync(dir.path(), &table).unwrap();
        std::fs::write(directory(dir.path()).join("junk.json"), "{").unwrap();
        let waiting = pending(dir.path());
        assert_eq!(waiting.len(), 1);
        assert_eq!(waiting[0].table, table);
        waiting[0].finish();
        assert!(pending(dir.path()).is_empty());
    }
}
