//! Reading changes back in the order of the source.
//!
//! Files are in order within, and mostly one after the other; where their ranges overlap they are
//! merged, with one batch of each in memory.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alluvium_change::{ChangeBatch, Lsn, Result, TableSchema};
use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int64Type, TimeUnit, TimestampMicrosecondType};

use super::columns::Columns;
use super::decode::{Rows, changes, pick};
use crate::log::LiveFile;
use crate::write::{FileReader, open_file, parse_bounds};

const FILE_BATCH_ROWS: usize = 8192;

/// Changes of a bronze table after a position.
pub struct ChangeReader {
    columns: Columns,
    table: Arc<TableSchema>,
    after: u64,
    max_rows: usize,
    /// By lowest LSN.
    waiting: VecDeque<Waiting>,
    open: Vec<OpenFile>,
    failed: bool,
}

struct Waiting {
    path: PathBuf,
    lowest_lsn: u64,
}

/// A file at its next change.
struct OpenFile {
    path: PathBuf,
    reader: FileReader,
    rows: Rows,
    at: usize,
}

type Place = (u64, u64);

/// The lowest and the highest commit LSN of a file's changes; None when all of its rows were copied.
pub(super) fn lsns_of(file: &LiveFile, columns: &Columns) -> Option<(u64, u64)> {
    let bounds = parse_bounds(
        &file.stats,
        &[
            (&columns.commit_lsn, &DataType::Int64),
            (&columns.xid, &DataType::Int64),
        ],
    );
    let [lsn, xid] = bounds.as_slice() else {
        return None;
    };
    if xid.null_count == Some(file.num_rows) {
        return None;
    }
    let value = |bound: &Option<arrow::array::ArrayRef>| {
        let value = bound.as_ref()?.as_primitive_opt::<Int64Type>()?.value(0);
        u64::try_from(value).ok()
    };
    let lowest = value(&lsn.min).unwrap_or_default();
    Some((lowest, value(&lsn.max).unwrap_or(u64::MAX)))
}

/// The highest commit LSN of a file's rows, copied ones included, and their latest time, in microseconds
/// since 1970; None where that is not known.
pub(super) fn newest_of(file: &LiveFile, columns: &Columns) -> Option<(u64, i64)> {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let bounds = parse_bounds(
        &file.stats,
        &[
            (&columns.commit_lsn, &DataType::Int64),
            (&columns.commit_time, &time),
        ],
    );
    let [lsn, time] = bounds.as_slice() else {
        return None;
    };
    let lsn = lsn.max.as_ref()?.as_primitive_opt::<Int64Type>()?.value(0);
    let time = time.max.as_ref()?;
    let time = time
        .as_primitive_opt::<TimestampMicrosecondType>()?
        .value(0);
    Some((u64::try_from(lsn).ok()?, time))
}

impl ChangeReader {
    pub(super) fn new(
        dir: &Path,
        files: &[LiveFile],
        columns: &Columns,
        table: &Arc<TableSchema>,
        after: Lsn,
        max_rows: usize,
    ) -> Result<Self> {
        let mut waiting = Vec::new();
        for file in files {
            let Some((lowest_lsn, highest)) = lsns_of(file, columns) else {
                continue;
            };
            if highest > after.0 {
                waiting.push(Waiting {
                    path: dir.join(&file.path),
                    lowest_lsn,
                });
            }
        }
        // A stable sort: of files that begin with the same transaction the earlier commit's is
        // first.
        waiting.sort_by_key(|file| file.lowest_lsn);
        Ok(Self {
            columns: columns.clone(),
            table: Arc::clone(table),
            after: after.0,
            max_rows,
            waiting: waiting.into(),
            open: Vec::new(),
            failed: false,
        })
    }

    /// Opens every file that may hold the next change.
    fn open_due(&mut self) -> Result<()> {
        while let Some(next) = self.waiting.front() {
            let due = self
                .next_place()
                .is_none_or(|(lsn, _)| next.lowest_lsn <= lsn);
            if !due {
                break;
            }
            let Some(next) = self.waiting.pop_front() else {
                break;
            };
            let mut reader = open_file(&next.path, &self.columns.schema, FILE_BATCH_ROWS, None)?;
            let Some(batch) = reader.next() else { continue };
            let rows = Rows::new(batch?, &self.columns, &next.path)?;
            let mut file = OpenFile {
                path: next.path,
                reader,
                rows,
                at: 0,
            };
            if file.settle(self.after, &self.columns)? {
                self.open.push(file);
            }
        }
        Ok(())
    }

    fn next_place(&self) -> Option<Place> {
        self.open.iter().filter_map(OpenFile::place).min()
    }

    fn read(&mut self) -> Result<Option<ChangeBatch>> {
        let mut runs = Vec::new();
        let mut total = 0;
        while total < self.max_rows {
            self.open_due()?;
            let first = self
                .open
                .iter()
                .enumerate()
                .min_by_key(|(_, file)| file.place());
            let Some(at) = first.map(|(at, _)| at) else {
                break;
            };
            // Up to where another file comes first, open or not.
            let others = self
                .open
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != at);
            let limit = others
                .filter_map(|(_, file)| file.place())
                .chain(self.waiting.front().map(|next| (next.lowest_lsn, 0)))
                .min();
            let Some(file) = self.open.get_mut(at) else {
                break;
            };
            let picked = file.run(self.after, limit, self.max_rows - total);
            total += picked.len();
            if !picked.is_empty() {
                runs.push(pick(&file.rows, &picked)?);
            }
            if !file.settle(self.after, &self.columns)? {
                self.open.swap_remove(at);
            }
        }
        if runs.is_empty() {
            return Ok(None);
        }
        changes(&runs, &self.columns, &self.table).map(Some)
    }
}

impl OpenFile {
    fn place(&self) -> Option<Place> {
        self.rows.order.get(self.at).copied().flatten()
    }

    /// Moves to the next change of the stream after `after`; false at the end of the file.
    fn settle(&mut self, after: u64, columns: &Columns) -> Result<bool> {
        loop {
            while let Some(place) = self.rows.order.get(self.at) {
                if place.is_some_and(|(lsn, _)| lsn > after) {
                    return Ok(true);
                }
                self.at += 1;
            }
            let Some(batch) = self.reader.next() else {
                return Ok(false);
            };
            self.rows = Rows::new(batch?, columns, &self.path)?;
            self.at = 0;
        }
    }

    /// Takes changes up to `limit`, at least one, at most `max_rows`.
    fn run(&mut self, after: u64, limit: Option<Place>, max_rows: usize) -> Vec<u32> {
        let mut picked = Vec::new();
        while let Some(place) = self.rows.order.get(self.at) {
            if let Some(place) = place.filter(|(lsn, _)| *lsn > after) {
                let beyond = limit.is_some_and(|limit| place > limit) && !picked.is_empty();
                if beyond || picked.len() == max_rows {
                    break;
                }
                picked.extend(u32::try_from(self.at));
            }
            self.at += 1;
        }
        picked
    }
}

impl Iterator for ChangeReader {
    type Item = Result<ChangeBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.read().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}
