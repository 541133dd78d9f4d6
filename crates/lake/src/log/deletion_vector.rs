//! Deleted rows of data files: written many to a file, read back at open.

use std::path::Path;

use alluvium_change::{Error, Result, failpoint};
use bytes::Bytes;
use delta_kernel::actions::deletion_vector::DeletionVectorDescriptor;
use delta_kernel::actions::deletion_vector_writer::{
    DeletionVector, StreamingDeletionVectorWriter,
};
use delta_kernel::transaction::BoundWriteContext;
use delta_kernel::{Engine as _, KernelError, KernelResult};
use roaring::RoaringTreemap;
use serde_json::json;
use url::Url;

use super::engine::{Engine, kernel_error};
use crate::fs as durable;

/// Where a file's deleted rows are written.
#[derive(Debug, Clone)]
pub(crate) struct Descriptor(pub(super) DeletionVectorDescriptor);

impl Descriptor {
    pub(super) fn to_json(&self) -> serde_json::Value {
        let d = &self.0;
        let mut json = json!({
            "storageType": d.storage_type.to_string(),
            "pathOrInlineDv": d.path_or_inline_dv,
            "sizeInBytes": d.size_in_bytes,
            "cardinality": d.cardinality,
        });
        if let (Some(offset), Some(map)) = (d.offset, json.as_object_mut()) {
            map.insert("offset".to_owned(), offset.into());
        }
        json
    }

    /// How many rows it deletes.
    pub(super) fn rows(&self) -> u64 {
        u64::try_from(self.0.cardinality).unwrap_or_default()
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        u64::try_from(self.0.size_in_bytes).unwrap_or_default()
    }

    /// Tells it from all others of its table, and from what replaces it.
    pub(crate) fn identity(&self) -> String {
        self.to_json().to_string()
    }

    /// Reads the deleted rows.
    pub(super) fn read(&self, engine: &Engine, url: &Url, dir: &Path) -> Result<RoaringTreemap> {
        let rows = self
            .0
            .read(engine.storage_handler(), url)
            .map_err(|e| kernel_error("read a deletion vector of", dir, e))?;
        if u64::try_from(self.0.cardinality) != Ok(rows.len()) {
            return Err(durable::corrupt(
                dir,
                format!(
                    "a deletion vector holds {} rows where the log says {}",
                    rows.len(),
                    self.0.cardinality
                ),
            ));
        }
        Ok(rows)
    }
}

/// Deleted rows in the kernel's writer, run-compressed.
struct Rows(RoaringTreemap);

impl DeletionVector for Rows {
    type IndexIterator = roaring::treemap::IntoIter;

    fn into_iter(self) -> Self::IndexIterator {
        self.0.into_iter()
    }

    fn cardinality(&self) -> u64 {
        self.0.len()
    }

    fn serialize(mut self) -> KernelResult<Bytes> {
        self.0.optimize();
        let mut bytes = Vec::with_capacity(self.0.serialized_size());
        self.0
            .serialize_into(&mut bytes)
            .map_err(|e| KernelError::generic(e.to_string()))?;
        Ok(bytes.into())
    }
}

/// A deletion vector's bytes as they stand in a file, for benchmarks.
pub(crate) fn serialized(deleted: RoaringTreemap) -> Result<Bytes> {
    let bytes = Rows(deleted).serialize();
    bytes.map_err(|e| Error::bug("a deletion vector cannot be serialised").with_source(e))
}

/// Writes all of `deleted` into one new file of the table; returns their descriptors in order.
/// The caller syncs the directory.
pub(super) fn write_deletion_vectors<'a>(
    deleted: impl Iterator<Item = &'a RoaringTreemap>,
    context: &BoundWriteContext,
    dir: &Path,
    fsync: bool,
) -> Result<Vec<Descriptor>> {
    let failed = |e| kernel_error("write deletion vectors of", dir, e);
    let vector_path = context.new_deletion_vector_path(String::new());
    let mut bytes = Vec::new();
    let mut descriptors = Vec::new();
    let mut writer = StreamingDeletionVectorWriter::new(&mut bytes);
    for rows in deleted {
        let written = writer
            .write_deletion_vector(Rows(rows.clone()))
            .map_err(failed)?;
        descriptors.push(Descriptor(written.to_descriptor(&vector_path)));
    }
    writer.finalize().map_err(failed)?;
    if descriptors.is_empty() {
        return Ok(descriptors);
    }
    let path = vector_path
        .absolute_path()
        .map_err(failed)?
        .to_file_path()
        .map_err(|()| Error::bug("a deletion vector outside the file system"))?;
    durable::write_new(&path, &bytes, fsync)?;
    failpoint::hit("commit.data_written");
    Ok(descriptors)
}
