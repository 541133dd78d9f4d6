//! Commits of other programs: what they changed, and how that is undone.
//!
//! A table has one writer, and what its rows are is the source's to say. What another program did to
//! them can only be kept where no row changed by it; else a commit of ours puts our files back, those
//! of our last commit, with their deletion vectors. By the protocol,
//! <https://github.com/delta-io/delta/blob/master/PROTOCOL.md>.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use alluvium_change::surroundings::now_ms;
use alluvium_change::{Result, code};
use delta_kernel::snapshot::Snapshot;
use serde_json::{Value, json};

use super::commit::{Commit, MOST_TRIES, NewFile, OWN_COMMIT, own_mark};
use super::deletion_vector::Descriptor;
use super::engine::kernel_error;
use super::files::read_commit;
use super::metadata::{add_action, commit_info, remove_action};
use super::rows::LiveFile;
use super::table::{DeltaTable, foreign};
use crate::{ForeignWriters, write::check_file};

/// What became of commits that are not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// There were none.
    Nothing,
    /// The same rows are in other files.
    Followed,
    /// The table has the files it had.
    Undone,
}

/// What other programs committed.
#[derive(Debug, Default)]
struct Foreign {
    operations: Vec<String>,
    changes_rows: bool,
    sets_positions: bool,
}

impl Foreign {
    fn take(&mut self, action: &Value) {
        if let Some(info) = action.get("commitInfo") {
            let operation = info.get("operation").and_then(Value::as_str);
            self.operations.push(operation.unwrap_or("?").to_owned());
        }
        for kind in ["add", "remove"] {
            let says_no = |file: &Value| file.get("dataChange") == Some(&Value::Bool(false));
            self.changes_rows |= action.get(kind).is_some_and(|file| !says_no(file));
        }
        self.changes_rows |= action.get("cdc").is_some();
        let id = action.get("txn").and_then(|txn| txn.get("appId"));
        let is_ours = |id: &str| id.starts_with("alluvium/");
        self.sets_positions |= id.and_then(Value::as_str).is_some_and(is_ours);
    }
}

impl DeltaTable {
    /// What to do from here on about commits that are not ours; until then they are refused.
    pub(crate) fn set_foreign(&mut self, policy: ForeignWriters) {
        self.foreign = policy;
    }

    /// Settles what other programs committed since the table was opened, or since our last commit.
    pub(crate) fn settle_newer(&mut self) -> Result<Settled> {
        let ours = own_mark(self.version());
        self.refresh()?;
        self.settle_foreign(&BTreeMap::from([(OWN_COMMIT.to_owned(), ours)]))
    }

    /// Settles what was committed since our last commit, going by the table's [`Self::txns`].
    ///
    /// # Errors
    /// `LAKE_FOREIGN` where it can be neither kept nor undone, or may not be.
    pub(crate) fn settle_foreign(&mut self, txns: &BTreeMap<String, i64>) -> Result<Settled> {
        let mut tries = MOST_TRIES;
        loop {
            tries -= 1;
            let version = self.version();
            match self.settle_once(txns) {
                // Another commit came meanwhile.
                Err(error) if tries > 0 && error.is(&code::LAKE_FOREIGN) => {
                    self.refresh()?;
                    if self.version() == version {
                        return Err(error);
                    }
                }
                settled => return settled,
            }
        }
    }

    fn settle_once(&mut self, txns: &BTreeMap<String, i64>) -> Result<Settled> {
        // The first commit creates the table, and is made by the kernel alone.
        let ours = txns.get(OWN_COMMIT).copied().unwrap_or(0);
        if ours == own_mark(self.version()) {
            return Ok(Settled::Nothing);
        }
        let refused = |why: String| Err(foreign(&self.dir).with_detail(why));
        let now = self.version();
        let ours = match u64::try_from(ours) {
            Ok(ours) if ours < now => ours,
            _ => {
                return refused(format!(
                    "the last commit of alluvium is version {ours}, but the table is at version {now}"
                ));
            }
        };
        let done = self.foreign_commits(ours)?;
        let what = format!(
            "the last commit of alluvium is version {ours}; since then another program did: {}",
            done.operations.join(", ")
        );
        if self.foreign == ForeignWriters::Refuse {
            return refused(what);
        }
        if done.sets_positions {
            return refused(format!("{what}; it says of itself that it is alluvium"));
        }
        let before = Self::open_at(&self.dir, Some(ours)).map_err(|error| {
            foreign(&self.dir)
                .with_detail(what.clone())
                .with_source(error)
        })?;
        if self.describes(|table| table.protocol().clone())
            != before.describes(|table| table.protocol().clone())
        {
            return refused(format!(
                "{what}; it changed what readers and writers must know"
            ));
        }
        let same_table = self.describes(|table| table.metadata().clone())
            == before.describes(|table| table.metadata().clone());
        let (had, has) = (before.files()?, self.files()?);
        // A writer that knows no deletion vectors brings deleted rows back and calls it the same rows.
        let follows = self.foreign == ForeignWriters::Follow
            && !done.changes_rows
            && same_table
            && live_rows(&had) == live_rows(&has);
        tracing::warn!(table = %self.dir.display(), follows, "{what}");
        if follows {
            self.commit_once(&Commit::default())?;
            return Ok(Settled::Followed);
        }
        let metadata = if same_table {
            None
        } else {
            Some(before.metadata_action(before.schema()?.as_ref(), &[])?)
        };
        self.undo(&before, &had, &has, metadata)?;
        Ok(Settled::Undone)
    }

    fn foreign_commits(&self, ours: u64) -> Result<Foreign> {
        let mut foreign = Foreign::default();
        for version in ours + 1..=self.version() {
            for action in read_commit(&self.dir, version)? {
                foreign.take(&action);
            }
        }
        Ok(foreign)
    }

    /// Makes the table what it was at `before`.
    fn undo(
        &mut self,
        before: &Self,
        had: &[LiveFile],
        has: &[LiveFile],
        metadata: Option<Value>,
    ) -> Result<()> {
        let identity = |file: &LiveFile| {
            let vector = file.deletion_vector.as_ref().map(Descriptor::identity);
            (file.path.clone(), vector)
        };
        let kept: HashSet<_> = had.iter().map(identity).collect();
        let held: HashSet<_> = has.iter().map(identity).collect();
        let now = now_ms();
        let mut actions = vec![json!({"commitInfo": commit_info("RESTORE", now)})];
        actions.extend(metadata);
        let mark = own_mark(self.version() + 1);
        actions.push(json!({"txn": {"appId": OWN_COMMIT, "version": mark, "lastUpdated": now}}));
        for file in has.iter().filter(|file| !kept.contains(&identity(file))) {
            actions.push(remove_action(file, now));
        }
        for file in had.iter().filter(|file| !held.contains(&identity(file))) {
            // It may have been vacuumed away.
            check_file(&self.dir, file)?;
            before.deleted_rows(file)?;
            let vector = file.deletion_vector.as_ref();
            actions.push(add_action(&NewFile::like(file), vector));
        }
        self.commit_actions(&actions).map(|_| ())
    }

    fn describes<T>(
        &self,
        look: impl FnOnce(&delta_kernel::table_configuration::TableConfiguration) -> T,
    ) -> T {
        look(self.snapshot.table_configuration())
    }

    /// Goes on from the newest commit, whosever it is.
    pub(super) fn refresh(&mut self) -> Result<()> {
        self.snapshot = Snapshot::builder_from(Arc::clone(&self.snapshot))
            .build(self.engine.as_ref())
            .map_err(|e| kernel_error("open", &self.dir, e))?;
        Ok(())
    }
}

fn live_rows(files: &[LiveFile]) -> u64 {
    let deleted = |file: &LiveFile| file.deletion_vector.as_ref().map_or(0, Descriptor::rows);
    let live = files
        .iter()
        .map(|file| file.num_rows.saturating_sub(deleted(file)));
    live.sum()
}
