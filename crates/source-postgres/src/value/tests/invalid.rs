//! Values that a column cannot hold, under each policy.

use super::*;

/// What becomes of `value`: an error's kind, or the value stored, and whether text and (where given)
/// binary form agree on it.
fn outcome(
    ty: &PgType,
    policy: OnInvalid,
    value: &str,
    binary: Option<&[u8]>,
) -> Result<Model, &'static str> {
    let mut builder = plan_column(ty, &options(policy)).unwrap().builder();
    let from_text = builder.append_text(value.as_bytes());
    if let Err(error) = &from_text {
        assert_eq!(error.text, value);
    }
    let mut rows = 1;
    if let Some(binary) = binary {
        let from_binary = builder.append_binary(binary).map_err(|error| error.kind);
        assert_eq!(
            from_binary,
            from_text.clone().map_err(|error| error.kind),
            "{value}"
        );
        rows = 2;
    }
    let array = builder.finish().unwrap();
    assert_eq!(array.len(), rows);
    let stored = models(&array);
    assert!(stored.iter().all(|model| *model == stored[0]), "{stored:?}");
    if from_text.is_err() {
        assert_eq!(stored[0], Model::Null);
    }
    from_text
        .map(|()| stored[0].clone())
        .map_err(|error| error.kind)
}

/// Checks all policies for a value whose nearest one is `nearest`.
fn check(ty: &PgType, value: &str, binary: Option<&[u8]>, kind: &str, nearest: Option<i128>) {
    assert_eq!(
        outcome(ty, OnInvalid::Error, value, binary),
        Err(leak(kind)),
        "{value}"
    );
    assert_eq!(
        outcome(ty, OnInvalid::Null, value, binary),
        Ok(Model::Null),
        "{value}"
    );
    let clamped = outcome(ty, OnInvalid::Clamp, value, binary);
    assert_eq!(clamped, nearest.map(number).ok_or(leak(kind)), "{value}");
    assert_eq!(outcome(ty, OnInvalid::String, value, None), Ok(text(value)));
}

fn leak(kind: &str) -> &'static str {
    Box::leak(kind.to_owned().into_boxed_str())
}

#[test]
fn infinite_and_far_dates_and_timestamps() {
    let date = scalar("date");
    let kind = "infinity in a date";
    let max = i128::from(i32::MAX);
    check(
        &date,
        "infinity",
        Some(&i32::MAX.to_be_bytes()),
        kind,
        Some(max),
    );
    check(
        &date,
        "-infinity",
        Some(&i32::MIN.to_be_bytes()),
        kind,
        Some(-max),
    );
    for name in ["timestamp", "timestamptz"] {
        let ty = scalar(name);
        let kind = "infinity in a timestamp";
        let max = i128::from(i64::MAX);
        check(
            &ty,
            "infinity",
            Some(&i64::MAX.to_be_bytes()),
            kind,
            Some(max),
        );
        check(
            &ty,
            "-infinity",
            Some(&i64::MIN.to_be_bytes()),
            kind,
            Some(-max),
        );
        let zone = if name == "timestamptz" { "+00" } else { "" };
        let far = format!("294276-12-31 23:59:59.999999{zone}");
        let kind = "timestamp beyond 64-bit microseconds since 1970";
        let binary = 9_223_371_331_199_999_999_i64.to_be_bytes();
        check(&ty, &far, Some(&binary), kind, Some(max));
        // The last microsecond that fits, and the next.
        let last = format!("294247-01-10 04:00:54.775807{zone}");
        assert_eq!(outcome(&ty, OnInvalid::Error, &last, None), Ok(number(max)));
        check(
            &ty,
            &format!("294247-01-10 04:00:54.775808{zone}"),
            None,
            kind,
            Some(max),
        );
    }
}

#[test]
fn decimals_that_do_not_fit() {
    let ty = numeric(4, 2);
    check(
        &ty,
        "NaN",
        Some(&[0, 0, 0, 0, 0xC0, 0, 0, 0]),
        "NaN in a decimal",
        None,
    );
    let kind = "infinity in a decimal";
    check(
        &ty,
        "Infinity",
        Some(&[0, 0, 0, 0, 0xD0, 0, 0, 0x20]),
        kind,
        Some(9999),
    );
    check(
        &ty,
        "-Infinity",
        Some(&[0, 0, 0, 0, 0xF0, 0, 0, 0x20]),
        kind,
        Some(-9999),
    );
    let large = "number with more digits than its decimal type holds";
    check(
        &ty,
        "100.00",
        Some(&[0, 1, 0, 0, 0, 0, 0, 2, 0, 100]),
        large,
        Some(9999),
    );
    check(
        &ty,
        "-10000",
        Some(&[0, 1, 0, 1, 0x40, 0, 0, 0, 0, 1]),
        large,
        Some(-9999),
    );
    check(&ty, &"9".repeat(70), None, large, Some(9999));
    // 1e76: far beyond any decimal.
    check(
        &ty,
        &("1".to_owned() + &"0".repeat(76)),
        Some(&[0, 1, 0, 19, 0, 0, 0, 0, 0, 1]),
        large,
        Some(9999),
    );
    let fine = "number with more fraction digits than its decimal type holds";
    check(
        &ty,
        "1.234",
        Some(&[0, 2, 0, 0, 0, 0, 0, 3, 0, 1, 0x09, 0x24]),
        fine,
        Some(123),
    );
    check(
        &ty,
        "-1.235",
        Some(&[0, 2, 0, 0, 0x40, 0, 0, 3, 0, 1, 0x09, 0x2E]),
        fine,
        Some(-124),
    );
    check(
        &ty,
        "99.999",
        Some(&[0, 2, 0, 0, 0, 0, 0, 3, 0, 99, 0x27, 0x06]),
        fine,
        Some(9999),
    );
    // 0.00005, whose only group lies behind the last place.
    check(
        &ty,
        "0.00005",
        Some(&[0, 1, 0xFF, 0xFE, 0, 0, 0, 5, 0x13, 0x88]),
        fine,
        Some(0),
    );
    // Zeros behind the last place are no digits.
    assert_eq!(
        outcome(&ty, OnInvalid::Error, "1.23000", None),
        Ok(number(123))
    );
    // Scale 0: the first group behind the point decides the rounding.
    check(
        &numeric(4, 0),
        "1.5",
        Some(&[0, 2, 0, 0, 0, 0, 0, 1, 0, 1, 0x13, 0x88]),
        fine,
        Some(2),
    );
    check(
        &numeric(4, 0),
        "1.4",
        Some(&[0, 2, 0, 0, 0, 0, 0, 1, 0, 1, 0x0F, 0xA0]),
        fine,
        Some(1),
    );
}

#[test]
fn malformed_values_are_errors_under_every_policy() {
    let cases: [(&str, &[&str]); 11] = [
        ("bool", &["", "true", "T"]),
        ("int2", &["", "-", "32768", "-32769", "1x", "+1", " 1"]),
        ("int4", &["2147483648", "1.0"]),
        (
            "int8",
            &[
                "9223372036854775808",
                "-9223372036854775809",
                "99999999999999999999999",
            ],
        ),
        ("oid", &["-1", ""]),
        (
            "float8",
            &["", "inf", "nan", "1e", "0x1", "1,5", "infinity"],
        ),
        ("bytea", &["", "dead", "\\xd", "\\xzz"]),
        (
            "date",
            &[
                "",
                "2020-13-01",
                "2020-02-30",
                "1900-02-29",
                "0000-01-01",
                "2020-1-1",
                "20-01-01",
                "2020-01-01 AD",
                "2020-01-01 ",
            ],
        ),
        (
            "timestamp",
            &[
                "2020-01-01",
                "2020-01-01 24:00:01",
                "2020-01-01 00:60:00",
                "2020-01-01 00:00:00.",
                "2020-01-01 00:00:00.1234567",
                "2020-01-01 00:00:00+00",
            ],
        ),
        (
            "timestamptz",
            &["2020-01-01 00:00:00", "2020-01-01 00:00:00+0"],
        ),
        (
            "money",
            &["", "$", "1.00 EUR", "$99,999,999,999,999,999,999.00"],
        ),
    ];
    for policy in [OnInvalid::Error, OnInvalid::Clamp, OnInvalid::Null] {
        for (ty, values) in cases {
            for value in values {
                assert!(
                    outcome(&scalar(ty), policy, value, None).is_err(),
                    "{ty} {value}"
                );
            }
        }
        for value in [
            "", "-", ".", "1.", ".5", "1..2", "1e5", "--1", "nan", "1a", "1.2a", "0.00a",
        ] {
            assert!(
                outcome(&numeric(4, 2), policy, value, None).is_err(),
                "{value}"
            );
        }
        let mut builder = plan(&numeric(4, 2)).builder();
        for binary in [
            b"".as_slice(),
            &[0; 7],
            &[0, 1, 0, 0, 0, 0, 0, 0],
            &[0, 1, 0, 0, 0, 0, 0, 0, 0x27, 0x10],
            &[0, 0, 0, 0, 0x12, 0, 0, 0],
        ] {
            assert_eq!(
                builder.append_binary(binary).unwrap_err().kind,
                "malformed number"
            );
        }
    }
}

#[test]
fn a_zone_other_than_utc_is_honoured() {
    let with_zone = |text| decoded_one(&scalar("timestamptz"), text);
    assert_eq!(with_zone("1970-01-01 05:30:00+05:30"), number(0));
    assert_eq!(with_zone("1969-12-31 16:00:00-08"), number(0));
}

#[test]
fn arrays_of_another_depth() {
    let ty = array_of(scalar("int4"));
    let kind = "array with another number of dimensions than its column";
    for value in ["{{1,2},{3,4}}", "[0:0][0:0]={{7}}"] {
        check(&ty, value, None, kind, None);
    }
    let mut builder = plan_column(&ty, &options(OnInvalid::Null))
        .unwrap()
        .builder();
    for value in ["{1}", "{{2}}", "{3}"] {
        builder.append_text(value.as_bytes()).unwrap();
    }
    let items = |item| list(vec![number(item)]);
    assert_eq!(
        models(&builder.finish().unwrap()),
        [items(1), Model::Null, items(3)]
    );
}

#[test]
fn nested_values_follow_the_policy_of_their_column() {
    let dates = array_of(scalar("date"));
    let value = "{1970-01-02,infinity,1970-01-03}";
    assert_eq!(
        outcome(&dates, OnInvalid::Error, value, None),
        Err("infinity in a date")
    );
    let items = |middle| list(vec![number(1), middle, number(2)]);
    assert_eq!(
        outcome(&dates, OnInvalid::Null, value, None),
        Ok(items(Model::Null))
    );
    let clamped = items(number(i32::MAX.into()));
    assert_eq!(outcome(&dates, OnInvalid::Clamp, value, None), Ok(clamped));
    assert_eq!(
        outcome(&dates, OnInvalid::String, value, None),
        Ok(text(value))
    );

    let days = range_of(scalar("date"));
    let value = "[-infinity,infinity]";
    assert_eq!(
        outcome(&days, OnInvalid::Error, value, None),
        Err("infinity in a date")
    );
    let unbounded = range(Model::Null, Model::Null, (true, true));
    assert_eq!(outcome(&days, OnInvalid::Null, value, None), Ok(unbounded));

    let pair = composite(vec![("a", scalar("text")), ("d", days)]);
    let value = "(x,\"[1970-01-01,infinity)\")";
    assert_eq!(
        outcome(&pair, OnInvalid::Error, value, None),
        Err("infinity in a date")
    );
    let half = range(number(0), Model::Null, (true, false));
    let kept = Model::Struct(vec![text("x"), half]);
    assert_eq!(outcome(&pair, OnInvalid::Null, value, None), Ok(kept));
}

/// A `SQL_ASCII` database can send any bytes as text.
#[test]
fn text_that_is_not_utf8() {
    let bytes = b"caf\xe9";
    for ty in [
        scalar("text"),
        scalar("varchar"),
        pg_type("mood", -1, PgKind::Enum),
    ] {
        for policy in [OnInvalid::Error, OnInvalid::String] {
            let mut builder = plan_column(&ty, &options(policy)).unwrap().builder();
            let error = builder.append_text(bytes).unwrap_err();
            assert_eq!(
                (error.kind, error.text.as_str()),
                ("text that is not UTF-8", "caf\u{fffd}")
            );
            assert!(builder.append_copy(bytes).is_err());
        }
        let stored = |policy| {
            let mut builder = plan_column(&ty, &options(policy)).unwrap().builder();
            builder.append_text(bytes).unwrap();
            builder.append_copy(bytes).unwrap();
            models(&builder.finish().unwrap())
        };
        assert_eq!(stored(OnInvalid::Null), [Model::Null, Model::Null]);
        assert_eq!(
            stored(OnInvalid::Clamp),
            [text("caf\u{fffd}"), text("caf\u{fffd}")]
        );
    }
    // A map's key cannot be NULL.
    let hstore = plan_column(&scalar("hstore"), &options(OnInvalid::Null)).unwrap();
    assert!(hstore.builder().append_text(b"\"caf\xe9\"=>\"1\"").is_err());
    let mut builder = hstore.builder();
    builder.append_text(b"\"a\"=>\"caf\xe9\"").unwrap();
    let entry = ("a".to_owned(), None);
    assert_eq!(
        models(&builder.finish().unwrap()),
        [Model::Map(vec![entry])]
    );
}

#[test]
fn a_long_value_is_cut_in_the_message() {
    let mut builder = plan(&scalar("int4")).builder();
    let error = builder
        .append_text("é".repeat(1000).as_bytes())
        .unwrap_err();
    assert_eq!(error.text, "é".repeat(80));
    assert_eq!(
        error.to_string(),
        format!("malformed integer: {}", "é".repeat(80))
    );
}
