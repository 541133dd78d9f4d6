//! Bronze: every change of one source table as it came, append-only.
//!
//! Stands after `land`; silver can be rebuilt from it. Columns: `_op`, `_commit_lsn`,
//! `_event_serial`, `_xid`, `_commit_time`, the source's columns (new image; of a delete what the
//! identity sent), `_before` (the old image, where one was sent) and `_unchanged` (names of columns
//! not sent). A source column of such a name makes ours take a further `_` before it. Columns the
//! source adds later come at the end, after `_unchanged`: everything is found by name.
//!
//! Copied rows (`r`) and the mark of a copy begun afresh (`t`) carry their snapshot as
//! `_commit_lsn`, and NULL as `_xid` and `_event_serial`: they are not part of the stream.
//!
//! Invariants: a commit moves the position over whole transactions; within a file, and over the
//! files of commits in order, changes are in the order of the source.

mod columns;
mod compact;
mod decode;
mod encode;
mod encoder;
mod reader;

use std::path::PathBuf;
use std::sync::Arc;

use alluvium_change::{ChangeBatch, Error, Lsn, Result, TableSchema, code};
use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use columns::Columns;
pub(crate) use compact::in_order;
use encoder::Ready;
pub use encoder::{BronzeEncoder, ReadyRows};
pub use reader::ChangeReader;

use crate::fs as durable;
use crate::log::{Change, Commit, DeltaTable, LiveFile, NewFile};
use crate::owned::{HeldSchema, added_columns, held_schema, open_or_create};
use crate::write::{DataFileWriter, EncodedRows, check_file};
use crate::{CheckpointDone, CheckpointJob, CompactionSettings, Lake, LakeSettings, Owner, Repair};

/// One bronze table, open for writing.
pub struct Bronze {
    owner: Owner,
    dir: PathBuf,
    table: DeltaTable,
    usable: bool,
    /// With the table's columns and settings.
    encoder: Arc<BronzeEncoder>,
    position: Lsn,
    files: Vec<LiveFile>,
    /// Of the stream.
    changes: Staged,
    copied: Staged,
    /// Since it was last looked whether files need to be written anew, and what was gone by.
    files_since_compaction: usize,
    compaction_seen: Option<CompactionSettings>,
    /// The file that a compaction writes.
    compacting: Option<String>,
    poisoned: bool,
    committing: bool,
}

/// Which of the rows written since the last commit.
enum Part {
    Changes,
    Copied,
}

/// Rows written since the last commit.
#[derive(Default)]
struct Staged {
    open: Option<DataFileWriter>,
    files: Vec<NewFile>,
}

impl Bronze {
    /// Opens the owner's bronze table, creating it when absent. The handle has the lake's columns
    /// ([`Self::schema`]) where they are not the source's.
    ///
    /// # Errors
    /// `LAKE_NOT_OURS` when the table belongs to another source, `LAKE_CORRUPT` when a file is
    /// missing or damaged.
    pub fn open(lake: &Lake, owner: &Owner, schema: &Arc<TableSchema>) -> Result<Self> {
        let dir = lake.bronze_dir(&owner.name);
        let wanted = columns::table_columns(schema);
        let (table, txns) = open_or_create(&dir, owner, "bronze", &wanted, lake.settings(), &[])?;
        let columns = Columns::of_table(table.schema()?)?;
        let HeldSchema { schema, usable } = held_schema(&columns.source_fields(), schema);
        let (files, position) = match txns {
            Some(txns) => {
                let version = txns.get(&owner.app_id()).copied().unwrap_or_default();
                (table.files()?, Lsn::from_txn_version(version))
            }
            None => (Vec::new(), Lsn::ZERO),
        };
        for file in &files {
            check_file(&dir, file)?;
        }
        Ok(Self {
            owner: owner.clone(),
            dir,
            table,
            usable,
            encoder: Arc::new(BronzeEncoder {
                schema,
                columns,
                lake: lake.settings().clone(),
            }),
            position,
            files_since_compaction: 0,
            compaction_seen: None,
            files,
            changes: Staged::default(),
            copied: Staged::default(),
            compacting: None,
            poisoned: false,
            committing: false,
        })
    }

    /// Every transaction that commits at or before this LSN is in the table; zero when none is.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// The source's columns as the table holds them.
    #[must_use]
    pub fn schema(&self) -> &Arc<TableSchema> {
        &self.encoder.schema
    }

    /// Delta version of the last commit.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.table.version()
    }

    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Data files of the last commit.
    #[must_use]
    pub fn num_files(&self) -> usize {
        self.files.len()
    }

    /// Writes changes to a file that no commit names yet, in bounded memory: a transaction may take
    /// any number of calls. Rows at or below the position are skipped.
    ///
    /// # Errors
    /// After an error the table must be opened again; nothing was committed.
    ///
    /// Answers the source's columns of all rows as they were encoded, where that is of use.
    pub fn stage(&mut self, batch: &ChangeBatch) -> Result<Option<EncodedRows>> {
        self.stage_ready(batch, None)
    }

    /// As [`Self::stage`], with the batch as [`BronzeEncoder::changes`] encoded it before.
    ///
    /// # Errors
    /// As [`Self::stage`].
    pub fn stage_ready(
        &mut self,
        batch: &ChangeBatch,
        ready: Option<ReadyRows>,
    ) -> Result<Option<EncodedRows>> {
        self.check_usable()?;
        let start = batch
            .commit_lsn
            .partition_point(|lsn| *lsn <= self.position);
        if start == batch.num_rows() {
            return Ok(None);
        }
        let ready = ready.filter(|ready| start == 0 && self.takes(ready));
        self.guarded(|bronze| {
            let ready = match ready {
                Some(ready) => ready,
                None => bronze.encoder.changes_from(batch, start)?,
            };
            bronze.write(ready, Part::Changes)
        })
    }

    /// Encodes rows for this table as it is now, on any thread.
    #[must_use]
    pub fn encoder(&self) -> &Arc<BronzeEncoder> {
        &self.encoder
    }

    fn takes(&self, ready: &ReadyRows) -> bool {
        Arc::ptr_eq(&ready.columns, &self.encoder.columns.schema)
    }

    /// Writes rows of the table. The source's columns come back as they were encoded, where that is of
    /// use.
    fn write(&mut self, ready: ReadyRows, part: Part) -> Result<Option<EncodedRows>> {
        let staged = match part {
            Part::Changes => &mut self.changes,
            Part::Copied => &mut self.copied,
        };
        let encoder = &self.encoder;
        let file = staged.file(&self.dir, &encoder.columns.schema, &encoder.lake)?;
        match ready.rows {
            Ready::Plain(rows) => file.write(&rows).map(|()| None),
            Ready::Whole(rows) => file.append(&[&rows]).map(|()| None),
            Ready::Parted { of_source, own } => {
                file.append(&[&of_source, &own])?;
                Ok(Some(*of_source))
            }
        }
    }

    /// One Delta commit of all staged changes, with the position.
    ///
    /// None, and no commit, when nothing is staged: a table without changes does not keep up with
    /// the stream on disk, and need not.
    ///
    /// # Errors
    /// After an error the table must be opened again; the commit may have been made.
    pub fn commit(&mut self, position: Lsn) -> Result<Option<u64>> {
        self.check_open()?;
        if self.changes.is_empty() {
            return Ok(None);
        }
        if position < self.position {
            return Err(Error::bug(format!(
                "a commit at {position} to bronze table \"{}\", which is at {}",
                self.owner.table, self.position
            )));
        }
        self.guarded(|bronze| {
            let adds = bronze.changes.take()?;
            let txns = vec![(bronze.owner.app_id(), position.as_txn_version())];
            let version = bronze.commit_files(adds, txns)?;
            bronze.position = position;
            Ok(Some(version))
        })
    }

    /// Stages rows of the initial copy.
    ///
    /// # Errors
    /// As [`Self::stage`].
    pub fn stage_copied(
        &mut self,
        rows: &RecordBatch,
        snapshot: Lsn,
        copied_at_micros: i64,
    ) -> Result<Option<EncodedRows>> {
        self.stage_copied_ready(rows, snapshot, copied_at_micros, None)
    }

    /// As [`Self::stage_copied`], with the rows as [`BronzeEncoder::copied`] encoded them before.
    ///
    /// # Errors
    /// As [`Self::stage`].
    pub fn stage_copied_ready(
        &mut self,
        rows: &RecordBatch,
        snapshot: Lsn,
        copied_at_micros: i64,
        ready: Option<ReadyRows>,
    ) -> Result<Option<EncodedRows>> {
        self.check_usable()?;
        if rows.num_rows() == 0 {
            return Ok(None);
        }
        let ready = ready.filter(|ready| self.takes(ready));
        self.guarded(|bronze| {
            let ready = match ready {
                Some(ready) => ready,
                None => bronze.encoder.copied(rows, snapshot, copied_at_micros)?,
            };
            bronze.write(ready, Part::Copied)
        })
    }

    /// Stages rows that were compared with the source and set right. Commit them with
    /// [`Self::commit_copied`].
    ///
    /// # Errors
    /// As [`Self::stage`].
    pub fn stage_repair(&mut self, repair: &Repair, at_micros: i64) -> Result<()> {
        self.discard_copied();
        for rows in &repair.present {
            self.stage_copied(rows, repair.snapshot, at_micros)?;
        }
        let encoder = Arc::clone(&self.encoder);
        for rows in repair.absent.iter().filter(|rows| rows.num_rows() > 0) {
            let ready = encoder.missing(rows, repair.snapshot, at_micros)?;
            self.guarded(|bronze| bronze.write(ready, Part::Copied).map(|_| ()))?;
        }
        Ok(())
    }

    /// Stages the mark that the table is copied afresh: a `t` before the copied rows. Commit it with
    /// [`Self::commit_copied`].
    ///
    /// # Errors
    /// As [`Self::stage`].
    pub fn record_restart(&mut self, snapshot: Lsn, at_micros: i64) -> Result<()> {
        self.check_usable()?;
        self.guarded(|bronze| {
            let encoder = Arc::clone(&bronze.encoder);
            let mark = encode::restart(&encoder.columns, snapshot, at_micros)?;
            let ready = encoder.ready(mark, false)?;
            bronze.write(ready, Part::Copied).map(|_| ())
        })
    }

    /// One Delta commit of all staged copied rows. The position stays.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_copied(&mut self) -> Result<Option<u64>> {
        self.check_open()?;
        if self.copied.is_empty() {
            return Ok(None);
        }
        self.guarded(|bronze| {
            let adds = bronze.copied.take()?;
            bronze.commit_files(adds, Vec::new()).map(Some)
        })
    }

    /// Forgets the changes staged since the last commit: the source sends them again.
    pub fn discard_changes(&mut self) {
        if !self.committing {
            self.changes.discard(&self.dir);
        }
    }

    /// Forgets the copied rows staged since the last commit.
    pub fn discard_copied(&mut self) {
        if !self.committing {
            self.copied.discard(&self.dir);
        }
    }

    /// Forgets what was staged since the last commit.
    pub fn discard_staged(&mut self) {
        if !self.committing {
            self.changes.discard(&self.dir);
            self.copied.discard(&self.dir);
        }
    }

    /// Changes after a position, in order (`_commit_lsn`, `_event_serial`), in batches of at most
    /// `max_batch_rows`, which may end within a transaction. Of what is committed.
    ///
    /// # Errors
    /// `LAKE_CORRUPT` when a file is missing or damaged.
    pub fn changes_after(&self, after: Lsn, max_batch_rows: usize) -> Result<ChangeReader> {
        self.check_usable()?;
        ChangeReader::new(
            &self.dir,
            &self.files,
            &self.encoder.columns,
            &self.encoder.schema,
            after,
            max_batch_rows.max(1),
        )
    }

    /// Adds columns the source added: NULL in what is there, in `_before` too. Staged changes stay, in
    /// the columns that they have.
    ///
    /// # Errors
    /// `SCHEMA_CHANGED` when `schema` does more than add columns at the end.
    pub fn add_columns(&mut self, schema: &Arc<TableSchema>) -> Result<()> {
        self.check_open()?;
        if !self.copied.is_empty() {
            return Err(Error::bug("columns were added over staged rows"));
        }
        let added = added_columns(&self.encoder.schema, schema, &self.encoder.columns.schema)?;
        if added.is_empty() {
            return Ok(());
        }
        if let Some(column) = added
            .iter()
            .find(|column| columns::is_reserved(&column.name))
        {
            return Err(Error::new(
                &code::SCHEMA_CHANGED,
                format!(
                    "the new column \"{}\" of table \"{}\" has the name of a column of bronze",
                    column.name, schema.id
                ),
            ));
        }
        let mut fields: Vec<Field> = Vec::new();
        for field in self.encoder.columns.schema.fields() {
            fields.push(if *field.name() == self.encoder.columns.before {
                columns::before_field(&self.encoder.columns.before, schema)
            } else {
                field.as_ref().clone()
            });
        }
        fields.extend(
            added
                .iter()
                .map(|c| Field::new(&c.name, c.data_type.clone(), true)),
        );
        self.guarded(|bronze| {
            bronze.changes.close()?;
            bronze.change_schema(schema, &Schema::new(fields), "ADD COLUMNS", &[])
        })
    }

    /// Empties the table and gives it other columns, in one commit. The position stays: what comes
    /// next is the stream from there on.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn replace_schema(&mut self, schema: &Arc<TableSchema>) -> Result<()> {
        self.check_open()?;
        self.discard_staged();
        let removed = std::mem::take(&mut self.files);
        self.guarded(|bronze| {
            let removes: Vec<&LiveFile> = removed.iter().collect();
            let columns = columns::table_columns(schema);
            bronze.change_schema(schema, &columns, "REPLACE COLUMNS", &removes)
        })
    }

    /// Empties the table and moves its position back, in one commit: the source has forgotten what it
    /// says. Earlier versions still show it.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn start_anew(&mut self, position: Lsn) -> Result<()> {
        self.check_open()?;
        self.discard_staged();
        let removed = std::mem::take(&mut self.files);
        self.guarded(|bronze| {
            bronze.table.commit(&Commit {
                removes: removed.iter().collect(),
                txns: vec![(bronze.owner.app_id(), position.as_txn_version())],
                ..Commit::default()
            })?;
            bronze.position = position;
            Ok(())
        })
    }

    /// Work for another thread, when enough commits have passed since the last checkpoint; by hand one
    /// is enough.
    pub fn take_checkpoint_job(&mut self, by_hand: bool) -> Option<CheckpointJob> {
        let every = self.encoder.lake.delta_checkpoint_every_commits;
        self.table
            .take_checkpoint_job(if by_hand { 1 } else { every })
    }

    /// Lets the table go on from a checkpoint that was written.
    ///
    /// # Errors
    /// When it was not, or the log cannot be listed.
    pub fn adopt_checkpoint(&mut self, done: Result<CheckpointDone>) -> Result<()> {
        self.table.adopt_checkpoint(done)
    }

    fn change_schema(
        &mut self,
        schema: &Arc<TableSchema>,
        columns: &Schema,
        operation: &str,
        removes: &[&LiveFile],
    ) -> Result<()> {
        let commit = Commit {
            removes: removes.to_vec(),
            ..Commit::default()
        };
        self.table.commit_schema(columns, operation, &commit, &[])?;
        self.encoder = Arc::new(BronzeEncoder {
            schema: Arc::clone(schema),
            columns: Columns::of_table(self.table.schema()?)?,
            lake: self.encoder.lake.clone(),
        });
        self.usable = true;
        Ok(())
    }

    fn commit_files(&mut self, adds: Vec<NewFile>, txns: Vec<(String, i64)>) -> Result<u64> {
        self.committing = true;
        let commit = Commit {
            change: Change::Appended,
            adds,
            txns,
            ..Commit::default()
        };
        let committed = self.table.commit(&commit)?;
        self.committing = false;
        self.files_since_compaction += commit.adds.len();
        let files = commit.adds.into_iter().map(|file| file.into_live(None));
        self.files.extend(files);
        Ok(committed.version)
    }

    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let result = work(self);
        self.poisoned |= result.is_err();
        result
    }

    fn check_open(&self) -> Result<()> {
        if self.poisoned {
            return Err(Error::bug(format!(
                "bronze table \"{}\" was used after an error without opening it again",
                self.owner.table
            )));
        }
        Ok(())
    }

    fn check_usable(&self) -> Result<()> {
        self.check_open()?;
        if !self.usable {
            return Err(Error::new(
                &code::SCHEMA_CHANGED,
                format!(
                    "the columns of table \"{}\" are not those of its bronze table",
                    self.owner.table
                ),
            ));
        }
        Ok(())
    }
}

impl Drop for Bronze {
    fn drop(&mut self) {
        self.discard_staged();
    }
}

/// A name for a new data file.
fn file_name() -> String {
    format!("part-{}.parquet", durable::new_uuid())
}

impl Staged {
    /// Of all its files.
    fn names(&self) -> impl Iterator<Item = String> {
        let open = self.open.iter().map(|file| file.name().to_owned());
        open.chain(self.files.iter().map(|file| file.path.clone()))
    }

    fn is_empty(&self) -> bool {
        self.open.is_none() && self.files.is_empty()
    }

    /// The file that the next rows go into.
    fn file(
        &mut self,
        dir: &std::path::Path,
        schema: &SchemaRef,
        settings: &LakeSettings,
    ) -> Result<&mut DataFileWriter> {
        if self
            .open
            .as_ref()
            .is_some_and(|file| file.size_bytes() >= settings.target_file_bytes)
        {
            self.close()?;
        }
        let file = match self.open.take() {
            Some(file) => file,
            None => DataFileWriter::create(dir, file_name(), schema, settings)?,
        };
        Ok(self.open.insert(file))
    }

    fn close(&mut self) -> Result<()> {
        if let Some(file) = self.open.take() {
            self.files.push(file.finish()?);
        }
        Ok(())
    }

    fn take(&mut self) -> Result<Vec<NewFile>> {
        self.close()?;
        Ok(std::mem::take(&mut self.files))
    }

    fn discard(&mut self, dir: &std::path::Path) {
        self.open = None;
        for file in self.files.drain(..) {
            durable::discard(&dir.join(&file.path));
        }
    }
}
