//! Changes as rows of a bronze table.

use std::sync::Arc;

use alluvium_change::{ChangeBatch, Error, Lsn, Op, Result, TableSchema};
use arrow::array::{
    ArrayRef, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, StructArray,
    TimestampMicrosecondArray, new_null_array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::interleave;
use arrow::datatypes::{DataType, Field};
use arrow::error::ArrowError;
use hashbrown::HashMap;

use super::columns::Columns;
use crate::write::relabel;

fn bug(error: ArrowError) -> Error {
    Error::bug("changes cannot be put into bronze's columns").with_source(error)
}

/// Changes of the stream.
pub(super) fn changes(
    batch: &ChangeBatch,
    schema: &TableSchema,
    columns: &Columns,
) -> Result<RecordBatch> {
    let ops = batch.ops.iter().map(|op| op.letter());
    let lsns = batch.commit_lsn.iter().map(|lsn| lsn.as_txn_version());
    let serials = batch
        .event_serial
        .iter()
        .map(|n| i64::try_from(*n).unwrap_or(i64::MAX));
    let xids = batch.xid.iter().map(|xid| i64::from(*xid));
    let times = TimestampMicrosecondArray::from(batch.commit_time_micros.clone());
    let mut values: HashMap<&str, ArrayRef> = source_values(&batch.rows, schema)?;
    values.insert(&columns.op, Arc::new(StringArray::from_iter_values(ops)));
    values.insert(
        &columns.commit_lsn,
        Arc::new(Int64Array::from_iter_values(lsns)),
    );
    values.insert(
        &columns.event_serial,
        Arc::new(Int64Array::from_iter_values(serials)),
    );
    values.insert(&columns.xid, Arc::new(Int64Array::from_iter_values(xids)));
    values.insert(&columns.commit_time, Arc::new(times.with_timezone("UTC")));
    if let Some(before) = before(batch, columns)? {
        values.insert(&columns.before, before);
    }
    if !batch.unchanged.is_empty() {
        values.insert(&columns.unchanged, unchanged(batch, schema));
    }
    in_table_order(&values, columns, batch.num_rows())
}

/// Rows of a snapshot: `r` that were there, or `d` that were not.
pub(super) fn copied(
    rows: &RecordBatch,
    schema: &TableSchema,
    columns: &Columns,
    op: Op,
    snapshot: Lsn,
    at_micros: i64,
) -> Result<RecordBatch> {
    let mut values = source_values(rows, schema)?;
    mark(
        &mut values,
        columns,
        op,
        snapshot,
        at_micros,
        rows.num_rows(),
    );
    in_table_order(&values, columns, rows.num_rows())
}

/// The mark of a copy begun afresh.
pub(super) fn restart(columns: &Columns, snapshot: Lsn, at_micros: i64) -> Result<RecordBatch> {
    let mut values = HashMap::new();
    mark(&mut values, columns, Op::Truncate, snapshot, at_micros, 1);
    in_table_order(&values, columns, 1)
}

fn mark<'a>(
    values: &mut HashMap<&'a str, ArrayRef>,
    columns: &'a Columns,
    op: Op,
    snapshot: Lsn,
    at_micros: i64,
    rows: usize,
) {
    let ops = StringArray::from_iter_values(std::iter::repeat_n(op.letter(), rows));
    let times = TimestampMicrosecondArray::from_value(at_micros, rows).with_timezone("UTC");
    values.insert(&columns.op, Arc::new(ops));
    values.insert(
        &columns.commit_lsn,
        Arc::new(Int64Array::from_value(snapshot.as_txn_version(), rows)),
    );
    values.insert(&columns.commit_time, Arc::new(times));
}

fn source_values<'a>(
    rows: &RecordBatch,
    schema: &'a TableSchema,
) -> Result<HashMap<&'a str, ArrayRef>> {
    let expected = schema.columns.len();
    let same = rows.num_columns() == expected
        && rows
            .schema()
            .fields()
            .iter()
            .zip(&schema.columns)
            .all(|(f, c)| *f.name() == c.name);
    if !same {
        return Err(Error::new(
            &alluvium_change::code::SCHEMA_CHANGED,
            format!(
                "rows of table \"{}\" have other columns than its bronze table",
                schema.id
            ),
        ));
    }
    let columns = schema.columns.iter().zip(rows.columns());
    Ok(columns
        .map(|(column, values)| (column.name.as_str(), Arc::clone(values)))
        .collect())
}

/// The old images; None when no row has one.
fn before(batch: &ChangeBatch, columns: &Columns) -> Result<Option<ArrayRef>> {
    let deleted = |row: usize| batch.ops.get(row) == Some(&Op::Delete);
    let rows = batch.num_rows();
    // 0: the new images, whose deleted rows are old ones; 1: the old images.
    let places: Vec<Option<(usize, usize)>> = (0..rows)
        .map(|row| match batch.old_row(row) {
            Some(old) => Some((1, old as usize)),
            None => deleted(row).then_some((0, row)),
        })
        .collect();
    if places.iter().all(Option::is_none) {
        return Ok(None);
    }
    let field = columns
        .schema
        .field_with_name(&columns.before)
        .map_err(bug)?;
    let DataType::Struct(fields) = field.data_type() else {
        return Err(Error::bug("bronze's old image is no struct"));
    };
    let nulls = NullBuffer::from_iter(places.iter().map(Option::is_some));
    let picked: Vec<(usize, usize)> = places
        .iter()
        .enumerate()
        .map(|(row, place)| place.unwrap_or((0, row)))
        .collect();
    let images = fields
        .iter()
        .map(|field| image_column(batch, field, &picked, &nulls))
        .collect::<Result<Vec<_>>>()?;
    let before = StructArray::try_new(fields.clone(), images, Some(nulls)).map_err(bug)?;
    Ok(Some(Arc::new(before)))
}

fn image_column(
    batch: &ChangeBatch,
    field: &Field,
    picked: &[(usize, usize)],
    nulls: &NullBuffer,
) -> Result<ArrayRef> {
    let Some(new) = batch.rows.column_by_name(field.name()) else {
        return Ok(new_null_array(field.data_type(), picked.len()));
    };
    let new = relabel(new, field.data_type())?;
    let old = match &batch.old {
        Some(old) => {
            let old = old.rows.column_by_name(field.name());
            relabel(
                old.ok_or_else(|| Error::bug("old and new images differ"))?,
                field.data_type(),
            )?
        }
        None => Arc::clone(&new),
    };
    // Where there is no old image the struct is NULL, and so are its fields: they take no space.
    let none = new_null_array(field.data_type(), 1);
    let places: Vec<(usize, usize)> = picked
        .iter()
        .enumerate()
        .map(|(row, place)| if nulls.is_null(row) { (2, 0) } else { *place })
        .collect();
    interleave(&[new.as_ref(), old.as_ref(), none.as_ref()], &places).map_err(bug)
}

fn unchanged(batch: &ChangeBatch, schema: &TableSchema) -> ArrayRef {
    let field = Field::new("element", DataType::Utf8, true);
    let mut lists = ListBuilder::new(StringBuilder::new()).with_field(field);
    for row in 0..batch.num_rows() {
        let names = batch.unchanged_of(row);
        for name in names {
            if let Some(column) = schema.columns.get(name.column as usize) {
                lists.values().append_value(&column.name);
            }
        }
        lists.append(!names.is_empty());
    }
    Arc::new(lists.finish())
}

fn in_table_order(
    values: &HashMap<&str, ArrayRef>,
    columns: &Columns,
    rows: usize,
) -> Result<RecordBatch> {
    let ordered = columns
        .schema
        .fields()
        .iter()
        .map(|field| match values.get(field.name().as_str()) {
            Some(values) => relabel(values, field.data_type()),
            None => Ok(new_null_array(field.data_type(), rows)),
        })
        .collect::<Result<Vec<_>>>()?;
    RecordBatch::try_new(Arc::clone(&columns.schema), ordered).map_err(bug)
}
