//! A lake table as DataFusion reads it: the files of one version, less their deleted rows.
//!
//! Between [`crate::catalog`] and DataFusion's Parquet reader. Invariant: a scan yields exactly the
//! rows that are not deleted; bounds only ever skip files that cannot hold a match.

use std::path::Path;
use std::sync::Arc;

use alluvium_change::{Error, code};
use alluvium_lake::SilverView;
use alluvium_lake::read::{DataFile, TableVersion};
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::config::TableParquetOptions;
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, DataFusionError, Result, ScalarValue, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::object_store::ObjectStoreUrl;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};
use parquet::arrow::RowNumber;
use roaring::RoaringTreemap;

use crate::footer::FooterReaders;
use crate::live::{ADDED_COLUMNS, DeletedRows, LiveRows, added_names};
use crate::prune::FileBounds;

/// Bytes read from a file's end in the first request for its footer.
const FOOTER_BYTES: usize = 64 << 10;

/// One version of a table.
#[derive(Debug)]
pub(crate) struct LakeTable {
    schema: SchemaRef,
    files: Vec<LakeFile>,
    /// Rows that are in no file.
    rows: Vec<RecordBatch>,
}

#[derive(Debug)]
struct LakeFile {
    data: DataFile,
    location: object_store::path::Path,
    live_rows: usize,
}

impl LakeTable {
    pub(crate) fn new(version: TableVersion, dir: &Path) -> alluvium_change::Result<Self> {
        let mut files = Vec::with_capacity(version.files.len());
        for data in version.files {
            files.push(LakeFile::new(data, dir)?);
        }
        Ok(Self {
            schema: version.schema,
            files,
            rows: Vec::new(),
        })
    }

    /// A table as a running pipeline has it.
    pub(crate) fn of_view(view: SilverView, dir: &Path) -> alluvium_change::Result<Self> {
        let files = view.files.into_iter();
        Ok(Self {
            schema: view.schema,
            files: files
                .map(|data| LakeFile::new(data, dir))
                .collect::<alluvium_change::Result<_>>()?,
            rows: view.rows,
        })
    }

    fn statistics(&self, files: &[&LakeFile]) -> Statistics {
        let mut statistics = Statistics::new_unknown(&self.schema);
        let rows = files.iter().map(|file| file.live_rows).sum();
        statistics.num_rows = Precision::Exact(rows);
        statistics
    }

    fn read(
        &self,
        state: &dyn Session,
        files: &[&LakeFile],
        projection: Option<&Vec<usize>>,
        predicate: Option<Arc<dyn PhysicalExpr>>,
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let deleted: DeletedRows = files.iter().map(|file| file.deleted()).collect();
        let has_deleted = deleted.iter().any(Option::is_some);
        let url = ObjectStoreUrl::local_filesystem();
        let runtime = state.runtime_env();
        let readers = FooterReaders {
            cached: CachedParquetFileReaderFactory::new(
                runtime.object_store(&url)?,
                runtime.cache_manager.get_file_metadata_cache(),
            ),
        };
        let options = TableParquetOptions {
            global: state.config_options().execution.parquet.clone(),
            ..TableParquetOptions::default()
        };
        let mut source = ParquetSource::new(self.columns_to_read(has_deleted))
            .with_table_parquet_options(options)
            .with_metadata_size_hint(FOOTER_BYTES)
            .with_parquet_file_reader_factory(Arc::new(readers));
        if let Some(predicate) = predicate {
            source = source.with_predicate(predicate);
        }
        let partitions = state.config().target_partitions();
        let scan = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(self.groups(files, partitions, has_deleted)?);
        if !has_deleted {
            let scan = scan
                .with_statistics(self.statistics(files))
                .with_projection_indices(projection.cloned())?
                .with_limit(limit);
            return Ok(DataSourceExec::from_data_source(scan.build()));
        }
        let width = self.schema.fields().len();
        let mut columns = projection.cloned().unwrap_or_else(|| (0..width).collect());
        let statistics = self.statistics(files).project(Some(&columns));
        columns.extend(width..width + ADDED_COLUMNS);
        let scan = scan.with_projection_indices(Some(columns))?.build();
        let scan = DataSourceExec::from_data_source(scan);
        Ok(Arc::new(LiveRows::new(scan, deleted, Arc::new(statistics))))
    }

    /// With the file's number and the row's place, if deleted rows are to be left out.
    fn columns_to_read(&self, has_deleted: bool) -> TableSchema {
        let columns = TableSchema::builder(Arc::clone(&self.schema));
        if !has_deleted {
            return columns.build();
        }
        let [file, row] = added_names(&self.schema);
        let row = Field::new(row, DataType::Int64, false).with_extension_type(RowNumber);
        columns
            .with_table_partition_cols(vec![Arc::new(Field::new(file, DataType::UInt32, false))])
            .with_virtual_columns(vec![Arc::new(row)])
            .build()
    }

    fn groups(
        &self,
        files: &[&LakeFile],
        partitions: usize,
        has_deleted: bool,
    ) -> Result<Vec<FileGroup>> {
        let mut groups = vec![Vec::new(); partitions.clamp(1, files.len().max(1))];
        let partitions = groups.len();
        for (number, file) in files.iter().enumerate() {
            let mut scanned = PartitionedFile::new("", file.data.size_bytes);
            scanned.object_meta.location = file.location.clone();
            let scanned = if has_deleted {
                let number =
                    u32::try_from(number).map_err(|e| DataFusionError::External(e.into()))?;
                scanned.with_partition_values(vec![ScalarValue::UInt32(Some(number))])
            } else {
                scanned.with_statistics(Arc::new(self.statistics(&[file])))
            };
            if let Some(group) = groups.get_mut(number % partitions) {
                group.push(scanned);
            }
        }
        Ok(groups.into_iter().map(FileGroup::new).collect())
    }

    /// The files that may hold a row for which `predicate` is true.
    fn matching_files(&self, predicate: Option<&Arc<dyn PhysicalExpr>>) -> Result<Vec<&LakeFile>> {
        let mut files: Vec<&LakeFile> = self
            .files
            .iter()
            .filter(|file| file.live_rows > 0)
            .collect();
        let Some(predicate) = predicate else {
            return Ok(files);
        };
        // A predicate that bounds cannot decide is no error: all files are read.
        let builder = PruningPredicateBuilder::new().with_file_schema(Arc::clone(&self.schema));
        let Ok(pruning) = builder.try_build(Arc::clone(predicate)) else {
            return Ok(files);
        };
        if pruning.always_true() {
            return Ok(files);
        }
        let columns: Vec<Column> = collect_columns(predicate).into_iter().collect();
        let data: Vec<&DataFile> = files.iter().map(|file| &file.data).collect();
        let keep = pruning.prune(&FileBounds::new(&data, &self.schema, &columns))?;
        let mut keep = keep.into_iter();
        files.retain(|_| keep.next().unwrap_or(true));
        Ok(files)
    }
}

impl LakeFile {
    fn new(data: DataFile, dir: &Path) -> alluvium_change::Result<Self> {
        let damaged = |detail: String| {
            Error::new(
                &code::LAKE_CORRUPT,
                format!("the table \"{}\" is damaged", dir.display()),
            )
            .with_detail(detail)
        };
        let absolute = std::path::absolute(&data.path)
            .map_err(|error| damaged(format!("\"{}\": {error}", data.path.display())))?;
        let location = object_store::path::Path::from_absolute_path(&absolute)
            .map_err(|error| damaged(format!("\"{}\": {error}", data.path.display())))?;
        let num_rows = usize::try_from(data.num_rows).map_err(|_| {
            damaged(format!(
                "\"{}\" claims {} rows",
                data.path.display(),
                data.num_rows
            ))
        })?;
        let deleted = data.deleted.as_deref().map_or(0, RoaringTreemap::len);
        let beyond = data.deleted.as_deref().and_then(RoaringTreemap::max);
        let live = usize::try_from(deleted)
            .ok()
            .and_then(|deleted| num_rows.checked_sub(deleted));
        let (Some(live_rows), false) = (live, beyond.is_some_and(|row| row >= data.num_rows))
        else {
            return Err(damaged(format!(
                "\"{}\" has {num_rows} rows, and a deletion vector for rows beyond its end",
                data.path.display(),
            )));
        };
        Ok(Self {
            data,
            location,
            live_rows,
        })
    }

    fn deleted(&self) -> Option<Arc<RoaringTreemap>> {
        let deleted = self.data.deleted.as_ref();
        deleted.filter(|deleted| !deleted.is_empty()).cloned()
    }
}

#[async_trait]
impl TableProvider for LakeTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// Filters skip files, row groups and pages; each row is still tested above the scan.
    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    fn statistics(&self) -> Option<Statistics> {
        let files: Vec<&LakeFile> = self.files.iter().collect();
        let mut statistics = self.statistics(&files);
        let in_memory = self.rows.iter().map(RecordBatch::num_rows).sum();
        statistics.num_rows = statistics.num_rows.add(&Precision::Exact(in_memory));
        Some(statistics)
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let predicate = match conjunction(filters.iter().cloned()) {
            Some(filter) => {
                let columns = DFSchema::try_from(Arc::clone(&self.schema))?;
                Some(state.create_physical_expr(filter, &columns)?)
            }
            None => None,
        };
        let files = self.matching_files(predicate.as_ref())?;
        let scan = self.read(state, &files, projection, predicate, limit)?;
        if self.rows.is_empty() {
            return Ok(scan);
        }
        let schema = Arc::clone(&self.schema);
        let rows = std::slice::from_ref(&self.rows);
        let in_memory = MemorySourceConfig::try_new_exec(rows, schema, projection.cloned())?;
        if files.is_empty() {
            return Ok(in_memory);
        }
        UnionExec::try_new(vec![scan, in_memory])
    }
}

#[cfg(test)]
mod tests;
