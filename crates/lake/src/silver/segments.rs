//! The registry of data files: what is live, what is staged, which rows are deleted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use alluvium_change::{Error, Lsn, Result};
use roaring::RoaringTreemap;

use crate::fs as durable;
use crate::key_index::{Location, ManifestSegment, SegmentId};
use crate::log::{DeletedRows, Descriptor, LiveFile, NewFile};
use crate::maintain::Clustering;
use crate::write::loosen_bounds;

/// A data file, by the number the index knows it under.
#[derive(Debug)]
pub(super) struct Segment {
    /// Of a staged file, as it will be in the log.
    pub(super) file: LiveFile,
    /// In a commit; otherwise written since the last.
    pub(super) committed: bool,
    pub(super) origin: Origin,
    /// Shared with views: copied when it changes while one is held.
    pub(super) deleted: Arc<RoaringTreemap>,
    /// Rows were deleted since the last commit.
    dirty: bool,
}

/// All files of the table but those still open.
#[derive(Debug, Default)]
pub(super) struct Segments {
    by_id: BTreeMap<SegmentId, Segment>,
    /// Committed files that the next commit removes.
    removed: Vec<LiveFile>,
    /// Live rows of those that are in new files now.
    copied_rows: u64,
    next_id: SegmentId,
}

/// What the next commit does to files.
pub(super) struct Changes<'a> {
    pub(super) adds: Vec<NewFile>,
    pub(super) deletes: Vec<DeletedRows<'a>>,
    pub(super) removes: Vec<&'a LiveFile>,
    pub(super) copied_rows: u64,
}

const COPY_PREFIX: &str = "copy-";
const SORTED_PREFIX: &str = "sorted-";

/// What is special about the rows of a data file. It is in its name, so that it survives restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Changes,
    /// Copied under this snapshot.
    Copy(Lsn),
    /// Written anew in an order of this [tag](Clustering::tag).
    Sorted(u32),
}

impl From<Option<Lsn>> for Origin {
    /// Of changes, or of rows that were copied under a snapshot.
    fn from(snapshot: Option<Lsn>) -> Self {
        snapshot.map_or(Self::Changes, Self::Copy)
    }
}

impl Origin {
    /// Of rows that are written anew in this order.
    pub(crate) fn of(clustering: Option<&Arc<Clustering>>) -> Self {
        clustering.map_or(Self::Changes, |by| Self::Sorted(by.tag()))
    }

    pub(super) fn of_name(name: &str) -> Self {
        let hex = |prefix: &str, digits: usize| {
            let hex = name.strip_prefix(prefix)?.get(..digits)?;
            u64::from_str_radix(hex, 16).ok()
        };
        if let Some(lsn) = hex(COPY_PREFIX, 16) {
            return Self::Copy(Lsn(lsn));
        }
        let tag = hex(SORTED_PREFIX, 8).and_then(|tag| u32::try_from(tag).ok());
        tag.map_or(Self::Changes, Self::Sorted)
    }
}

/// A name for a new data file.
pub(crate) fn file_name(origin: Origin) -> String {
    let id = durable::new_uuid();
    match origin {
        Origin::Changes => format!("part-{id}.parquet"),
        Origin::Copy(snapshot) => format!("{COPY_PREFIX}{:016x}-{id}.parquet", snapshot.0),
        Origin::Sorted(tag) => format!("{SORTED_PREFIX}{tag:08x}-{id}.parquet"),
    }
}

/// Whether a table whose files are to be in this order has one that is not.
pub(crate) fn is_unsorted(name: &str, clustering: Option<&Arc<Clustering>>) -> bool {
    clustering.is_some() && Origin::of_name(name) != Origin::of(clustering)
}

impl Segment {
    /// The snapshot its rows were copied under; none when changes wrote them.
    pub(super) fn snapshot(&self) -> Option<Lsn> {
        match self.origin {
            Origin::Copy(snapshot) => Some(snapshot),
            Origin::Changes | Origin::Sorted(_) => None,
        }
    }

    /// What names its deleted rows in the log; empty when there are none.
    pub(super) fn deletion_vector(&self) -> String {
        let descriptor = self.file.deletion_vector.as_ref();
        descriptor.map(Descriptor::identity).unwrap_or_default()
    }

    /// Whether it lost rows of the last commit.
    pub(super) fn is_thinned(&self) -> bool {
        self.committed && self.dirty
    }

    pub(super) fn live_rows(&self) -> u64 {
        self.file.num_rows.saturating_sub(self.deleted.len())
    }
}

impl Segments {
    /// A number for a new file.
    pub(super) fn reserve(&mut self) -> Result<SegmentId> {
        let id = self.next_id;
        self.next_id = id
            .checked_add(1)
            .ok_or_else(|| Error::bug("more than 2^32 data files in one run"))?;
        Ok(id)
    }

    /// Lower numbers are in use, or were.
    pub(super) fn number_from(&mut self, id: SegmentId) {
        self.next_id = self.next_id.max(id);
    }

    pub(super) fn next_id(&self) -> SegmentId {
        self.next_id
    }

    /// The committed files, for a saved index.
    pub(super) fn for_manifest(&self) -> Vec<ManifestSegment> {
        let committed = self.iter().filter(|(_, segment)| segment.committed);
        committed
            .map(|(id, segment)| ManifestSegment {
                id,
                path: segment.file.path.clone(),
                size_bytes: segment.file.size_bytes,
                num_rows: segment.file.num_rows,
                deletion_vector: segment.deletion_vector(),
            })
            .collect()
    }

    pub(super) fn insert_live(&mut self, id: SegmentId, file: LiveFile, deleted: RoaringTreemap) {
        let origin = Origin::of_name(&file.path);
        let segment = Segment {
            file,
            committed: true,
            origin,
            deleted: Arc::new(deleted),
            dirty: false,
        };
        self.by_id.insert(id, segment);
    }

    /// A file that was just closed, with the rows of it that are deleted already.
    pub(super) fn insert_staged(
        &mut self,
        id: SegmentId,
        file: NewFile,
        deleted: RoaringTreemap,
        origin: Origin,
    ) {
        let segment = Segment {
            file: file.into_live(None),
            committed: false,
            origin,
            deleted: Arc::new(deleted),
            dirty: false,
        };
        self.by_id.insert(id, segment);
    }

    pub(super) fn get(&self, id: SegmentId) -> Option<&Segment> {
        self.by_id.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SegmentId, &Segment)> {
        self.by_id.iter().map(|(id, segment)| (*id, segment))
    }

    pub(super) fn live_rows(&self) -> u64 {
        self.by_id.values().map(Segment::live_rows).sum()
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.removed.is_empty() || self.by_id.values().any(|s| s.dirty || !s.committed)
    }

    /// Whether the next commit deletes rows, adds files or removes files with deletion vectors.
    pub(super) fn touches_vectors(&self) -> bool {
        let is_new = |segment: &Segment| !segment.committed && !segment.deleted.is_empty();
        let mut all = self.by_id.values();
        all.any(|segment| segment.is_thinned() || is_new(segment))
            || self
                .removed
                .iter()
                .any(|file| file.deletion_vector.is_some())
    }

    /// Committed files that the next commit removes, with all their rows.
    pub(super) fn removed(&self) -> &[LiveFile] {
        &self.removed
    }

    /// Marks a row deleted.
    pub(super) fn delete(&mut self, location: Location) -> Result<()> {
        let segment = self
            .by_id
            .get_mut(&location.segment)
            .ok_or_else(|| Error::bug("the key index names a file that is not live"))?;
        if u64::from(location.row) >= segment.file.num_rows {
            return Err(Error::bug(
                "the key index names a row beyond its file's end",
            ));
        }
        if !Arc::make_mut(&mut segment.deleted).insert(u64::from(location.row)) {
            return Err(Error::bug("the key index names a row that is deleted"));
        }
        segment.dirty = true;
        Ok(())
    }

    /// Takes away the files that do not pass.
    pub(super) fn retain(&mut self, dir: &Path, keep: impl Fn(&Segment) -> bool) {
        let gone: Vec<SegmentId> = self
            .iter()
            .filter(|(_, segment)| !keep(segment))
            .map(|(id, _)| id)
            .collect();
        for id in gone {
            if let Some(segment) = self.by_id.remove(&id) {
                if segment.committed {
                    self.removed.push(segment.file);
                } else {
                    durable::discard(&dir.join(&segment.file.path));
                }
            }
        }
    }

    /// What the next commit does. A file none of whose rows is left is removed, or never added.
    pub(super) fn changes(&self) -> Changes<'_> {
        let mut changes = Changes {
            adds: Vec::new(),
            deletes: Vec::new(),
            removes: self.removed.iter().collect(),
            copied_rows: self.copied_rows,
        };
        for segment in self.by_id.values() {
            let empty = segment.live_rows() == 0;
            if segment.committed {
                if segment.dirty && empty {
                    changes.removes.push(&segment.file);
                } else if segment.dirty {
                    changes.deletes.push(DeletedRows {
                        file: &segment.file,
                        rows: &segment.deleted,
                    });
                }
            } else if !empty {
                changes.adds.push(segment.to_add());
            }
        }
        changes
    }

    /// The changes were committed; descriptors come in the order of [`Self::changes`].
    pub(super) fn committed(
        &mut self,
        dir: &Path,
        adds: &[Option<Descriptor>],
        deletes: &[Descriptor],
    ) -> Result<()> {
        let missing = || Error::bug("a commit returned too few deletion vectors");
        let (mut adds, mut deletes) = (adds.iter(), deletes.iter());
        for segment in self.by_id.values_mut() {
            if segment.live_rows() == 0 {
                continue;
            }
            if !segment.committed {
                segment
                    .file
                    .deletion_vector
                    .clone_from(adds.next().ok_or_else(missing)?);
                segment.committed = true;
            } else if segment.dirty {
                segment.file.deletion_vector = Some(deletes.next().ok_or_else(missing)?.clone());
            }
            if segment.file.deletion_vector.is_some() {
                segment.file.stats = loosen_bounds(&segment.file.stats);
            }
            segment.dirty = false;
        }
        self.by_id.retain(|_, segment| {
            let keep = segment.live_rows() > 0;
            if !keep && !segment.committed {
                durable::discard(&dir.join(&segment.file.path));
            }
            keep
        });
        self.removed.clear();
        self.copied_rows = 0;
        Ok(())
    }
}

impl Segments {
    /// Files with deleted rows that no commit knows of, and others.
    pub(super) fn thinned(&self) -> impl Iterator<Item = (SegmentId, &Segment)> {
        self.iter().filter(|(_, segment)| {
            let is_new = segment.dirty || !segment.committed;
            is_new && !segment.deleted.is_empty() && segment.live_rows() > 0
        })
    }

    /// A file that was just written, with the live rows of others, stands in their place.
    pub(super) fn rewrite(
        &mut self,
        dir: &Path,
        inputs: &[SegmentId],
        id: SegmentId,
        file: NewFile,
        origin: Origin,
    ) {
        for segment in inputs.iter().filter_map(|input| self.by_id.remove(input)) {
            if segment.committed {
                self.copied_rows += segment.live_rows();
                self.removed.push(segment.file);
            } else {
                durable::discard(&dir.join(&segment.file.path));
            }
        }
        self.insert_staged(id, file, RoaringTreemap::new(), origin);
    }

    /// Every committed file was replaced by one with the same rows in the same places, in the order
    /// of [`Self::committed_files`].
    pub(super) fn rewritten(
        &mut self,
        adds: Vec<NewFile>,
        descriptors: Vec<Option<Descriptor>>,
    ) -> Result<()> {
        let missing = || Error::bug("a rewritten file is missing");
        let mut replacements = adds.into_iter().zip(descriptors);
        for segment in self.by_id.values_mut().filter(|segment| segment.committed) {
            let (file, deletion_vector) = replacements.next().ok_or_else(missing)?;
            segment.file = file.into_live(deletion_vector);
        }
        Ok(())
    }

    /// One committed file came in the place of others.
    pub(super) fn replace(
        &mut self,
        inputs: &[SegmentId],
        id: SegmentId,
        file: LiveFile,
        deleted: RoaringTreemap,
    ) {
        for input in inputs {
            self.by_id.remove(input);
        }
        self.insert_live(id, file, deleted);
    }

    /// Files that no commit names.
    pub(super) fn remove_staged_files(&self, dir: &Path) {
        for segment in self.by_id.values().filter(|segment| !segment.committed) {
            durable::discard(&dir.join(&segment.file.path));
        }
    }
}

impl Segment {
    /// The file as a commit adds it, deleted rows and all.
    pub(super) fn to_add(&self) -> NewFile {
        let any_deleted = !self.deleted.is_empty();
        NewFile {
            path: self.file.path.clone(),
            size_bytes: self.file.size_bytes,
            modified_ms: self.file.modified_ms,
            stats: if any_deleted {
                loosen_bounds(&self.file.stats)
            } else {
                self.file.stats.clone()
            },
            num_rows: self.file.num_rows,
            deleted: any_deleted.then(|| (*self.deleted).clone()),
        }
    }
}
