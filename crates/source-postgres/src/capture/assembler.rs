//! Transactions and tables: turns messages into each table's rows.

use std::collections::HashMap;
use std::sync::Arc;

use alluvium_change::{ChangeBatch, Error, Lsn, Op, Result, TableId, code};

use super::decoder::{ShapeChange, TableDecoder};
use crate::catalog::SourceTable;
use crate::pgoutput::{self, Message, TupleData};

/// A table's shape as a Relation message gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub oid: u32,
    pub id: TableId,
    pub columns: Vec<RelationColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    pub name: String,
    pub type_oid: u32,
    pub typmod: i32,
}

/// The transaction whose events are coming in.
#[derive(Debug, Clone, Copy)]
pub struct Transaction {
    pub commit_lsn: Lsn,
    pub xid: u32,
    pub commit_time_micros: i64,
    next_serial: u64,
}

/// A table whose changes can no longer be decoded; its later events are passed over.
#[derive(Debug)]
pub struct Failure {
    pub table: TableId,
    /// Commit LSN of the first transaction of which rows are missing.
    pub at: Lsn,
    pub error: Error,
}

/// What a message asks of the caller.
#[derive(Debug)]
pub enum Step {
    Continue,
    /// A transaction ended: everything up to `position` is in the batches.
    Committed {
        position: Lsn,
        end_lsn: Lsn,
        commit_time_micros: i64,
    },
    /// The relation is unknown, or has columns that are: look in the catalog, then call
    /// [`Assembler::resolve`] before the next message.
    Unknown(Relation),
    /// One table cannot be followed any more; the others go on.
    Failed(Failure),
}

enum Entry {
    Decoding(Box<TableDecoder>),
    /// Not selected, or failed: its events are counted into the serial and dropped.
    Ignored,
}

/// Assembles the stream's messages into batches per table.
#[derive(Default)]
pub struct Assembler {
    /// Tables as last loaded from the catalog, by relation oid.
    known: HashMap<u32, Arc<SourceTable>>,
    entries: HashMap<u32, Entry>,
    /// Each relation as the stream last described it: it does so once.
    relations: HashMap<u32, Relation>,
    /// Finished batches of decoders that were replaced by a newer shape.
    finished: Vec<ChangeBatch>,
    transaction: Option<Transaction>,
    /// Memory held when it was last measured, and what was fed since.
    measured_bytes: usize,
    fed_bytes: usize,
}

/// To measure all columns of all tables costs more than a change does.
const MEASURE_EVERY_BYTES: usize = 64 << 10;

impl Assembler {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a table known, or replaces what is known of it; rows decoded from now on have its
    /// columns.
    ///
    /// # Errors
    /// Arrow refuses decoded columns: a bug.
    pub fn know(&mut self, table: Arc<SourceTable>) -> Result<()> {
        let oid = table.schema.relation_oid;
        self.known.insert(oid, Arc::clone(&table));
        let Some(relation) = self.relations.get(&oid) else {
            self.entries.remove(&oid);
            return Ok(());
        };
        // What does not fit yet is settled by the relation's next description.
        if let Ok(decoder) = TableDecoder::new(table, relation) {
            self.replace(oid, Entry::Decoding(Box::new(decoder)))?;
        }
        Ok(())
    }

    /// Forgets everything of the stream, as when it is started again; tables stay known.
    pub fn reset(&mut self) {
        self.entries.clear();
        self.relations.clear();
        self.finished.clear();
        self.transaction = None;
        self.measure();
    }

    /// Drops a table's rows and passes over its events from now on.
    pub fn ignore(&mut self, oid: u32) {
        self.known.remove(&oid);
        self.entries.insert(oid, Entry::Ignored);
    }

    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// Memory held by rows not yet taken, in bytes, within some 64 KiB.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.measured_bytes + self.fed_bytes
    }

    fn measure(&mut self) {
        let decoding = self.entries.values().map(|entry| match entry {
            Entry::Decoding(decoder) => decoder.memory_bytes(),
            Entry::Ignored => 0,
        });
        let finished = self.finished.iter().map(ChangeBatch::memory_bytes);
        self.measured_bytes = decoding.sum::<usize>() + finished.sum::<usize>();
        self.fed_bytes = 0;
    }

    #[must_use]
    pub fn has_rows(&self) -> bool {
        !self.finished.is_empty()
            || self
                .entries
                .values()
                .any(|entry| matches!(entry, Entry::Decoding(decoder) if decoder.num_rows() > 0))
    }

    /// Takes the rows decoded so far: for each table in source order.
    ///
    /// # Errors
    /// Arrow refuses decoded columns: a bug.
    pub fn take_batches(&mut self) -> Result<Vec<ChangeBatch>> {
        let mut batches = std::mem::take(&mut self.finished);
        for entry in self.entries.values_mut() {
            if let Entry::Decoding(decoder) = entry
                && let Some(batch) = decoder.take()?
            {
                batches.push(batch);
            }
        }
        self.measure();
        Ok(batches)
    }

    /// Feeds one pgoutput message.
    ///
    /// # Errors
    /// The message cannot be decoded, or breaks the protocol's order.
    pub fn handle(&mut self, data: &[u8]) -> Result<Step> {
        self.message(pgoutput::decode(data)?)
    }

    /// Feeds one decoded message.
    pub(crate) fn message(&mut self, message: Message<'_>) -> Result<Step> {
        match message {
            Message::Begin(begin) => {
                if self.transaction.is_some() {
                    return Err(out_of_order("a transaction began within another"));
                }
                self.transaction = Some(Transaction {
                    commit_lsn: begin.final_lsn,
                    xid: begin.xid,
                    commit_time_micros: begin.commit_time_micros,
                    next_serial: 0,
                });
                Ok(Step::Continue)
            }
            Message::Commit(commit) => match self.transaction.take() {
                Some(transaction) => Ok(Step::Committed {
                    position: transaction.commit_lsn,
                    end_lsn: commit.end_lsn,
                    commit_time_micros: transaction.commit_time_micros,
                }),
                None => Err(out_of_order("a commit came without a transaction")),
            },
            Message::Relation(relation) => {
                let columns = relation.columns.iter().map(|column| RelationColumn {
                    name: column.name.to_owned(),
                    type_oid: column.type_oid,
                    typmod: column.typmod,
                });
                let relation = Relation {
                    oid: relation.oid,
                    id: TableId::new(relation.namespace, relation.name),
                    columns: columns.collect(),
                };
                self.relation(relation)
            }
            Message::Insert { relation_oid, new } => {
                self.event(relation_oid, Op::Insert, Some(&new), None)
            }
            Message::Update {
                relation_oid,
                old,
                new,
            } => self.event(relation_oid, Op::Update, Some(&new), old.tuple().as_ref()),
            Message::Delete { relation_oid, old } => {
                self.event(relation_oid, Op::Delete, old.tuple().as_ref(), None)
            }
            Message::Truncate(truncate) => {
                for oid in truncate.relation_oids {
                    if let step @ Step::Failed(_) = self.event(oid, Op::Truncate, None, None)? {
                        return Ok(step);
                    }
                }
                Ok(Step::Continue)
            }
            Message::Origin { .. } | Message::Type { .. } | Message::LogicalMessage { .. } => {
                Ok(Step::Continue)
            }
            Message::StreamStart { .. }
            | Message::StreamStop
            | Message::StreamCommit { .. }
            | Message::StreamAbort { .. }
            | Message::BeginPrepare(_)
            | Message::Prepare(_)
            | Message::StreamPrepare(_)
            | Message::CommitPrepared(_)
            | Message::RollbackPrepared(_) => {
                Err(out_of_order("a piece of a transaction came unasked for"))
            }
        }
    }

    fn relation(&mut self, relation: Relation) -> Result<Step> {
        if self.is_decoding(&relation) {
            return Ok(Step::Continue);
        }
        self.relations.insert(relation.oid, relation.clone());
        let Some(table) = self.known.get(&relation.oid).cloned() else {
            if matches!(self.entries.get(&relation.oid), Some(Entry::Ignored)) {
                return Ok(Step::Continue);
            }
            return Ok(Step::Unknown(relation));
        };
        if table.schema.id != relation.id {
            let what = format!("the table is now called \"{}\"", relation.id);
            return self.fail(&table, incompatible(&table, &what));
        }
        match TableDecoder::new(Arc::clone(&table), &relation) {
            Ok(decoder) => {
                self.replace(relation.oid, Entry::Decoding(Box::new(decoder)))?;
                Ok(Step::Continue)
            }
            Err(ShapeChange::Added(_)) => Ok(Step::Unknown(relation)),
            Err(ShapeChange::Incompatible(what)) => self.fail(&table, incompatible(&table, &what)),
        }
    }

    /// Whether the relation is decoded in just this shape already: each transaction that is sent
    /// while it runs describes its relations again.
    fn is_decoding(&self, relation: &Relation) -> bool {
        let oid = relation.oid;
        match (self.entries.get(&oid), self.known.get(&oid)) {
            (Some(Entry::Decoding(decoder)), Some(known)) => {
                Arc::ptr_eq(decoder.table(), known)
                    && known.schema.id == relation.id
                    && self.relations.get(&oid) == Some(relation)
            }
            _ => false,
        }
    }

    /// The answer to [`Step::Unknown`]: the table as the catalog has it now, or `None` when it is
    /// not one of ours.
    ///
    /// # Errors
    /// Arrow refuses decoded columns: a bug.
    pub fn resolve(
        &mut self,
        relation: &Relation,
        table: Option<Arc<SourceTable>>,
    ) -> Result<Step> {
        let Some(table) = table else {
            let Some(known) = self.known.get(&relation.oid).cloned() else {
                self.replace(relation.oid, Entry::Ignored)?;
                return Ok(Step::Continue);
            };
            return self.fail(&known, incompatible(&known, "the table was dropped"));
        };
        self.known.insert(relation.oid, Arc::clone(&table));
        match TableDecoder::new(Arc::clone(&table), relation) {
            Ok(decoder) => {
                self.replace(relation.oid, Entry::Decoding(Box::new(decoder)))?;
                Ok(Step::Continue)
            }
            Err(ShapeChange::Added(columns)) => {
                let what = format!(
                    "columns {} are not in the catalog any more",
                    columns.join(", ")
                );
                self.fail(&table, incompatible(&table, &what))
            }
            Err(ShapeChange::Incompatible(what)) => self.fail(&table, incompatible(&table, &what)),
        }
    }

    fn replace(&mut self, oid: u32, entry: Entry) -> Result<()> {
        if let Some(Entry::Decoding(mut decoder)) = self.entries.insert(oid, entry)
            && let Some(batch) = decoder.take()?
        {
            self.finished.push(batch);
        }
        Ok(())
    }

    fn fail(&mut self, table: &SourceTable, error: Error) -> Result<Step> {
        let at = self
            .transaction
            .map_or(Lsn::ZERO, |transaction| transaction.commit_lsn);
        let oid = table.schema.relation_oid;
        // Transactions from before the failing one are whole.
        if let Some(Entry::Decoding(mut decoder)) = self.entries.remove(&oid)
            && let Some(batch) = decoder.take()?
        {
            let whole = batch.commit_lsn.partition_point(|lsn| *lsn < at);
            if whole > 0 {
                self.finished.push(batch.slice(0, whole));
            }
        }
        self.ignore(oid);
        Ok(Step::Failed(Failure {
            table: table.schema.id.clone(),
            at,
            error,
        }))
    }

    fn event(
        &mut self,
        oid: u32,
        op: Op,
        new: Option<&TupleData<'_>>,
        old: Option<&TupleData<'_>>,
    ) -> Result<Step> {
        let Some(transaction) = &mut self.transaction else {
            return Err(out_of_order("a change came outside a transaction"));
        };
        let serial = transaction.next_serial;
        transaction.next_serial += 1;
        let decoder = match self.entries.get_mut(&oid) {
            Some(Entry::Decoding(decoder)) => decoder,
            Some(Entry::Ignored) => return Ok(Step::Continue),
            None => return Err(out_of_order("a change came before its relation")),
        };
        match decoder.push(op, transaction, serial, new, old) {
            Ok(()) => {
                let tuples = new.into_iter().chain(old);
                self.fed_bytes += tuples.map(TupleData::size_bytes).sum::<usize>();
                if self.fed_bytes >= MEASURE_EVERY_BYTES {
                    self.measure();
                }
                Ok(Step::Continue)
            }
            Err(error) if error.is(&code::VALUE) => {
                let table = Arc::clone(decoder.table());
                self.fail(&table, error)
            }
            Err(error) => Err(error),
        }
    }
}

fn out_of_order(what: &str) -> Error {
    Error::new(&code::PG_PROTOCOL, what)
}

fn incompatible(table: &SourceTable, what: &str) -> Error {
    let id = &table.schema.id;
    Error::new(
        &code::SCHEMA_CHANGED,
        format!("table \"{id}\" changed: {what}"),
    )
    .with_detail("the other tables go on; this one is kept as it was before the change")
    .with_hint(format!(
        "copy it afresh in its new shape: alluvium resync {id}"
    ))
}
