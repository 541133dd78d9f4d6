//! A second table of the same rows, copied beside the one that stands while that goes on, and put in its
//! place in one commit: readers see the old rows or the new, never a mix.
//!
//! ```text
//! .resync/<name>: copy ─► changes since, from bronze ─► take_place: links its files, one commit
//! ```
//!
//! It is a Delta table as any other, so that a copy that was interrupted goes on.

use std::collections::HashSet;
use std::sync::Arc;

use alluvium_change::{Error, Lsn, Result, TableSchema, failpoint};

use super::open::{METADATA_PROPERTY, Place, metadata_property};
use super::stage::Stage;
use super::txn::Positions;
use super::{CopyState, Silver};
use crate::fs as durable;
use crate::log::{Commit, DeltaTable};
use crate::owned::check_owner;
use crate::{Lake, Owner, SilverSettings};

impl Silver {
    /// Whether the owner's silver table was copied wholly, once: there is something to be beside of.
    ///
    /// # Errors
    /// The table cannot be read, or belongs to another source.
    pub fn stands(lake: &Lake, owner: &Owner) -> Result<bool> {
        let dir = lake.silver_dir(&owner.name);
        if !DeltaTable::exists(&dir)? {
            return Ok(false);
        }
        let table = DeltaTable::open_at(&dir, None)?;
        check_owner(&table, owner)?;
        Ok(Positions::new(owner.app_id(), table.txns()?).is_complete())
    }

    /// The table that is being copied beside the owner's silver table, if one is.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_beside(
        lake: &Lake,
        owner: &Owner,
        schema: &Arc<TableSchema>,
        settings: SilverSettings,
    ) -> Result<Option<Self>> {
        if !DeltaTable::exists(&lake.beside_dir(&owner.name))? {
            return Ok(None);
        }
        let mut beside = Self::open_unread(lake, owner, schema, settings, Place::Beside)?;
        if beside.is_in_its_place(lake)? {
            drop(beside);
            Self::discard_beside(lake, owner)?;
            return Ok(None);
        }
        beside.read_files()?;
        Ok(Some(beside))
    }

    /// Whether it took its place before a crash, and was not removed here.
    fn is_in_its_place(&self, lake: &Lake) -> Result<bool> {
        if !self.positions.is_complete() {
            return Ok(false);
        }
        let files = self.table.files()?;
        let standing = DeltaTable::open_at(&lake.silver_dir(&self.owner.name), None)?;
        let held = standing.files()?;
        let held: HashSet<&str> = held.iter().map(|file| file.path.as_str()).collect();
        Ok(files.iter().any(|file| held.contains(file.path.as_str())))
    }

    /// An empty table beside the owner's silver table, in the place of one that was there.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn new_beside(
        lake: &Lake,
        owner: &Owner,
        schema: &Arc<TableSchema>,
        settings: SilverSettings,
    ) -> Result<Self> {
        Self::discard_beside(lake, owner)?;
        Self::open_unread(lake, owner, schema, settings, Place::Beside)
    }

    /// Removes what is beside the owner's silver table.
    ///
    /// # Errors
    /// The lake cannot be written.
    pub fn discard_beside(lake: &Lake, owner: &Owner) -> Result<()> {
        durable::remove_table(&lake.beside_dir(&owner.name), lake.settings().fsync)
    }

    /// Whether the rows are those of one moment of the source, and the copy is complete.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.positions.is_settled()
    }

    /// The snapshots it was copied under came to an end there: at this position it [is
    /// settled](Self::is_settled).
    #[must_use]
    pub fn settles_at(&self) -> Lsn {
        self.positions.reconcile_until()
    }

    /// Of a table beside: takes the place of the one that stands, with all its rows, in one commit, and
    /// is the owner's silver table from then on. `standing` may be given where it is open.
    ///
    /// # Errors
    /// As [`Self::commit`]; both are to be opened again then.
    pub fn take_place(&mut self, lake: &Lake, standing: Option<Self>) -> Result<u64> {
        self.check_usable()?;
        if self.has_staged() || self.copy_state() != CopyState::Complete {
            return Err(Error::bug("an unfinished copy was put in a table's place"));
        }
        let mut standing = match standing {
            Some(standing) if !standing.poisoned && !standing.has_staged() => standing,
            unusable => {
                drop(unusable);
                let (schema, settings) = (&self.schema, self.settings.clone());
                Self::open_unread(lake, &self.owner, schema, settings, Place::Standing)?
            }
        };
        self.guarded(|beside| beside.commit_in_place_of(&mut standing))?;
        drop(standing);
        if let Err(error) = self.places.move_to(&self.owner.name) {
            // It goes on where it is, and is built anew at the next start.
            tracing::debug!(table = %self.owner.table, error = %error, "the key index was not moved");
        }
        Self::discard_beside(lake, &self.owner)?;
        Ok(self.version())
    }

    fn commit_in_place_of(&mut self, standing: &mut Self) -> Result<()> {
        standing.table.settle_newer()?;
        let had = standing.table.files()?;
        for (_, segment) in self.segments.iter() {
            let name = &segment.file.path;
            durable::link_also(&self.dir.join(name), &standing.dir.join(name))?;
        }
        std::mem::swap(&mut self.table, &mut standing.table);
        std::mem::swap(&mut self.dir, &mut standing.dir);
        self.stage = Stage::new(self.dir.clone(), self.lake.clone());
        failpoint::hit("resync.linked");
        let commit = Commit {
            adds: self.segments.iter().map(|(_, s)| s.to_add()).collect(),
            removes: had.iter().collect(),
            txns: standing.positions.become_those_of(&self.positions),
            ..Commit::default()
        };
        let same_columns = self.columns == standing.columns && self.metadata == standing.metadata;
        let committed = if same_columns {
            self.table.commit(&commit)?
        } else {
            let metadata = metadata_property(&self.metadata);
            let properties = [(METADATA_PROPERTY, metadata)];
            let columns = &self.columns;
            let what = "REPLACE TABLE";
            self.table
                .commit_schema(columns, what, &commit, &properties)?
        };
        failpoint::hit("resync.committed");
        let Commit { adds, txns, .. } = commit;
        self.segments.rewritten(adds, committed.adds)?;
        self.set_positions(&txns);
        self.columns = self.table.schema()?;
        self.recent.clear();
        self.index_committed();
        Ok(())
    }
}
