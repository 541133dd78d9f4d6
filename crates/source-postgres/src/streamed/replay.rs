//! A transaction that has ended, on its way to the assembler, one message after the other.

use std::collections::{HashMap, HashSet};

use alluvium_change::{Error, Result, code};

use super::Described;
use super::records::RecordReader;
use crate::capture::{Assembler, Step};
use crate::pgoutput::{self, Commit, RelationOids, segment_xid};

#[derive(Debug)]
pub(super) struct Replay {
    records: RecordReader,
    aborted: HashSet<u32>,
    commit: Commit,
    /// The description of each relation that came last and was not handed over yet. One that came in
    /// a sub-transaction which was rolled back is kept too: what comes after it, in another, may rely
    /// on it, because a server notes what it described by the whole transaction.
    pending: HashMap<u32, Described>,
    /// For each relation met, the last description by a sub-transaction that was not rolled back.
    last: HashMap<u32, Option<Described>>,
}

impl Replay {
    pub(super) fn new(records: RecordReader, aborted: HashSet<u32>, commit: Commit) -> Self {
        Self {
            records,
            aborted,
            commit,
            pending: HashMap::new(),
            last: HashMap::new(),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.records.bytes()
    }

    pub(super) fn commit(&self) -> Commit {
        self.commit
    }

    /// Feeds the next message; `None` when all have been.
    pub(super) fn next(&mut self, assembler: &mut Assembler) -> Result<Option<Step>> {
        let Some(record) = self.records.peek()? else {
            return Ok(None);
        };
        let survives = !segment_xid(record).is_some_and(|xid| self.aborted.contains(&xid));
        if record.first() == Some(&b'R') {
            let (oid, described) = described(record)?;
            if survives {
                self.last.insert(oid, Some(described.clone()));
            } else {
                self.last.entry(oid).or_default();
            }
            self.pending.insert(oid, described);
        } else if survives {
            let change = pgoutput::decode_in_segment(record)?.message;
            if !self.pending.is_empty() {
                for oid in RelationOids::of(&change).as_slice() {
                    if let Some(described) = self.pending.remove(oid) {
                        // The change itself comes with the next call.
                        return assembler.handle(&described.message).map(Some);
                    }
                }
            }
            let step = assembler.message(change)?;
            self.records.advance();
            return Ok(Some(step));
        }
        self.records.advance();
        Ok(Some(Step::Continue))
    }

    /// After the last message: each relation met, once.
    pub(super) fn next_settled(&mut self) -> Option<(u32, Option<Described>)> {
        let oid = self.last.keys().next().copied()?;
        self.last.remove_entry(&oid)
    }
}

/// The relation that a record describes: the message as it would come outside a segment, and the
/// number of its arrival, which stands behind it.
fn described(record: &[u8]) -> Result<(u32, Described)> {
    let parts = record
        .split_last_chunk::<8>()
        .and_then(|(message, arrival)| Some((message.split_at_checked(1)?, arrival)))
        .and_then(|((letter, rest), arrival)| Some((letter, rest.get(4..)?, arrival)));
    let Some((letter, body, arrival)) = parts else {
        return Err(cut_short());
    };
    let message = [letter, body].concat();
    let oid = segment_xid(&message).ok_or_else(cut_short)?;
    Ok((
        oid,
        Described {
            arrival: u64::from_be_bytes(*arrival),
            message,
        },
    ))
}

fn cut_short() -> Error {
    Error::new(
        &code::PG_PROTOCOL,
        "the server described a relation in part",
    )
}
