//! Reading Parquet footers through the session's cache, without bounds that would mislead.
//!
//! Below [`crate::table`]. Parquet leaves NaN out of a float column's bounds, yet NaN is greater
//! than every number, in PostgreSQL as in Arrow: with its bounds, `x > 5` would skip a row group
//! that holds NaN. So row groups and pages are never skipped by a float column's bounds.

use std::ops::Range;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::basic::{LogicalType, Type};
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::{
    ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataBuilder, RowGroupMetaData,
};

/// Opens data files; footers come from DataFusion's cache.
#[derive(Debug)]
pub(crate) struct FooterReaders {
    pub(crate) cached: CachedParquetFileReaderFactory,
}

impl ParquetFileReaderFactory for FooterReaders {
    fn create_reader(
        &self,
        partition_index: usize,
        file: PartitionedFile,
        metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        let inner =
            self.cached
                .create_reader(partition_index, file, metadata_size_hint, metrics)?;
        Ok(Box::new(FooterReader { inner }))
    }
}

struct FooterReader {
    inner: Box<dyn AsyncFileReader + Send>,
}

impl AsyncFileReader for FooterReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<bytes::Bytes>> {
        self.inner.get_bytes(range)
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, ParquetResult<Vec<bytes::Bytes>>> {
        self.inner.get_byte_ranges(ranges)
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        async move { without_float_bounds(self.inner.get_metadata(options).await?) }.boxed()
    }
}

fn is_float(column: &ColumnChunkMetaData) -> bool {
    matches!(column.column_type(), Type::FLOAT | Type::DOUBLE)
        || matches!(
            column.column_descr().logical_type_ref(),
            Some(LogicalType::Float16)
        )
}

fn without_float_bounds(metadata: Arc<ParquetMetaData>) -> ParquetResult<Arc<ParquetMetaData>> {
    let has_bounds = |column: &ColumnChunkMetaData| {
        is_float(column)
            && (column.statistics().is_some() || column.column_index_offset().is_some())
    };
    if !metadata
        .row_groups()
        .iter()
        .any(|group| group.columns().iter().any(has_bounds))
    {
        return Ok(metadata);
    }
    let mut row_groups = Vec::with_capacity(metadata.num_row_groups());
    for group in metadata.row_groups() {
        row_groups.push(row_group_without_float_bounds(group)?);
    }
    // The page index, when the cache has it, goes too: it is loaded again without these columns.
    let builder = ParquetMetaDataBuilder::new(metadata.file_metadata().clone());
    Ok(Arc::new(builder.set_row_groups(row_groups).build()))
}

fn row_group_without_float_bounds(group: &RowGroupMetaData) -> ParquetResult<RowGroupMetaData> {
    let mut columns = Vec::with_capacity(group.num_columns());
    for column in group.columns() {
        if is_float(column) {
            let builder = column.clone().into_builder().clear_statistics();
            columns.push(
                builder
                    .set_column_index_offset(None)
                    .set_column_index_length(None)
                    .build()?,
            );
        } else {
            columns.push(column.clone());
        }
    }
    group
        .clone()
        .into_builder()
        .set_column_metadata(columns)
        .build()
}
