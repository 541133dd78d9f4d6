//! Copy on write: files of which rows were deleted are written anew without them, within the commit that
//! deletes them. No reader needs to know deletion vectors then.
//!
//! Each commit costs as much as the files that it touches, so such a table [commits now and then](super::pace).

use alluvium_change::{Error, Lsn, Result, code};

use super::Silver;
use super::index::Index;
use super::segments::{Origin, Segment, file_name};
use crate::MergeMode;
use crate::key_index::SegmentId;
use crate::maintain::{CompactionJob, Input, Output};

/// Files of such a table are this small, as each is written again for one deleted row.
const FILE_BYTES: u64 = 32 << 20;
/// By which a table says that it may have deletion vectors.
pub(super) const VECTORS_PROPERTY: &str = "delta.enableDeletionVectors";

impl Silver {
    /// Copies on write: before a commit, when all files are closed.
    pub(super) fn rewrite_thinned(&mut self) -> Result<()> {
        let mut files: Vec<(SegmentId, Option<Lsn>, u64)> = Vec::new();
        for (id, segment) in self.segments.thinned() {
            files.push((id, segment.snapshot(), live_bytes(segment)));
        }
        // Of one snapshot each, as the name of the new file says.
        files.sort_unstable_by_key(|(id, snapshot, _)| (*snapshot, *id));
        while let Some((first, snapshot, mut bytes)) = files.first().copied() {
            let mut together = vec![first];
            for (id, other, more) in files.iter().skip(1) {
                if *other != snapshot || bytes + more > self.lake.target_file_bytes {
                    break;
                }
                bytes += more;
                together.push(*id);
            }
            files.drain(..together.len());
            self.rewrite_as_one(&together, snapshot)?;
        }
        Ok(())
    }

    fn rewrite_as_one(&mut self, ids: &[SegmentId], snapshot: Option<Lsn>) -> Result<()> {
        let inputs: Vec<Input> = ids
            .iter()
            .filter_map(|id| Some((*id, self.segments.get(*id)?)))
            .map(|(id, segment)| Input::of(id, &segment.file, &segment.deleted))
            .collect();
        let segment = self.segments.reserve()?;
        // Which snapshot rows are of must be known longer than that they are sorted.
        let clustering = match snapshot {
            Some(_) => None,
            None => self.clustering()?,
        };
        let origin = snapshot.map_or_else(|| Origin::of(clustering.as_ref()), Origin::Copy);
        let output = Output {
            dir: self.dir.clone(),
            name: file_name(origin),
            segment,
            columns: self.columns.clone(),
            clustering,
            ticket: self.ticket,
        };
        let written = CompactionJob::new(inputs, output, &self.lake).run(&|_| true)?;
        let mut written = written.ok_or_else(|| Error::bug("a file was given up"))?;
        let segments = &self.segments;
        let (moves, _) =
            written.moves(|input| segments.get(input.segment).map(|s| s.deleted.as_ref()));
        let file = written.take_file()?;
        self.segments.rewrite(&self.dir, ids, segment, file, origin);
        match &mut self.index {
            Index::Keyed(index) => index.moved(moves),
            Index::Rows(index) => index.moved(moves),
            Index::None => {}
        }
        Ok(())
    }

    /// A table keeps to the mode in which it was made.
    pub(super) fn check_mode(&self) -> Result<()> {
        let properties = self.table.properties();
        let has_vectors = properties.get(VECTORS_PROPERTY).map(String::as_str) == Some("true");
        let wants_vectors = self.settings.merge_mode == MergeMode::DeletionVectors;
        if has_vectors == wants_vectors {
            return Ok(());
        }
        let (is, dir) = (
            if has_vectors { "with" } else { "without" },
            self.dir.display(),
        );
        Err(Error::new(
            &code::CONFIG_VALUE,
            format!("merge_mode of table \"{}\" was changed", self.owner.table),
        )
        .with_detail(format!("\"{dir}\" was made {is} deletion vectors"))
        .with_hint(format!(
            "move \"{dir}\" away: the next run copies the table again, in the new mode"
        )))
    }
}

/// What its live rows take, about.
fn live_bytes(segment: &Segment) -> u64 {
    let bytes = u128::try_from(segment.file.size_bytes).unwrap_or_default();
    let share = bytes * u128::from(segment.live_rows()) / u128::from(segment.file.num_rows.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// Size at which files are closed.
pub(super) fn target_file_bytes(mode: MergeMode, target_bytes: u64) -> u64 {
    match mode {
        MergeMode::DeletionVectors => target_bytes,
        MergeMode::CopyOnWrite { .. } => target_bytes.min(FILE_BYTES),
    }
}
