//! Rows of a bronze table as changes: the inverse of `encode`.

use std::sync::Arc;

use alluvium_change::{ChangeBatch, Error, Lsn, OldImages, Op, Result, TableSchema, Unchanged};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array, new_null_array};
use arrow::compute::{concat_batches, take, take_record_batch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;

use super::columns::Columns;
use crate::fs::corrupt;
use crate::write::relabel;

fn bug(error: ArrowError) -> Error {
    Error::bug("bronze's rows cannot be read as changes").with_source(error)
}

/// A file's batch with the columns that order and select its rows at hand.
pub(super) struct Rows {
    pub(super) batch: RecordBatch,
    /// `(_commit_lsn, _event_serial)` of each row; None for rows that are not of the stream.
    pub(super) order: Vec<Option<(u64, u64)>>,
}

impl Rows {
    pub(super) fn new(
        batch: RecordBatch,
        columns: &Columns,
        path: &std::path::Path,
    ) -> Result<Self> {
        let lsns = long(&batch, &columns.commit_lsn)?;
        let serials = long(&batch, &columns.event_serial)?;
        let xids = long(&batch, &columns.xid)?;
        let mut order = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            if xids.is_null(row) {
                order.push(None);
                continue;
            }
            let pair = u64::try_from(lsns.value(row))
                .ok()
                .zip(u64::try_from(serials.value(row)).ok());
            let Some(pair) = pair.filter(|_| lsns.is_valid(row) && serials.is_valid(row)) else {
                return Err(corrupt(path, "a change has no place in the stream"));
            };
            order.push(Some(pair));
        }
        Ok(Self { batch, order })
    }
}

fn long<'a>(
    batch: &'a RecordBatch,
    name: &str,
) -> Result<&'a arrow::array::PrimitiveArray<Int64Type>> {
    batch
        .column_by_name(name)
        .and_then(|column| column.as_primitive_opt::<Int64Type>())
        .ok_or_else(|| Error::bug(format!("bronze's column \"{name}\" is no long")))
}

/// Runs of rows, one after the other, as one batch of changes.
pub(super) fn changes(
    runs: &[RecordBatch],
    columns: &Columns,
    table: &Arc<TableSchema>,
) -> Result<ChangeBatch> {
    let batch = concat_batches(&columns.schema, runs).map_err(bug)?;
    let ops = batch
        .column_by_name(&columns.op)
        .and_then(|column| column.as_string_opt::<i32>())
        .ok_or_else(|| Error::bug("bronze's operation is no text"))?
        .iter()
        .map(|letter| letter.and_then(Op::from_letter))
        .collect::<Option<Vec<Op>>>()
        .ok_or_else(|| Error::bug("bronze has an unknown operation"))?;
    let unsigned = |value: i64| u64::try_from(value).unwrap_or_default();
    let lsns = long(&batch, &columns.commit_lsn)?.values().iter();
    let serials = long(&batch, &columns.event_serial)?.values().iter();
    let xids = long(&batch, &columns.xid)?.values().iter();
    let times = batch
        .column_by_name(&columns.commit_time)
        .and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>())
        .ok_or_else(|| Error::bug("bronze's time is no timestamp"))?;
    let rows = table
        .arrow()
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            Some(values) => relabel(values, field.data_type()),
            None => Ok(new_null_array(field.data_type(), batch.num_rows())),
        })
        .collect::<Result<Vec<ArrayRef>>>()?;
    Ok(ChangeBatch {
        table: Arc::clone(table),
        old: old_images(&batch, &ops, columns, table)?,
        unchanged: unchanged(&batch, columns, table)?,
        ops,
        commit_lsn: lsns.map(|lsn| Lsn(unsigned(*lsn))).collect(),
        event_serial: serials.map(|serial| unsigned(*serial)).collect(),
        xid: xids
            .map(|xid| u32::try_from(*xid).unwrap_or_default())
            .collect(),
        commit_time_micros: times.values().to_vec(),
        rows: RecordBatch::try_new(Arc::clone(table.arrow()), rows).map_err(bug)?,
    })
}

fn old_images(
    batch: &RecordBatch,
    ops: &[Op],
    columns: &Columns,
    table: &TableSchema,
) -> Result<Option<OldImages>> {
    let before = batch
        .column_by_name(&columns.before)
        .and_then(|column| column.as_struct_opt())
        .ok_or_else(|| Error::bug("bronze's old image is no struct"))?;
    let mut picked: Vec<u32> = Vec::new();
    let mut row_of = vec![None; ops.len()];
    for (row, (op, place)) in ops.iter().zip(&mut row_of).enumerate() {
        // A delete's image is in its row.
        if *op == Op::Update && before.is_valid(row) {
            *place = u32::try_from(picked.len()).ok();
            picked.push(u32::try_from(row).map_err(|_| Error::bug("a batch of 2^32 rows"))?);
        }
    }
    if picked.is_empty() {
        return Ok(None);
    }
    let picked = UInt32Array::from(picked);
    let images = table
        .arrow()
        .fields()
        .iter()
        .map(|field| match before.column_by_name(field.name()) {
            Some(values) => relabel(
                &take(values, &picked, None).map_err(bug)?,
                field.data_type(),
            ),
            None => Ok(new_null_array(field.data_type(), picked.len())),
        })
        .collect::<Result<Vec<ArrayRef>>>()?;
    let rows = RecordBatch::try_new(Arc::clone(table.arrow()), images).map_err(bug)?;
    Ok(Some(OldImages { row_of, rows }))
}

fn unchanged(
    batch: &RecordBatch,
    columns: &Columns,
    table: &TableSchema,
) -> Result<Vec<Unchanged>> {
    let lists = batch
        .column_by_name(&columns.unchanged)
        .and_then(|column| column.as_list_opt::<i32>())
        .ok_or_else(|| Error::bug("bronze's unchanged columns are no list"))?;
    let mut unchanged = Vec::new();
    for row in 0..batch.num_rows() {
        if lists.is_null(row) {
            continue;
        }
        let names = lists.value(row);
        for name in names.as_string::<i32>().iter().flatten() {
            let column = table.columns.iter().position(|column| column.name == name);
            let column = column
                .and_then(|column| u32::try_from(column).ok())
                .ok_or_else(|| {
                    Error::bug(format!(
                        "bronze names an unchanged column \"{name}\" it does not have"
                    ))
                })?;
            let row = u32::try_from(row).map_err(|_| Error::bug("a batch of 2^32 rows"))?;
            unchanged.push(Unchanged { row, column });
        }
    }
    unchanged.sort_unstable();
    Ok(unchanged)
}

/// Rows `from..to` that pass, as a batch of their own.
pub(super) fn pick(rows: &Rows, picked: &[u32]) -> Result<RecordBatch> {
    let consecutive = picked
        .windows(2)
        .all(|pair| matches!(pair, [a, b] if a.checked_add(1) == Some(*b)));
    match (picked.first(), consecutive) {
        (Some(first), true) => Ok(rows.batch.slice(*first as usize, picked.len())),
        _ => take_record_batch(&rows.batch, &UInt32Array::from(picked.to_vec())).map_err(bug),
    }
}
