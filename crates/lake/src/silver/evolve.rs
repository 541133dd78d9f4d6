//! Schema changes of a silver table.

use std::sync::Arc;

use alluvium_change::{Error, Result, TableSchema};
use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{Field, Schema, SchemaRef};

use super::Silver;
use super::index::Index;
use super::open::{METADATA_PROPERTY, metadata_property, named, table_columns};
use super::segments::{Origin, Segments, file_name};
use crate::log::{Commit, NewFile};
use crate::owned::added_columns;
use crate::write::{DataFileWriter, conform, open_file, relabel};

const REWRITE_BATCH_ROWS: usize = 8192;

impl Silver {
    /// Adds columns the source added, in one commit.
    ///
    /// `fill` gives, by name, the value that existing rows have (arrays of one value). Where one is
    /// not NULL, every file is rewritten with its rows in place, deleted ones included, so that the
    /// key index stays as it is.
    ///
    /// # Errors
    /// `SCHEMA_CHANGED` when `schema` does more than add columns at the end.
    pub fn add_columns(
        &mut self,
        schema: &Arc<TableSchema>,
        fill: &[(String, ArrayRef)],
    ) -> Result<()> {
        self.check_open()?;
        if self.has_staged() {
            return Err(Error::bug("columns were added over staged changes"));
        }
        let added = added_columns(&self.schema, schema, &self.columns)?;
        if added.is_empty() {
            return Ok(());
        }
        let mut fields: Vec<Field> = self
            .columns
            .fields()
            .iter()
            .map(|field| field.as_ref().clone())
            .collect();
        fields.extend(
            added
                .iter()
                .map(|c| Field::new(&c.name, c.data_type.clone(), true)),
        );
        let columns = Schema::new(fields);
        let fill: Vec<&(String, ArrayRef)> = fill
            .iter()
            .filter(|(name, value)| {
                value.len() == 1 && value.is_valid(0) && added.iter().any(|c| c.name == *name)
            })
            .collect();
        self.guarded(|silver| silver.widen(schema, columns, &fill))
    }

    fn widen(
        &mut self,
        schema: &Arc<TableSchema>,
        columns: Schema,
        fill: &[&(String, ArrayRef)],
    ) -> Result<()> {
        let columns: SchemaRef = Arc::new(columns);
        let mut commit = Commit::default();
        let rewrite = !fill.is_empty();
        if rewrite {
            for (file, deleted) in self.segments.committed_files() {
                let path = self.dir.join(&file.path);
                let mut new = self.rewrite(&path, &columns, fill, &file.path)?;
                if new.num_rows != file.num_rows {
                    return Err(Error::bug("a rewritten file has another number of rows"));
                }
                if !deleted.is_empty() {
                    new.stats = crate::write::loosen_bounds(&new.stats);
                    new.deleted = Some(deleted.clone());
                }
                commit.copied_rows += file.num_rows - deleted.len();
                commit.adds.push(new);
                commit.removes.push(file);
            }
        }
        self.committing = true;
        let committed = self
            .table
            .commit_schema(&columns, "ADD COLUMNS", &commit, &[])?;
        self.committing = false;
        let adds = commit.adds;
        if rewrite {
            self.segments.rewritten(adds, committed.adds)?;
        }
        self.columns = self.table.schema()?;
        self.schema = Arc::clone(schema);
        self.usable = true;
        if matches!(self.index, Index::Rows(_)) {
            // A whole row is another with a column more.
            self.rebuild_index()?;
        }
        Ok(())
    }

    fn rewrite(
        &self,
        path: &std::path::Path,
        columns: &SchemaRef,
        fill: &[&(String, ArrayRef)],
        name: &str,
    ) -> Result<NewFile> {
        let new_name = file_name(Origin::of_name(name));
        let mut writer = DataFileWriter::create(&self.dir, new_name, columns, &self.lake)?;
        for batch in open_file(path, &self.columns, REWRITE_BATCH_ROWS, None)? {
            let batch = conform(&batch?, columns)?;
            writer.write(&filled(&batch, fill)?)?;
        }
        writer.finish()
    }

    /// Empties the table and gives it other columns, in one commit; it is to be copied afresh.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn replace_schema(&mut self, schema: &Arc<TableSchema>) -> Result<()> {
        self.check_open()?;
        self.guarded(|silver| {
            silver.stage.discard(|_| false);
            silver.segments.retain(&silver.dir, |_| false);
            let metadata = named(schema, &silver.settings.metadata_columns);
            let columns = table_columns(schema, &silver.settings.metadata_columns);
            let commit = Commit {
                removes: silver.segments.changes().removes,
                txns: silver.positions.reset(),
                ..Commit::default()
            };
            silver.committing = true;
            let properties = [(METADATA_PROPERTY, metadata_property(&metadata))];
            silver
                .table
                .commit_schema(&columns, "REPLACE COLUMNS", &commit, &properties)?;
            silver.committing = false;
            let txns = commit.txns;
            silver.set_positions(&txns);
            silver.segments = Segments::default();
            silver.columns = silver.table.schema()?;
            silver.schema = Arc::clone(schema);
            silver.metadata = metadata;
            silver.usable = true;
            silver.last_copied = None;
            silver.index = silver.places.new_index(schema);
            Ok(())
        })
    }
}

/// `batch` with columns set to one value throughout.
fn filled(batch: &RecordBatch, fill: &[&(String, ArrayRef)]) -> Result<RecordBatch> {
    let bug = |e| Error::bug("a new column cannot be filled").with_source(e);
    let mut columns = batch.columns().to_vec();
    for (name, value) in fill {
        let at = batch.schema().index_of(name).map_err(bug)?;
        let repeated =
            take(value, &UInt32Array::from(vec![0; batch.num_rows()]), None).map_err(bug)?;
        if let Some(column) = columns.get_mut(at) {
            let data_type = column.data_type().clone();
            *column = relabel(&repeated, &data_type)?;
        }
    }
    RecordBatch::try_new(batch.schema(), columns).map_err(bug)
}
