//! Writing one Parquet data file, in bounded memory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alluvium_change::surroundings::now_ms;
use alluvium_change::{Error, Result, failpoint};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::arrow::{ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata};
use parquet::basic::{Compression as ParquetCompression, ZstdLevel};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use parquet::file::writer::SerializedFileWriter;

use super::encoded::EncodedRows;
use super::stats::StatsCollector;
use crate::fs::disk::{DiskOp, perform};
use crate::fs::{self as durable, corrupt, io_error};
use crate::log::NewFile;
use crate::{Compression, LakeSettings};

/// An open data file. Dropped before [`Self::finish`], it is removed.
pub(crate) struct DataFileWriter {
    path: PathBuf,
    name: String,
    schema: SchemaRef,
    /// None once finished.
    writer: Option<Writer>,
    stats: Option<StatsCollector>,
    num_rows: u64,
    settings: LakeSettings,
}

/// The Parquet file, and the row group that is being filled.
struct Writer {
    file: SerializedFileWriter<File>,
    columns: ArrowRowGroupWriterFactory,
    filling: Option<(Vec<ArrowColumnWriter>, usize)>,
}

/// How every data file is encoded.
pub(super) fn properties(
    compression: Compression,
    row_group_rows: usize,
) -> Result<WriterPropertiesBuilder> {
    Ok(WriterProperties::builder()
        .set_compression(codec(compression)?)
        .set_max_row_group_row_count(Some(row_group_rows))
        .set_created_by(concat!("alluvium ", env!("CARGO_PKG_VERSION")).to_owned()))
}

impl Writer {
    fn new(
        file: File,
        schema: &SchemaRef,
        mut properties: WriterProperties,
    ) -> ParquetResult<Self> {
        let descriptor = ArrowSchemaConverter::new().convert(schema)?;
        add_encoded_arrow_schema_to_metadata(schema, &mut properties);
        let root = descriptor.root_schema_ptr();
        let file = SerializedFileWriter::new(file, root, Arc::new(properties))?;
        let columns = ArrowRowGroupWriterFactory::new(&file, Arc::clone(schema));
        Ok(Self {
            file,
            columns,
            filling: None,
        })
    }

    /// Memory held by the row group that is being filled, in bytes.
    fn memory_bytes(&self) -> usize {
        let columns = self.filling.iter().flat_map(|(columns, _)| columns);
        columns.map(ArrowColumnWriter::memory_size).sum()
    }

    fn size_bytes(&self) -> usize {
        let filling = self.filling.iter().flat_map(|(columns, _)| columns);
        let filling: usize = filling
            .map(ArrowColumnWriter::get_estimated_total_bytes)
            .sum();
        self.file.bytes_written() + filling
    }

    fn write(&mut self, rows: &RecordBatch, group_rows: usize) -> ParquetResult<()> {
        let mut from = 0;
        while from < rows.num_rows() {
            let (columns, held) = match &mut self.filling {
                Some(filling) => filling,
                None => {
                    let group = self.file.flushed_row_groups().len();
                    let columns = self.columns.create_column_writers(group)?;
                    self.filling.insert((columns, 0))
                }
            };
            let count = (rows.num_rows() - from).min(group_rows.saturating_sub(*held).max(1));
            let part = rows.slice(from, count);
            let mut writers = columns.iter_mut();
            let schema = part.schema();
            for (field, column) in schema.fields().iter().zip(part.columns()) {
                for leaf in compute_leaves(field, column)? {
                    let writer = writers.next().ok_or_else(too_few)?;
                    writer.write(&leaf)?;
                }
            }
            *held += count;
            from += count;
            if *held >= group_rows {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Ends the row group that is being filled.
    fn flush(&mut self) -> ParquetResult<()> {
        let Some((columns, _)) = self.filling.take() else {
            return Ok(());
        };
        let mut group = self.file.next_row_group()?;
        for column in columns {
            column.close()?.append_to_row_group(&mut group)?;
        }
        group.close().map(|_| ())
    }

    fn append(&mut self, schema: &SchemaRef, sources: &[&EncodedRows]) -> ParquetResult<()> {
        self.flush()?;
        let mut group = self.file.next_row_group()?;
        for field in schema.fields() {
            let source = sources.iter().find(|source| source.has(field));
            let source = source.ok_or_else(too_few)?;
            for chunk in source.chunks(field.name()) {
                group.append_column(source.file(), chunk)?;
            }
        }
        group.close().map(|_| ())
    }
}

fn too_few() -> ParquetError {
    ParquetError::General("rows have other columns than their file".to_owned())
}

impl DataFileWriter {
    /// Begins the file `name` in the table's directory.
    pub(crate) fn create(
        dir: &Path,
        name: String,
        schema: &SchemaRef,
        settings: &LakeSettings,
    ) -> Result<Self> {
        let path = dir.join(&name);
        let file = durable::create_new(&path).map_err(|e| io_error("create", &path, e))?;
        let properties = properties(settings.compression, settings.row_group_rows)?.build();
        let writer = Writer::new(file, schema, properties).map_err(|e| write_error(&path, e))?;
        Ok(Self {
            path,
            name,
            schema: Arc::clone(schema),
            writer: Some(writer),
            stats: Some(StatsCollector::new(schema)),
            num_rows: 0,
            settings: settings.clone(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn num_rows(&self) -> u64 {
        self.num_rows
    }

    /// Bytes the file has and will have at least.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.writer
            .as_ref()
            .map_or(0, |writer| writer.size_bytes() as u64)
    }

    fn open(&mut self) -> Result<(&mut Writer, &mut StatsCollector)> {
        match (&mut self.writer, &mut self.stats) {
            (Some(writer), Some(stats)) => Ok((writer, stats)),
            _ => Err(Error::bug("rows for a finished data file")),
        }
    }

    /// The writer has its file to itself, so that the disk is asked beforehand.
    fn may_write(&self) -> Result<()> {
        perform(DiskOp::Write(&self.path), || Ok(())).map_err(|e| io_error("write", &self.path, e))
    }

    /// Appends rows, which have the schema the file was created with.
    pub(crate) fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        if rows.num_rows() >= self.settings.share_from_rows {
            let encoded = EncodedRows::encode(rows, &self.settings)?;
            return self.append(&[&encoded]);
        }
        let staging_bytes = self.settings.staging_bytes;
        let group_rows = self.settings.row_group_rows.max(1);
        self.may_write()?;
        let (writer, stats) = self.open()?;
        stats.update(rows);
        let mut written = writer.write(rows, group_rows);
        if written.is_ok() && writer.memory_bytes() > staging_bytes {
            written = writer.flush();
        }
        written.map_err(|e| write_error(&self.path, e))?;
        self.num_rows += rows.num_rows() as u64;
        Ok(())
    }

    /// Appends rows that are encoded already, as a row group of their own. Each of the file's columns
    /// is in one of the `sources`, which have the same rows.
    pub(crate) fn append(&mut self, sources: &[&EncodedRows]) -> Result<()> {
        let rows = sources.first().map_or(0, |source| source.num_rows());
        let schema = Arc::clone(&self.schema);
        self.may_write()?;
        let (writer, stats) = self.open()?;
        stats.update_encoded(sources, rows);
        let appended = writer.append(&schema, sources);
        appended.map_err(|e| write_error(&self.path, e))?;
        self.num_rows += rows as u64;
        Ok(())
    }

    /// Closes the file and makes it durable; its directory entry is synced with the commit.
    pub(crate) fn finish(mut self) -> Result<NewFile> {
        let (Some(mut writer), Some(stats)) = (self.writer.take(), self.stats.take()) else {
            return Err(Error::bug("a data file was finished twice"));
        };
        let finished = writer
            .flush()
            .and_then(|()| writer.file.finish())
            .map_err(|e| write_error(&self.path, e))
            .and_then(|_| {
                let file = writer.file.inner();
                failpoint::hit("commit.data_written");
                if self.settings.fsync {
                    durable::sync_file(file, &self.path)
                        .map_err(|e| io_error("sync", &self.path, e))?;
                }
                file.metadata().map_err(|e| io_error("read", &self.path, e))
            });
        let metadata = match finished {
            Ok(metadata) => metadata,
            Err(error) => {
                durable::discard(&self.path);
                return Err(error);
            }
        };
        Ok(NewFile {
            path: std::mem::take(&mut self.name),
            size_bytes: i64::try_from(metadata.len()).unwrap_or(i64::MAX),
            modified_ms: now_ms(),
            stats: stats.finish().into(),
            num_rows: self.num_rows,
            deleted: None,
        })
    }
}

impl Drop for DataFileWriter {
    fn drop(&mut self) {
        if self.writer.take().is_some() {
            durable::discard(&self.path);
        }
    }
}

/// Statistics of a file some of whose rows are deleted: bounds still hold, but may not be reached.
pub(crate) fn loosen_bounds(stats: &str) -> Arc<str> {
    stats
        .replace("\"tightBounds\":true", "\"tightBounds\":false")
        .into()
}

fn codec(compression: Compression) -> Result<ParquetCompression> {
    Ok(match compression {
        Compression::Uncompressed => ParquetCompression::UNCOMPRESSED,
        Compression::Snappy => ParquetCompression::SNAPPY,
        Compression::Lz4 => ParquetCompression::LZ4_RAW,
        Compression::Zstd(level) => {
            let level = ZstdLevel::try_new(i32::from(level)).map_err(|e| {
                Error::new(
                    &alluvium_change::code::CONFIG_VALUE,
                    format!("there is no zstd level {level}"),
                )
                .with_detail(e.to_string())
            })?;
            ParquetCompression::ZSTD(level)
        }
    })
}

/// An error of the Parquet writer, which wraps those of the file.
fn write_error(path: &Path, error: ParquetError) -> Error {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(io) => io_error("write", path, *io),
            Err(source) => Error::new(
                &alluvium_change::code::LAKE_IO,
                format!("could not write \"{}\"", path.display()),
            )
            .with_detail(source.to_string()),
        },
        error => Error::new(
            &alluvium_change::code::LAKE_IO,
            format!("could not write \"{}\"", path.display()),
        )
        .with_detail(error.to_string())
        .with_source(error),
    }
}

/// An error of the Parquet reader.
pub(super) fn read_error(path: &Path, error: &ParquetError) -> Error {
    corrupt(path, error.to_string())
}
