//! Copies of the source's table, whole and of some of its rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use alluvium_change::{Identity, Lsn};
use alluvium_lake::{CopyState, Repair};
use alluvium_testkit::history::{Row, item_rows};

use super::super::super::command::{Command, CopiedRows, Reached};
use super::{KEYS, Law, World};
use crate::status::Phase;

const ROWS_A_PAGE: u64 = 4;
const LEAF: u32 = 1;

/// A copy under way.
pub(super) struct Copying {
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
            match process.copying.take() {
                None if process.owner.needs_copy() => self.begin_copy(false)?,
                None => return Ok(()),
                Some(copying) => self.copy_page(copying)?,
            }
        }
        Ok(())
    }

    fn begin_copy(&mut self, afresh: bool) -> Law {
        let table = Arc::clone(&self.table);
        if self
            .ask(|reply| Command::PrepareCopy { table, reply })?
            .is_none()
        {
            return Ok(());
        }
        // It has what committed before it.
        let snapshot = self.source.lsn + 1;
        // Without a key, a copy cannot go on under another snapshot.
        let afresh = afresh || !matches!(self.table.schema.identity, Identity::Key(_));
        let begun = self.ask(|reply| Command::BeginCopy {
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
            batches.push(item_rows(&self.table.schema, rows).into());
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
            p.copying.is_none() && matches!(p.owner.phase, Phase::Live | Phase::CatchingUp)
        });
        if !is_quiet {
            return Ok(());
        }
        self.begin_copy(true)
    }

    /// Looks at rows of the source, whatever silver has.
    pub(super) fn compare(&mut self, third: u64) {
        let Some(process) = &mut self.process else {
            return;
        };
        if !matches!(self.table.schema.identity, Identity::Key(_)) {
            return;
        }
        let is_wanted = |row: &Row| row.0.rem_euclid(3).unsigned_abs() == third;
        let rows = self.source.heap.rows();
        let present: Vec<Row> = rows.into_iter().filter(is_wanted).collect();
        let absent = (0..=KEYS).map(|id| (id, None, None));
        let absent: Vec<Row> = absent
            .filter(|row| is_wanted(row) && present.iter().all(|there| there.0 != row.0))
            .collect();
        process.repair = Some(Repair {
            snapshot: Lsn(self.source.lsn + 1),
            present: vec![item_rows(&self.table.schema, &present)],
            absent: vec![item_rows(&self.table.schema, &absent)],
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
        let again = repair.clone();
        let repaired = self.ask(|reply| Command::Repair { repair, reply })?;
        if let (Some(None), Some(process)) = (repaired, &mut self.process) {
            process.repair = Some(again);
        }
        Ok(())
    }
}
