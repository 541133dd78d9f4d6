//! Bringing silver forward from bronze: what came while the table was copied, or before a crash.

use alluvium_change::{ChangeBatch, Lsn, Result, failpoint};
use alluvium_lake::{Bronze, ChangeReader, CopyState, Silver};

use super::{Beside, TableOwner, measure};
use crate::status::Phase;

/// Rows read from bronze in one step of catching up.
pub(super) const CATCH_UP_BATCH_ROWS: usize = 65_536;

/// Reading bronze into silver.
pub(super) struct CatchUp {
    reader: ChangeReader,
    /// Bronze's position when reading began: silver's when it ends.
    through: Lsn,
    /// A transaction of which rows are in silver, uncommitted, and more may follow.
    open_transaction: Option<Lsn>,
}

impl TableOwner {
    /// Silver has all that bronze committed, and was not told yet to take what comes by itself.
    pub(super) fn is_level(&self) -> bool {
        let silver = self.silver.as_ref().map(Silver::position);
        self.phase == Phase::CatchingUp
            && self.catch_up.is_none()
            && silver >= Some(self.bronze.position())
    }

    /// The table is live when silver has all that bronze has: also the parts of a cut that are
    /// staged, which can be read only when its end has come. Else silver would get the rest of it.
    fn go_live_if_level(&mut self) {
        if self.is_level() && self.staged_through.is_none() {
            self.phase = Phase::Live;
        }
    }

    /// Whether [`Self::catch_up`] gets on before another command comes.
    pub(super) fn can_catch_up(&self) -> bool {
        self.silver_can_catch_up() || self.beside_can_catch_up()
    }

    /// Whether bronze is being read into silver, or into the copy beside.
    pub(super) fn reads_bronze(&self) -> bool {
        let beside = self.beside.as_ref();
        self.catch_up.is_some() || beside.is_some_and(|beside| beside.catch_up.is_some())
    }

    fn silver_can_catch_up(&self) -> bool {
        self.phase == Phase::CatchingUp && (!self.is_level() || self.staged_through.is_none())
    }

    /// The copy beside has all that bronze committed.
    fn beside_is_level(&self) -> bool {
        self.beside.as_ref().is_some_and(|beside| {
            beside.silver.copy_state() == CopyState::Complete
                && beside.catch_up.is_none()
                && (beside.silver.position() >= self.bronze.position()
                    || failpoint::is_planted("resync.too_early"))
        })
    }

    fn beside_can_catch_up(&self) -> bool {
        let Some(Beside { silver, .. }) = &self.beside else {
            return false;
        };
        if self.beside_is_level() {
            let settles = silver.is_settled() || self.passed >= silver.settles_at();
            return settles && self.staged_through.is_none();
        }
        silver.copy_state() == CopyState::Complete
    }

    /// Before a cut or a part of one is taken in. Answers whether the cut is all that silver lacks when
    /// it ends.
    pub(super) fn lacks_only_this_cut(&mut self) -> bool {
        self.go_live_if_level();
        self.is_level()
    }

    /// Merges all that bronze has. After a cut that was all that silver lacked, so that a table goes
    /// live though the next cut is there already.
    pub(super) fn catch_up_wholly(&mut self) -> Result<()> {
        while self.silver_can_catch_up() {
            self.catch_up()?;
        }
        Ok(())
    }

    /// Merges the next rows of bronze into silver; the table is live when none are left.
    pub(super) fn catch_up(&mut self) -> Result<()> {
        self.go_live_if_level();
        if !self.silver_can_catch_up() {
            return Ok(());
        }
        let Some(silver) = &mut self.silver else {
            return Ok(());
        };
        let ended = merge_next(silver, &mut self.catch_up, &self.bronze)?;
        if let Some(merged) = ended {
            measure::note_caught_up(&self.context.board, &merged);
        }
        Ok(())
    }

    /// The same for the copy beside, which is silver when none are left.
    pub(super) fn catch_up_beside(&mut self) -> Result<()> {
        if !self.beside_can_catch_up() {
            return Ok(());
        }
        let is_level = self.beside_is_level();
        let Some(Beside { silver, catch_up }) = &mut self.beside else {
            return Ok(());
        };
        if !is_level {
            return merge_next(silver, catch_up, &self.bronze).map(|_| ());
        }
        silver.commit_held()?;
        if !silver.is_settled() {
            silver.set_position(self.passed)?;
        }
        self.swap()
    }
}

/// Merges the next rows of bronze into `silver`; `catch_up` is none when none are left. Answers those of
/// whole transactions.
fn merge_next(
    silver: &mut Silver,
    state: &mut Option<CatchUp>,
    bronze: &Bronze,
) -> Result<Option<ChangeBatch>> {
    let catch_up = match state {
        Some(catch_up) => catch_up,
        None => state.insert(CatchUp {
            reader: bronze.changes_after(silver.position(), CATCH_UP_BATCH_ROWS)?,
            through: bronze.position(),
            open_transaction: None,
        }),
    };
    let Some(batch) = catch_up.reader.next().transpose()? else {
        if let Some(position) = catch_up.open_transaction {
            silver.commit_in_time(position)?;
        }
        // What bronze has beyond that was not for silver: rows that a newer copy had already.
        if silver.position() < catch_up.through {
            silver.reach(catch_up.through)?;
        }
        *state = None;
        return Ok(None);
    };
    let first = batch.commit_lsn.first().copied();
    if let Some(open) = catch_up.open_transaction
        && first != Some(open)
    {
        silver.commit_in_time(open)?;
    }
    let whole = batch.rows_before_last_transaction();
    let ended = batch.slice(0, whole);
    if whole > 0 {
        silver.apply(&ended)?;
        silver.commit_in_time(ended.commit_lsn.last().copied().unwrap_or_default())?;
    }
    let rest = batch.slice(whole, batch.num_rows() - whole);
    silver.apply(&rest)?;
    catch_up.open_transaction = rest.commit_lsn.last().copied();
    Ok((whole > 0).then_some(ended))
}
