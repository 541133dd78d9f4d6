//! The stream is broken anywhere while transactions are prepared, and begins again where the server was
//! told: what was committed is there once, whatever the server leaves out.

use std::collections::BTreeSet;

use alluvium_change::Lsn;
use proptest::prelude::*;

use super::{ALTERED, collect, table};
use crate::capture::Assembler;
use crate::pgoutput::encode::{TupleBuffer, encode, encode_in_segment};
use crate::pgoutput::{
    Begin, Commit, CommitPrepared, InSegment, Message, Prepare, Relation, RelationColumn,
    ReplicaIdentity, RollbackPrepared, TupleValue,
};
use crate::streamed::StreamedTransactions;

/// A record of the WAL that decides something, at its place.
#[derive(Debug, Clone, Copy)]
enum Record {
    Commit { xid: u32 },
    Prepare { xid: u32, streams: bool },
    CommitPrepared { xid: u32, prepared_at: u64 },
    RollbackPrepared { xid: u32, prepared_at: u64 },
}

const LENGTH: u64 = 8;

/// A history of records; the n-th stands at `n * LENGTH`. Everything is decided in the end.
fn history(actions: &[(u8, u8)]) -> Vec<Record> {
    let mut records = vec![];
    let mut held: Vec<(u32, u64)> = vec![];
    let decide = |records: &mut Vec<Record>, (xid, prepared_at), commits| {
        records.push(if commits {
            Record::CommitPrepared { xid, prepared_at }
        } else {
            Record::RollbackPrepared { xid, prepared_at }
        });
    };
    for (xid, &(a, b)) in (100..).zip(actions) {
        match a % 4 {
            0 => records.push(Record::Commit { xid }),
            1 | 2 if held.len() < 4 => {
                held.push((xid, records.len() as u64 * LENGTH));
                let streams = b % 2 == 0;
                records.push(Record::Prepare { xid, streams });
            }
            _ if held.is_empty() => {}
            _ => {
                let which = held.remove(usize::from(b) % held.len());
                decide(&mut records, which, b % 5 != 0);
            }
        }
    }
    for which in held {
        decide(&mut records, which, true);
    }
    records
}

fn relation() -> Message<'static> {
    let column = |name, type_oid, key| RelationColumn {
        key,
        name,
        type_oid,
        typmod: -1,
    };
    Message::Relation(Relation {
        oid: ALTERED,
        namespace: "public",
        name: "t10",
        replica_identity: ReplicaIdentity::Default,
        columns: vec![
            column("id", super::INT4, true),
            column("v", super::TEXT, false),
        ],
    })
}

/// What a server sends of a stream that begins at `start`, by the rules of `DecodePrepare`,
/// `DecodeCommit` and `ReorderBufferFinishPrepared`: messages, each with the end of its record.
fn sent(records: &[Record], start: u64, two_phase_at: u64) -> Vec<(u64, Vec<u8>)> {
    let mut out = Out::default();
    for (at, record) in (0..).step_by(LENGTH as usize).zip(records) {
        out.end = at + LENGTH;
        match *record {
            _ if at < start => {}
            Record::Commit { xid } => {
                out.put(&Message::Begin(Begin {
                    final_lsn: Lsn(at),
                    commit_time_micros: TIME_MICROS,
                    xid,
                }));
                out.row(xid, None);
                out.put(&Message::Commit(commit(at)));
            }
            Record::Prepare { xid, streams } => out.prepared(at, xid, streams),
            Record::CommitPrepared { xid, prepared_at } => {
                if prepared_at < two_phase_at {
                    out.prepared(prepared_at, xid, false);
                }
                let commit = commit(at);
                out.put(&Message::CommitPrepared(CommitPrepared {
                    commit,
                    xid,
                    gid: "g",
                }));
            }
            Record::RollbackPrepared { xid, prepared_at } => {
                out.put(&Message::RollbackPrepared(RollbackPrepared {
                    prepare_end_lsn: Lsn(prepared_at + LENGTH),
                    rollback_end_lsn: Lsn(at + LENGTH),
                    prepare_time_micros: TIME_MICROS,
                    rollback_time_micros: TIME_MICROS,
                    xid,
                    gid: "g",
                }));
            }
        }
    }
    out.messages
}

const TIME_MICROS: i64 = 1_000_000_000_000_000;

fn commit(at: u64) -> Commit {
    Commit {
        commit_lsn: Lsn(at),
        end_lsn: Lsn(at + LENGTH),
        commit_time_micros: TIME_MICROS,
    }
}

#[derive(Default)]
struct Out {
    end: u64,
    described: bool,
    messages: Vec<(u64, Vec<u8>)>,
}

impl Out {
    fn put(&mut self, message: &Message<'_>) {
        let mut bytes = Vec::new();
        encode(message, &mut bytes).unwrap();
        self.messages.push((self.end, bytes));
    }

    /// Each transaction inserts one row, whose key is its number.
    fn row(&mut self, xid: u32, segment_xid: Option<u32>) {
        let id = xid.to_string();
        let values = [TupleValue::Text(id.as_bytes()), TupleValue::Text(b"v")];
        let row = TupleBuffer::new(values).unwrap();
        let insert = Message::Insert {
            relation_oid: ALTERED,
            new: row.tuple(),
        };
        let first = !std::mem::replace(&mut self.described, true);
        let relation = relation();
        let messages = match segment_xid {
            Some(_) => vec![relation, insert],
            None if first => vec![relation, insert],
            None => vec![insert],
        };
        for message in messages {
            match segment_xid {
                None => self.put(&message),
                xid => {
                    let mut bytes = Vec::new();
                    encode_in_segment(&InSegment { xid, message }, &mut bytes).unwrap();
                    self.messages.push((self.end, bytes));
                }
            }
        }
        if segment_xid.is_some() && first {
            self.described = false;
        }
    }

    fn prepared(&mut self, at: u64, xid: u32, streams: bool) {
        let prepare = Prepare {
            prepare_lsn: Lsn(at),
            end_lsn: Lsn(at + LENGTH),
            prepare_time_micros: TIME_MICROS,
            xid,
            gid: "g",
        };
        if streams {
            let first_segment = true;
            self.put(&Message::StreamStart { xid, first_segment });
            self.row(xid, Some(xid));
            self.put(&Message::StreamStop);
            self.put(&Message::StreamPrepare(prepare));
        } else {
            self.put(&Message::BeginPrepare(prepare));
            self.row(xid, None);
            self.put(&Message::Prepare(prepare));
        }
    }
}

/// What a process remembers of what it told, and what is in the lake.
struct Follower {
    told: u64,
    durable: u64,
    lake: Vec<(u64, i32)>,
    /// Everything that commits before it is in the lake.
    position: u64,
}

impl Follower {
    /// Follows the stream for so many messages. `lags` says by how many records durability is behind
    /// what was received, and acknowledgement comes with it.
    fn follow(&mut self, messages: &[(u64, Vec<u8>)], stop: usize, lags: &[u8]) {
        let dir = tempfile::tempdir().unwrap();
        let mut streamed = StreamedTransactions::new(dir.path().join("spill"), 0);
        streamed.reset(Lsn(self.durable)).unwrap();
        let mut assembler = Assembler::new();
        assembler.know(table(ALTERED)).unwrap();
        let mut flushed = self.told;
        for (n, (end, message)) in messages.iter().enumerate().take(stop) {
            streamed.handle(message, &mut assembler).unwrap();
            while streamed.is_replaying() {
                streamed.replay_next(&mut assembler).unwrap();
            }
            let mut rows = Vec::new();
            collect(&mut assembler, &mut rows);
            for row in rows {
                if row.commit_lsn >= self.position {
                    self.lake.push((row.commit_lsn, row.id.unwrap()));
                    self.position = row.commit_lsn + LENGTH;
                }
            }
            let whole = messages.get(n + 1).is_none_or(|(next, _)| next > end);
            let lag = u64::from(lags[n % lags.len()] % 8) * LENGTH;
            if whole {
                flushed = flushed.max(end.saturating_sub(lag));
                let held = streamed.held_from(Lsn(flushed));
                let most = held.map_or(flushed, |held| held.0.min(flushed));
                if most > self.told {
                    self.told = most;
                    self.durable = self.durable.max(flushed);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn prepared_transactions_survive_restarts(
        actions in prop::collection::vec(any::<(u8, u8)>(), 1..60),
        lags in prop::collection::vec(any::<u8>(), 1..10),
        stops in prop::collection::vec(0..60_usize, 0..8),
        switched_on in 0..20_u64,
    ) {
        let records = history(&actions);
        // The slot sends so from here on; before, it had acknowledged this.
        let two_phase_at = switched_on.min(records.len() as u64) * LENGTH;
        let mut follower = Follower {
            told: two_phase_at,
            durable: two_phase_at,
            lake: vec![],
            position: two_phase_at,
        };
        for stop in stops {
            let messages = sent(&records, follower.told, two_phase_at);
            follower.follow(&messages, stop, &lags);
        }
        let messages = sent(&records, follower.told, two_phase_at);
        follower.follow(&messages, messages.len(), &[0]);
        prop_assert_eq!(follower.told, (records.len() as u64 * LENGTH).max(two_phase_at));
        let mut expected = BTreeSet::new();
        for (at, record) in (0..).step_by(LENGTH as usize).zip(&records) {
            match record {
                Record::Commit { xid } | Record::CommitPrepared { xid, .. } if at >= two_phase_at => {
                    expected.insert((at, i32::try_from(*xid).unwrap()));
                }
                _ => {}
            }
        }
        let lake: BTreeSet<_> = follower.lake.iter().copied().collect();
        prop_assert_eq!(lake.len(), follower.lake.len());
        prop_assert_eq!(lake, expected);
    }
}

/// A commit without its changes is an error, unless it is known to be durable; a rollback never is.
#[test]
fn a_commit_of_which_nothing_was_sent_is_not_passed_over() {
    let records = [
        Record::Prepare {
            xid: 100,
            streams: false,
        },
        Record::Prepare {
            xid: 101,
            streams: false,
        },
        Record::RollbackPrepared {
            xid: 101,
            prepared_at: LENGTH,
        },
        Record::CommitPrepared {
            xid: 100,
            prepared_at: 0,
        },
    ];
    let messages = sent(&records, 2 * LENGTH, 0);
    assert_eq!(messages.len(), 2);
    let handle = |durable: u64| {
        let mut streamed = StreamedTransactions::new("not/made".into(), 0);
        streamed.reset(Lsn(durable)).unwrap();
        let mut assembler = Assembler::new();
        let mut answers = messages
            .iter()
            .map(|(_, message)| streamed.handle(message, &mut assembler));
        (answers.next().unwrap(), answers.next().unwrap())
    };
    let (rolled_back, committed) = handle(4 * LENGTH - 1);
    assert!(rolled_back.is_ok());
    let error = committed.unwrap_err();
    assert!(
        error.is(&alluvium_change::code::PG_PREPARED_LOST),
        "{error}"
    );
    assert!(error.message().contains("\"g\""), "{error}");
    assert!(handle(4 * LENGTH).1.is_ok());
}
