//! Copies of the source's table, whole and of some of its rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use alluvium_change::{Identity, Lsn};
use alluvium_lake::{CopyState, Repair};
use alluvium_source_postgres::catalog::SourceTable;
use alluvium_testkit::history::{Row, item_rows};

use super::super::super::command::{Command, CopiedRows, Reached};
use super::{KEYS, Law, Process, World};
use crate::status::Phase;

const ROWS_A_PAGE: u64 = 4;
const LEAF: u32 = 1;

/// A copy that was prepared.
pub(super) struct Prepared {
    table: Arc<SourceTable>,
    afresh: bool,
}

/// A copy under way.
pub(super) struct Copying {
    table: Arc<SourceTable>,
    snapshot: u64,
    pages: BTreeMap<u32, Vec<Row>>,
    next: u32,
}

impl World {
    pub(super) fn copy(&mut self, pages: u32) -> Law {
        for _ in 0..pages {
            let Some(process) = &mut self.process else {
                return Ok(());
            };
            // Given up meanwhile: it is to begin again.
            process.copying.take_if(|_| process.owner.copy_wanted);
            match (process.copying.take(), process.prepared.take()) {
                (Some(copying), _) => self.copy_page(copying)?,
                (None, Some(prepared)) => self.begin_copy(prepared)?,
                (None, None) if process.owner.needs_copy() => self.prepare_copy(false)?,
                (None, None) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Before changes come, when the process starts.
    pub(super) fn prepare_copy_if_needed(&mut self) -> Law {
        let needs_copy = |process: &Process| process.owner.needs_copy();
        match self.process.as_ref().is_some_and(needs_copy) {
            true => self.prepare_copy(false),
            false => Ok(()),
        }
    }

    fn prepare_copy(&mut self, afresh: bool) -> Law {
        let Some(process) = &self.process else {
            return Ok(());
        };
        self.prepare_copy_of(Arc::clone(&process.known), afresh)
    }

    fn prepare_copy_of(&mut self, table: Arc<SourceTable>, afresh: bool) -> Law {
        let prepared = self.ask(|reply| Command::PrepareCopy { table, reply })?;
        if let (Some(table), Some(process)) = (prepared, &mut self.process) {
            process.prepared = Some(Prepared { table, afresh });
        }
        Ok(())
    }

    /// Other things happen until its snapshot is there.
    fn begin_copy(&mut self, Prepared { table, afresh }: Prepared) -> Law {
        if table.schema.columns != self.catalog.schema.columns {
            // The snapshot shows another table than was prepared.
            return self.prepare_copy_of(Arc::clone(&self.catalog), afresh);
        }
        // It has what committed before it.
        let snapshot = self.source.lsn + 1;
        // Without a key, a copy cannot go on under another snapshot.
        let afresh = afresh || !matches!(table.schema.identity, Identity::Key(_));
        let schema = Arc::clone(&table.schema);
        let begun = self.ask(|reply| Command::BeginCopy {
            schema,
            snapshot: Lsn(snapshot),
            afresh,
            reply,
        })?;
        let Some(CopyState::Copying { progress, .. }) = begun else {
            return Ok(());
        };
        let mut pages: BTreeMap<u32, Vec<Row>> = BTreeMap::new();
        for (place, row) in self.source.heap.by_place() {
            let page = u32::try_from(place / ROWS_A_PAGE).unwrap();
            pages.entry(page).or_default().push(row.clone());
        }
        let copying = Copying {
            table,
            snapshot,
            pages,
            next: progress.get(&LEAF).copied().unwrap_or(0),
        };
        if let Some(process) = &mut self.process {
            process.copying = Some(copying);
        }
        Ok(())
    }

    fn copy_page(&mut self, mut copying: Copying) -> Law {
        if copying.next == u32::MAX {
            self.ask(|reply| Command::FinishCopy { reply })?;
            return Ok(());
        }
        let mut batches = Vec::new();
        if let Some((page, rows)) = copying.pages.range(copying.next..).next() {
            self.disk
                .note(format!("  page {page} at {}: {rows:?}", copying.snapshot));
            batches.push(item_rows(&copying.table.schema, rows).into());
            copying.next = page + 1;
        }
        if copying.pages.range(copying.next..).next().is_none() {
            copying.next = u32::MAX;
        }
        let rows = CopiedRows {
            batches,
            snapshot: Lsn(copying.snapshot),
            reached: Some(Reached {
                relfilenode: LEAF,
                next_page: copying.next,
            }),
        };
        let copied = self.ask(|reply| Command::Copied { rows, reply })?;
        if let (Some(process), Some(())) = (&mut self.process, copied) {
            process.copying = Some(copying);
        }
        Ok(())
    }

    /// A person asks for a new copy of a table that has one.
    pub(super) fn resync(&mut self) -> Law {
        let is_quiet = self.process.as_ref().is_some_and(|p| {
            p.copying.is_none()
                && p.prepared.is_none()
                && matches!(p.owner.phase, Phase::Live | Phase::CatchingUp)
        });
        if !is_quiet {
            return Ok(());
        }
        self.prepare_copy(true)
    }

    /// Looks at rows of the source, whatever silver has.
    pub(super) fn compare(&mut self, third: u64) {
        let Some(process) = &mut self.process else {
            return;
        };
        if !matches!(process.known.schema.identity, Identity::Key(_)) {
            return;
        }
        let is_wanted = |row: &Row| row.id.rem_euclid(3).unsigned_abs() == third;
        let rows = self.source.heap.rows();
        let present: Vec<Row> = rows.into_iter().filter(is_wanted).collect();
        let absent = (0..=KEYS).map(Row::key);
        let absent: Vec<Row> = absent
            .filter(|row| is_wanted(row) && present.iter().all(|there| there.id != row.id))
            .collect();
        process.repair = Some(Repair {
            snapshot: Lsn(self.source.lsn + 1),
            present: vec![item_rows(&process.known.schema, &present)],
            absent: vec![item_rows(&process.known.schema, &absent)],
        });
    }

    pub(super) fn repair(&mut self) -> Law {
        let passed = self.passed();
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        let Some(repair) = process.repair.take_if(|repair| repair.snapshot <= passed) else {
            return Ok(());
        };
        // It has columns since that these rows do not have: refused.
        let columns = process.known.schema.columns.len();
        if repair
            .present
            .iter()
            .any(|rows| rows.num_columns() != columns)
        {
            return Ok(());
        }
        let again = repair.clone();
        let repaired = self.ask(|reply| Command::Repair { repair, reply })?;
        if let (Some(None), Some(process)) = (repaired, &mut self.process) {
            process.repair = Some(again);
        }
        Ok(())
    }
}
