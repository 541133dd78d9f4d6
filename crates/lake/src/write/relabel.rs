//! Arrays under another name of the same type: field names and nullability differ, values do not.

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
        (DataType::Struct(from), DataType::Struct(to)) if from.len() == to.len() => {
            let array = array.as_struct();
            let columns = array
                .columns()
                .iter()
                .zip(to)
                .map(|(column, field)| relabel(column, field.data_type()))
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
            let entries: ArrayRef = Arc::new(array.entries().clone());
            let entries = relabel(&entries, to.data_type())?;
            let offsets = array.offsets().clone();
            let nulls = array.nulls().cloned();
            let entries = entries.as_struct().clone();
            Arc::new(
                MapArray::try_new(Arc::clone(to), offsets, entries, nulls, *sorted).map_err(bug)?,
            )
        }
        (from, to) => {
            return Err(Error::bug(format!("a column of type {from} came where {to} belongs")));
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
