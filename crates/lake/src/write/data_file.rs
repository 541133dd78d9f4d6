//! Writing one Parquet data file, in bounded memory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alluvium_change::{Error, Result, failpoint};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression as ParquetCompression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use super::stats::StatsCollector;
use crate::fs::{corrupt, io_error};
use crate::log::{NewFile, now_ms};
use crate::{Compression, LakeSettings};

const ROW_GROUP_ROWS: usize = 1 << 20;

/// An open data file. Dropped before [`Self::finish`], it is removed.
pub(crate) struct DataFileWriter {
    path: PathBuf,
    name: String,
    /// None once finished.
    writer: Option<ArrowWriter<File>>,
    stats: Option<StatsCollector>,
    num_rows: u64,
    staging_bytes: usize,
    fsync: bool,
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
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| io_error("create", &path, e))?;
        let properties = WriterProperties::builder()
            .set_compression(compression(settings.compression)?)
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_created_by(concat!("alluvium ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let writer = ArrowWriter::try_new(file, Arc::clone(schema), Some(properties))
            .map_err(|e| write_error(&path, e))?;
        Ok(Self {
            path,
            name,
            writer: Some(writer),
            stats: Some(StatsCollector::new(schema)),
            num_rows: 0,
            staging_bytes: settings.staging_bytes,
            fsync: settings.fsync,
        })
    }

    pub(crate) fn num_rows(&self) -> u64 {
        self.num_rows
    }

    /// Bytes the file has and will have at least.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.writer.as_ref().map_or(0, |writer| {
            (writer.bytes_written() + writer.in_progress_size()) as u64
        })
    }

    /// Appends rows, which have the schema the file was created with.
    pub(crate) fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        let (Some(writer), Some(stats)) = (&mut self.writer, &mut self.stats) else {
            return Err(Error::bug("rows for a finished data file"));
        };
        writer.write(rows).map_err(|e| write_error(&self.path, e))?;
        if writer.memory_size() > self.staging_bytes {
            writer.flush().map_err(|e| write_error(&self.path, e))?;
        }
        stats.update(rows);
        self.num_rows += rows.num_rows() as u64;
        Ok(())
    }

    /// Closes the file and makes it durable; its directory entry is synced with the commit.
    pub(crate) fn finish(mut self) -> Result<NewFile> {
        let (Some(mut writer), Some(stats)) = (self.writer.take(), self.stats.take()) else {
            return Err(Error::bug("a data file was finished twice"));
        };
        let finished = writer
            .finish()
            .map_err(|e| write_error(&self.path, e))
            .and_then(|_| {
                let file = writer.inner();
                failpoint::hit("commit.data_written");
                if self.fsync {
                    file.sync_data()
                        .map_err(|e| io_error("sync", &self.path, e))?;
                }
                file.metadata().map_err(|e| io_error("read", &self.path, e))
            });
        let metadata = match finished {
            Ok(metadata) => metadata,
            Err(error) => {
                let _ = std::fs::remove_file(&self.path);
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
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Statistics of a file some of whose rows are deleted: bounds still hold, but may not be reached.
pub(crate) fn loosen_bounds(stats: &str) -> Arc<str> {
    stats
        .replace("\"tightBounds\":true", "\"tightBounds\":false")
        .into()
}

fn compression(compression: Compression) -> Result<ParquetCompression> {
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
