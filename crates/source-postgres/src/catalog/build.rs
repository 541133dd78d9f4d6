//! From plain catalog rows to [`SourceTable`]s. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};

use alluvium_change::{Column, Error, Identity, Result, TableId, TableSchema, code};

use super::identity::{Decision, Holder, decide, is_unique};
use super::rows::{AttributeRow, IndexRow, LeafRow, Relation};
use super::selection::{TableOverride, TableSelection};
use super::types::Types;
use super::{Attribute, Leaf, Refusal, SourceTable};
use crate::type_map::{ColumnOptions, ColumnPlan, plan_column};

const PAGE_BYTES: i64 = 8192;
/// For a table never analysed: a guess, for the progress display only.
const GUESSED_ROWS_PER_PAGE: f64 = 60.0;

/// What all tables of one load share.
pub(super) struct Facts<'a> {
    pub(super) types: &'a Types,
    pub(super) indexes: &'a HashMap<u32, Vec<IndexRow>>,
    pub(super) selection: &'a TableSelection,
    pub(super) money_fraction_digits: u8,
    pub(super) has_tid_range_scan: bool,
    pub(super) read: u64,
}

impl Facts<'_> {
    fn indexes_of(&self, oid: u32) -> &[IndexRow] {
        self.indexes.get(&oid).map_or(&[], Vec::as_slice)
    }
}

pub(super) fn source_table(
    facts: &Facts<'_>,
    relation: Relation,
    attribute_rows: Vec<AttributeRow>,
    leaf_rows: Vec<LeafRow>,
) -> Result<SourceTable> {
    let id = relation
        .id
        .clone()
        .ok_or_else(|| Error::bug("a table without a name"))?;
    let none = TableOverride::default();
    let settings = facts.selection.of(&id).unwrap_or(&none);
    let mut refusals = Refusals::default();
    let mut notes = Vec::new();

    check_names(&id, settings, &attribute_rows, &mut refusals);
    check_leaves(&id, &leaf_rows, &mut refusals);
    let planned = plan_columns(facts, &id, settings, attribute_rows, &mut refusals);
    notes.extend(planned.notes);
    let identity = identity(
        facts,
        &relation,
        &leaf_rows,
        settings,
        &planned.attributes,
        &mut notes,
        &mut refusals,
    );

    let has_toast = leaf_rows.iter().any(|leaf| leaf.has_toast);
    let captured = |wanted: fn(&Attribute) -> bool| {
        let names = planned
            .attributes
            .iter()
            .filter(|a| wanted(a))
            .map(|a| a.name.clone());
        names.collect::<Vec<_>>()
    };
    let toast_columns = if has_toast {
        captured(|a| a.column.is_some() && a.storage != 'p')
    } else {
        Vec::new()
    };
    let generated_columns = captured(|a| a.is_generated);
    let is_partitioned = relation.kind == 'p';
    let indexes = facts.indexes_of(relation.oid);
    let has_primary_key = indexes.iter().any(|index| index.is_primary);
    let schema = TableSchema::new(id, relation.oid, planned.columns, identity);
    let is_key_enforced = is_unique(indexes, &schema.key_names());
    Ok(SourceTable {
        schema,
        read: facts.read,
        plans: planned.plans,
        attributes: planned.attributes,
        estimated_rows: leaf_rows.iter().map(estimated_rows).sum(),
        total_bytes: leaf_rows
            .iter()
            .map(|leaf| leaf.total_bytes.max(0).unsigned_abs())
            .sum(),
        leaves: leaf_rows.iter().map(leaf).collect(),
        replica_identity: relation.replica_identity,
        append_only_asked: settings.append_only,
        is_partitioned,
        has_primary_key,
        is_key_enforced,
        toast_columns,
        generated_columns,
        notes,
        refused: refusals.first,
        has_tid_range_scan: facts.has_tid_range_scan,
    })
}

/// The first reason is the one told: mending it shows the next.
#[derive(Debug, Default)]
struct Refusals {
    first: Option<Refusal>,
}

impl Refusals {
    fn add(&mut self, error: &Error) {
        self.first.get_or_insert_with(|| Refusal {
            code: error.code(),
            message: error.message().to_owned(),
            detail: error.detail().map(ToOwned::to_owned),
            hint: Some(error.hint().to_owned()),
        });
    }
}

/// Names of the project file that do not exist, and names Delta cannot tell apart.
fn check_names(
    id: &TableId,
    settings: &TableOverride,
    rows: &[AttributeRow],
    refusals: &mut Refusals,
) {
    let existing: HashSet<&str> = rows.iter().map(|row| row.attribute.name.as_str()).collect();
    let asked = [&settings.key, &settings.columns, &settings.exclude_columns];
    let asked = asked
        .into_iter()
        .flatten()
        .chain(settings.column_options.keys());
    for name in asked {
        if !existing.contains(name.as_str()) {
            refusals.add(
                &Error::new(
                    &code::CONFIG_VALUE,
                    format!("table \"{id}\" has no column \"{name}\""),
                )
                .with_hint(format!("mend [tables.\"{id}\"] in the project file")),
            );
        }
    }
    let mut lower: HashSet<String> = HashSet::new();
    for row in rows
        .iter()
        .filter(|row| is_wanted(settings, &row.attribute))
    {
        if !lower.insert(row.attribute.name.to_lowercase()) {
            refusals.add(
                &Error::new(
                    &code::SCHEMA_COLUMN,
                    format!(
                        "column \"{}\" of table \"{id}\" differs from another by letter case only",
                        row.attribute.name
                    ),
                )
                .with_hint(format!(
                    "Delta cannot tell them apart; leave one out: [tables.\"{id}\"] \
                     exclude_columns = [\"{}\"]",
                    row.attribute.name
                )),
            );
        }
    }
}

fn check_leaves(id: &TableId, leaves: &[LeafRow], refusals: &mut Refusals) {
    for leaf in leaves {
        let what = match leaf.relation.kind {
            'r' if leaf.is_permanent => continue,
            'f' => "a foreign table",
            _ => "unlogged",
        };
        let name = leaf
            .relation
            .id
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        refusals.add(
            &Error::new(
                &code::SCHEMA_CHANGED,
                format!("partition \"{name}\" of table \"{id}\" is {what}"),
            )
            .with_detail("its changes are not in the write-ahead log of this server")
            .with_hint("detach that partition, or exclude the table"),
        );
    }
}

fn is_wanted(settings: &TableOverride, attribute: &Attribute) -> bool {
    !attribute.is_generated
        && (settings.columns.is_empty() || settings.columns.contains(&attribute.name))
        && !settings.exclude_columns.contains(&attribute.name)
}

#[derive(Default)]
struct Planned {
    columns: Vec<Column>,
    plans: Vec<ColumnPlan>,
    attributes: Vec<Attribute>,
    notes: Vec<String>,
}

fn plan_columns(
    facts: &Facts<'_>,
    id: &TableId,
    settings: &TableOverride,
    rows: Vec<AttributeRow>,
    refusals: &mut Refusals,
) -> Planned {
    let mut planned = Planned::default();
    for row in rows {
        let mut attribute = row.attribute;
        if is_wanted(settings, &attribute) {
            let (on_invalid, stored_as) = settings
                .column_options
                .get(&attribute.name)
                .cloned()
                .unwrap_or((settings.on_invalid, None));
            let options = ColumnOptions {
                on_invalid,
                stored_as,
                dimensions: u8::try_from(row.dimensions).unwrap_or(0),
                money_fraction_digits: facts.money_fraction_digits,
            };
            let plan = facts
                .types
                .resolve(attribute.type_oid, attribute.typmod, &row.type_label)
                .and_then(|ty| plan_column(&ty, &options));
            match plan {
                Ok(plan) => {
                    if let Some(note) = &plan.note {
                        planned
                            .notes
                            .push(format!("column \"{}\": {note}", attribute.name));
                    }
                    attribute.column = Some(planned.columns.len());
                    planned.columns.push(Column {
                        name: attribute.name.clone(),
                        data_type: plan.data_type.clone(),
                        source_type: row.type_label,
                    });
                    planned.plans.push(plan);
                }
                Err(error) => refusals.add(&column_error(id, &attribute.name, &error)),
            }
        }
        planned.attributes.push(attribute);
    }
    if planned.columns.is_empty() {
        refusals.add(
            &Error::new(
                &code::SCHEMA_COLUMN,
                format!("table \"{id}\" has no column to copy"),
            )
            .with_hint("exclude the table"),
        );
    }
    planned
}

fn column_error(id: &TableId, column: &str, error: &Error) -> Error {
    let message = format!("column \"{column}\" of table \"{id}\": {}", error.message());
    let mut named = Error::new(error.code(), message).with_hint(error.hint());
    if let Some(detail) = error.detail() {
        named = named.with_detail(detail);
    }
    named
}

fn identity(
    facts: &Facts<'_>,
    relation: &Relation,
    leaves: &[LeafRow],
    settings: &TableOverride,
    attributes: &[Attribute],
    notes: &mut Vec<String>,
    refusals: &mut Refusals,
) -> Identity {
    if settings.append_only {
        return Identity::AppendOnly;
    }
    let quoted = |relation: &Relation| {
        relation
            .id
            .as_ref()
            .map(TableId::quoted)
            .unwrap_or_default()
    };
    let quoted_root = quoted(relation);
    let names: Vec<String> = leaves.iter().map(|leaf| quoted(&leaf.relation)).collect();
    let root = Holder {
        name: &quoted_root,
        replica_identity: relation.replica_identity,
        indexes: facts.indexes_of(relation.oid),
    };
    let holders: Vec<Holder<'_>> = leaves
        .iter()
        .zip(&names)
        .map(|(leaf, name)| Holder {
            name,
            replica_identity: leaf.relation.replica_identity,
            indexes: facts.indexes_of(leaf.relation.oid),
        })
        .collect();
    match decide(root, &quoted_root, &holders, &settings.key, notes) {
        Ok(Decision::Key(key)) => match key_places(&quoted_root, &key, attributes, notes) {
            Ok(places) => Identity::Key(places),
            Err(error) => {
                refusals.add(&error);
                Identity::AppendOnly
            }
        },
        Ok(Decision::WholeRow) => Identity::WholeRow,
        Ok(Decision::AppendOnly) => Identity::AppendOnly,
        Err(error) => {
            refusals.add(&error);
            Identity::AppendOnly
        }
    }
}

fn key_places(
    quoted_root: &str,
    key: &[String],
    attributes: &[Attribute],
    notes: &mut Vec<String>,
) -> Result<Vec<usize>> {
    let mut places = Vec::new();
    let mut nullable = BTreeSet::new();
    for name in key {
        let attribute = attributes.iter().find(|attribute| &attribute.name == name);
        let place = attribute
            .and_then(|attribute| attribute.column)
            .ok_or_else(|| {
                let why = match attribute {
                    Some(attribute) if attribute.is_generated => "is generated and not streamed",
                    _ => "is left out",
                };
                Error::new(
                    &code::SCHEMA_COLUMN,
                    format!(
                        "column \"{name}\" belongs to the key of table {quoted_root} but {why}"
                    ),
                )
                .with_hint("keep the columns of the key, or name another key in the project file")
            })?;
        places.push(place);
        if attribute.is_some_and(|attribute| !attribute.not_null) {
            nullable.insert(name.as_str());
        }
    }
    if !nullable.is_empty() {
        let names = nullable.into_iter().collect::<Vec<_>>().join(", ");
        notes.push(format!(
            "columns of the key may be NULL ({names}); such rows are refused"
        ));
    }
    Ok(places)
}

fn leaf(row: &LeafRow) -> Leaf {
    Leaf {
        oid: row.relation.oid,
        relfilenode: row.relfilenode,
        quoted_name: row
            .relation
            .id
            .as_ref()
            .map(TableId::quoted)
            .unwrap_or_default(),
        pages: pages(row.size_bytes),
    }
}

fn pages(size_bytes: i64) -> u32 {
    u32::try_from(size_bytes.max(0).div_euclid(PAGE_BYTES)).unwrap_or(u32::MAX)
}

/// The density of the last ANALYZE at today's size.
fn estimated_rows(row: &LeafRow) -> f64 {
    let pages = f64::from(pages(row.size_bytes));
    if row.tuples >= 0.0 && row.pages_then > 0 {
        row.tuples / f64::from(row.pages_then) * pages
    } else {
        pages * GUESSED_ROWS_PER_PAGE
    }
}
