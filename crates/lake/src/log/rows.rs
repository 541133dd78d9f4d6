//! Live files as the kernel's scan rows: read at open, made from our registry at commit.
//!
//! Making them ourselves keeps a commit independent of the table's size: the kernel gets the rows
//! of the touched files only and reads no log.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use alluvium_change::{Error, Result};
use arrow::array::{
    Array, ArrayRef, AsArray, Int32Array, Int64Array, MapArray, RecordBatch, StringArray,
    StructArray, new_empty_array, new_null_array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Fields, Int32Type, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use delta_kernel::actions::deletion_vector::DeletionVectorDescriptor;
use delta_kernel::engine::arrow_conversion::TryFromKernel;
use delta_kernel::engine::arrow_data::ArrowEngineData;
use delta_kernel::engine_data::FilteredEngineData;
use delta_kernel::scan::scan_row_schema;
use delta_kernel::snapshot::SnapshotRef;
use serde_json::Value;

use super::deletion_vector::Descriptor;
use super::engine::{Engine, kernel_error};
use crate::fs::corrupt;

/// A data file of the table at its current version.
#[derive(Debug, Clone)]
pub(crate) struct LiveFile {
    /// As in the log: relative to the table, which for names of ours is the file name.
    pub(crate) path: String,
    pub(crate) size_bytes: i64,
    pub(crate) modified_ms: i64,
    /// JSON text.
    pub(crate) stats: Arc<str>,
    /// All rows of the file, deleted ones included.
    pub(crate) num_rows: u64,
    pub(crate) deletion_vector: Option<Descriptor>,
}

static SCAN_ROWS: LazyLock<Result<SchemaRef, ArrowError>> =
    LazyLock::new(|| Schema::try_from_kernel(scan_row_schema().as_ref()).map(Arc::new));

fn scan_rows_schema() -> Result<SchemaRef> {
    SCAN_ROWS
        .as_ref()
        .map(Arc::clone)
        .map_err(|e| Error::bug(format!("the kernel's scan rows have no Arrow schema: {e}")))
}

fn bug(error: ArrowError) -> Error {
    Error::bug("scan rows cannot be made").with_source(error)
}

/// The rows of `files`, as a scan of the table would give them.
pub(super) fn scan_rows(files: &[&LiveFile]) -> Result<FilteredEngineData> {
    let schema = scan_rows_schema()?;
    let columns = schema
        .fields()
        .iter()
        .map(|field| scan_column(field.name(), field.data_type(), files))
        .collect::<Result<Vec<_>>>()?;
    let batch = RecordBatch::try_new(schema, columns).map_err(bug)?;
    Ok(FilteredEngineData::with_all_rows_selected(Box::new(
        ArrowEngineData::new(batch),
    )))
}

fn scan_column(name: &str, data_type: &DataType, files: &[&LiveFile]) -> Result<ArrayRef> {
    Ok(match (name, data_type) {
        ("path", _) => Arc::new(StringArray::from_iter_values(
            files.iter().map(|f| f.path.as_str()),
        )),
        ("size", _) => Arc::new(Int64Array::from_iter_values(
            files.iter().map(|f| f.size_bytes),
        )),
        ("modificationTime", _) => Arc::new(Int64Array::from_iter_values(
            files.iter().map(|f| f.modified_ms),
        )),
        ("stats", _) => Arc::new(StringArray::from_iter_values(
            files.iter().map(|f| f.stats.as_ref()),
        )),
        ("deletionVector", DataType::Struct(fields)) => deletion_vectors(fields, files)?,
        ("fileConstantValues", DataType::Struct(fields)) => constants(fields, files.len())?,
        _ => new_null_array(data_type, files.len()),
    })
}

fn deletion_vectors(fields: &Fields, files: &[&LiveFile]) -> Result<ArrayRef> {
    let descriptor = |f: &&LiveFile| f.deletion_vector.as_ref().map(|d| d.0.clone());
    let all: Vec<Option<DeletionVectorDescriptor>> = files.iter().map(descriptor).collect();
    let columns = fields
        .iter()
        .map(|field| {
            let column: ArrayRef = match field.name().as_str() {
                // The struct's fields are not nullable: a file without deleted rows has blanks
                // under a null.
                "storageType" => Arc::new(StringArray::from_iter_values(all.iter().map(|d| {
                    d.as_ref()
                        .map(|d| d.storage_type.to_string())
                        .unwrap_or_default()
                }))),
                "pathOrInlineDv" => Arc::new(StringArray::from_iter_values(all.iter().map(|d| {
                    d.as_ref()
                        .map(|d| d.path_or_inline_dv.as_str())
                        .unwrap_or_default()
                }))),
                "offset" => Arc::new(
                    all.iter()
                        .map(|d| d.as_ref().and_then(|d| d.offset))
                        .collect::<Int32Array>(),
                ),
                "sizeInBytes" => Arc::new(Int32Array::from_iter_values(
                    all.iter()
                        .map(|d| d.as_ref().map_or(0, |d| d.size_in_bytes)),
                )),
                "cardinality" => Arc::new(Int64Array::from_iter_values(
                    all.iter().map(|d| d.as_ref().map_or(0, |d| d.cardinality)),
                )),
                other => {
                    return Err(Error::bug(format!(
                        "unknown field \"{other}\" of a deletion vector"
                    )));
                }
            };
            Ok(column)
        })
        .collect::<Result<Vec<_>>>()?;
    let nulls = NullBuffer::from_iter(all.iter().map(Option::is_some));
    let column = StructArray::try_new(fields.clone(), columns, Some(nulls)).map_err(bug)?;
    Ok(Arc::new(column))
}

fn constants(fields: &Fields, rows: usize) -> Result<ArrayRef> {
    let columns = fields
        .iter()
        .map(|field| match (field.name().as_str(), field.data_type()) {
            ("partitionValues", DataType::Map(..)) => empty_maps(field.data_type(), rows),
            _ => Ok(new_null_array(field.data_type(), rows)),
        })
        .collect::<Result<Vec<_>>>()?;
    let column = StructArray::try_new(fields.clone(), columns, None).map_err(bug)?;
    Ok(Arc::new(column))
}

/// A column of `rows` empty maps.
pub(super) fn empty_maps(data_type: &DataType, rows: usize) -> Result<ArrayRef> {
    let DataType::Map(entries, sorted) = data_type else {
        return Err(Error::bug("partition values are no map"));
    };
    let no_entries = new_empty_array(entries.data_type());
    let offsets = OffsetBuffer::new(vec![0_i32; rows + 1].into());
    let map = MapArray::try_new(
        entries.clone(),
        offsets,
        no_entries.as_struct().clone(),
        None,
        *sorted,
    );
    Ok(Arc::new(map.map_err(bug)?))
}

/// The live files of a snapshot.
pub(super) fn read_files(
    snapshot: &SnapshotRef,
    engine: &Engine,
    dir: &Path,
) -> Result<Vec<LiveFile>> {
    let failed = |e| kernel_error("read the files of", dir, e);
    let scan = Arc::clone(snapshot)
        .scan_builder()
        .build()
        .map_err(failed)?;
    let mut files = Vec::new();
    for metadata in scan.scan_metadata(engine).map_err(failed)? {
        let (data, selected) = metadata.map_err(failed)?.scan_files.into_parts();
        let batch: RecordBatch =
            (*ArrowEngineData::try_from_engine_data(data).map_err(failed)?).into();
        let columns = ScanColumns::new(&batch)?;
        for row in 0..batch.num_rows() {
            if selected.get(row).copied().unwrap_or(true) {
                files.push(columns.file(row, dir)?);
            }
        }
    }
    Ok(files)
}

/// A scan's columns, by their types.
struct ScanColumns<'a> {
    path: &'a StringArray,
    size: &'a Int64Array,
    modified: &'a Int64Array,
    stats: &'a StringArray,
    vector: &'a StructArray,
}

impl<'a> ScanColumns<'a> {
    fn new(batch: &'a RecordBatch) -> Result<Self> {
        Ok(Self {
            path: string(batch.column_by_name("path"))?,
            size: long(batch.column_by_name("size"))?,
            modified: long(batch.column_by_name("modificationTime"))?,
            stats: string(batch.column_by_name("stats"))?,
            vector: batch
                .column_by_name("deletionVector")
                .and_then(|c| c.as_struct_opt())
                .ok_or_else(unexpected)?,
        })
    }

    fn file(&self, row: usize, dir: &Path) -> Result<LiveFile> {
        let path = self.path.value(row).to_owned();
        let stats: Arc<str> = if self.stats.is_valid(row) {
            self.stats.value(row).into()
        } else {
            "{}".into()
        };
        let num_rows = serde_json::from_str::<Value>(&stats)
            .ok()
            .and_then(|stats| stats.get("numRecords")?.as_u64())
            .ok_or_else(|| {
                corrupt(
                    &dir.join(&path),
                    "the log does not say how many rows the file has",
                )
            })?;
        Ok(LiveFile {
            size_bytes: self.size.value(row),
            modified_ms: self.modified.value(row),
            deletion_vector: self.descriptor(row, dir)?,
            path,
            stats,
            num_rows,
        })
    }

    fn descriptor(&self, row: usize, dir: &Path) -> Result<Option<Descriptor>> {
        if self.vector.is_null(row) {
            return Ok(None);
        }
        let field = |name| self.vector.column_by_name(name);
        let storage = string(field("storageType"))?
            .value(row)
            .parse()
            .map_err(|e| kernel_error("read a deletion vector of", dir, e))?;
        let offsets = int(field("offset"))?;
        let descriptor = DeletionVectorDescriptor::try_new(
            storage,
            string(field("pathOrInlineDv"))?.value(row),
            offsets.is_valid(row).then(|| offsets.value(row)),
            int(field("sizeInBytes"))?.value(row),
            long(field("cardinality"))?.value(row),
        );
        let descriptor =
            descriptor.map_err(|e| kernel_error("read a deletion vector of", dir, e))?;
        Ok(Some(Descriptor(descriptor)))
    }
}

fn unexpected() -> Error {
    Error::bug("the kernel's scan rows are not as expected")
}

fn string(column: Option<&ArrayRef>) -> Result<&StringArray> {
    column
        .and_then(|c| c.as_string_opt())
        .ok_or_else(unexpected)
}

fn long(column: Option<&ArrayRef>) -> Result<&Int64Array> {
    column
        .and_then(|c| c.as_primitive_opt::<Int64Type>())
        .ok_or_else(unexpected)
}

fn int(column: Option<&ArrayRef>) -> Result<&Int32Array> {
    column
        .and_then(|c| c.as_primitive_opt::<Int32Type>())
        .ok_or_else(unexpected)
}
