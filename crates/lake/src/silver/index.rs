//! The table's index of rows: read back or rebuilt at open, saved at commits and at the end.

use std::cell::RefCell;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use alluvium_change::{Error, Identity, Result, TableSchema, failpoint};
use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema, SchemaRef};

use super::Silver;
use super::segments::Segment;
use crate::fs::corrupt;
use crate::key_index::{
    Committed, Covered, Home, IndexBudget, Key, KeyEncoder, KeyWidth, KeyedIndex, Location,
    Manifest, Place, Rebuild, RowIndex, SegmentId, Stand, doubt, forget, in_parallel, lock,
    read_manifest,
};
use crate::log::DeltaTable;
use crate::write::{open_file, read_rows};
use crate::{IndexSettings, Lake};

const INDEX_BATCH_ROWS: usize = 32_768;
/// Files and rows of each whose keys are compared with an index that was read back.
const CHECKED_FILES: usize = 8;
const CHECKED_ROWS: u64 = 32;

/// Where rows are, by how they are told apart.
pub(super) enum Index {
    Keyed(Box<KeyedIndex>),
    Rows(RowIndex),
    /// Append-only: nothing is ever looked up.
    None,
}

/// Where indexes of the table may be.
pub(super) struct Places {
    settings: IndexSettings,
    budget: Arc<IndexBudget>,
    home: Option<Home>,
}

impl Places {
    pub(super) fn new(lake: &Lake, name: &str) -> Self {
        let settings = lake.settings().index.clone();
        let home = settings
            .dir
            .as_ref()
            .map(|dir| Home::new(dir.join(name), lake.settings().fsync));
        Self {
            settings,
            budget: Arc::clone(lake.index_budget()),
            home,
        }
    }

    /// Saves indexes from now on where those of the table `name` are.
    pub(super) fn move_to(&self, name: &str) -> Result<()> {
        match (&self.home, &self.settings.dir) {
            (Some(home), Some(dir)) => home.move_to(&dir.join(name)),
            _ => Ok(()),
        }
    }

    fn place(&self, schema: &TableSchema) -> Place {
        Place {
            width: width(schema),
            home: self.home.clone(),
            share: self.budget.join(),
            saved_from_rows: self.settings.saved_from_rows,
            saved_from_changes: self.settings.saved_from_changes,
        }
    }

    /// An index of nothing.
    pub(super) fn new_index(&self, schema: &TableSchema) -> Index {
        match &schema.identity {
            Identity::Key(_) => Index::Keyed(Box::new(KeyedIndex::new(self.place(schema)))),
            Identity::WholeRow => Index::Rows(RowIndex::default()),
            Identity::AppendOnly => Index::None,
        }
    }
}

fn width(schema: &TableSchema) -> KeyWidth {
    let Identity::Key(key) = &schema.identity else {
        return KeyWidth::Hashed;
    };
    let types = key
        .iter()
        .filter_map(|at| schema.columns.get(*at))
        .map(|c| &c.data_type);
    KeyWidth::of(types)
}

/// What a saved index must have been made for.
fn stand(table: &DeltaTable, schema: &TableSchema) -> Stand {
    let key: Vec<(String, String)> = match &schema.identity {
        Identity::Key(key) => key
            .iter()
            .filter_map(|at| schema.columns.get(*at))
            .map(|column| (column.name.clone(), column.data_type.to_string()))
            .collect(),
        _ => Vec::new(),
    };
    Stand {
        table_id: table.id(),
        version: table.version(),
        key: serde_json::json!(key).to_string(),
    }
}

/// Keys asked of an index while a batch is planned. Planning cannot fail halfway: what could not be
/// read is kept, to be looked at when the plan is there.
pub(super) struct Lookups<'a> {
    pub(super) index: &'a KeyedIndex,
    failed: RefCell<Option<Error>>,
}

impl<'a> Lookups<'a> {
    pub(super) fn new(index: &'a KeyedIndex) -> Self {
        Self {
            index,
            failed: RefCell::new(None),
        }
    }

    pub(super) fn find(&self, key: Key) -> Option<Location> {
        match self.index.get(key) {
            Ok(found) => found,
            Err(error) => {
                *self.failed.borrow_mut() = Some(error);
                None
            }
        }
    }

    /// Whether all answers were true.
    pub(super) fn check(self) -> Result<()> {
        self.failed.into_inner().map_or(Ok(()), Err)
    }
}

/// What identifies the rows of a table's files.
struct KeyColumns<'a> {
    dir: &'a Path,
    schema: SchemaRef,
    keyed: bool,
}

type Entries<'a> = &'a [(Key, u64)];

impl KeyColumns<'_> {
    /// Gives keys and places of the files' live rows, from several files at a time.
    fn read(
        &self,
        files: &[(SegmentId, &Segment)],
        take: &(dyn Fn(Entries<'_>) -> Result<()> + Sync),
    ) -> Result<()> {
        let rows = files.iter().map(|(_, segment)| segment.file.num_rows).sum();
        in_parallel(rows, files.len(), &|at| match files.get(at) {
            Some((id, segment)) => self.read_file(*id, segment, take),
            None => Ok(()),
        })
    }

    fn read_file(
        &self,
        id: SegmentId,
        segment: &Segment,
        take: &dyn Fn(Entries<'_>) -> Result<()>,
    ) -> Result<()> {
        let path = self.dir.join(&segment.file.path);
        let mut next_row: u32 = 0;
        let mut keys = Vec::new();
        let mut entries = Vec::new();
        // Both rise: no search for each row.
        let mut deleted = segment.deleted.iter().peekable();
        for batch in open_file(&path, &self.schema, INDEX_BATCH_ROWS, None)? {
            let batch = batch?;
            let mut encoder = if self.keyed {
                KeyEncoder::of_key(batch.columns())?
            } else {
                KeyEncoder::of_row(batch.columns())?
            };
            encoder.keys(batch.num_rows(), &mut keys);
            entries.clear();
            for key in &keys {
                let row = next_row;
                next_row = next_row.saturating_add(1);
                if deleted.next_if_eq(&u64::from(row)).is_none() {
                    entries.push((*key, Location { segment: id, row }.pack()));
                }
            }
            take(&entries)?;
        }
        if u64::from(next_row) != segment.file.num_rows {
            return Err(corrupt(
                &path,
                format!(
                    "it has {next_row} rows where the log says {}",
                    segment.file.num_rows
                ),
            ));
        }
        Ok(())
    }
}

impl Silver {
    /// The index that was saved, if it is of this table and its key.
    pub(super) fn saved_index(&self) -> Option<(Home, Manifest)> {
        let home = self.places.home.as_ref()?;
        if !self.usable || !self.is_keyed() {
            return None;
        }
        let stand = stand(&self.table, &self.schema);
        match read_manifest(home, &stand, width(&self.schema)) {
            Ok(manifest) => Some((home.clone(), manifest)),
            Err(why) => {
                tracing::debug!(table = %self.owner.table, why, "no saved key index");
                None
            }
        }
    }

    /// Reads the index back, or rebuilds it from the files.
    pub(super) fn open_index(&mut self, saved: Option<(Home, Manifest)>) -> Result<()> {
        if let Some((home, manifest)) = saved {
            match self.restore_index(&home, &manifest) {
                Ok(true) => {
                    self.index_read_back = true;
                    return Ok(());
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(
                        table = %self.owner.table,
                        error = %error,
                        detail = error.detail().unwrap_or(""),
                        "the saved key index is of no use"
                    );
                    let _ = forget(&home);
                }
            }
        }
        self.rebuild_index()
    }

    /// False when too little of the table was there when the index was saved.
    fn restore_index(&mut self, home: &Home, manifest: &Manifest) -> Result<bool> {
        let live = self.segments.live_rows();
        let is_covered = |id: SegmentId| id < manifest.next_segment;
        let covered: Vec<Covered<'_>> = self
            .segments
            .iter()
            .filter(|(id, _)| is_covered(*id))
            .map(|(id, segment)| Covered {
                id,
                num_rows: segment.file.num_rows,
                deletion_vector: segment.deletion_vector(),
                deleted: &segment.deleted,
            })
            .collect();
        let covered_live: u64 = covered
            .iter()
            .map(|file| file.num_rows.saturating_sub(file.deleted.len()))
            .sum();
        if covered_live < live / 2 {
            return Ok(false);
        }
        let Some(columns) = self.key_columns() else {
            return Ok(false);
        };
        let place = self.places.place(&self.schema);
        let index = KeyedIndex::restore(place, home, manifest, &covered, live)?;
        let index = Mutex::new(index);
        if failpoint::is_planted("index.not_validated") {
            let index = index.into_inner().unwrap_or_else(PoisonError::into_inner);
            self.index = Index::Keyed(Box::new(index));
            return Ok(true);
        }
        let added: Vec<(SegmentId, &Segment)> = self
            .segments
            .iter()
            .filter(|(id, _)| !is_covered(*id))
            .collect();
        let added_files = added.len();
        columns.read(&added, &|entries| {
            let mut index = lock(&index);
            let keys: Vec<Key> = entries.iter().map(|(key, _)| *key).collect();
            index.prepare(&keys)?;
            for (key, place) in entries {
                if index.insert(*key, Location::unpack(*place))?.is_some() {
                    return Err(doubt("a key is in the table twice"));
                }
            }
            index.settle()
        })?;
        let index = index.into_inner().unwrap_or_else(PoisonError::into_inner);
        if index.len() as u64 != live {
            return Err(doubt(format!("it has {} keys of {live} rows", index.len())));
        }
        self.spot_check(&index, &columns)?;
        tracing::debug!(
            table = %self.owner.table,
            keys = live,
            added_files,
            on_disk = index.is_on_disk(),
            "key index read back"
        );
        self.index = Index::Keyed(Box::new(index));
        Ok(true)
    }

    /// Compares the keys of all live rows with the index; fails when one is not where it says, or it
    /// has others. Reads the key column.
    ///
    /// # Errors
    /// That they differ is a bug, and reported as one.
    pub fn check_index(&self) -> Result<()> {
        let Index::Keyed(index) = &self.index else {
            return Ok(());
        };
        if self.has_staged() {
            return Err(Error::bug("an index was checked over staged changes"));
        }
        let Some(columns) = self.key_columns() else {
            return Ok(());
        };
        let files: Vec<(SegmentId, &Segment)> = self.segments.iter().collect();
        columns.read(&files, &|entries| {
            for (key, place) in entries {
                if index.get(*key)? != Some(Location::unpack(*place)) {
                    return Err(doubt("a row is not where it says"));
                }
            }
            Ok(())
        })?;
        if index.len() as u64 != self.segments.live_rows() {
            return Err(doubt("it has keys of rows that are not there"));
        }
        Ok(())
    }

    /// Compares some keys of files with the index.
    fn spot_check(&self, index: &KeyedIndex, columns: &KeyColumns<'_>) -> Result<()> {
        let files: Vec<(SegmentId, &Segment)> = self.segments.iter().collect();
        let step = files.len().div_ceil(CHECKED_FILES).max(1);
        for (id, segment) in files.into_iter().step_by(step) {
            let num_rows = segment.file.num_rows;
            let step = usize::try_from(num_rows.div_ceil(CHECKED_ROWS)).unwrap_or(usize::MAX);
            let rows: Vec<u32> = (0..num_rows)
                .step_by(step.max(1))
                .filter(|row| !segment.deleted.contains(*row))
                .filter_map(|row| u32::try_from(row).ok())
                .collect();
            if rows.is_empty() {
                continue;
            }
            let path = columns.dir.join(&segment.file.path);
            let batch = read_rows(&path, &columns.schema, &rows, num_rows)?;
            let mut encoder = KeyEncoder::of_key(batch.columns())?;
            for (at, row) in rows.into_iter().enumerate() {
                let place = Location { segment: id, row };
                if index.get(encoder.key(at))? != Some(place) {
                    return Err(doubt("a row is not where it says"));
                }
            }
        }
        Ok(())
    }

    /// Reads the columns that identify rows, of all files, minus deleted rows.
    pub(super) fn rebuild_index(&mut self) -> Result<()> {
        // It gives its memory back before the new one takes it.
        self.index = Index::None;
        let Some(columns) = self.key_columns().filter(|_| self.usable) else {
            self.index = self.places.new_index(&self.schema);
            return Ok(());
        };
        let segments = &self.segments;
        let files: Vec<(SegmentId, &Segment)> = segments.iter().collect();
        let double = |file: &Path| {
            let path = columns.dir.join(file);
            corrupt(&path, "a key of it is in the table twice")
        };
        self.index = if columns.keyed {
            let place = self.places.place(&self.schema);
            let rebuild = Rebuild::new(place, segments.live_rows())?;
            columns.read(&files, &|entries| {
                if rebuild.add(entries)? {
                    return Ok(());
                }
                let of = entries.first().map(|(_, place)| Location::unpack(*place));
                let file = of.and_then(|place| segments.get(place.segment));
                let file = file.map_or("", |segment| &segment.file.path);
                Err(double(Path::new(file)))
            })?;
            let index = rebuild.finish()?.ok_or_else(|| double(Path::new("")))?;
            Index::Keyed(Box::new(index))
        } else {
            let index = Mutex::new(RowIndex::default());
            columns.read(&files, &|entries| {
                let mut index = lock(&index);
                for (row, place) in entries {
                    index.insert(*row, Location::unpack(*place));
                }
                Ok(())
            })?;
            Index::Rows(index.into_inner().unwrap_or_else(PoisonError::into_inner))
        };
        Ok(())
    }

    /// The columns rows are told apart by, in the source's order; None when they are not.
    fn key_columns(&self) -> Option<KeyColumns<'_>> {
        let all: Vec<usize> = (0..self.schema.columns.len()).collect();
        let places = match &self.schema.identity {
            Identity::Key(key) => key,
            Identity::WholeRow => &all,
            Identity::AppendOnly => return None,
        };
        let fields: Vec<Field> = places
            .iter()
            .filter_map(|at| self.schema.columns.get(*at))
            .filter_map(|column| self.columns.field_with_name(&column.name).ok().cloned())
            .collect();
        Some(KeyColumns {
            dir: &self.dir,
            schema: Arc::new(Schema::new(fields)),
            keyed: self.is_keyed(),
        })
    }

    /// Adds rows just written to the index, in order from `first`. For rows whose keys are new.
    pub(super) fn index_rows(&mut self, rows: &RecordBatch, first: Location) -> Result<()> {
        let Index::Rows(index) = &mut self.index else {
            return Ok(());
        };
        let columns: Vec<ArrayRef> = rows.columns().to_vec();
        let mut encoder = KeyEncoder::of_row(&columns)?;
        for row in 0..rows.num_rows() {
            let place = u32::try_from(row).map_err(|_| Error::bug("a batch of 2^32 rows"))?;
            index.insert(
                encoder.key(row),
                Location {
                    segment: first.segment,
                    row: first.row + place,
                },
            );
        }
        Ok(())
    }

    /// After a commit: lets the index be saved now and then.
    pub(super) fn index_committed(&mut self) {
        let Self {
            index,
            segments,
            table,
            schema,
            ..
        } = self;
        if let Index::Keyed(index) = index {
            index.committed(&Committed {
                stand: &|| stand(table, schema),
                segments: &|| segments.for_manifest(),
                next_segment: segments.next_id(),
            });
        }
    }

    /// Saves the key index, so that the table opens quickly; at the end of a run. Not being able to
    /// costs time at the next start and nothing else.
    pub fn save_index(&mut self) {
        if self.poisoned || !self.usable || self.has_staged() {
            return;
        }
        let Self {
            index,
            segments,
            table,
            schema,
            owner,
            ..
        } = self;
        let Index::Keyed(index) = index else { return };
        let saved = index.close(&Committed {
            stand: &|| stand(table, schema),
            segments: &|| segments.for_manifest(),
            next_segment: segments.next_id(),
        });
        if let Err(error) = saved {
            tracing::debug!(
                table = %owner.table,
                error = %error,
                detail = error.detail().unwrap_or(""),
                "the key index was not saved"
            );
        }
    }
}
