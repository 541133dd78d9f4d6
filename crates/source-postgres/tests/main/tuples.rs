//! Binary tuples say what text says, and where they might not, they are refused by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use alluvium_change::{ChangeBatch, Result, code};
use alluvium_source_postgres::capture::{Assembler, Step};
use alluvium_source_postgres::catalog::{SourceTable, TableOverride, TableSelection, load_tables};
use alluvium_source_postgres::pgoutput::{self, Message, TupleValue};
use alluvium_source_postgres::preflight::{CheckStatus, check_tuples};
use alluvium_source_postgres::tuples::{TupleForm, Tuples, choose, obstacle};
use alluvium_source_postgres::type_map::OnInvalid;
use alluvium_testkit::{PgCluster, sql};
use tokio_postgres::Client;

use crate::{client, cluster, database, everything, options, tables};

const BINARY_VERSION: u32 = 140_000;

/// All that the slot has, in one form.
async fn messages(client: &Client, binary: bool) -> Vec<Vec<u8>> {
    let sql = "SELECT data FROM pg_logical_slot_peek_binary_changes('s', NULL, NULL, \
               'proto_version', '1', 'publication_names', 'p', 'binary', $1)";
    let rows = client.query(sql, &[&binary.to_string()]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// What a table's changes became: batches, and why it stopped if it did.
type Decoded = BTreeMap<String, (Vec<ChangeBatch>, Option<String>)>;

fn decode(messages: &[Vec<u8>], tables: &[SourceTable]) -> Result<Decoded> {
    let mut assembler = Assembler::new();
    for table in tables {
        assembler.know(Arc::new(table.clone()))?;
    }
    let mut decoded = Decoded::new();
    for message in messages {
        match assembler.handle(message)? {
            Step::Unknown(relation) => {
                assembler.resolve(&relation, None)?;
            }
            Step::Failed(failure) => {
                let said = format!("{} {:?}", failure.error, failure.error.detail());
                decoded.entry(failure.table.to_string()).or_default().1 = Some(said);
            }
            Step::Continue | Step::Committed { .. } => {}
        }
    }
    for batch in assembler.take_batches()? {
        let name = batch.table.id.to_string();
        decoded.entry(name).or_default().0.push(batch);
    }
    Ok(decoded)
}

fn assert_same(table: &str, text: &[ChangeBatch], binary: &[ChangeBatch]) {
    assert_eq!(text.len(), binary.len(), "{table}");
    for (text, binary) in text.iter().zip(binary) {
        assert_eq!(text.ops, binary.ops, "{table}");
        assert_eq!(text.unchanged, binary.unchanged, "{table}");
        let fields = text.rows.schema();
        for (place, field) in fields.fields().iter().enumerate() {
            let name = field.name();
            let (a, b) = (text.rows.column(place), binary.rows.column(place));
            assert_eq!(a, b, "{table}.{name}");
        }
        match (&text.old, &binary.old) {
            (None, None) => {}
            (Some(text), Some(binary)) => {
                assert_eq!(text.row_of, binary.row_of, "{table}");
                assert_eq!(text.rows, binary.rows, "{table}");
            }
            _ => panic!("{table}: old images in one form only"),
        }
    }
}

fn num_binary(messages: &[Vec<u8>]) -> usize {
    let in_tuple = |message: &Vec<u8>| match pgoutput::decode(message).unwrap() {
        Message::Insert { new, .. } | Message::Update { new, .. } => new
            .iter()
            .filter(|value| matches!(value, TupleValue::Binary(_)))
            .count(),
        _ => 0,
    };
    messages.iter().map(in_tuple).sum()
}

fn with_policy(tables: &[SourceTable], on_invalid: OnInvalid) -> TableSelection {
    let choice = TableOverride {
        on_invalid,
        ..TableOverride::default()
    };
    let names = tables.iter().map(|table| table.id().to_string());
    TableSelection {
        overrides: names.map(|name| (name, choice.clone())).collect(),
        ..everything()
    }
}

/// Every value of the type map, inserted, updated and deleted, under every policy: the columns that
/// may be read in binary become, cell by cell, what their text becomes, errors included.
#[tokio::test]
async fn every_type_becomes_the_same_from_text_and_from_binary() {
    for version in PgCluster::versions_to_test().unwrap() {
        if version < 14 {
            continue;
        }
        let pg = PgCluster::start(Some(version), &[]).unwrap();
        pg.execute("CREATE PUBLICATION p FOR ALL TABLES").unwrap();
        pg.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
            .unwrap();
        for script in [sql::TYPES, sql::TYPES_14] {
            pg.execute(script).unwrap();
        }
        // Whole old rows, and a key of many types.
        pg.execute(
            "ALTER TABLE types.numbers REPLICA IDENTITY FULL;
             CREATE TABLE types.keys (id int, u uuid, t text, n numeric(9,3), d date, s timestamptz, b bool,
                 v int, PRIMARY KEY (id, u, t, n, d, s, b));
             INSERT INTO types.keys SELECT g, md5(g::text)::uuid, 'k' || g, g / 7.0,
                 '2026-01-01'::date + g, '2026-01-01'::timestamptz + g * interval '1 hour', g % 2 = 0, g
             FROM generate_series(1, 20) g",
        )
        .unwrap();
        pg.execute(sql::TYPES_CHANGES).unwrap();
        let client = client(&options(&pg.url("postgres"))).await;
        let (text, binary) = (
            messages(&client, false).await,
            messages(&client, true).await,
        );
        assert_eq!(text.len(), binary.len());
        assert_eq!(num_binary(&text), 0);
        assert!(num_binary(&binary) > 1000);
        let all = tables(&client).await;
        let (mut cells, mut stopped) = (0, 0);
        for on_invalid in [
            OnInvalid::Error,
            OnInvalid::Null,
            OnInvalid::Clamp,
            OnInvalid::String,
        ] {
            let mut selection = with_policy(&all, on_invalid);
            for table in load_tables(&client, &selection).await.unwrap() {
                let columns = table.schema.columns.iter().zip(&table.plans);
                let left_out = columns.filter(|(_, plan)| !plan.reads_binary_tuples());
                let left_out = left_out.map(|(column, _)| column.name.clone()).collect();
                let name = table.id().to_string();
                selection.overrides.entry(name).or_default().exclude_columns = left_out;
            }
            let tables = load_tables(&client, &selection).await.unwrap();
            let chosen = choose(Tuples::Binary, BINARY_VERSION, &tables).unwrap();
            assert_eq!(chosen.form, TupleForm::Binary);
            let from_text = decode(&text, &tables).unwrap();
            let from_binary = decode(&binary, &tables).unwrap();
            assert_eq!(
                from_text.keys().collect::<Vec<_>>(),
                from_binary.keys().collect::<Vec<_>>()
            );
            for (table, (batches, why)) in &from_text {
                let (other, other_why) = &from_binary[table];
                assert_eq!(why, other_why, "{table}");
                stopped += usize::from(why.is_some());
                assert_same(table, batches, other);
                let size = |batch: &ChangeBatch| batch.num_rows() * batch.rows.num_columns();
                cells += batches.iter().map(size).sum::<usize>();
            }
        }
        assert!(cells > 10_000, "{cells} cells were compared");
        assert!(stopped >= 3, "{stopped} tables were refused");
        refuses_what_it_does_not_read(&binary, &all);
    }
}

/// Each table that has a column of another type is refused at its first value in binary form, and the
/// error names the column that `obstacle` names.
fn refuses_what_it_does_not_read(binary: &[Vec<u8>], all: &[SourceTable]) {
    let mut refused = 0;
    for table in all {
        let decoded = decode(binary, std::slice::from_ref(table));
        let Some(expected) = obstacle(table) else {
            decoded.unwrap();
            continue;
        };
        refused += 1;
        let Err(error) = decoded else {
            // Its values were refused before, or it has no such value.
            continue;
        };
        assert!(error.is(&code::PG_TUPLES), "{error}");
        let name = format!("table \"{}\", column \"", table.id());
        assert!(error.message().starts_with(&name), "{error}");
        assert!(expected.message().starts_with(&name), "{expected}");
        assert!(
            error.hint().contains("tuples = \"auto\""),
            "{}",
            error.hint()
        );
    }
    assert!(refused > 5, "{refused}");
}

#[tokio::test]
async fn what_cannot_be_binary_is_told_with_table_and_column() {
    let options = database("tuples_choice").await;
    let client = client(&options).await;
    let only = |name: &str| TableSelection {
        include: vec![format!("public.{name}")],
        ..TableSelection::default()
    };
    client
        .batch_execute(
            "CREATE TABLE public.exact (id int PRIMARY KEY, at timestamptz);
             CREATE TABLE public.texts (id int PRIMARY KEY, a text, b varchar, c jsonb);
             CREATE TABLE public.listed (id int PRIMARY KEY, tags text[]);
             CREATE TYPE public.uuid;
             CREATE FUNCTION public.uuid_in(cstring) RETURNS public.uuid AS 'textin' LANGUAGE internal IMMUTABLE STRICT;
             CREATE FUNCTION public.uuid_out(public.uuid) RETURNS cstring AS 'textout' LANGUAGE internal IMMUTABLE STRICT;
             CREATE TYPE public.uuid (INPUT = public.uuid_in, OUTPUT = public.uuid_out, LIKE = text);
             CREATE TABLE public.disguised (id int PRIMARY KEY, u public.uuid);
             INSERT INTO public.disguised VALUES (1, 'no uuid at all')",
        )
        .await
        .unwrap();
    let check = check_tuples(&options, &only("exact"), Tuples::Binary)
        .await
        .unwrap();
    if cluster().version() < 14 {
        assert_eq!(check.status, CheckStatus::Fail);
        return;
    }
    assert_eq!(check.status, CheckStatus::Ok, "{check:?}");
    for (table, column) in [("listed", "tags"), ("disguised", "u")] {
        let check = check_tuples(&options, &only(table), Tuples::Binary)
            .await
            .unwrap();
        assert_eq!(check.code, Some(&code::PG_TUPLES));
        let named = format!("table \"public.{table}\", column \"{column}\"");
        assert!(check.finding.starts_with(&named), "{}", check.finding);
        assert!(check.fix.unwrap().contains("exclude_columns"));
        let tables = load_tables(&client, &only(table)).await.unwrap();
        let choice = choose(Tuples::Auto, BINARY_VERSION, &tables).unwrap();
        assert_eq!(choice.form, TupleForm::Text);
        assert!(choice.why.starts_with(&named), "{}", choice.why);
    }
    // Where both can be, what the types cost decides.
    for (table, quicker) in [("exact", TupleForm::Binary), ("texts", TupleForm::Text)] {
        let tables = load_tables(&client, &only(table)).await.unwrap();
        let chosen = |wanted| choose(wanted, BINARY_VERSION, &tables).unwrap().form;
        assert_eq!(chosen(Tuples::Auto), quicker, "{table}");
        assert_eq!(chosen(Tuples::Binary), TupleForm::Binary);
        assert_eq!(chosen(Tuples::Text), TupleForm::Text);
    }
    let none = check_tuples(&options, &only("listed"), Tuples::Auto).await;
    assert!(none.is_none());
    let tables = load_tables(&client, &only("exact")).await.unwrap();
    let error = choose(Tuples::Binary, 130_010, &tables).unwrap_err();
    assert!(error.is(&code::PG_TUPLES) && error.message().contains("PostgreSQL 13"));
    assert_eq!(
        choose(Tuples::Auto, 130_010, &tables).unwrap().form,
        TupleForm::Text
    );
}
