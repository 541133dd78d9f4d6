//! Bringing silver forward from bronze: what came while the table was copied, or before a crash.

use alluvium_change::{Lsn, Result};
use alluvium_lake::ChangeReader;

use super::{TableOwner, measure};
use crate::status::Phase;

/// Rows read from bronze in one step of catching up.
const CATCH_UP_BATCH_ROWS: usize = 65_536;

/// Reading bronze into silver.
pub(super) struct CatchUp {
    reader: ChangeReader,
    /// Bronze's position when reading began: silver's when it ends.
    through: Lsn,
    /// A transaction of which rows are in silver, uncommitted, and more may follow.
    open_transaction: Option<Lsn>,
}

impl TableOwner {
    /// Merges the next rows of bronze into silver; the table is live when none are left.
    pub(super) fn catch_up(&mut self) -> Result<()> {
        let Some(silver) = &mut self.silver else {
            return Ok(());
        };
        let catch_up = match &mut self.catch_up {
            Some(catch_up) => catch_up,
            None if silver.position() >= self.bronze.position() => {
                self.phase = Phase::Live;
                return Ok(());
            }
            None => self.catch_up.insert(CatchUp {
                reader: self
                    .bronze
                    .changes_after(silver.position(), CATCH_UP_BATCH_ROWS)?,
                through: self.bronze.position(),
                open_transaction: None,
            }),
        };
        let Some(batch) = catch_up.reader.next().transpose()? else {
            if let Some(position) = catch_up.open_transaction {
                silver.commit(position)?;
            }
            // What bronze has beyond that was not for silver: rows that a newer copy had already.
            if silver.position() < catch_up.through {
                silver.set_position(catch_up.through)?;
            }
            self.catch_up = None;
            return Ok(());
        };
        let first = batch.commit_lsn.first().copied();
        if let Some(open) = catch_up.open_transaction
            && first != Some(open)
        {
            silver.commit(open)?;
        }
        let whole = batch.rows_before_last_transaction();
        if whole > 0 {
            let ended = batch.slice(0, whole);
            silver.apply(&ended)?;
            silver.commit(ended.commit_lsn.last().copied().unwrap_or_default())?;
            measure::note_caught_up(&self.context.board, &ended);
        }
        let rest = batch.slice(whole, batch.num_rows() - whole);
        silver.apply(&rest)?;
        catch_up.open_transaction = rest.commit_lsn.last().copied();
        Ok(())
    }
}
