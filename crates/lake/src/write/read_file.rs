//! Reading data files of ours back: key columns at open, single rows for unchanged values, whole
//! files for bronze and for rewriting.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use alluvium_change::{Error, Result};
use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::SchemaRef;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
};
use roaring::RoaringTreemap;

use super::data_file::read_error;
use super::relabel::conform;
use crate::fs::{corrupt, io_error};
use crate::log::LiveFile;

/// Fails unless the file is there with the size the log says.
pub(crate) fn check_file(dir: &Path, file: &LiveFile) -> Result<()> {
    let path = dir.join(&file.path);
    match std::fs::metadata(&path) {
        Ok(found) if i64::try_from(found.len()) == Ok(file.size_bytes) => Ok(()),
        Ok(found) => Err(corrupt(
            &path,
            format!(
                "it has {} bytes where the log says {}",
                found.len(),
                file.size_bytes
            ),
        )),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(corrupt(&path, "the log names it, but it is not there"))
        }
        Err(e) => Err(io_error("read", &path, e)),
    }
}

/// Rows of one file in their order, as a schema: columns the file lacks are NULL.
pub(crate) struct FileReader {
    path: std::path::PathBuf,
    schema: SchemaRef,
    reader: ParquetRecordBatchReader,
}

impl Iterator for FileReader {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.reader.next()?;
        Some(
            batch
                .map_err(|e| corrupt(&self.path, e.to_string()))
                .and_then(|batch| conform(&batch, &self.schema)),
        )
    }
}

/// Opens a file for the columns of `schema`, by name; all rows, or those of `selection`.
pub(crate) fn open_file(
    path: &Path,
    schema: &SchemaRef,
    batch_rows: usize,
    selection: Option<RowSelection>,
) -> Result<FileReader> {
    let file = File::open(path).map_err(|e| {
        if e.kind() == std::io::ErrorKind::NotFound {
            corrupt(path, "the log names it, but it is not there")
        } else {
            io_error("read", path, e)
        }
    })?;
    let builder =
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| read_error(path, &e))?;
    let wanted: Vec<usize> = builder
        .schema()
        .fields()
        .iter()
        .enumerate()
        .filter(|(_, field)| schema.field_with_name(field.name()).is_ok())
        .map(|(at, _)| at)
        .collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
    let mut builder = builder.with_projection(mask).with_batch_size(batch_rows);
    if let Some(selection) = selection {
        builder = builder.with_row_selection(selection);
    }
    let reader = builder.build().map_err(|e| read_error(path, &e))?;
    Ok(FileReader {
        path: path.to_owned(),
        schema: Arc::clone(schema),
        reader,
    })
}

/// Reads single rows of a file, given in ascending order, as one batch.
pub(crate) fn read_rows(
    path: &Path,
    schema: &SchemaRef,
    rows: &[u32],
    num_rows: u64,
) -> Result<RecordBatch> {
    let num_rows = usize::try_from(num_rows).unwrap_or(usize::MAX);
    let ranges = rows.iter().map(|row| {
        let start = *row as usize;
        start..start + 1
    });
    let selection = RowSelection::from_consecutive_ranges(ranges, num_rows);
    let batches: Vec<RecordBatch> =
        open_file(path, schema, rows.len().clamp(1, 8192), Some(selection))?
            .collect::<Result<_>>()?;
    let batch = concat_batches(schema, &batches)
        .map_err(|e| Error::bug("rows of one file differ in schema").with_source(e))?;
    if batch.num_rows() != rows.len() {
        return Err(corrupt(
            path,
            format!(
                "{} rows were asked of it and {} came",
                rows.len(),
                batch.num_rows()
            ),
        ));
    }
    Ok(batch)
}

/// The rows of a batch, the first of which is the file's `first`, that are not deleted.
pub(crate) fn live_rows(
    batch: &RecordBatch,
    first: u64,
    deleted: &RoaringTreemap,
) -> Result<RecordBatch> {
    let end = first + batch.num_rows() as u64;
    if deleted.range_cardinality(first..end) == 0 {
        return Ok(batch.clone());
    }
    let keep: BooleanArray = (first..end)
        .map(|row| Some(!deleted.contains(row)))
        .collect();
    filter_record_batch(batch, &keep)
        .map_err(|e| Error::bug("live rows cannot be picked").with_source(e))
}
