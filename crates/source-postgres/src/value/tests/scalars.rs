//! Scalars, in text and binary form, as a real server writes them.

use super::*;
use crate::type_map::CopyForm;

/// The value of a line of `server_values.tsv`.
fn expected(ty: &str, canonical: &str) -> Model {
    match ty {
        "bool" => Model::Bool(canonical == "true"),
        "float8" => float(f64::from_bits(canonical.parse::<i64>().unwrap() as u64)),
        "float4" => float32(f32::from_bits(canonical.parse::<i32>().unwrap() as u32)),
        "bytea" => Model::Bytes(unhex(canonical)),
        "uuid" | "json" | "jsonb" | "char" | "bpchar" | "text" => text(canonical),
        _ => number(canonical.parse().unwrap()),
    }
}

fn unhex(digits: &str) -> Vec<u8> {
    let nibble = |c: char| c.to_digit(16).unwrap() as u8;
    let digits: Vec<char> = digits.chars().collect();
    digits
        .chunks(2)
        .map(|pair| nibble(pair[0]) << 4 | nibble(pair[1]))
        .collect()
}

#[test]
fn values_of_a_real_server_decode_alike_from_text_and_binary() {
    let lines = include_str!("server_values.tsv")
        .lines()
        .filter(|line| !line.starts_with('#'));
    let mut seen = 0;
    for line in lines {
        let fields: Vec<&str> = line.split('\t').collect();
        let [ty, typmod, as_text, as_binary, canonical] = fields[..] else {
            panic!("{line}")
        };
        let plan = plan(&pg_type(ty, typmod.parse().unwrap(), PgKind::Scalar));
        assert_eq!(plan.copy_form, CopyForm::Binary, "{line}");
        let mut builder = plan.builder();
        builder
            .append_text(as_text.as_bytes())
            .unwrap_or_else(|e| panic!("{line}: {e}"));
        builder
            .append_binary(&unhex(as_binary))
            .unwrap_or_else(|e| panic!("{line}: {e}"));
        builder.append_copy(&unhex(as_binary)).unwrap();
        let expected = expected(ty, canonical);
        let array = builder.finish().unwrap();
        assert_eq!(array.data_type(), &plan.data_type);
        assert_eq!(models(&array), vec![expected; 3], "{line}");
        seen += 1;
    }
    assert!(seen > 100, "{seen}");
}

/// The server keeps sign and payload of a NaN, and shows neither.
#[test]
fn all_nans_are_one() {
    for (ty, nans) in [
        ("float8", ["fff8000000000000", "7ff0000000000001"]),
        ("float4", ["ffc00000", "7f800001"]),
    ] {
        let mut builder = plan(&scalar(ty)).builder();
        builder.append_text(b"NaN").unwrap();
        for nan in nans {
            builder.append_binary(&unhex(nan)).unwrap();
        }
        let array = builder.finish().unwrap();
        assert_eq!(&array.slice(0, 1), &array.slice(1, 1));
        assert_eq!(&array.slice(0, 1), &array.slice(2, 1));
    }
}

#[test]
fn types_without_a_binary_form_come_as_text() {
    for (ty, value) in [
        ("numeric", "1.50"),
        ("numeric", "NaN"),
        ("interval", "P1Y2M-3DT4H5M6.789S"),
        ("time", "24:00:00"),
        ("timetz", "12:00:00.1+05:30"),
        ("int2vector", "1 2 3"),
        ("bit", "101"),
        ("pg_lsn", "0/16B3748"),
        ("box", "(1,1),(0,0)"),
        ("inet", "10.0.0.1"),
        ("sparsevec", "{1:1.5}/3"),
        ("some_extension", "x"),
    ] {
        let plan = plan(&scalar(ty));
        assert_eq!(plan.copy_form, CopyForm::Text, "{ty}");
        let mut builder = plan.builder();
        builder.append_copy(value.as_bytes()).unwrap();
        builder.append_text(value.as_bytes()).unwrap();
        assert_eq!(models(&builder.finish().unwrap()), vec![text(value); 2]);
        assert!(builder.append_binary(value.as_bytes()).is_err());
        assert_eq!(builder.len(), 1);
    }
}

#[test]
fn money_of_any_currency_is_its_raw_number_over_its_places() {
    let plan = |money_fraction_digits| {
        let options = ColumnOptions {
            money_fraction_digits,
            ..ColumnOptions::default()
        };
        plan_column(&scalar("money"), &options).unwrap()
    };
    let value = |places, text| decoded(&plan(places), &[text]).remove(0);
    assert_eq!(value(2, "-$1,234.56"), number(-123_456));
    assert_eq!(value(2, "($1.00)"), number(-100));
    // Yen have no places; under the C locale the server writes two all the same.
    assert_eq!(value(0, "$1,234.56"), number(12_345_600));
    // Dinars have three, and keep them.
    assert_eq!(plan(3).data_type, DataType::Decimal128(19, 3));
    assert_eq!(value(3, "$12.34"), number(1_234));
    let mut builder = plan(0).builder();
    let error = builder
        .append_text(b"$92,233,720,368,547,758.07")
        .unwrap_err();
    assert!(error.kind.contains("more digits"), "{error}");
}

#[test]
fn chosen_types_are_stored_as_chosen() {
    let plan = |ty: &PgType, stored_as: &str| {
        let stored_as = Some(stored_as.to_owned());
        plan_column(
            ty,
            &ColumnOptions {
                stored_as,
                ..ColumnOptions::default()
            },
        )
        .unwrap()
    };
    let day = plan(&scalar("time"), "long");
    assert_eq!(
        decoded(&day, &["00:00:00", "12:34:56.000001", "24:00:00"]),
        [number(0), number(45_296_000_001), number(86_400_000_000)]
    );
    let xid = plan(&scalar("xid8"), "LONG");
    assert_eq!(
        decoded(&xid, &["9223372036854775807"]),
        [number(i64::MAX.into())]
    );
    assert!(xid.builder().append_text(b"18446744073709551615").is_err());
    let wide = plan(&scalar("int4"), "long");
    let mut builder = wide.builder();
    builder.append_copy(&(-7_i32).to_be_bytes()).unwrap();
    assert_eq!(models(&builder.finish().unwrap()), [number(-7)]);

    let decimal = plan(&array_of(scalar("numeric")), "decimal(38, 9)");
    assert_eq!(
        decoded(&decimal, &["{1.5,NULL,-0.000000001}"]),
        [list(vec![number(1_500_000_000), Model::Null, number(-1)])]
    );
    let string = plan(&range_of(scalar("int4")), "string");
    assert_eq!(decoded(&string, &["[1,5)"]), [text("[1,5)")]);
    assert_eq!(string.copy_form, CopyForm::Text);
}

#[test]
fn geometries_are_their_bytes() {
    let point = "0101000020E6100000000000000000F03F0000000000000040";
    assert_eq!(
        decoded_one(&scalar("geometry"), point),
        Model::Bytes(unhex(point))
    );
    assert!(
        plan(&scalar("geography"))
            .builder()
            .append_text(b"0g")
            .is_err()
    );
}

#[test]
fn a_builder_can_be_used_again_and_knows_its_memory() {
    for ty in [
        scalar("text"),
        array_of(scalar("text")),
        scalar("hstore"),
        scalar("bool"),
    ] {
        let plan = plan(&ty);
        let mut builder = plan.builder();
        builder.reserve(10);
        let empty = builder.finish().unwrap();
        assert_eq!((empty.len(), empty.data_type()), (0, &plan.data_type));
        for round in 1..4 {
            assert!(builder.is_empty());
            for _ in 0..round * 1000 {
                builder.append_null();
            }
            assert!(
                builder.memory_bytes() >= round * 1000 / 8,
                "{}",
                builder.memory_bytes()
            );
            let array = builder.finish().unwrap();
            assert_eq!(
                (array.len(), array.null_count()),
                (round * 1000, round * 1000)
            );
        }
    }
}
