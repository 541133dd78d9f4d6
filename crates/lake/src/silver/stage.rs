//! Data files being written: rows go in, places come out.
//!
//! A file stays open over many batches, so that a large transaction makes few files; its rows have
//! their places at once, but can be read only when it is closed.

use std::path::PathBuf;

use alluvium_change::{Error, Lsn, Result};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use roaring::RoaringTreemap;

use super::segments::{Origin, Segments, file_name};
use crate::LakeSettings;
use crate::key_index::{Location, SegmentId};
use crate::write::{DataFileWriter, EncodedRows};

/// Rows of the table: as columns, or encoded already.
pub(super) enum Rows<'a> {
    Plain(RecordBatch),
    Encoded(Vec<&'a EncodedRows>),
}

impl Rows<'_> {
    fn num_rows(&self) -> usize {
        match self {
            Self::Plain(rows) => rows.num_rows(),
            Self::Encoded(sources) => sources.first().map_or(0, |source| source.num_rows()),
        }
    }
}

struct OpenFile {
    id: SegmentId,
    writer: DataFileWriter,
    /// Rows deleted while it is open.
    deleted: RoaringTreemap,
    snapshot: Option<Lsn>,
}

/// The files of one table that are open: at most one of changes and one of copied rows.
pub(super) struct Stage {
    dir: PathBuf,
    settings: LakeSettings,
    changes: Option<OpenFile>,
    copied: Option<OpenFile>,
}

impl Stage {
    pub(super) fn new(dir: PathBuf, settings: LakeSettings) -> Self {
        Self {
            dir,
            settings,
            changes: None,
            copied: None,
        }
    }

    pub(super) fn has_open(&self) -> bool {
        self.changes.is_some() || self.copied.is_some()
    }

    fn open(&self) -> impl Iterator<Item = &OpenFile> {
        self.changes.iter().chain(&self.copied)
    }

    /// Of open files.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.open().map(|file| file.writer.name().to_owned())
    }

    /// Live rows of open files.
    pub(super) fn open_rows(&self) -> u64 {
        self.open()
            .map(|file| file.writer.num_rows().saturating_sub(file.deleted.len()))
            .sum()
    }

    pub(super) fn is_open(&self, id: SegmentId) -> bool {
        self.open().any(|file| file.id == id)
    }

    /// The snapshot of a row in an open file.
    pub(super) fn snapshot_of(&self, id: SegmentId) -> Option<Lsn> {
        self.open().find(|file| file.id == id)?.snapshot
    }

    /// Deleted rows of an open file.
    pub(super) fn deleted_of(&self, id: SegmentId) -> Option<&RoaringTreemap> {
        self.open()
            .find(|file| file.id == id)
            .map(|file| &file.deleted)
    }

    /// Whether a row of an open file is deleted already.
    pub(super) fn is_deleted(&self, location: Location) -> bool {
        self.open().any(|file| {
            file.id == location.segment && file.deleted.contains(u64::from(location.row))
        })
    }

    /// Deletes a row, if it is in an open file.
    pub(super) fn delete(&mut self, location: Location) -> Result<bool> {
        let open = [&mut self.changes, &mut self.copied]
            .into_iter()
            .flatten()
            .find(|file| file.id == location.segment);
        let Some(file) = open else { return Ok(false) };
        if file.deleted.insert(u64::from(location.row)) {
            Ok(true)
        } else {
            Err(Error::bug("the key index names a row that is deleted"))
        }
    }

    /// Writes rows; returns the place of the first. They go into one file, one after the other.
    pub(super) fn write(
        &mut self,
        rows: &Rows<'_>,
        schema: &SchemaRef,
        snapshot: Option<Lsn>,
        segments: &mut Segments,
    ) -> Result<Location> {
        let file = self.room_for(rows.num_rows(), schema, snapshot, segments)?;
        let row = u32::try_from(file.writer.num_rows())
            .map_err(|_| Error::bug("a data file of more than 2^32 rows"))?;
        let first = Location {
            segment: file.id,
            row,
        };
        match rows {
            Rows::Plain(rows) => file.writer.write(rows)?,
            Rows::Encoded(sources) => file.writer.append(sources)?,
        }
        Ok(first)
    }

    /// The file that the next rows go into.
    fn room_for(
        &mut self,
        rows: usize,
        schema: &SchemaRef,
        snapshot: Option<Lsn>,
        segments: &mut Segments,
    ) -> Result<&mut OpenFile> {
        let slot = if snapshot.is_some() {
            &mut self.copied
        } else {
            &mut self.changes
        };
        let outgrown = slot.as_ref().is_some_and(|file| {
            file.snapshot != snapshot
                || file.writer.size_bytes() >= self.settings.target_file_bytes
                // Places are 32 bits wide.
                || file.writer.num_rows() + rows as u64 >= u64::from(u32::MAX)
        });
        if outgrown && let Some(file) = slot.take() {
            close(file, segments)?;
        }
        Ok(match slot {
            Some(file) => file,
            None => {
                let name = file_name(Origin::from(snapshot));
                let writer = DataFileWriter::create(&self.dir, name, schema, &self.settings)?;
                let id = segments.reserve()?;
                slot.insert(OpenFile {
                    id,
                    writer,
                    deleted: RoaringTreemap::new(),
                    snapshot,
                })
            }
        })
    }

    /// Closes the file, so that its rows can be read.
    pub(super) fn close(&mut self, id: SegmentId, segments: &mut Segments) -> Result<()> {
        for slot in [&mut self.changes, &mut self.copied] {
            if slot.as_ref().is_some_and(|file| file.id == id)
                && let Some(file) = slot.take()
            {
                close(file, segments)?;
            }
        }
        Ok(())
    }

    pub(super) fn close_all(&mut self, segments: &mut Segments) -> Result<()> {
        for slot in [&mut self.changes, &mut self.copied] {
            if let Some(file) = slot.take() {
                close(file, segments)?;
            }
        }
        Ok(())
    }

    /// Drops the file of changes with all its rows, and that of copied rows unless `keep` wants it.
    pub(super) fn discard(&mut self, keep: impl Fn(Option<Lsn>) -> bool) {
        for slot in [&mut self.changes, &mut self.copied] {
            if slot.as_ref().is_some_and(|file| !keep(file.snapshot)) {
                *slot = None;
            }
        }
    }
}

fn close(file: OpenFile, segments: &mut Segments) -> Result<()> {
    let OpenFile {
        id,
        writer,
        deleted,
        snapshot,
    } = file;
    let written = writer.finish()?;
    segments.insert_staged(id, written, deleted, snapshot.into());
    Ok(())
}
