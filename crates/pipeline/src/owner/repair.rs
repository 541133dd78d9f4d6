//! Rows of the table are set right while it is followed.

use alluvium_change::{Result, code};
use alluvium_lake::{Repair, Repaired};

use super::catch_up::CATCH_UP_BATCH_ROWS;
use super::{Event, TableOwner};
use crate::status::{Phase, now_micros};

impl TableOwner {
    /// What became of it, none when it cannot be done now; and what is to be told.
    pub(super) fn repair(&mut self, repair: Repair) -> (Result<Option<Repaired>>, Vec<Event>) {
        match self.repair_now(repair) {
            // Nothing was begun.
            Err(error) if error.is(&code::SCHEMA_CHANGED) => (Err(error), Vec::new()),
            // Once more, when the table is live again.
            Err(error) => (Ok(None), self.failed(error)),
            done => (done, Vec::new()),
        }
    }

    fn repair_now(&mut self, repair: Repair) -> Result<Option<Repaired>> {
        if self.phase != Phase::Live || self.beside.is_some() || self.staged_through.is_some() {
            return Ok(None);
        }
        self.commit_held()?;
        let Some(silver) = self.silver.as_mut().filter(|silver| silver.can_repair()) else {
            return Ok(None);
        };
        let later = self
            .bronze
            .changes_after(repair.snapshot, CATCH_UP_BATCH_ROWS)?;
        let (repair, left_alone) = silver.plan_repair(repair, later)?;
        self.bronze.stage_repair(&repair, now_micros())?;
        self.bronze.commit_copied()?;
        let repaired = silver.repair(&repair)?;
        Ok(Some(Repaired {
            left_alone,
            ..repaired
        }))
    }
}
