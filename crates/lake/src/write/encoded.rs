//! Rows encoded once, for every data file that holds them.
//!
//! Encoding and compressing is most of what writing costs. Bronze and silver hold the same values, so
//! their columns are encoded into ready column chunks, which both files take over as they are.

use std::sync::Arc;

use alluvium_change::{Error, Result};
use arrow::array::RecordBatch;
use arrow::datatypes::{Field, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::schema::types::ColumnPath;

use super::data_file::properties;
use super::distinct::hardly_repeats;
use super::stats::{ColumnStats, StatsCollector};
use crate::LakeSettings;

/// One row group of some columns, encoded.
#[derive(Debug)]
pub struct EncodedRows {
    schema: SchemaRef,
    num_rows: usize,
    /// A whole Parquet file of one row group: only its column chunks are used.
    file: Bytes,
    metadata: ParquetMetaData,
    stats: Vec<ColumnStats>,
}

fn failed(error: ParquetError) -> Error {
    Error::bug("rows cannot be encoded").with_source(error)
}

impl EncodedRows {
    /// Encodes rows, which must be few enough to be held twice.
    pub(crate) fn encode(rows: &RecordBatch, settings: &LakeSettings) -> Result<Self> {
        let schema = rows.schema();
        let mut properties = properties(settings.compression, rows.num_rows().max(1))?;
        for (field, column) in schema.fields().iter().zip(rows.columns()) {
            if hardly_repeats(column) {
                let path = ColumnPath::new(vec![field.name().clone()]);
                properties = properties.set_column_dictionary_enabled(path, false);
            }
        }
        let properties = properties.build();
        let mut writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties))
            .map_err(failed)?;
        writer.write(rows).map_err(failed)?;
        let metadata = writer.finish().map_err(failed)?;
        let file = std::mem::take(writer.inner_mut());
        Ok(Self {
            num_rows: rows.num_rows(),
            file: file.into(),
            metadata,
            stats: StatsCollector::columns_of(rows),
            schema,
        })
    }

    pub(crate) fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// The bytes that column chunks are read from.
    pub(crate) fn file(&self) -> &Bytes {
        &self.file
    }

    pub(super) fn stats_of(&self, name: &str) -> Option<&ColumnStats> {
        let at = self.schema.index_of(name).ok()?;
        self.stats.get(at)
    }

    /// Whether a column as `field` says is here.
    pub(crate) fn has(&self, field: &Field) -> bool {
        self.schema
            .field_with_name(field.name())
            .is_ok_and(|ours| ours.data_type() == field.data_type())
    }

    /// The column chunks of a column, a chunk for each leaf.
    pub(crate) fn chunks(&self, name: &str) -> Vec<ColumnCloseResult> {
        let Some(group) = self.metadata.row_groups().first() else {
            return Vec::new();
        };
        let rows = self.num_rows as u64;
        let is_of_column = |at: &usize| {
            group.columns().get(*at).is_some_and(|column| {
                column.column_path().parts().first().map(String::as_str) == Some(name)
            })
        };
        (0..group.num_columns())
            .filter(is_of_column)
            .map(|at| ColumnCloseResult {
                bytes_written: u64::try_from(group.column(at).compressed_size())
                    .unwrap_or_default(),
                rows_written: rows,
                metadata: group.column(at).clone(),
                bloom_filter: None,
                column_index: self
                    .metadata
                    .column_index()
                    .and_then(|groups| groups.first()?.get(at).cloned()),
                offset_index: self
                    .metadata
                    .offset_index()
                    .and_then(|groups| groups.first()?.get(at).cloned()),
            })
            .collect()
    }
}
