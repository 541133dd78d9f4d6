//! Tables without a key: rows are found by all their values, and equal rows are counted.
//!
//! Which of several equal rows an update or delete takes makes no difference. The rows of the batch
//! must be complete: without a key, old images are whole rows, and unchanged values are filled from
//! them before.

use hashbrown::HashMap;

use super::{Action, Event, Misfit, Plan, PlannedRow, Reason, Refusal};
use crate::key_index::{Key, RowIndex};

/// Copies of one row at this point of the batch.
#[derive(Debug, Default)]
struct Copies {
    /// Of those stored before, how many were taken away.
    taken: usize,
    /// Rows of the batch, as places in the list of slots.
    planned: Vec<usize>,
}

/// Plans changes of a table without a key, in order.
pub(crate) fn plan_rows(
    events: &[Event],
    index: &RowIndex,
    misfit: Misfit,
) -> Result<Plan, Refusal> {
    let mut plan = Plan::default();
    let mut copies: HashMap<Key, Copies> = HashMap::new();
    let mut slots: Vec<Option<(Key, u32)>> = Vec::with_capacity(events.len());
    for event in events {
        let removed = match event.action {
            Action::Insert => None,
            Action::Delete => Some(event.key),
            Action::Update => Some(event.old_key.ok_or(Refusal {
                row: event.row,
                reason: Reason::NoOldImage,
            })?),
        };
        if let Some(row) = removed {
            let state = copies.entry(row).or_default();
            if let Some(slot) = state.planned.pop() {
                if let Some(slot) = slots.get_mut(slot) {
                    *slot = None;
                }
            } else if let Some(location) = index.get(row, state.taken) {
                state.taken += 1;
                plan.dead.push(location);
                plan.index.push((row, None));
            } else if misfit == Misfit::Refuse {
                return Err(Refusal {
                    row: event.row,
                    reason: Reason::Absent,
                });
            } else {
                plan.conflicts += 1;
                if event.action == Action::Delete {
                    continue;
                }
            }
        }
        match event.action {
            Action::Delete => plan.deleted += 1,
            Action::Insert => plan.inserted += 1,
            Action::Update => plan.updated += 1,
        }
        if event.action != Action::Delete {
            copies
                .entry(event.key)
                .or_default()
                .planned
                .push(slots.len());
            slots.push(Some((event.key, event.row)));
        }
    }
    for (key, row) in slots.into_iter().flatten() {
        plan.index.push((key, u32::try_from(plan.rows.len()).ok()));
        plan.rows.push(PlannedRow {
            row,
            fills: Vec::new(),
        });
    }
    Ok(plan)
}
