//! Arrays under another name of the same type: nullability, and names in lists and maps, differ;
//! values do not. Structs are matched by name, and fields they lack are NULL.

use std::sync::Arc;

use alluvium_change::{Error, Result};
use arrow::array::{
    Array, ArrayRef, AsArray, ListArray, MapArray, RecordBatch, StructArray, new_null_array,
};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;

/// `array` as `data_type`, without copying values.
pub(crate) fn relabel(array: &ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    if array.data_type() == data_type {
        return Ok(Arc::clone(array));
    }
    let bug = |e: ArrowError| Error::bug("a column does not have its table's type").with_source(e);
    Ok(match (array.data_type(), data_type) {
        (DataType::Struct(_), DataType::Struct(to)) => {
            let array = array.as_struct();
            let columns = to
                .iter()
                .map(|field| match array.column_by_name(field.name()) {
                    Some(column) => relabel(column, field.data_type()),
                    // A field that was added after the values were written.
                    None => Ok(new_null_array(field.data_type(), array.len())),
                })
                .collect::<Result<Vec<_>>>()?;
            let nulls = array.nulls().cloned();
            Arc::new(
                StructArray::try_new_with_length(to.clone(), columns, nulls, array.len())
                    .map_err(bug)?,
            )
        }
        (DataType::List(_), DataType::List(to)) => {
            let array = array.as_list::<i32>();
            let values = relabel(array.values(), to.data_type())?;
            let nulls = array.nulls().cloned();
            Arc::new(
                ListArray::try_new(Arc::clone(to), array.offsets().clone(), values, nulls)
                    .map_err(bug)?,
            )
        }
        (DataType::Map(..), DataType::Map(to, sorted)) => {
            let array = array.as_map();
            let DataType::Struct(fields) = to.data_type() else {
                return Err(Error::bug("a map's entries are no struct"));
            };
            let columns = array
                .entries()
                .columns()
                .iter()
                .zip(fields)
                .map(|(column, field)| relabel(column, field.data_type()))
                .collect::<Result<Vec<_>>>()?;
            let entries = StructArray::try_new(fields.clone(), columns, None).map_err(bug)?;
            let offsets = array.offsets().clone();
            let nulls = array.nulls().cloned();
            Arc::new(
                MapArray::try_new(Arc::clone(to), offsets, entries, nulls, *sorted).map_err(bug)?,
            )
        }
        (from, to) => {
            return Err(Error::bug(format!(
                "a column of type {from} came where {to} belongs"
            )));
        }
    })
}

/// `batch` as `schema`, columns matched by name; those the batch lacks are NULL.
pub(crate) fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = schema
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            Some(column) => relabel(column, field.data_type()),
            None => Ok(new_null_array(field.data_type(), batch.num_rows())),
        })
        .collect::<Result<Vec<_>>>()?;
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .map_err(|e| Error::bug("rows do not have their table's schema").with_source(e))
}
