//! Doors to pure parts for `bench/harness`, and for nothing else: no promise, no use in the product.

use std::path::Path;

use alluvium_change::{ChangeBatch, Error, Identity, Lsn, Op, Result};
use arrow::array::{ArrayRef, RecordBatch};
use roaring::RoaringTreemap;

use crate::LakeSettings;
use crate::key_index::{Key, KeyEncoder, KeyWidth, Location, ShardedIndex};
use crate::log::serialized;
use crate::merge::{Action, Before, Event, Misfit, plan_keyed};
use crate::write::DataFileWriter;

/// A key index of 8-byte keys.
#[derive(Debug)]
pub struct Index(ShardedIndex);

impl Default for Index {
    fn default() -> Self {
        Self(ShardedIndex::new(KeyWidth::Narrow))
    }
}

impl Before for Index {
    fn find(&self, key: Key) -> Option<Location> {
        self.0.get(key)
    }

    fn snapshot_of(&self, _: Location) -> Option<Lsn> {
        None
    }
}

impl Index {
    /// Enters or moves a key.
    pub fn insert(&mut self, key: u64, row: u32) {
        self.0.insert(Key::from(key), Location { segment: 1, row });
    }

    #[must_use]
    pub fn contains(&self, key: u64) -> bool {
        self.0.get(Key::from(key)).is_some()
    }

    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.0.memory_bytes()
    }

    /// Plans a batch without truncates and key changes; returns how many rows it writes and takes
    /// away.
    ///
    /// # Errors
    /// A change that does not fit the index.
    pub fn plan(&self, batch: &ChangeBatch) -> Result<(usize, usize)> {
        let Identity::Key(key) = &batch.table.identity else {
            return Err(Error::bug("the table has no key"));
        };
        let columns: Vec<ArrayRef> = key
            .iter()
            .filter_map(|place| batch.rows.columns().get(*place).cloned())
            .collect();
        let mut encoder = KeyEncoder::of_key(&columns)?;
        let events: Vec<Event> = (0_u32..)
            .zip(batch.ops.iter().zip(&batch.commit_lsn))
            .map(|(row, (op, commit_lsn))| Event {
                action: match op {
                    Op::Delete => Action::Delete,
                    Op::Update => Action::Update,
                    _ => Action::Insert,
                },
                row,
                commit_lsn: *commit_lsn,
                key: encoder.key(row as usize),
                old_key: None,
            })
            .collect();
        let plan = plan_keyed(batch, &events, self, Lsn::ZERO, Misfit::Refuse)
            .map_err(|refusal| Error::bug(format!("a benchmark's change: {refusal:?}")))?;
        Ok((plan.rows.len(), plan.dead.len()))
    }
}

/// Builds a deletion vector and returns its bytes.
///
/// # Errors
/// The vector cannot be serialised.
pub fn deletion_vector_bytes(rows: &[u32]) -> Result<usize> {
    let mut deleted = RoaringTreemap::new();
    for row in rows {
        deleted.insert(u64::from(*row));
    }
    Ok(serialized(deleted)?.len())
}

/// Writes one data file as silver does; returns its bytes.
///
/// # Errors
/// The file cannot be written.
pub fn write_data_file(
    dir: &Path,
    name: &str,
    rows: &[RecordBatch],
    settings: &LakeSettings,
) -> Result<i64> {
    let Some(first) = rows.first() else {
        return Ok(0);
    };
    let mut writer = DataFileWriter::create(dir, name.to_owned(), &first.schema(), settings)?;
    for batch in rows {
        writer.write(batch)?;
    }
    Ok(writer.finish()?.size_bytes)
}
