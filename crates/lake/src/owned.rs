//! What bronze and silver tables share: whose they are, how their columns are named, and how the
//! schema the lake holds relates to the source's.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alluvium_change::{Column, Error, Identity, Lsn, Result, TableSchema, code};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::log::DeltaTable;
use crate::silver::is_settled;
use crate::{ForeignWriters, LakeSettings, Owner, RetentionSettings, fs as durable};

const PROPERTY_SYSTEM: &str = "alluvium.system_identifier";
pub(crate) const PROPERTY_TABLE: &str = "alluvium.table";
const PROPERTY_LAYER: &str = "alluvium.layer";

/// What other programs go by that clean our tables, and for how long Delta checkpoints say which files
/// were removed.
fn retention_properties(retention: &RetentionSettings) -> [(&'static str, String); 2] {
    let interval = |age: Duration| format!("interval {} seconds", age.as_secs());
    let removed = retention.all_versions.max(retention.removed_files);
    let log = retention.all_versions.max(retention.old_versions);
    [
        ("delta.deletedFileRetentionDuration", interval(removed)),
        ("delta.logRetentionDuration", interval(log)),
    ]
}

/// Opens the owner's table in `dir`; creates it with `schema` when absent. With a table that was
/// there come its application ids: see [`DeltaTable::txns`].
pub(crate) fn open_or_create(
    dir: &Path,
    owner: &Owner,
    layer: &str,
    schema: &Schema,
    settings: &LakeSettings,
    extra: &[(&str, String)],
) -> Result<(DeltaTable, Option<BTreeMap<String, i64>>)> {
    let policy = |is_settled: bool| match settings.foreign {
        // Bronze is read in the order in which it was written.
        ForeignWriters::Follow if layer == "bronze" || !is_settled => ForeignWriters::Repair,
        policy => policy,
    };
    if DeltaTable::exists(dir)? {
        let mut table = DeltaTable::open(dir, settings.fsync)?;
        check_owner(&table, owner)?;
        // Each reading of the log goes over all of its files: with many tables this is the start.
        let txns = table.txns()?;
        table.set_foreign(policy(is_settled(owner.app_id(), txns.clone())));
        table.settle_foreign(&txns)?;
        table.set_properties(&retention_properties(&settings.retention))?;
        return Ok((table, Some(txns)));
    }
    durable::create_dir(dir, settings.fsync)?;
    let mut properties = vec![
        (PROPERTY_SYSTEM, owner.system_identifier.clone()),
        (PROPERTY_TABLE, owner.table.to_string()),
        (PROPERTY_LAYER, layer.to_owned()),
    ];
    properties.extend(retention_properties(&settings.retention));
    properties.extend(extra.iter().cloned());
    let mut table = DeltaTable::create(dir, schema, &properties, settings.fsync)?;
    table.set_foreign(policy(false));
    Ok((table, None))
}

/// The source's table that a table of the lake is of.
pub(crate) fn table_of(table: &DeltaTable) -> Option<String> {
    table.properties().remove(PROPERTY_TABLE)
}

/// The `txn` application id that carries the position of a source's table.
#[must_use]
pub fn app_id(pipeline: &str, source: &str, table: impl Display) -> String {
    format!("alluvium/{pipeline}/{source}/{table}")
}

/// What the application ids of a table of the source say is in it, by whatever pipeline: every
/// transaction that committed at or before this. None before its copy is complete.
#[must_use]
pub fn position_of(table: &str, txns: &BTreeMap<String, i64>) -> Option<Lsn> {
    // Longer ids are notes of the same table, and the table's name may have a slash in it.
    let is_position = |id: &str| {
        let parts = id.splitn(4, '/').collect::<Vec<_>>();
        matches!(parts[..], ["alluvium", _, _, of] if of == table)
    };
    let (_, position) = txns.iter().find(|(id, _)| is_position(id))?;
    (*position > 0).then(|| Lsn::from_txn_version(*position))
}

pub(crate) fn check_owner(table: &DeltaTable, owner: &Owner) -> Result<()> {
    let properties = table.properties();
    let expected = [
        (PROPERTY_SYSTEM, owner.system_identifier.clone()),
        (PROPERTY_TABLE, owner.table.to_string()),
    ];
    for (name, value) in expected {
        let found = properties.get(name);
        if found != Some(&value) {
            let found = found.map_or("no such property".to_owned(), |v| format!("\"{v}\""));
            return Err(Error::new(
                &code::LAKE_NOT_OURS,
                format!(
                    "the lake's table \"{}\" belongs to another source",
                    table.dir().display()
                ),
            )
            .with_detail(format!(
                "its property \"{name}\" is {found}, expected \"{value}\""
            )));
        }
    }
    Ok(())
}

/// A name for a column of ours that no column of the source has (Delta ignores case): `base`, with
/// as many further `_` before it as it takes.
pub(crate) fn free_name(base: &str, columns: &[Column]) -> String {
    let mut name = base.to_owned();
    while columns
        .iter()
        .any(|column| column.name.eq_ignore_ascii_case(&name))
    {
        name.insert(0, '_');
    }
    name
}

/// The source's columns as the lake holds them.
#[derive(Debug, Clone)]
pub(crate) struct HeldSchema {
    /// Columns the lake has.
    pub(crate) schema: Arc<TableSchema>,
    /// Whether rows can be told apart and written: its columns are columns of the source, with the
    /// same types, and the key is among them.
    pub(crate) usable: bool,
}

/// Compares the columns the lake holds with those of the source.
pub(crate) fn held_schema(held: &[Field], source: &Arc<TableSchema>) -> HeldSchema {
    let same = |field: &Field, column: &Column| {
        column.name == *field.name() && same_type(field.data_type(), &column.data_type)
    };
    if held.len() == source.columns.len()
        && held
            .iter()
            .zip(&source.columns)
            .all(|(field, column)| same(field, column))
    {
        return HeldSchema {
            schema: Arc::clone(source),
            usable: true,
        };
    }
    let mut usable = true;
    let columns: Vec<Column> = held
        .iter()
        .map(
            |field| match source.columns.iter().find(|column| same(field, column)) {
                Some(column) => column.clone(),
                None => {
                    usable = false;
                    Column {
                        name: field.name().clone(),
                        data_type: field.data_type().clone(),
                        source_type: field.data_type().to_string(),
                    }
                }
            },
        )
        .collect();
    let identity = match &source.identity {
        Identity::Key(_) => {
            let names = source.key_names();
            let key: Vec<usize> = names
                .iter()
                .filter_map(|name| columns.iter().position(|column| column.name == *name))
                .collect();
            usable &= key.len() == names.len();
            Identity::Key(key)
        }
        other => other.clone(),
    };
    let schema = TableSchema::new(source.id.clone(), source.relation_oid, columns, identity);
    HeldSchema { schema, usable }
}

/// Equal up to names and nullability inside nested types.
pub(crate) fn same_type(a: &DataType, b: &DataType) -> bool {
    match (a, b) {
        (DataType::List(a), DataType::List(b)) => same_type(a.data_type(), b.data_type()),
        (DataType::Map(a, _), DataType::Map(b, _)) => match (a.data_type(), b.data_type()) {
            (DataType::Struct(a), DataType::Struct(b)) => {
                a.len() == b.len()
                    && a.iter()
                        .zip(b)
                        .all(|(a, b)| same_type(a.data_type(), b.data_type()))
            }
            _ => false,
        },
        (DataType::Struct(a), DataType::Struct(b)) => {
            a.len() == b.len()
                && a.iter()
                    .zip(b)
                    .all(|(a, b)| a.name() == b.name() && same_type(a.data_type(), b.data_type()))
        }
        (a, b) => a == b,
    }
}

/// The columns `schema` has beyond `held`, which it must begin with.
pub(crate) fn added_columns<'a>(
    held: &TableSchema,
    schema: &'a TableSchema,
    taken: &SchemaRef,
) -> Result<&'a [Column]> {
    let changed = |what: String| {
        Error::new(
            &code::SCHEMA_CHANGED,
            format!(
                "the columns of table \"{}\" changed in a way the lake cannot follow",
                schema.id
            ),
        )
        .with_detail(what)
    };
    for (at, column) in held.columns.iter().enumerate() {
        let same = schema.columns.get(at).is_some_and(|new| {
            new.name == column.name && same_type(&new.data_type, &column.data_type)
        });
        if !same {
            return Err(changed(format!(
                "column \"{}\" was changed, moved or dropped",
                column.name
            )));
        }
    }
    let added = schema.columns.get(held.columns.len()..).unwrap_or_default();
    for column in added {
        if taken
            .fields()
            .iter()
            .any(|f| f.name().eq_ignore_ascii_case(&column.name))
        {
            return Err(changed(format!(
                "the name of the new column \"{}\" is taken",
                column.name
            )));
        }
    }
    Ok(added)
}
