//! Opening a silver table: whose it is, which files it has, where each row is.

use std::sync::Arc;

use alluvium_change::{Error, Identity, Result, TableSchema};
use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use roaring::RoaringTreemap;

use super::segments::Segments;
use super::stage::Stage;
use super::txn::Positions;
use super::{Index, Silver};
use crate::fs::corrupt;
use crate::key_index::{KeyEncoder, KeyIndex, KeyWidth, Location, RowIndex, ShardedIndex};
use crate::owned::{HeldSchema, free_name, held_schema, open_or_create};
use crate::write::{check_file, open_file};
use crate::{Lake, MetadataColumn, Owner, SilverSettings};

const PROPERTY_METADATA: &str = "alluvium.metadata_columns";
const INDEX_BATCH_ROWS: usize = 8192;

impl Silver {
    /// Opens the owner's silver table, creating it when absent, and rebuilds the key index.
    ///
    /// When the lake's columns are not the source's, the handle has the lake's
    /// ([`Self::schema`] tells): [`Self::add_columns`] or [`Self::replace_schema`] brings them
    /// together.
    ///
    /// # Errors
    /// `LAKE_NOT_OURS` when the table belongs to another source, `LAKE_CORRUPT` when a file is
    /// missing or damaged.
    pub fn open(
        lake: &Lake,
        owner: &Owner,
        schema: &Arc<TableSchema>,
        settings: SilverSettings,
    ) -> Result<Self> {
        let dir = lake.silver_dir(&owner.name);
        let wanted = table_columns(schema, &settings.metadata_columns);
        let properties = [
            ("delta.enableDeletionVectors", "true".to_owned()),
            (
                PROPERTY_METADATA,
                metadata_property(&named(schema, &settings.metadata_columns)),
            ),
        ];
        let (table, existed) =
            open_or_create(&dir, owner, "silver", &wanted, lake.settings(), &properties)?;
        let columns = table.schema()?;
        let metadata = parse_metadata(table.properties().get(PROPERTY_METADATA));
        let held: Vec<Field> = columns
            .fields()
            .iter()
            .filter(|field| !metadata.iter().any(|(_, name)| name == field.name()))
            .map(|field| field.as_ref().clone())
            .collect();
        let HeldSchema { schema, usable } = held_schema(&held, schema);
        let positions = if existed {
            table.txns()?
        } else {
            Default::default()
        };
        let mut silver = Self {
            index: new_index(&schema),
            owner: owner.clone(),
            settings,
            lake: lake.settings().clone(),
            stage: Stage::new(dir.clone(), lake.settings().clone()),
            dir,
            columns,
            schema,
            usable,
            metadata,
            segments: Segments::default(),
            positions: Positions::new(owner.app_id(), positions),
            table,
            conflicts: 0,
            last_copied: None,
            poisoned: false,
            committing: false,
        };
        if existed {
            silver.load_files()?;
            silver.rebuild_index()?;
        }
        Ok(silver)
    }

    fn load_files(&mut self) -> Result<()> {
        for file in self.table.files()? {
            check_file(&self.dir, &file)?;
            let deleted = self.table.deleted_rows(&file)?.unwrap_or_default();
            self.segments.insert_live(file, deleted)?;
        }
        Ok(())
    }

    /// Reads the columns that identify rows, of all files, minus deleted rows.
    pub(super) fn rebuild_index(&mut self) -> Result<()> {
        self.index = new_index(&self.schema);
        if !self.usable {
            return Ok(());
        }
        let Some(schema) = self.identity_columns() else {
            return Ok(());
        };
        let keyed = self.is_keyed();
        for (id, segment) in self.segments.iter() {
            let path = self.dir.join(&segment.file.path);
            let mut row: u32 = 0;
            for batch in open_file(&path, &schema, INDEX_BATCH_ROWS, None)? {
                let batch = batch?;
                let mut encoder = if keyed {
                    KeyEncoder::of_key(batch.columns())?
                } else {
                    KeyEncoder::of_row(batch.columns())?
                };
                for at in 0..batch.num_rows() {
                    let location = Location { segment: id, row };
                    row = row.saturating_add(1);
                    if segment.deleted.contains(u64::from(location.row)) {
                        continue;
                    }
                    match &mut self.index {
                        Index::Keyed(index) => {
                            if index.insert(encoder.key(at), location).is_some() {
                                return Err(corrupt(&path, "a key of it is in the table twice"));
                            }
                        }
                        Index::Rows(index) => index.insert(encoder.key(at), location),
                        Index::None => {}
                    }
                }
            }
            if u64::from(row) != segment.file.num_rows {
                return Err(corrupt(
                    &path,
                    format!(
                        "it has {row} rows where the log says {}",
                        segment.file.num_rows
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The columns rows are told apart by, in the source's order; None when they are not.
    fn identity_columns(&self) -> Option<SchemaRef> {
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
        Some(Arc::new(Schema::new(fields)))
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
}

impl Segments {
    /// Files that are committed, with their deleted rows.
    pub(super) fn committed_files(
        &self,
    ) -> impl Iterator<Item = (&crate::log::LiveFile, &RoaringTreemap)> {
        self.iter()
            .filter(|(_, s)| s.committed)
            .map(|(_, s)| (&s.file, &s.deleted))
    }
}

pub(super) fn new_index(schema: &TableSchema) -> Index {
    match &schema.identity {
        Identity::Key(key) => {
            let types = key
                .iter()
                .filter_map(|at| schema.columns.get(*at))
                .map(|c| &c.data_type);
            Index::Keyed(ShardedIndex::new(KeyWidth::of(types)))
        }
        Identity::WholeRow => Index::Rows(RowIndex::default()),
        Identity::AppendOnly => Index::None,
    }
}

/// The metadata columns with the names they have in this table.
pub(super) fn named(
    schema: &TableSchema,
    metadata: &[MetadataColumn],
) -> Vec<(MetadataColumn, String)> {
    metadata
        .iter()
        .map(|kind| (*kind, free_name(base_name(*kind), &schema.columns)))
        .collect()
}

fn base_name(kind: MetadataColumn) -> &'static str {
    match kind {
        MetadataColumn::CommitLsn => "_commit_lsn",
        MetadataColumn::CommitTime => "_commit_time",
        MetadataColumn::Op => "_op",
    }
}

pub(super) fn table_columns(schema: &TableSchema, metadata: &[MetadataColumn]) -> Schema {
    let mut fields: Vec<Field> = schema
        .arrow()
        .fields()
        .iter()
        .map(|field| field.as_ref().clone())
        .collect();
    for (kind, name) in named(schema, metadata) {
        let data_type = match kind {
            MetadataColumn::CommitLsn => DataType::Int64,
            MetadataColumn::CommitTime => {
                DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
            }
            MetadataColumn::Op => DataType::Utf8,
        };
        fields.push(Field::new(name, data_type, true));
    }
    Schema::new(fields)
}

/// `kind=name` pairs: what the table says of its metadata columns.
pub(super) fn metadata_property(metadata: &[(MetadataColumn, String)]) -> String {
    let pairs: Vec<String> = metadata
        .iter()
        .map(|(kind, name)| format!("{}={name}", base_name(*kind)))
        .collect();
    pairs.join(",")
}

pub(super) const METADATA_PROPERTY: &str = PROPERTY_METADATA;

fn parse_metadata(property: Option<&String>) -> Vec<(MetadataColumn, String)> {
    let all = [
        MetadataColumn::CommitLsn,
        MetadataColumn::CommitTime,
        MetadataColumn::Op,
    ];
    property
        .map(String::as_str)
        .unwrap_or_default()
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .filter_map(|(kind, name)| {
            let kind = all.into_iter().find(|known| base_name(*known) == kind)?;
            Some((kind, name.to_owned()))
        })
        .collect()
}
