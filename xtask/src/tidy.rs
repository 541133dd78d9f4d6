//! What clippy cannot see. Each module finds one kind of fault; none of them changes anything.

mod crates;
mod error_pages;
mod links;
pub(crate) mod metrics;
mod sources;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Something to mend: where, and what.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    place: String,
    text: String,
}

impl Fault {
    fn new(place: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            text: text.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// All faults of the project at `root`.
pub(crate) fn faults(root: &Path) -> Result<Vec<Fault>> {
    let mut faults = sources::faults(root)?;
    faults.extend(error_pages::faults(root)?);
    faults.extend(metrics::faults(root)?);
    faults.extend(links::faults(root)?);
    faults.extend(crates::faults(root)?);
    Ok(faults)
}

/// All files below `dir` whose name ends in `extension`, sorted; none when `dir` is not there.
fn files_below(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// `path` as people write it, from the project's root.
fn shown(root: &Path, path: &Path) -> String {
    path.strip_prefix(root)
        .unwrap_or(path)
        .display()
        .to_string()
}
