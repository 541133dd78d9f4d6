//! Opening a silver table: whose it is, which files it has, where each row is.

use std::sync::Arc;

use alluvium_change::{Result, TableSchema};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use roaring::RoaringTreemap;

use super::Silver;
use super::index::Places;
use super::recent::Recent;
use super::rewrite::{VECTORS_PROPERTY, target_file_bytes};
use super::segments::Segments;
use super::stage::Stage;
use super::txn::Positions;
use crate::key_index::Manifest;
use crate::maintain::{CLUSTER_PROPERTY, Clustering, KeptBytes};
use crate::owned::{HeldSchema, free_name, held_schema, open_or_create};
use crate::write::check_file;
use crate::{Lake, LakeSettings, MergeMode, MetadataColumn, Owner, SilverSettings};

pub(super) const METADATA_PROPERTY: &str = "alluvium.metadata_columns";

/// Where a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Standing,
    /// Copied afresh, to be put in the place of the one that stands.
    Beside,
}

impl Silver {
    /// Opens the owner's silver table, creating it when absent, and reads back or rebuilds the key index.
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
        let place = Place::Standing;
        let mut silver = Self::open_unread(lake, owner, schema, settings, place)?;
        silver.read_files()?;
        Ok(silver)
    }

    /// As [`Self::open`], in one of the places where the table may be, without its files: to be read or
    /// replaced.
    pub(super) fn open_unread(
        lake: &Lake,
        owner: &Owner,
        schema: &Arc<TableSchema>,
        settings: SilverSettings,
        place: Place,
    ) -> Result<Self> {
        let dir = match place {
            Place::Standing => lake.silver_dir(&owner.name),
            Place::Beside => lake.beside_dir(&owner.name),
        };
        let wanted = table_columns(schema, &settings.metadata_columns);
        let clustering = Clustering::wanted(&settings.cluster_by, schema, &wanted)?;
        let metadata = metadata_property(&named(schema, &settings.metadata_columns));
        let mut properties = vec![(METADATA_PROPERTY, metadata)];
        if settings.merge_mode == MergeMode::DeletionVectors {
            properties.push((VECTORS_PROPERTY, "true".to_owned()));
        }
        let lake_settings = LakeSettings {
            target_file_bytes: target_file_bytes(
                settings.merge_mode,
                lake.settings().target_file_bytes,
            ),
            ..lake.settings().clone()
        };
        let (mut table, txns) =
            open_or_create(&dir, owner, "silver", &wanted, &lake_settings, &properties)?;
        // Of a table beside, nobody reads what became of its rows on the way.
        table.set_change_feed(settings.change_data_feed && place == Place::Standing)?;
        if place == Place::Standing {
            // For care by those who have no settings of the table.
            let by = clustering.map(|by| by.property()).unwrap_or_default();
            let held = table.properties().get(CLUSTER_PROPERTY).cloned();
            if held.unwrap_or_default() != by {
                table.set_properties(&[(CLUSTER_PROPERTY, by)])?;
            }
        }
        let columns = table.schema()?;
        let metadata = parse_metadata(table.properties().get(METADATA_PROPERTY));
        let held: Vec<Field> = columns
            .fields()
            .iter()
            .filter(|field| !metadata.iter().any(|(_, name)| name == field.name()))
            .map(|field| field.as_ref().clone())
            .collect();
        let HeldSchema { schema, usable } = held_schema(&held, schema);
        let places = match place {
            Place::Standing => Places::new(lake, &owner.name),
            Place::Beside => Places::new(lake, &format!("~resync-{}", owner.name)),
        };
        let silver = Self {
            index: places.new_index(&schema),
            places,
            index_read_back: false,
            owner: owner.clone(),
            settings,
            stage: Stage::new(dir.clone(), lake_settings.clone()),
            lake: lake_settings,
            recent: Recent::new(Arc::clone(lake.recent_budget())),
            dir,
            columns,
            schema,
            usable,
            metadata,
            segments: Segments::default(),
            positions: Positions::new(owner.app_id(), txns.unwrap_or_default()),
            table,
            conflicts: 0,
            last_copied: None,
            poisoned: false,
            ticket: super::compact::ticket(),
            compacting: None,
            kept: KeptBytes::default(),
            held: None,
            paused_until: None,
            committing: false,
        };
        silver.check_mode()?;
        Ok(silver)
    }

    /// After [`Self::open_unread`]: reads which files there are, and reads back or rebuilds the key index.
    pub(super) fn read_files(&mut self) -> Result<()> {
        let saved = self.saved_index();
        self.load_files(saved.as_ref().map(|(_, manifest)| manifest))?;
        self.open_index(saved)
    }

    /// Numbers the files as the saved index does, those it does not know with new numbers.
    fn load_files(&mut self, saved: Option<&Manifest>) -> Result<()> {
        if let Some(saved) = saved {
            self.segments.number_from(saved.next_segment);
        }
        for file in self.table.files()? {
            check_file(&self.dir, &file)?;
            let deleted = self.table.deleted_rows(&file)?.unwrap_or_default();
            let known = saved
                .and_then(|saved| saved.segments.get(&file.path))
                .filter(|known| {
                    known.size_bytes == file.size_bytes && known.num_rows == file.num_rows
                });
            let id = match known {
                Some(known) => known.id,
                None => self.segments.reserve()?,
            };
            self.segments.insert_live(id, file, deleted);
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
            .map(|(_, s)| (&s.file, s.deleted.as_ref()))
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
