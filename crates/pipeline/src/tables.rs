//! Which tables a project follows, and how a table's shape may change under the stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use alluvium_change::{
    ChangeBatch, Error, Identity, OldImages, Op, Result, TableId, TableSchema, code,
};
use alluvium_lake::{MetadataColumn, SilverSettings};
use alluvium_source_postgres::catalog::{SourceTable, TableOverride, TableSelection};
use alluvium_source_postgres::type_map::OnInvalid;
use arrow::array::{Array as _, ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::Schema;
use arrow::error::ArrowError;

use crate::project::{ClusterBy, MergeMode, OnConflict, Project};

/// The project's choice of tables and columns, as the catalog takes it.
#[must_use]
pub(crate) fn selection(project: &Project) -> TableSelection {
    let overrides = project.tables.iter().map(|(table, settings)| {
        let column_options = settings.column.iter().map(|(column, options)| {
            let on_invalid = options
                .on_invalid
                .or(settings.on_invalid)
                .unwrap_or(OnInvalid::Error);
            (column.clone(), (on_invalid, options.stored_as.clone()))
        });
        let table_override = TableOverride {
            key: settings.key.clone(),
            append_only: settings.merge_mode == MergeMode::AppendOnly,
            columns: settings.columns.clone(),
            exclude_columns: settings.exclude_columns.clone(),
            on_invalid: settings.on_invalid.unwrap_or(OnInvalid::Error),
            column_options: column_options.collect(),
        };
        (table.clone(), table_override)
    });
    TableSelection {
        include: project.source.tables.clone(),
        exclude: project.source.exclude.clone(),
        overrides: overrides.collect::<BTreeMap<_, _>>(),
    }
}

/// How often a table that is copied on write is committed.
const COPIED_EVERY: Duration = Duration::from_secs(60);

/// How silver treats this table.
#[must_use]
pub(crate) fn silver_settings(project: &Project, table: &str) -> SilverSettings {
    let settings = project.tables.get(table);
    let on_conflict = settings.map_or(OnConflict::Stop, |settings| settings.on_conflict);
    let metadata = settings.map_or(&[][..], |settings| settings.metadata_columns.as_slice());
    let metadata_columns = metadata.iter().filter_map(|column| match column.as_str() {
        "_commit_lsn" => Some(MetadataColumn::CommitLsn),
        "_commit_time" => Some(MetadataColumn::CommitTime),
        "_op" => Some(MetadataColumn::Op),
        _ => None,
    });
    SilverSettings {
        on_conflict: match on_conflict {
            OnConflict::Stop => alluvium_lake::OnConflict::Stop,
            OnConflict::Repair => alluvium_lake::OnConflict::Repair,
        },
        metadata_columns: metadata_columns.collect(),
        change_data_feed: settings.is_some_and(|settings| settings.change_data_feed),
        longest_pause: Duration::from_millis(project.commit.max_interval_ms),
        cluster_by: match settings.and_then(|settings| settings.cluster_by.clone()) {
            None => alluvium_lake::ClusterBy::Nothing,
            Some(ClusterBy::Key(_)) => alluvium_lake::ClusterBy::Key,
            Some(ClusterBy::Columns(columns)) => alluvium_lake::ClusterBy::Columns(columns),
        },
        merge_mode: match settings.map(|settings| settings.merge_mode) {
            Some(MergeMode::CopyOnWrite) => alluvium_lake::MergeMode::CopyOnWrite {
                commit_every: settings
                    .and_then(|settings| settings.commit_every)
                    .unwrap_or(COPIED_EVERY),
            },
            _ => alluvium_lake::MergeMode::DeletionVectors,
        },
    }
}

/// What identifies a row, for people.
#[must_use]
pub(crate) fn describe_identity(table: &TableSchema) -> String {
    match &table.identity {
        Identity::Key(_) => format!("key ({})", table.key_names().join(", ")),
        Identity::WholeRow => "whole row".to_owned(),
        Identity::AppendOnly => "none: append-only".to_owned(),
    }
}

/// The error for a table that is not the one the lake has rows of.
pub(crate) fn another_table(id: &TableId) -> Error {
    Error::new(
        &code::SCHEMA_CHANGED,
        format!("table \"{id}\" was made again, or its rows are identified in another way now"),
    )
    .with_detail("the lake keeps the rows it has")
    .with_hint(format!("copy it afresh: alluvium resync {id}"))
}

/// What an owner has to do for its table's newest shape.
#[derive(Debug, Clone)]
pub(crate) enum ShapeStep {
    Same,
    /// New columns at the end. `fill` has one value for each that existing rows show; `recopy` when
    /// only the source knows what they show.
    AddColumns {
        fill: Vec<(String, ArrayRef)>,
        recopy: bool,
    },
}

/// Changes in the table's newest shape, which were decoded in an earlier one: as the decoder gives them
/// when it knows the newest.
///
/// # Errors
/// As [`shape_step`].
pub(crate) fn in_shape_of(batch: ChangeBatch, table: &SourceTable) -> Result<ChangeBatch> {
    let ShapeStep::AddColumns { fill, .. } = shape_step(batch.table.arrow(), table)? else {
        return Ok(batch);
    };
    let is_keyed = matches!(table.schema.identity, Identity::Key(_));
    let is_row = |op: &Op| match op {
        Op::Truncate => false,
        Op::Delete => !is_keyed,
        _ => true,
    };
    let widened = |rows: &RecordBatch, shown: UInt32Array| -> Result<RecordBatch> {
        let bug = |error| Error::bug("changes cannot be widened").with_source(error);
        let columns = table.schema.columns.iter().map(|column| {
            match fill.iter().find(|(name, _)| *name == column.name) {
                Some((_, value)) => take(value, &shown, None),
                None => Ok(Arc::clone(rows.column_by_name(&column.name).ok_or_else(
                    || ArrowError::SchemaError(format!("no column \"{}\"", column.name)),
                )?)),
            }
        });
        let columns = columns
            .collect::<std::result::Result<_, _>>()
            .map_err(bug)?;
        RecordBatch::try_new(Arc::clone(table.schema.arrow()), columns).map_err(bug)
    };
    let shown = batch.ops.iter().map(|op| is_row(op).then_some(0));
    let old = batch.old.map(|old| {
        let shown = UInt32Array::from(vec![0; old.rows.num_rows()]);
        let rows = widened(&old.rows, shown)?;
        Ok::<_, Error>(OldImages { rows, ..old })
    });
    Ok(ChangeBatch {
        rows: widened(&batch.rows, shown.collect())?,
        old: old.transpose()?,
        table: Arc::clone(&table.schema),
        ..batch
    })
}

/// How to come from the columns the lake has to those the source has now.
///
/// # Errors
/// `AL-SCHEMA-001`, when the stream cannot follow: a column dropped, renamed or of another type.
pub(crate) fn shape_step(lake: &Schema, table: &SourceTable) -> Result<ShapeStep> {
    let id = &table.schema.id;
    let incompatible = |what: String| {
        Error::new(
            &code::SCHEMA_CHANGED,
            format!("table \"{id}\" changed: {what}"),
        )
        .with_detail("the lake keeps the table as it was before the change")
        .with_hint(format!(
            "copy it afresh in its new shape: alluvium resync {id}"
        ))
    };
    for field in lake.fields() {
        match table
            .schema
            .columns
            .iter()
            .find(|column| column.name == *field.name())
        {
            None => {
                return Err(incompatible(format!(
                    "column \"{}\" was dropped, renamed or left out",
                    field.name()
                )));
            }
            Some(column) if column.data_type != *field.data_type() => {
                return Err(incompatible(format!(
                    "column \"{}\" is now of type {}",
                    field.name(),
                    column.source_type
                )));
            }
            Some(_) => {}
        }
    }
    let mut fill = Vec::new();
    let mut recopy = false;
    for (column, plan) in table.schema.columns.iter().zip(&table.plans) {
        if lake.field_with_name(&column.name).is_ok() {
            continue;
        }
        let attribute = table.attributes.iter().find(|a| a.name == column.name);
        let mut builder = plan.builder();
        match attribute.and_then(|attribute| attribute.missing_value.as_ref()) {
            Some(text) => builder.append_text(text.as_bytes()).map_err(|invalid| {
                incompatible(format!(
                    "column \"{}\" was added with a default that holds {}",
                    column.name, invalid.kind
                ))
            })?,
            None => {
                // Without a missing value a default was either added later, and existing rows are
                // NULL, or the table was rewritten, and each row has a value of its own.
                recopy |=
                    attribute.is_none_or(|attribute| attribute.has_default || attribute.not_null);
                builder.append_null();
            }
        }
        fill.push((column.name.clone(), builder.finish()?));
    }
    if fill.is_empty() {
        let order = lake.fields().iter().zip(&table.schema.columns);
        if let Some((field, _)) = order.into_iter().find(|(f, c)| *f.name() != c.name) {
            return Err(incompatible(format!(
                "column \"{}\" has another place",
                field.name()
            )));
        }
        return Ok(ShapeStep::Same);
    }
    debug_assert!(fill.iter().all(|(_, value)| value.len() == 1));
    Ok(ShapeStep::AddColumns { fill, recopy })
}
