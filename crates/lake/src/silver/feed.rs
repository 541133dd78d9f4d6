//! The change data feed: what a commit did to rows, in a file of its own that Delta's readers know
//! (`table_changes` in Spark, `load_cdf` in delta-rs).
//!
//! By the protocol, <https://github.com/delta-io/delta/blob/master/PROTOCOL.md#add-cdc-file>: of a commit
//! that has such a file readers take nothing else, so it holds all of the commit's changes. A commit that
//! adds and removes whole files needs none; where one has deleted rows, delta-rs (1.6) tells these, too.

use std::collections::HashSet;
use std::sync::Arc;

use alluvium_change::{Error, Identity, Result};
use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::arrow_reader::RowSelection;
use roaring::RoaringTreemap;

use super::Silver;
use super::segments::Segment;
use crate::fs as durable;
use crate::key_index::{Key, KeyEncoder};
use crate::log::{CHANGES_DIR, NewFile};
use crate::write::{DataFileWriter, open_file};

const CHANGE_TYPE: &str = "_change_type";
const BATCH_ROWS: usize = 8192;

/// Rows of one file that came or went.
struct Part<'a> {
    path: &'a str,
    num_rows: u64,
    rows: RoaringTreemap,
}

/// What became of a row whose key is on the other side, too, and of one whose key is not.
struct Labels {
    paired: &'static str,
    alone: &'static str,
}

const GONE: Labels = Labels {
    paired: "update_preimage",
    alone: "delete",
};
const CAME: Labels = Labels {
    paired: "update_postimage",
    alone: "insert",
};

impl Silver {
    /// Before a commit, when all files are closed: writes what it does to rows, where that does not
    /// follow from its files. Memory: 16 bytes for each row that went.
    pub(super) fn write_feed(&self) -> Result<Option<NewFile>> {
        if !self.table.feeds_changes() || !self.segments.touches_vectors() {
            return Ok(None);
        }
        let gone = self.gone_rows()?;
        let came = self.came_rows();
        let mut gone_keys = HashSet::new();
        for part in &gone {
            self.read_part(part, &mut |rows| {
                gone_keys.extend(self.keys_of(rows)?);
                Ok(())
            })?;
        }
        let dir = self.dir.join(CHANGES_DIR);
        durable::create_dir(&dir, self.lake.fsync)?;
        let columns = feed_columns(&self.columns);
        let name = format!("cdc-{}.parquet", durable::new_uuid());
        let mut writer = DataFileWriter::create(&dir, name, &columns, &self.lake)?;
        let mut paired = HashSet::new();
        for part in &came {
            self.read_part(part, &mut |rows| {
                let keys = self.keys_of(rows)?;
                let has_gone = |key: &Key| gone_keys.contains(key);
                paired.extend(keys.iter().copied().filter(has_gone));
                writer.write(&labelled(rows, &keys, &has_gone, &CAME, &columns)?)
            })?;
        }
        for part in &gone {
            self.read_part(part, &mut |rows| {
                let keys = self.keys_of(rows)?;
                let came = |key: &Key| paired.contains(key);
                writer.write(&labelled(rows, &keys, &came, &GONE, &columns)?)
            })?;
        }
        let mut file = writer.finish()?;
        if self.lake.fsync {
            durable::sync_dir(&dir)?;
        }
        file.path = format!("{CHANGES_DIR}/{}", file.path);
        Ok(Some(file))
    }

    /// Rows that the last commit has and the next has not.
    fn gone_rows(&self) -> Result<Vec<Part<'_>>> {
        let mut gone = Vec::new();
        for (_, segment) in self.segments.iter().filter(|(_, s)| s.is_thinned()) {
            let before = self.table.deleted_rows(&segment.file)?.unwrap_or_default();
            gone.push(Part {
                path: &segment.file.path,
                num_rows: segment.file.num_rows,
                rows: segment.deleted.as_ref() - before,
            });
        }
        for file in self.segments.removed() {
            let mut rows = RoaringTreemap::new();
            rows.insert_range(0..file.num_rows);
            rows -= self.table.deleted_rows(file)?.unwrap_or_default();
            gone.push(Part {
                path: &file.path,
                num_rows: file.num_rows,
                rows,
            });
        }
        Ok(gone)
    }

    /// Rows that were written since the last commit.
    fn came_rows(&self) -> Vec<Part<'_>> {
        let staged = self.segments.iter().filter(|(_, s)| !s.committed);
        let live = |segment: &Segment| {
            let mut rows = RoaringTreemap::new();
            rows.insert_range(0..segment.file.num_rows);
            rows - segment.deleted.as_ref()
        };
        staged
            .map(|(_, segment)| Part {
                path: &segment.file.path,
                num_rows: segment.file.num_rows,
                rows: live(segment),
            })
            .collect()
    }

    fn read_part(
        &self,
        part: &Part<'_>,
        take: &mut dyn FnMut(&RecordBatch) -> Result<()>,
    ) -> Result<()> {
        if part.rows.is_empty() {
            return Ok(());
        }
        let num_rows = usize::try_from(part.num_rows).unwrap_or(usize::MAX);
        let place = |row: u64| usize::try_from(row).unwrap_or(usize::MAX);
        let ranges = part.rows.iter().map(|row| place(row)..place(row) + 1);
        let selection = RowSelection::from_consecutive_ranges(ranges, num_rows);
        let path = self.dir.join(part.path);
        for batch in open_file(&path, &self.columns, BATCH_ROWS, Some(selection))? {
            take(&batch?)?;
        }
        Ok(())
    }

    /// By which rows before and after are told to be of one; none of a table without a key.
    fn keys_of(&self, rows: &RecordBatch) -> Result<Vec<Key>> {
        let Identity::Key(key) = &self.schema.identity else {
            return Ok(Vec::new());
        };
        let columns: Vec<ArrayRef> = key
            .iter()
            .filter_map(|at| self.schema.columns.get(*at))
            .filter_map(|column| rows.column_by_name(&column.name))
            .map(Arc::clone)
            .collect();
        let mut keys = Vec::new();
        KeyEncoder::of_key(&columns)?.keys(rows.num_rows(), &mut keys);
        Ok(keys)
    }
}

fn feed_columns(columns: &SchemaRef) -> SchemaRef {
    let mut fields: Vec<Field> = columns
        .fields()
        .iter()
        .map(|f| f.as_ref().clone())
        .collect();
    fields.push(Field::new(CHANGE_TYPE, DataType::Utf8, true));
    Arc::new(Schema::new(fields))
}

fn labelled(
    rows: &RecordBatch,
    keys: &[Key],
    is_paired: &dyn Fn(&Key) -> bool,
    labels: &Labels,
    columns: &SchemaRef,
) -> Result<RecordBatch> {
    let label = |row: usize| match keys.get(row) {
        Some(key) if is_paired(key) => labels.paired,
        _ => labels.alone,
    };
    let types = StringArray::from_iter_values((0..rows.num_rows()).map(label));
    let mut all = rows.columns().to_vec();
    all.push(Arc::new(types));
    RecordBatch::try_new(Arc::clone(columns), all)
        .map_err(|e| Error::bug("rows of the change data feed differ in schema").with_source(e))
}
