#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use alluvium_change::code;
use proptest::prelude::*;

use super::encode::{TupleBuffer, encode, encode_in_segment};
use super::*;

fn encoded(message: &Message<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(message, &mut bytes).unwrap();
    bytes
}

fn assert_round_trip(message: &Message<'_>) {
    let bytes = encoded(message);
    assert_eq!(&decode(&bytes).unwrap(), message);
    // No prefix of a message is a message, nor is one with a byte more.
    for length in 0..bytes.len() {
        let error = decode(&bytes[..length]).unwrap_err();
        assert!(error.is(&code::PG_PROTOCOL), "{error}");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(decode(&longer).unwrap_err().is(&code::PG_PROTOCOL));
}

/// A change round-trips outside a segment, and with an xid within one.
fn assert_change_round_trips(message: &Message<'_>, xid: u32) {
    assert_round_trip(message);
    let message = InSegment {
        xid: Some(xid),
        message: message.clone(),
    };
    assert_round_trip_in_segment(&message);
}

fn assert_round_trip_in_segment(message: &InSegment<'_>) {
    let mut bytes = Vec::new();
    encode_in_segment(message, &mut bytes).unwrap();
    assert_eq!(&decode_in_segment(&bytes).unwrap(), message);
    assert!(message.xid.is_none() || segment_xid(&bytes) == message.xid);
    for length in 0..bytes.len() {
        let error = decode_in_segment(&bytes[..length]).unwrap_err();
        assert!(error.is(&code::PG_PROTOCOL), "{error}");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(
        decode_in_segment(&longer)
            .unwrap_err()
            .is(&code::PG_PROTOCOL)
    );
}

/// What a PostgreSQL 15 server sent for changes of `t(id int PRIMARY KEY, v text, b text)` and of
/// `t2(id int, m mood)` with `REPLICA IDENTITY FULL`.
const SERVER_BYTES: [&str; 14] = [
    "420000000001608b90000303cc634adee8000002f2",
    "52000041c97075626c69630074006400030169640000000017ffffffff00760000000019ffffffff0062000000\
     0019ffffffff",
    "55000041c94e00037400000001316e75",
    "43000000000001608b900000000001608bc0000303cc634adee8",
    "55000041c94b00037400000001316e6e4e00037400000001326e75",
    "44000041c94b00037400000001326e6e",
    "59000041d17075626c6963006d6f6f6400",
    "52000041d57075626c6963007432006600020169640000000017ffffffff016d00000041d1ffffffff",
    "49000041d54e0002740000000131740000000162",
    "55000041d54f00027400000001317400000001624e0002740000000132740000000162",
    "4d010000000001608e8070726500000000026869",
    "44000041d54f0002740000000132740000000162",
    "540000000203000041c9000041d5",
    "43000000000001609ce80000000001609e90000303cc634ae59a",
];

/// What a PostgreSQL 15 server sent of prepared transactions.
const PREPARED_BYTES: [&str; 4] = [
    "6200000000015578a800000000015579a0000303d42ce81b7a000002f473686f702d3700",
    "500000000000015578a800000000015579a0000303d42ce81b7a000002f473686f702d3700",
    "4b0000000000015579a000000000015579e0000303d42ce8b37f000002f473686f702d3700",
    "72000000000001557b580000000001586958000303d42ce966c8000303d42d020044000002f573686f702d3800",
];

fn server_messages() -> Vec<Vec<u8>> {
    from_hex(&SERVER_BYTES)
}

fn from_hex(lines: &[&str]) -> Vec<Vec<u8>> {
    lines
        .iter()
        .map(|hex| {
            let digits: Vec<u8> = hex
                .bytes()
                .map(|c| char::from(c).to_digit(16).unwrap() as u8)
                .collect();
            digits
                .chunks(2)
                .map(|pair| pair[0] << 4 | pair[1])
                .collect()
        })
        .collect()
}

#[test]
fn messages_of_a_real_server_encode_to_their_bytes() {
    let prepared = from_hex(&PREPARED_BYTES);
    for message in server_messages().into_iter().chain(prepared) {
        assert_eq!(encoded(&decode(&message).unwrap()), message);
    }
}

#[test]
fn messages_of_a_real_server_decode() {
    let bytes = server_messages();
    let messages: Vec<Message<'_>> = bytes.iter().map(|bytes| decode(bytes).unwrap()).collect();

    let column = |name, type_oid, key| RelationColumn {
        key,
        name,
        type_oid,
        typmod: -1,
    };
    let commit_time_micros = 1_795_286_104_194_792;
    let final_lsn = Lsn(0x0160_8B90);
    assert_eq!(
        messages[0],
        Message::Begin(Begin {
            final_lsn,
            commit_time_micros,
            xid: 754
        })
    );
    assert_eq!(
        messages[1],
        Message::Relation(Relation {
            oid: 16841,
            namespace: "public",
            name: "t",
            replica_identity: ReplicaIdentity::Default,
            columns: vec![
                column("id", 23, true),
                column("v", 25, false),
                column("b", 25, false)
            ],
        })
    );
    // The update of a row whose long text did not change.
    let text = TupleValue::Text;
    let row = |values: &[TupleValue<'static>]| TupleBuffer::new(values.iter().copied()).unwrap();
    let new = row(&[text(b"1"), TupleValue::Null, TupleValue::Unchanged]);
    let updated = Message::Update {
        relation_oid: 16841,
        old: OldTuple::None,
        new: new.tuple(),
    };
    assert_eq!(messages[2], updated);
    assert_eq!(
        messages[3],
        Message::Commit(Commit {
            commit_lsn: final_lsn,
            end_lsn: Lsn(0x0160_8BC0),
            commit_time_micros,
        })
    );
    // The update of its key.
    let old = row(&[text(b"1"), TupleValue::Null, TupleValue::Null]);
    let new = row(&[text(b"2"), TupleValue::Null, TupleValue::Unchanged]);
    let old = OldTuple::Key(old.tuple());
    let updated = Message::Update {
        relation_oid: 16841,
        old,
        new: new.tuple(),
    };
    assert_eq!(messages[4], updated);
    assert_eq!(
        messages[6],
        Message::Type {
            oid: 16849,
            namespace: "public",
            name: "mood"
        }
    );
    let old = row(&[text(b"2"), text(b"b")]);
    let old = OldTuple::Full(old.tuple());
    assert_eq!(
        messages[11],
        Message::Delete {
            relation_oid: 16853,
            old
        }
    );
    assert_eq!(
        messages[12],
        Message::Truncate(Truncate {
            relation_oids: vec![16841, 16853],
            cascade: true,
            restart_identity: true,
        })
    );
    let lsn = Lsn(0x0160_8E80);
    let expected = Message::LogicalMessage {
        transactional: true,
        lsn,
        prefix: "pre",
        content: b"hi",
    };
    assert_eq!(messages[10], expected);
}

#[test]
fn prepared_transactions_of_a_real_server_decode() {
    let bytes = from_hex(&PREPARED_BYTES);
    let prepare_time_micros = 1_795_319_551_490_938;
    let prepare = Prepare {
        prepare_lsn: Lsn(0x0155_78A8),
        end_lsn: Lsn(0x0155_79A0),
        prepare_time_micros,
        xid: 756,
        gid: "shop-7",
    };
    assert_eq!(decode(&bytes[0]).unwrap(), Message::BeginPrepare(prepare));
    assert_eq!(decode(&bytes[1]).unwrap(), Message::Prepare(prepare));
    let Message::CommitPrepared(committed) = decode(&bytes[2]).unwrap() else {
        panic!("not a commit")
    };
    assert_eq!((committed.xid, committed.gid), (756, "shop-7"));
    assert_eq!(committed.commit.commit_lsn, Lsn(0x0155_79A0));
    assert_eq!(committed.commit.end_lsn, Lsn(0x0155_79E0));
    assert!(committed.commit.commit_time_micros > prepare_time_micros);
    let Message::RollbackPrepared(rolled_back) = decode(&bytes[3]).unwrap() else {
        panic!("not a rollback")
    };
    assert_eq!((rolled_back.xid, rolled_back.gid), (757, "shop-8"));
    assert_eq!(rolled_back.prepare_end_lsn, Lsn(0x0155_7B58));
    assert_eq!(rolled_back.rollback_end_lsn, Lsn(0x0158_6958));
    assert!(rolled_back.rollback_time_micros > rolled_back.prepare_time_micros);
}

#[test]
fn an_unknown_or_empty_message_is_refused() {
    for bytes in [b"".as_slice(), b"Z", b"E", b"S\0\0\0\x01\x02", b"\xff"] {
        let error = decode(bytes).unwrap_err();
        assert!(error.is(&code::PG_PROTOCOL), "{error}");
    }
}

#[test]
fn what_ends_or_begins_a_transaction_is_refused_within_a_segment() {
    let commit = Commit {
        commit_lsn: Lsn(1),
        end_lsn: Lsn(2),
        commit_time_micros: 0,
    };
    let start = Message::StreamStart {
        xid: 1,
        first_segment: true,
    };
    let prepare = Prepare {
        prepare_lsn: Lsn(1),
        end_lsn: Lsn(2),
        prepare_time_micros: 0,
        xid: 1,
        gid: "g",
    };
    let rolled_back = RollbackPrepared {
        prepare_end_lsn: Lsn(1),
        rollback_end_lsn: Lsn(2),
        prepare_time_micros: 0,
        rollback_time_micros: 0,
        xid: 1,
        gid: "g",
    };
    for message in [
        start,
        Message::Commit(commit),
        Message::StreamCommit { xid: 1, commit },
        Message::StreamAbort { xid: 1, subxid: 1 },
        Message::BeginPrepare(prepare),
        Message::Prepare(prepare),
        Message::StreamPrepare(prepare),
        Message::CommitPrepared(CommitPrepared {
            commit,
            xid: 1,
            gid: "g",
        }),
        Message::RollbackPrepared(rolled_back),
    ] {
        let error = decode_in_segment(&encoded(&message)).unwrap_err();
        assert!(error.is(&code::PG_PROTOCOL), "{message:?}: {error}");
        let within = InSegment {
            xid: Some(1),
            message,
        };
        let mut out = b"kept".to_vec();
        assert!(encode_in_segment(&within, &mut out).is_err());
        assert_eq!(out, b"kept");
    }
}

#[test]
fn what_the_protocol_does_not_allow_is_refused() {
    let begin = Message::Begin(Begin {
        final_lsn: Lsn(1),
        commit_time_micros: 0,
        xid: 1,
    });
    let mut bytes = encoded(&begin);
    // A commit time that overflows when counted from 1970.
    bytes[9..17].copy_from_slice(&i64::MAX.to_be_bytes());
    assert!(decode(&bytes).is_err());
    // A name that is not UTF-8.
    assert!(decode(b"O\0\0\0\0\0\0\0\x01\xff\0").is_err());
    // A negative length of a value, of a list, of a message.
    assert!(decode(b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xff").is_err());
    assert!(decode(b"T\xff\xff\xff\xff\0").is_err());
    assert!(decode(b"M\0\0\0\0\0\0\0\0\x01p\0\xff\xff\xff\xff").is_err());
    // A count far beyond the message does not reserve memory for it.
    assert!(decode(b"T\x7f\xff\xff\xff\0\0\0\0\x01").is_err());
    // An unknown kind of value, flag, identity; a deleted row without an image.
    assert!(decode(b"I\0\0\0\x01N\0\x01x").is_err());
    assert!(decode(b"T\0\0\0\0\x04").is_err());
    assert!(decode(b"R\0\0\0\x01s\0t\0x\0\0").is_err());
    assert!(decode(b"D\0\0\0\x01N\0\0").is_err());
    let nothing = Message::Delete {
        relation_oid: 1,
        old: OldTuple::None,
    };
    assert!(encode(&nothing, &mut Vec::new()).is_err());
    let zero = Message::Origin {
        commit_lsn: Lsn(1),
        name: "a\0b",
    };
    let mut out = b"kept".to_vec();
    assert!(encode(&zero, &mut out).is_err());
    assert_eq!(out, b"kept");
}

#[test]
fn values_of_a_row_come_in_order() {
    let values = [
        TupleValue::Null,
        TupleValue::Unchanged,
        TupleValue::Text(b"one"),
        TupleValue::Text(b""),
        TupleValue::Binary(&[0, 255]),
    ];
    let buffer = TupleBuffer::new(values).unwrap();
    let message = Message::Insert {
        relation_oid: 7,
        new: buffer.tuple(),
    };
    let bytes = encoded(&message);
    let Message::Insert { new, .. } = decode(&bytes).unwrap() else {
        panic!("not an insert")
    };
    assert_eq!(new.len(), 5);
    assert_eq!(new.iter().collect::<Vec<_>>(), values);
    assert_eq!(new.iter().len(), 5);
}

#[derive(Debug, Clone)]
enum OwnedValue {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

fn tuple() -> impl Strategy<Value = TupleBuffer> {
    let value = prop_oneof![
        Just(OwnedValue::Null),
        Just(OwnedValue::Unchanged),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(OwnedValue::Text),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(OwnedValue::Binary),
    ];
    prop::collection::vec(value, 0..12).prop_map(|values| {
        TupleBuffer::new(values.iter().map(|value| match value {
            OwnedValue::Null => TupleValue::Null,
            OwnedValue::Unchanged => TupleValue::Unchanged,
            OwnedValue::Text(text) => TupleValue::Text(text),
            OwnedValue::Binary(bytes) => TupleValue::Binary(bytes),
        }))
        .unwrap()
    })
}

fn name() -> impl Strategy<Value = String> {
    any::<String>().prop_map(|text| text.replace('\0', "_") + "x")
}

fn unix_micros() -> impl Strategy<Value = i64> {
    (i64::MIN..=i64::MAX - EPOCH_MICROS).prop_map(|micros| micros + EPOCH_MICROS)
}

fn identity() -> impl Strategy<Value = ReplicaIdentity> {
    prop_oneof![
        Just(ReplicaIdentity::Default),
        Just(ReplicaIdentity::Nothing),
        Just(ReplicaIdentity::Full),
        Just(ReplicaIdentity::Index),
    ]
}

proptest! {
    #[test]
    fn transactions_round_trip(lsn: u64, end: u64, time in unix_micros(), xid: u32, name in name()) {
        let (commit_lsn, end_lsn, commit_time_micros) = (Lsn(lsn), Lsn(end), time);
        let begin = Begin { final_lsn: commit_lsn, commit_time_micros, xid };
        assert_round_trip(&Message::Begin(begin));
        assert_round_trip(&Message::Commit(Commit { commit_lsn, end_lsn, commit_time_micros }));
        let origin = Message::Origin { commit_lsn, name: &name };
        assert_round_trip(&origin);
        assert_round_trip_in_segment(&InSegment { xid: None, message: origin });
    }

    #[test]
    fn streams_round_trip(
        xid: u32, subxid: u32, first_segment: bool, lsn: u64, end: u64, time in unix_micros(),
    ) {
        assert_round_trip(&Message::StreamStart { xid, first_segment });
        assert_round_trip(&Message::StreamAbort { xid, subxid });
        let commit = Commit { commit_lsn: Lsn(lsn), end_lsn: Lsn(end), commit_time_micros: time };
        assert_round_trip(&Message::StreamCommit { xid, commit });
        assert_round_trip_in_segment(&InSegment { xid: None, message: Message::StreamStop });
    }

    #[test]
    fn prepared_transactions_round_trip(
        xid: u32, gid in name(), lsn: u64, end: u64, time in unix_micros(), later in unix_micros(),
    ) {
        let (prepare_lsn, end_lsn, prepare_time_micros) = (Lsn(lsn), Lsn(end), time);
        let prepare = Prepare { prepare_lsn, end_lsn, prepare_time_micros, xid, gid: &gid };
        assert_round_trip(&Message::BeginPrepare(prepare));
        assert_round_trip(&Message::Prepare(prepare));
        assert_round_trip(&Message::StreamPrepare(prepare));
        let commit = Commit { commit_lsn: Lsn(lsn), end_lsn, commit_time_micros: later };
        assert_round_trip(&Message::CommitPrepared(CommitPrepared { commit, xid, gid: &gid }));
        assert_round_trip(&Message::RollbackPrepared(RollbackPrepared {
            prepare_end_lsn: Lsn(lsn),
            rollback_end_lsn: end_lsn,
            prepare_time_micros,
            rollback_time_micros: later,
            xid,
            gid: &gid,
        }));
    }

    #[test]
    fn relations_round_trip(
        oid: u32,
        namespace in name(),
        name in name(),
        replica_identity in identity(),
        columns in prop::collection::vec((any::<bool>(), name(), any::<u32>(), any::<i32>()), 0..6),
    ) {
        let columns = columns
            .iter()
            .map(|(key, name, type_oid, typmod)| RelationColumn {
                key: *key, name, type_oid: *type_oid, typmod: *typmod,
            })
            .collect();
        let (namespace, name) = (namespace.as_str(), name.as_str());
        assert_change_round_trips(&Message::Type { oid, namespace, name }, oid);
        assert_change_round_trips(&Message::Relation(Relation {
            oid, namespace, name, replica_identity, columns,
        }), oid);
    }

    #[test]
    fn rows_round_trip(relation_oid: u32, xid: u32, old in tuple(), new in tuple()) {
        let (old, new) = (old.tuple(), new.tuple());
        assert_change_round_trips(&Message::Insert { relation_oid, new }, xid);
        for old in [OldTuple::None, OldTuple::Key(old), OldTuple::Full(old)] {
            assert_change_round_trips(&Message::Update { relation_oid, old, new }, xid);
            if old != OldTuple::None {
                assert_change_round_trips(&Message::Delete { relation_oid, old }, xid);
            }
        }
    }

    #[test]
    fn truncates_round_trip(
        relation_oids in prop::collection::vec(any::<u32>(), 0..6),
        cascade: bool,
        restart_identity: bool,
        xid: u32,
    ) {
        let truncate = Truncate { relation_oids, cascade, restart_identity };
        assert_change_round_trips(&Message::Truncate(truncate), xid);
    }

    #[test]
    fn logical_messages_round_trip(
        transactional: bool,
        lsn: u64,
        prefix in name(),
        content in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let content = content.as_slice();
        assert_change_round_trips(&Message::LogicalMessage {
            transactional, lsn: Lsn(lsn), prefix: &prefix, content,
        }, 7);
    }

    /// Whatever decodes encodes to the same bytes, and nothing panics.
    #[test]
    fn random_bytes_never_panic(
        letter in prop_oneof![prop::sample::select(b"BCORYIUDTMScAEbPpKr".to_vec()), any::<u8>()],
        rest in prop::collection::vec(
            prop_oneof![4 => 0..3_u8, 1 => any::<u8>(), 3 => prop::sample::select(b"NKOntub\0".to_vec())],
            0..60,
        ),
    ) {
        let bytes = [&[letter], rest.as_slice()].concat();
        if let Ok(message) = decode(&bytes) {
            if let Message::Insert { new, .. } = &message {
                prop_assert_eq!(new.iter().count(), new.len());
            }
            prop_assert_eq!(&encoded(&message), &bytes);
        }
        if let Ok(message) = decode_in_segment(&bytes) {
            let mut again = Vec::new();
            encode_in_segment(&message, &mut again).unwrap();
            prop_assert_eq!(again, bytes);
        }
    }
}
