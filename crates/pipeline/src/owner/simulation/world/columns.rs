//! Columns that come later: the source adds one, and the process hears of it.

use std::sync::Arc;

use alluvium_change::{Identity, Lsn, TableId, TableSchema};
use alluvium_source_postgres::catalog::{SourceTable, sample_table};
use alluvium_testkit::history::{Change, Row, batch, event_serials};

use super::super::super::command::{Command, CutEnd};
use super::{Law, Transaction, World, cut, shown};
use crate::tables::{ShapeStep, shape_step};

/// Most columns that are added.
const MOST_ADDED: usize = 2;

/// Columns from the begin.
const FIRST_COLUMNS: usize = 3;

/// How many columns of the table were added.
pub(super) fn added_columns(schema: &TableSchema) -> usize {
    schema.columns.len() - FIRST_COLUMNS
}

/// The table as the source's catalog has it, with the columns that were added.
pub(super) fn source_table(identity: &Identity, added: &[Option<String>]) -> SourceTable {
    const TEXT: u32 = 25;
    let names: Vec<String> = (0..added.len()).map(|n| format!("more{n}")).collect();
    let mut columns = vec![
        ("id", 20, "int8"),
        ("small", TEXT, "text"),
        ("big", TEXT, "text"),
    ];
    columns.extend(names.iter().map(|name| (name.as_str(), TEXT, "text")));
    let mut table = sample_table(TableId::new("public", "items"), 10, &columns).unwrap();
    for (attribute, shown_before) in table.attributes.iter_mut().skip(FIRST_COLUMNS).zip(added) {
        attribute.has_default = shown_before.is_some();
        attribute.missing_value.clone_from(shown_before);
    }
    table.read = added.len() as u64;
    let schema = &table.schema;
    table.schema = TableSchema::new(
        schema.id.clone(),
        schema.relation_oid,
        schema.columns.clone(),
        identity.clone(),
    );
    table
}

impl World {
    /// The source adds a column, at the begin of a transaction or later in it.
    pub(super) fn add_column(&mut self, before: usize, has_default: bool) {
        if self.source.added.len() == MOST_ADDED {
            return;
        }
        let columns = self.source.added.len();
        self.source.begin();
        let mut changes = self.source.changes(before);
        let added_at = changes.len();
        let shown_before = has_default.then(|| format!("default{columns}"));
        self.disk.note(format!("  a column, {shown_before:?}"));
        self.source.add_column(shown_before);
        let identity = &self.catalog.schema.identity;
        let mut table = source_table(identity, &self.source.added);
        table.is_key_enforced = self.catalog.is_key_enforced;
        self.catalog = Arc::new(table);
        changes.extend(self.source.changes(2));
        self.record(changes, (added_at, columns));
    }

    /// The process looks at the catalog, between transactions.
    pub(super) fn look_at_catalog(&mut self) -> Law {
        let sent = self.process.as_ref().map_or(0, |process| process.sent);
        let ended = sent.checked_sub(1).and_then(|at| self.log.get(at));
        self.take_in(Lsn(ended.map_or(0, |tx| tx.lsn)))
    }

    /// The table in its newest shape, before the first change that has it.
    fn take_in(&mut self, ended: Lsn) -> Law {
        let table = Arc::clone(&self.catalog);
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        match shape_step(process.known.schema.arrow(), &table) {
            Ok(ShapeStep::Same) => Ok(()),
            Ok(step) => {
                process.known = Arc::clone(&table);
                self.may_need_copy = true;
                self.command(Command::Shape { table, step, ended })
            }
            Err(error) => Err(format!("a column is refused: {}", shown(&error))),
        }
    }

    /// Sends changes of a cut to the owner. False: it ended over them.
    pub(super) fn send(
        &mut self,
        coming: &Coming,
        range: std::ops::Range<usize>,
        end: Option<CutEnd>,
    ) -> Result<bool, String> {
        let to = coming.sent;
        let is_there = |world: &Self| world.process.as_ref().is_some_and(|p| p.sent == to);
        let mut from = range.start;
        let known = |world: &Self| {
            let process = world.process.as_ref();
            process.map_or(0, |process| added_columns(&process.known.schema))
        };
        while let Some(at) = (from..range.end).find(|at| coming.columns[*at] > known(self)) {
            if at > from {
                self.send_part(coming, from..at, None)?;
            }
            let lsn = coming.changes[at].lsn;
            let ended = self.log.iter().rfind(|tx| tx.lsn < lsn);
            self.take_in(Lsn(ended.map_or(0, |tx| tx.lsn)))?;
            if !is_there(self) {
                return Ok(false);
            }
            from = at;
        }
        self.send_part(coming, from..range.end, end)?;
        Ok(is_there(self))
    }

    fn send_part(
        &mut self,
        coming: &Coming,
        range: std::ops::Range<usize>,
        end: Option<CutEnd>,
    ) -> Law {
        let Some(process) = &self.process else {
            return Ok(());
        };
        let schema = &process.known.schema;
        let added = &self.source.added[..added_columns(schema)];
        // As the decoder does, where the catalog is ahead of the stream.
        let changes = coming.changes[range.clone()].iter().cloned();
        let changes = changes.map(|change| change.widened(added, &schema.identity));
        let changes: Vec<Change> = changes.collect();
        let mut part = batch(schema, &changes);
        part.event_serial = coming.serials[range].to_vec();
        self.run(cut(part, end))
    }
}

/// Changes that come as one cut.
pub(super) struct Coming {
    pub(super) changes: Vec<Change>,
    serials: Vec<u64>,
    /// How many columns had been added when each was made.
    columns: Vec<usize>,
    /// Transactions that are sent with them, of all.
    sent: usize,
}

impl Coming {
    pub(super) fn of(transactions: &[Transaction], sent: usize) -> Self {
        let changes = transactions.iter().flat_map(|tx| tx.changes.clone());
        let changes: Vec<Change> = changes.collect();
        let columns = transactions.iter().flat_map(|tx| {
            let (added_at, before) = tx.added;
            (0..tx.changes.len()).map(move |at| before + usize::from(at >= added_at))
        });
        Self {
            serials: event_serials(&changes),
            columns: columns.collect(),
            changes,
            sent,
        }
    }
}

/// The rows there were after all transactions up to `lsn`, with the columns that came until later.
pub(super) fn rows_at(log: &[Transaction], added: &[Option<String>], lsn: u64) -> Vec<Row> {
    let count = log.partition_point(|tx| tx.lsn <= lsn);
    let last = count.checked_sub(1).and_then(|at| log.get(at));
    let rows = last.map(|tx| tx.rows.clone()).unwrap_or_default();
    rows.into_iter().map(|row| row.widened(added)).collect()
}
