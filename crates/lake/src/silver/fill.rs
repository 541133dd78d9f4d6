//! Planned rows as columns: new images, values that were not sent, metadata.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use alluvium_change::{ChangeBatch, Error, Op, Result};
use arrow::array::{
    Array, ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    new_null_array,
};
use arrow::compute::{interleave, take};
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use hashbrown::HashMap;

use super::Silver;
use super::apply::planned_indices;
use crate::MetadataColumn;
use crate::key_index::{Location, SegmentId};
use crate::merge::{FillFrom, Plan};
use crate::write::{EncodedRows, read_rows, relabel};

/// Rows read back from one file.
struct Fetched {
    /// Their places in the file, ascending.
    rows: Vec<u32>,
    values: RecordBatch,
}

fn bug(error: ArrowError) -> Error {
    Error::bug("rows of a change cannot be put together").with_source(error)
}

impl Silver {
    /// The planned rows with the table's columns; None when there are none.
    pub(super) fn materialize(
        &mut self,
        batch: &ChangeBatch,
        plan: &Plan,
    ) -> Result<Option<RecordBatch>> {
        if plan.rows.is_empty() {
            return Ok(None);
        }
        let fetched = self.fetch(plan)?;
        let indices = planned_indices(plan);
        let filled: BTreeSet<u32> = plan
            .rows
            .iter()
            .flat_map(|row| row.fills.iter().map(|fill| fill.column))
            .collect();
        let mut columns: HashMap<&str, ArrayRef> = HashMap::new();
        for (at, (column, values)) in self
            .schema
            .columns
            .iter()
            .zip(batch.rows.columns())
            .enumerate()
        {
            let at = u32::try_from(at).unwrap_or(u32::MAX);
            let values = if filled.contains(&at) {
                self.filled_column(batch, plan, at, &fetched)?
            } else {
                take(values, &indices, None).map_err(bug)?
            };
            columns.insert(&column.name, values);
        }
        for (kind, name) in &self.metadata {
            columns.insert(name, metadata_column(*kind, batch, plan));
        }
        self.in_table_order(&columns, plan.rows.len()).map(Some)
    }

    /// The planned rows' metadata columns alone; None when the table has none.
    pub(super) fn metadata_columns(
        &self,
        batch: &ChangeBatch,
        plan: &Plan,
    ) -> Result<Option<RecordBatch>> {
        let column = |kind| metadata_column(kind, batch, plan);
        self.metadata_batch(column)
    }

    /// The table's metadata columns as `column` gives them; None when it has none.
    pub(super) fn metadata_batch(
        &self,
        column: impl Fn(MetadataColumn) -> ArrayRef,
    ) -> Result<Option<RecordBatch>> {
        if self.metadata.is_empty() {
            return Ok(None);
        }
        let mut fields: Vec<Field> = Vec::new();
        let mut columns = Vec::new();
        for (kind, name) in &self.metadata {
            let field = self.columns.field_with_name(name).map_err(bug)?;
            columns.push(relabel(&column(*kind), field.data_type())?);
            fields.push(field.clone());
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
            .map(Some)
            .map_err(bug)
    }

    /// The source's columns and the table's own as rows of the table.
    pub(super) fn with_metadata(
        &self,
        rows: &RecordBatch,
        metadata: Option<&RecordBatch>,
    ) -> Result<RecordBatch> {
        let mut columns: HashMap<&str, ArrayRef> = HashMap::new();
        for (column, values) in self.schema.columns.iter().zip(rows.columns()) {
            columns.insert(&column.name, Arc::clone(values));
        }
        if let Some(metadata) = metadata {
            for ((_, name), values) in self.metadata.iter().zip(metadata.columns()) {
                columns.insert(name, Arc::clone(values));
            }
        }
        self.in_table_order(&columns, rows.num_rows())
    }

    pub(super) fn encode(&self, rows: Option<RecordBatch>) -> Result<Option<EncodedRows>> {
        rows.map(|rows| EncodedRows::encode(&rows, &self.lake))
            .transpose()
    }

    /// Columns by name as rows of the table; absent ones are NULL.
    pub(super) fn in_table_order(
        &self,
        columns: &HashMap<&str, ArrayRef>,
        rows: usize,
    ) -> Result<RecordBatch> {
        let ordered = self
            .columns
            .fields()
            .iter()
            .map(|field| match columns.get(field.name().as_str()) {
                Some(values) => relabel(values, field.data_type()),
                None => Ok(new_null_array(field.data_type(), rows)),
            })
            .collect::<Result<Vec<_>>>()?;
        RecordBatch::try_new(Arc::clone(&self.columns), ordered).map_err(bug)
    }

    fn filled_column(
        &self,
        batch: &ChangeBatch,
        plan: &Plan,
        column: u32,
        fetched: &BTreeMap<SegmentId, Fetched>,
    ) -> Result<ArrayRef> {
        let missing = || Error::bug("a value to fill in has no source");
        let name = &self
            .schema
            .columns
            .get(column as usize)
            .ok_or_else(missing)?
            .name;
        let field = self.columns.field_with_name(name).map_err(bug)?;
        let mut sources: Vec<ArrayRef> = Vec::new();
        let new = batch
            .rows
            .columns()
            .get(column as usize)
            .ok_or_else(missing)?;
        sources.push(relabel(new, field.data_type())?);
        // Without old images their place is taken by an array nothing refers to.
        let old = batch
            .old
            .as_ref()
            .and_then(|old| old.rows.columns().get(column as usize));
        sources.push(relabel(old.unwrap_or(new), field.data_type())?);
        let mut place_of: HashMap<SegmentId, usize> = HashMap::new();
        for (id, fetched) in fetched {
            if let Some(values) = fetched.values.column_by_name(name) {
                place_of.insert(*id, sources.len());
                sources.push(relabel(values, field.data_type())?);
            }
        }
        let mut places = Vec::with_capacity(plan.rows.len());
        for row in &plan.rows {
            let fill = row.fills.iter().find(|fill| fill.column == column);
            places.push(match fill.map(|fill| fill.from) {
                None => (0, row.row as usize),
                Some(FillFrom::Batch(row)) => (0, row as usize),
                Some(FillFrom::OldImage(row)) => (1, row as usize),
                Some(FillFrom::Stored(Location { segment, row })) => {
                    let rows = &fetched.get(&segment).ok_or_else(missing)?.rows;
                    let at = rows.binary_search(&row).map_err(|_| missing())?;
                    (place_of.get(&segment).copied().ok_or_else(missing)?, at)
                }
            });
        }
        let sources: Vec<&dyn Array> = sources.iter().map(AsRef::as_ref).collect();
        interleave(&sources, &places).map_err(bug)
    }

    /// Reads the stored rows the plan takes values from: only those rows and columns.
    fn fetch(&mut self, plan: &Plan) -> Result<BTreeMap<SegmentId, Fetched>> {
        let mut wanted: BTreeMap<SegmentId, (BTreeSet<u32>, BTreeSet<u32>)> = BTreeMap::new();
        for fill in plan.rows.iter().flat_map(|row| &row.fills) {
            if let FillFrom::Stored(location) = fill.from {
                let (rows, columns) = wanted.entry(location.segment).or_default();
                rows.insert(location.row);
                columns.insert(fill.column);
            }
        }
        let mut fetched = BTreeMap::new();
        for (id, (rows, columns)) in wanted {
            if self.stage.is_open(id) {
                self.stage.close(id, &mut self.segments)?;
            }
            let segment = self
                .segments
                .get(id)
                .ok_or_else(|| Error::bug("the key index names a file that is not live"))?;
            let path = self.dir.join(&segment.file.path);
            let schema = self.projection(&columns)?;
            let rows: Vec<u32> = rows.into_iter().collect();
            let values = read_rows(&path, &schema, &rows, segment.file.num_rows)?;
            fetched.insert(id, Fetched { rows, values });
        }
        Ok(fetched)
    }

    fn projection(&self, columns: &BTreeSet<u32>) -> Result<SchemaRef> {
        let fields = columns
            .iter()
            .map(|column| {
                let column = self
                    .schema
                    .columns
                    .get(*column as usize)
                    .ok_or_else(|| Error::bug("a column beyond the table"))?;
                self.columns
                    .field_with_name(&column.name)
                    .cloned()
                    .map_err(bug)
            })
            .collect::<Result<Vec<Field>>>()?;
        Ok(Arc::new(Schema::new(fields)))
    }
}

fn metadata_column(kind: MetadataColumn, batch: &ChangeBatch, plan: &Plan) -> ArrayRef {
    let rows = plan.rows.iter().map(|row| row.row as usize);
    match kind {
        MetadataColumn::CommitLsn => Arc::new(
            rows.map(|row| batch.commit_lsn.get(row).map(|lsn| lsn.as_txn_version()))
                .collect::<Int64Array>(),
        ),
        MetadataColumn::CommitTime => Arc::new(
            // Of a copied row it is not known.
            rows.map(|row| match batch.ops.get(row) {
                Some(Op::Read) => None,
                _ => batch.commit_time_micros.get(row).copied(),
            })
            .collect::<TimestampMicrosecondArray>()
            .with_timezone("UTC"),
        ),
        MetadataColumn::Op => Arc::new(
            rows.map(|row| batch.ops.get(row).map(|op| op.letter()))
                .collect::<StringArray>(),
        ),
    }
}
