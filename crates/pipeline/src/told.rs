//! How far the source was told that everything is durable, remembered beside the project.
//!
//! A slot can be dropped and made again under the same name: the new one starts later, and what
//! lies between is gone. It shows by being ahead of what was ever told. Without the file nothing
//! is known and nothing is checked: deleting it is safe, and costs this check once.
//!
//! While a prepared transaction waits for its decision, more is durable than the source is told. That
//! is remembered too: a prepared transaction that was committed in between may be sent again without
//! its changes.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use alluvium_change::{Error, Lsn, Result, code};

fn path(state_dir: &Path, slot: &str) -> PathBuf {
    state_dir.join(format!("told-{slot}"))
}

/// How far everything is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    /// What the source was told.
    pub acknowledged: Lsn,
    /// What was durable then; not before it.
    pub durable: Lsn,
}

/// Writes down what `slot` is about to be told; durable when this returns.
///
/// # Errors
/// The project's state directory cannot be written.
pub(crate) fn remember(state_dir: &Path, slot: &str, told: Told) -> Result<()> {
    let text = format!("{} {}", told.acknowledged, told.durable);
    write_whole(state_dir, &path(state_dir, slot), &text)
}

/// Puts `text` into a file of the state directory: all of it, durably, or nothing.
///
/// # Errors
/// The project's state directory cannot be written.
pub(crate) fn write_whole(state_dir: &Path, path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let write = || {
        std::fs::create_dir_all(state_dir)?;
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        std::fs::rename(&temporary, path)?;
        File::open(state_dir)?.sync_all()
    };
    write().map_err(|error: std::io::Error| {
        Error::new(
            &code::LAKE_READ_ONLY,
            format!("cannot write to \"{}\"", state_dir.display()),
        )
        .with_detail(error.to_string())
    })
}

/// Forgets a slot that will be made anew.
pub(crate) fn forget(state_dir: &Path, slot: &str) {
    let _ = std::fs::remove_file(path(state_dir, slot));
}

/// What `slot` was told last, if that is known.
pub(crate) fn recall(state_dir: &Path, slot: &str) -> Option<Told> {
    let text = std::fs::read_to_string(path(state_dir, slot)).ok()?;
    let mut words = text.split_whitespace().map(str::parse);
    let acknowledged = words.next()?.ok()?;
    // Of earlier versions: they told all that was durable.
    let durable = words.next().unwrap_or(Ok(acknowledged)).ok()?;
    Some(Told {
        acknowledged,
        durable,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn what_was_told_is_recalled_per_slot_until_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("new");
        assert_eq!(recall(&state, "a"), None);
        let told = |acknowledged, durable| Told {
            acknowledged: Lsn(acknowledged),
            durable: Lsn(durable),
        };
        remember(&state, "a", told(7, 7)).unwrap();
        remember(&state, "a", told(1 << 40, 1 << 41)).unwrap();
        assert_eq!(recall(&state, "a"), Some(told(1 << 40, 1 << 41)));
        std::fs::write(path(&state, "a"), "0/10").unwrap();
        assert_eq!(
            recall(&state, "a"),
            Some(told(16, 16)),
            "an earlier version"
        );
        assert_eq!(recall(&state, "b"), None);
        forget(&state, "a");
        assert_eq!(recall(&state, "a"), None);
    }
}
