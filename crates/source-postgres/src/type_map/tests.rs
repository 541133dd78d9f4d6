#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::sync::Arc;

use arrow::datatypes::{Field, Fields, TimeUnit};

use super::*;
use crate::value::tests::{
    array_of, composite, multirange_of, numeric, options, pg_type, plan, range_of, scalar,
};

fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

fn list(item: DataType) -> DataType {
    DataType::List(Arc::new(field("element", item)))
}

fn range_struct(bound: DataType) -> DataType {
    DataType::Struct(Fields::from(vec![
        field("lower", bound.clone()),
        field("upper", bound),
        field("lower_inc", DataType::Boolean),
        field("upper_inc", DataType::Boolean),
        field("empty", DataType::Boolean),
    ]))
}

fn stored(ty: &PgType, on_invalid: OnInvalid, stored_as: &str) -> Result<ColumnPlan> {
    let stored_as = Some(stored_as.to_owned());
    plan_column(
        ty,
        &ColumnOptions {
            stored_as,
            ..options(on_invalid)
        },
    )
}

#[test]
fn scalars_become_the_types_of_the_map() {
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    for (name, expected) in [
        ("bool", DataType::Boolean),
        ("int2", DataType::Int16),
        ("int4", DataType::Int32),
        ("int8", DataType::Int64),
        ("oid", DataType::Int64),
        ("float4", DataType::Float32),
        ("float8", DataType::Float64),
        ("numeric", DataType::Utf8),
        ("money", DataType::Decimal128(19, 2)),
        ("bytea", DataType::Binary),
        ("date", DataType::Date32),
        (
            "timestamp",
            DataType::Timestamp(TimeUnit::Microsecond, None),
        ),
        ("timestamptz", utc),
        ("geometry", DataType::Binary),
        ("vector", list(DataType::Float32)),
        ("halfvec", list(DataType::Float32)),
    ] {
        let plan = plan(&scalar(name));
        assert_eq!(plan.data_type, expected, "{name}");
        assert_eq!(plan.note, None, "{name}");
    }
    let point = Fields::from(vec![
        field("x", DataType::Float64),
        field("y", DataType::Float64),
    ]);
    assert_eq!(plan(&scalar("point")).data_type, DataType::Struct(point));
    let entries = DataType::Struct(Fields::from(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Utf8, true),
    ]));
    let entries = Arc::new(Field::new("key_value", entries, false));
    assert_eq!(
        plan(&scalar("hstore")).data_type,
        DataType::Map(entries, false)
    );
}

#[test]
fn texts_are_text_without_a_note() {
    let names = "text varchar bpchar char name citext uuid json jsonb xml bit varbit time timetz \
        interval inet cidr macaddr macaddr8 tsvector tsquery box lseg path polygon circle line \
        ltree pg_lsn xid xid8 regclass int2vector oidvector sparsevec isbn";
    for name in names.split_whitespace() {
        let plan = plan(&scalar(name));
        assert_eq!(
            (plan.data_type, plan.note),
            (DataType::Utf8, None),
            "{name}"
        );
    }
    let mood = plan(&pg_type("mood", -1, PgKind::Enum));
    assert_eq!(
        (mood.data_type, mood.copy_form),
        (DataType::Utf8, CopyForm::Binary)
    );
}

#[test]
fn an_unknown_type_is_its_text_with_a_note() {
    for ty in [scalar("h3index"), array_of(scalar("h3index"))] {
        let note = plan(&ty).note.unwrap();
        assert!(note.contains("\"h3index\""), "{note}");
    }
    assert_eq!(plan(&scalar("h3index")).data_type, DataType::Utf8);
    assert_eq!(
        plan(&array_of(scalar("h3index"))).data_type,
        list(DataType::Utf8)
    );
}

#[test]
fn numerics_keep_precision_and_scale_up_to_38_digits() {
    for ((precision, scale), expected) in [
        ((10, 2), DataType::Decimal128(10, 2)),
        ((38, 38), DataType::Decimal128(38, 38)),
        ((1, 0), DataType::Decimal128(1, 0)),
        // Scales that are negative, or more than the precision.
        ((3, -3), DataType::Decimal128(6, 0)),
        ((3, 5), DataType::Decimal128(5, 5)),
        ((38, -1), DataType::Utf8),
        ((39, 0), DataType::Utf8),
        ((3, 39), DataType::Utf8),
        ((1000, 1000), DataType::Utf8),
        ((2, -1000), DataType::Utf8),
    ] {
        assert_eq!(
            plan(&numeric(precision, scale)).data_type,
            expected,
            "{precision},{scale}"
        );
    }
}

#[test]
fn nested_types_keep_their_shape() {
    let ints = list(DataType::Int32);
    assert_eq!(plan(&array_of(scalar("int4"))).data_type, ints);
    assert_eq!(
        plan(&array_of(numeric(9, 3))).data_type,
        list(DataType::Decimal128(9, 3))
    );
    let options = ColumnOptions {
        dimensions: 3,
        ..ColumnOptions::default()
    };
    let deep = plan_column(&array_of(scalar("int4")), &options).unwrap();
    assert_eq!(deep.data_type, list(list(ints.clone())));
    let options = ColumnOptions {
        dimensions: 0,
        ..ColumnOptions::default()
    };
    assert_eq!(
        plan_column(&array_of(scalar("int4")), &options)
            .unwrap()
            .data_type,
        ints
    );

    let days = range_of(scalar("date"));
    assert_eq!(plan(&days).data_type, range_struct(DataType::Date32));
    let many = multirange_of(scalar("int8"));
    assert_eq!(plan(&many).data_type, list(range_struct(DataType::Int64)));
    let address = composite(vec![("street", scalar("text")), ("when", days)]);
    let expected = DataType::Struct(Fields::from(vec![
        field("street", DataType::Utf8),
        field("when", range_struct(DataType::Date32)),
    ]));
    assert_eq!(plan(&address).data_type, expected);
}

#[test]
fn a_composite_that_delta_cannot_hold_is_its_text() {
    let alike = composite(vec![("a", scalar("int4")), ("A", scalar("int4"))]);
    for (ty, word) in [(alike, "letter case"), (composite(vec![]), "no fields")] {
        let plan = plan(&ty);
        assert_eq!(
            (plan.data_type, plan.copy_form),
            (DataType::Utf8, CopyForm::Text)
        );
        assert!(plan.note.unwrap().contains(word));
    }
}

#[test]
fn the_string_policy_touches_only_types_that_can_refuse_a_value() {
    let by_string = |ty: &PgType| plan_column(ty, &options(OnInvalid::String)).unwrap();
    let pair = |ty| composite(vec![("a", scalar("int4")), ("b", scalar(ty))]);
    for ty in [
        scalar("date"),
        numeric(5, 1),
        array_of(scalar("int4")),
        range_of(scalar("timestamp")),
        pair("timestamptz"),
    ] {
        let plan = by_string(&ty);
        assert_eq!(
            (plan.data_type, plan.copy_form),
            (DataType::Utf8, CopyForm::Text),
            "{ty:?}"
        );
    }
    for ty in [
        scalar("int4"),
        scalar("text"),
        scalar("hstore"),
        range_of(scalar("int4")),
        pair("text"),
    ] {
        assert_eq!(by_string(&ty).data_type, plan(&ty).data_type);
    }
}

#[test]
fn a_stored_type_that_does_not_fit_is_refused() {
    let error_on = OnInvalid::Error;
    for (ty, stored_as) in [
        (scalar("int4"), "decimal(38,9)"),
        (scalar("text"), "long"),
        (scalar("numeric"), "long"),
        (scalar("numeric"), "decimal(39,9)"),
        (scalar("numeric"), "decimal(9,10)"),
        (scalar("numeric"), "decimal(0,0)"),
        (scalar("numeric"), "decimal(9)"),
        (scalar("numeric"), "decimal(-9,1)"),
        (scalar("numeric"), "varchar"),
        (range_of(scalar("date")), "decimal(38,9)"),
    ] {
        let error = stored(&ty, error_on, stored_as).unwrap_err();
        assert!(error.is(&code::CONFIG_VALUE), "{error}");
        assert!(error.message().contains(stored_as), "{error}");
    }
    let chosen = stored(&scalar("numeric"), error_on, " Decimal(38, 9) ").unwrap();
    assert_eq!(chosen.data_type, DataType::Decimal128(38, 9));
    assert_eq!(chosen.copy_form, CopyForm::Binary);
    let chosen = stored(&numeric(50, 9), error_on, "decimal(38,9)").unwrap();
    assert_eq!(chosen.data_type, DataType::Decimal128(38, 9));
    for ty in [
        scalar("int4"),
        scalar("point"),
        array_of(scalar("int4")),
        composite(vec![]),
    ] {
        assert_eq!(
            stored(&ty, error_on, "string").unwrap().data_type,
            DataType::Utf8
        );
    }
    // Stored as text, a date needs its text; a text may come in its binary form.
    assert_eq!(
        stored(&scalar("date"), error_on, "string")
            .unwrap()
            .copy_form,
        CopyForm::Text
    );
    assert_eq!(
        stored(&scalar("text"), error_on, "string")
            .unwrap()
            .copy_form,
        CopyForm::Binary
    );
}

#[test]
fn policies_are_written_in_lower_case() {
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error as ValueError, StrDeserializer};
    let read = |word: &'static str| {
        let deserializer: StrDeserializer<'_, ValueError> = word.into_deserializer();
        OnInvalid::deserialize(deserializer)
    };
    let words = ["error", "clamp", "null", "string"].map(|word| read(word).unwrap());
    let expected = [
        OnInvalid::Error,
        OnInvalid::Clamp,
        OnInvalid::Null,
        OnInvalid::String,
    ];
    assert_eq!(words, expected);
    assert!(read("Error").is_err());
}
