//! Random values, written as PostgreSQL writes them, decode to themselves.

use proptest::prelude::*;

use super::*;

const EPOCH_DAYS: i64 = 10_957;
const DAY_MICROS: i64 = 86_400_000_000;

/// Year, month and day of a day since 1970, counted year by year and month by month.
fn civil(days: i64) -> (i64, i64, i64) {
    let leap = |year: i64| {
        year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0)
    };
    // 400 years have 146 097 days.
    let mut year = 1970 + days.div_euclid(146_097) * 400;
    let mut rest = days.rem_euclid(146_097);
    while rest >= if leap(year) { 366 } else { 365 } {
        rest -= if leap(year) { 366 } else { 365 };
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1)
}

/// Date, and what is written behind it and its time of day.
fn date_parts(days: i64) -> (String, &'static str) {
    let (year, month, day) = civil(days);
    let (year, era) = if year > 0 {
        (year, "")
    } else {
        (1 - year, " BC")
    };
    (format!("{year:04}-{month:02}-{day:02}"), era)
}

fn timestamp_text(micros: i64, zone: &str) -> String {
    let (date, era) = date_parts(micros.div_euclid(DAY_MICROS));
    let of_day = micros.rem_euclid(DAY_MICROS);
    let (seconds, fraction) = (of_day / 1_000_000, of_day % 1_000_000);
    let fraction = match format!(".{fraction:06}").trim_end_matches('0') {
        "." => String::new(),
        digits => digits.to_owned(),
    };
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{date} {hour:02}:{minute:02}:{second:02}{fraction}{zone}{era}")
}

fn decimal_text(value: i128, scale: usize) -> String {
    let digits = format!("{:0width$}", value.unsigned_abs(), width = scale + 1);
    let (integer, fraction) = digits.split_at(digits.len() - scale);
    let sign = if value < 0 { "-" } else { "" };
    let point = if scale > 0 { "." } else { "" };
    format!("{sign}{integer}{point}{fraction}")
}

/// As `numeric_send` writes it: groups of four digits from the point, zeros at both ends left out.
fn decimal_binary(value: i128, scale: usize) -> Vec<u8> {
    let text = decimal_text(value.abs(), scale);
    let (integer, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let integer = "0".repeat((4 - integer.len() % 4) % 4) + integer;
    let fraction = fraction.to_owned() + &"0".repeat((4 - fraction.len() % 4) % 4);
    let mut weight = i16::try_from(integer.len() / 4).unwrap() - 1;
    let digits = integer + &fraction;
    let groups = digits.as_bytes().chunks(4);
    let mut groups: Vec<u16> = groups
        .map(|group| std::str::from_utf8(group).unwrap().parse().unwrap())
        .collect();
    while groups.first() == Some(&0) {
        groups.remove(0);
        weight -= 1;
    }
    while groups.last() == Some(&0) {
        groups.pop();
    }
    if groups.is_empty() {
        weight = 0;
    }
    let sign = if value < 0 { 0x4000_u16 } else { 0 };
    let mut bytes = Vec::new();
    bytes.extend(u16::try_from(groups.len()).unwrap().to_be_bytes());
    bytes.extend(weight.to_be_bytes());
    bytes.extend(sign.to_be_bytes());
    bytes.extend(u16::try_from(scale).unwrap().to_be_bytes());
    bytes.extend(groups.into_iter().flat_map(u16::to_be_bytes));
    bytes
}

/// The text a type's output function writes for a value.
fn written(ty: &PgType, value: &Model) -> String {
    match (&ty.kind, value) {
        (PgKind::Array(element), Model::List(items)) => {
            let delimiter = char::from(element.delimiter).to_string();
            let items: Vec<String> = items.iter().map(|item| array_item(element, item)).collect();
            format!("{{{}}}", items.join(&delimiter))
        }
        (PgKind::Composite(fields), Model::Struct(values)) => {
            let values = fields
                .iter()
                .zip(values)
                .map(|((_, ty), value)| match value {
                    Model::Null => String::new(),
                    value => doubled(&written(ty, value), "\"\\(), \t\n\r\u{b}\u{c}"),
                });
            format!("({})", values.collect::<Vec<_>>().join(","))
        }
        (PgKind::Range(bound), Model::Struct(parts)) => {
            if parts[4] == Model::Bool(true) {
                return "empty".to_owned();
            }
            let side = |value: &Model| match value {
                Model::Null => String::new(),
                value => doubled(&written(bound, value), "\"\\()[], \t\n\r\u{b}\u{c}"),
            };
            let open = if parts[2] == Model::Bool(true) {
                '['
            } else {
                '('
            };
            let close = if parts[3] == Model::Bool(true) {
                ']'
            } else {
                ')'
            };
            format!("{open}{},{}{close}", side(&parts[0]), side(&parts[1]))
        }
        (PgKind::Multirange(range), Model::List(items)) => {
            let items: Vec<String> = items.iter().map(|item| written(range, item)).collect();
            format!("{{{}}}", items.join(","))
        }
        _ => scalar_text(ty, value),
    }
}

fn scalar_text(ty: &PgType, value: &Model) -> String {
    match (ty.name.as_str(), value) {
        (_, Model::Text(text)) => text.clone(),
        (_, Model::Bool(value)) => if *value { "t" } else { "f" }.to_owned(),
        (_, Model::Float(bits)) => float_text(f64::from_bits(*bits)),
        (_, Model::Bytes(bytes)) => bytes
            .iter()
            .fold("\\x".to_owned(), |text, byte| format!("{text}{byte:02x}")),
        ("date", Model::Number(days)) => {
            let (date, era) = date_parts(i64::try_from(*days).unwrap());
            date + era
        }
        ("timestamp", Model::Number(micros)) => timestamp_text((*micros).try_into().unwrap(), ""),
        ("timestamptz", Model::Number(micros)) => {
            timestamp_text((*micros).try_into().unwrap(), "+00")
        }
        ("numeric", Model::Number(value)) => {
            decimal_text(*value, usize::try_from((ty.typmod - 4) & 0x3FF).unwrap())
        }
        (_, Model::Number(value)) => value.to_string(),
        ("point", Model::Struct(parts)) => {
            let part = |at: usize| scalar_text(ty, &parts[at]);
            format!("({},{})", part(0), part(1))
        }
        ("hstore", Model::Map(entries)) => {
            let quote = |text: &str| format!("\"{}\"", escaped(text));
            let entries = entries.iter().map(|(key, value)| {
                let value = value.as_deref().map_or("NULL".to_owned(), quote);
                format!("{}=>{value}", quote(key))
            });
            entries.collect::<Vec<_>>().join(", ")
        }
        (name, value) => panic!("{name} {value:?}"),
    }
}

fn float_text(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    // Rust's shortest digits are the ones PostgreSQL writes; its exponents have a sign.
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap();
    match exponent.parse::<i32>().unwrap() {
        0 => digits.to_owned(),
        exponent => format!("{digits}e{exponent:+03}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn array_item(ty: &PgType, value: &Model) -> String {
    if *value == Model::Null {
        return "NULL".to_owned();
    }
    let text = written(ty, value);
    let special = |c: char| "\"\\{} \t\n\r\u{b}\u{c}".contains(c) || c == char::from(ty.delimiter);
    if text.is_empty() || text.eq_ignore_ascii_case("null") || text.contains(special) {
        format!("\"{}\"", escaped(&text))
    } else {
        text
    }
}

fn doubled(text: &str, special: &str) -> String {
    if text.is_empty() || text.contains(|c| special.contains(c)) {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// Text that breaks careless parsers.
fn nasty() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "", "\"", "\\", "{", "}", "(", ")", "[", "]", ",", ";", "=>", "NULL", "null", "empty",
        "infinity", " ", "\t", "\n", "'", "é", "𝄞", "a", "1", "\u{feff}", "\u{a0}",
    ]);
    prop_oneof![
        4 => prop::collection::vec(pieces, 0..5).prop_map(|pieces| pieces.concat()),
        1 => any::<String>().prop_map(|text| text.replace('\0', "")),
    ]
}

const BIG_DECIMAL: (i32, i32) = (38, 11);

fn scalar_value() -> impl Strategy<Value = (PgType, Model)> {
    let days = -2_440_588..=2_145_042_905_i64;
    let micros = prop_oneof![
        any::<i64>().prop_map(|micros| micros.max(-210_866_803_200_000_000)),
        0..2_000_000_000_000_000_i64,
    ];
    let decimal = prop_oneof![
        -99_999_999_999_999_999_999_999_999_999_999_999_999
            ..=99_999_999_999_999_999_999_999_999_999_999_999_999_i128,
        -1_000_000_000_000_i128..1_000_000_000_000,
        prop::sample::select(vec![
            0,
            1,
            10_000,
            100_000_000_000,
            99_999,
            1_000_000_000_000
        ]),
    ];
    let key_value = (nasty(), prop::option::of(nasty()));
    prop_oneof![
        nasty().prop_map(|value| (scalar("text"), text(&value))),
        any::<i32>().prop_map(|value| (scalar("int4"), number(value.into()))),
        any::<i64>().prop_map(|value| (scalar("int8"), number(value.into()))),
        any::<i16>().prop_map(|value| (scalar("int2"), number(value.into()))),
        any::<bool>().prop_map(|value| (scalar("bool"), Model::Bool(value))),
        any::<u64>().prop_map(|bits| (scalar("float8"), float(f64::from_bits(bits)))),
        any::<i32>().prop_map(|value| (scalar("float8"), float(f64::from(value) / 1000.0))),
        days.prop_map(|value| (scalar("date"), number(value.into()))),
        (
            micros,
            prop::sample::select(vec!["timestamp", "timestamptz"])
        )
            .prop_map(|(value, name)| (scalar(name), number(value.into()))),
        decimal.prop_map(|value| (numeric(BIG_DECIMAL.0, BIG_DECIMAL.1), number(value))),
        prop::collection::vec(any::<u8>(), 0..9)
            .prop_map(|bytes| (scalar("bytea"), Model::Bytes(bytes))),
        (any::<f64>(), any::<f64>())
            .prop_map(|(x, y)| { (scalar("point"), Model::Struct(vec![float(x), float(y)])) }),
        prop::collection::vec(key_value, 0..4)
            .prop_map(|entries| (scalar("hstore"), Model::Map(entries))),
    ]
}

/// A type and values of it.
fn values_of_one_type() -> impl Strategy<Value = (PgType, Vec<Model>)> {
    // Several draws of which those of the first one's type are kept.
    let scalars = prop::collection::vec(scalar_value(), 1..40).prop_map(|drawn| {
        let ty = drawn[0].0.clone();
        let values = drawn.into_iter().filter(|(other, _)| *other == ty);
        (
            ty.clone(),
            values.map(|(_, value)| value).collect::<Vec<_>>(),
        )
    });
    let seed = any::<Vec<u8>>();
    scalars.prop_recursive(3, 60, 4, move |inner| {
        prop_oneof![
            (inner.clone(), seed.clone())
                .prop_map(|((ty, values), seed)| arrays(ty, &values, &seed)),
            (inner.clone(), inner.clone(), seed.clone()).prop_map(composites),
            (inner.clone(), seed.clone()).prop_map(|((ty, values), seed)| {
                let ranges = ranges(&values, &seed);
                (range_of(ty), ranges)
            }),
            (inner, seed.clone()).prop_map(|((ty, values), seed)| {
                // A multirange has no empty ranges in it.
                let ranges = ranges(&values, &seed)
                    .into_iter()
                    .filter(|r| *r != empty_range());
                let ranges: Vec<Model> = ranges.collect();
                let lists = ranges.chunks(2).map(|items| list(items.to_vec()));
                (multirange_of(ty), lists.chain([list(vec![])]).collect())
            }),
        ]
    })
}

/// One-dimensional arrays with some NULLs, and an empty one.
fn arrays(ty: PgType, values: &[Model], seed: &[u8]) -> (PgType, Vec<Model>) {
    let length = 1 + seed.len() % 4;
    let mut arrays: Vec<Model> = values
        .chunks(length)
        .map(|items| list(items.to_vec()))
        .collect();
    for (array, byte) in arrays.iter_mut().zip(seed) {
        if let (Model::List(items), true) = (array, byte % 3 == 0) {
            items.insert(usize::from(*byte) % (items.len() + 1), Model::Null);
        }
    }
    arrays.push(list(vec![]));
    (array_of(ty), arrays)
}

type Typed = (PgType, Vec<Model>);

fn composites((first, second, seed): (Typed, Typed, Vec<u8>)) -> Typed {
    let ty = composite(vec![("a", first.0), ("b", scalar("text")), ("c", second.0)]);
    let pairs = first
        .1
        .into_iter()
        .zip(second.1)
        .zip(seed.into_iter().chain([1; 40]));
    let values = pairs.map(|((a, c), byte)| {
        let null_or = |bit: u8, value| if byte & bit == 0 { Model::Null } else { value };
        Model::Struct(vec![
            null_or(1, a),
            null_or(2, text("(\"\\, x")),
            null_or(4, c),
        ])
    });
    (ty, values.collect())
}

fn ranges(values: &[Model], seed: &[u8]) -> Vec<Model> {
    let bytes = seed.iter().copied().chain([7, 2, 12, 0]);
    let of = |at: usize| values.get(at % values.len()).cloned().unwrap();
    bytes
        .enumerate()
        .map(|(at, byte)| {
            let lower = if byte & 1 == 0 { Model::Null } else { of(at) };
            let upper = if byte & 2 == 0 {
                Model::Null
            } else {
                of(at + 1)
            };
            if byte % 8 == 4 {
                return empty_range();
            }
            range(lower, upper, (byte & 8 == 0, byte & 16 == 0))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn texts_round_trip((ty, values) in values_of_one_type()) {
        let mut builder = plan(&ty).builder();
        let mut expected = Vec::new();
        for value in values {
            let written = written(&ty, &value);
            let appended = builder.append_text(written.as_bytes());
            prop_assert!(appended.is_ok(), "{:?} of {:?}", appended, ty);
            builder.append_null();
            expected.extend([value, Model::Null]);
        }
        prop_assert_eq!(models(&builder.finish().unwrap()), expected);
    }

    #[test]
    fn decimals_round_trip(
        precision in 1..=38_u32,
        scale in 0..=38_usize,
        digits in 0..10_i128.pow(38),
        negative: bool,
    ) {
        let scale = scale.min(precision as usize);
        let magnitude = digits % 10_i128.pow(precision);
        let value = if negative { -magnitude } else { magnitude };
        let ty = numeric(precision.try_into().unwrap(), scale.try_into().unwrap());
        let mut builder = plan(&ty).builder();
        builder.append_text(decimal_text(value, scale).as_bytes()).unwrap();
        builder.append_binary(&decimal_binary(value, scale)).unwrap();
        prop_assert_eq!(models(&builder.finish().unwrap()), vec![number(value); 2]);
    }

    /// Text and binary form of any number end alike, whether it fits or not.
    #[test]
    fn decimals_are_refused_and_clamped_alike_from_text_and_binary(
        precision in 1..=38_i32,
        scale in 0..=38_i32,
        value in -(10_i128.pow(38))..10_i128.pow(38),
        shorter in 0..39_u32,
        value_scale in 0..=44_usize,
    ) {
        let value = value / 10_i128.pow(shorter.min(38));
        let ty = numeric(precision, scale.min(precision));
        for policy in [OnInvalid::Error, OnInvalid::Clamp] {
            let mut builder = plan_column(&ty, &options(policy)).unwrap().builder();
            let a = builder.append_text(decimal_text(value, value_scale).as_bytes());
            let b = builder.append_binary(&decimal_binary(value, value_scale));
            prop_assert_eq!(a.map_err(|e| e.kind), b.map_err(|e| e.kind));
            let stored = models(&builder.finish().unwrap());
            prop_assert_eq!(&stored[0], &stored[1]);
        }
    }

    #[test]
    fn binary_forms_round_trip(
        days in -2_440_588..=2_145_042_905_i64,
        micros in -210_866_803_200_000_000_i64..=i64::MAX,
        long: i64,
        bits: u64,
        uuid: [u8; 16],
        nasty in nasty(),
    ) {
        let one = |name: &str, bytes: &[u8]| {
            let mut builder = plan(&scalar(name)).builder();
            builder.append_binary(bytes).unwrap();
            models(&builder.finish().unwrap()).remove(0)
        };
        let pg_days = i32::try_from(days - EPOCH_DAYS).unwrap();
        prop_assert_eq!(one("date", &pg_days.to_be_bytes()), number(days.into()));
        let pg_micros = micros - EPOCH_DAYS * DAY_MICROS;
        prop_assert_eq!(one("timestamp", &pg_micros.to_be_bytes()), number(micros.into()));
        prop_assert_eq!(one("timestamptz", &pg_micros.to_be_bytes()), number(micros.into()));
        prop_assert_eq!(one("int8", &long.to_be_bytes()), number(long.into()));
        prop_assert_eq!(one("float8", &bits.to_be_bytes()), float(f64::from_bits(bits)));
        prop_assert_eq!(one("text", nasty.as_bytes()), text(&nasty));
        prop_assert_eq!(one("bytea", nasty.as_bytes()), Model::Bytes(nasty.clone().into_bytes()));
        prop_assert_eq!(one("jsonb", &[&[1], nasty.as_bytes()].concat()), text(&nasty));
        let hex = uuid.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        let Model::Text(uuid) = one("uuid", &uuid) else { panic!("not a text") };
        let groups: Vec<usize> = uuid.split('-').map(str::len).collect();
        prop_assert_eq!(groups, [8, 4, 4, 4, 12]);
        prop_assert_eq!(uuid.replace('-', ""), hex);
    }
}

/// A plan for every kind of column.
fn all_plans(policy: OnInvalid) -> Vec<ColumnPlan> {
    let names = [
        "bool",
        "int2",
        "int4",
        "int8",
        "oid",
        "float4",
        "float8",
        "numeric",
        "money",
        "text",
        "char",
        "jsonb",
        "uuid",
        "bytea",
        "date",
        "timestamp",
        "timestamptz",
        "time",
        "point",
        "hstore",
        "vector",
        "geometry",
        "unheard_of",
    ];
    let mut types: Vec<PgType> = names.into_iter().map(scalar).collect();
    types.extend([
        numeric(4, 2),
        numeric(38, 38),
        numeric(3, -3),
        numeric(1000, 500),
    ]);
    let fields = vec![("a", scalar("text")), ("b", scalar("date"))];
    types.extend([
        array_of(scalar("int4")),
        array_of(scalar("box")),
        array_of(array_of(scalar("text"))),
        array_of(composite(fields.clone())),
        composite(fields),
        range_of(numeric(4, 2)),
        range_of(scalar("text")),
        multirange_of(scalar("timestamp")),
        array_of(multirange_of(scalar("int4"))),
        array_of(scalar("hstore")),
    ]);
    let deep = ColumnOptions {
        dimensions: 3,
        ..options(policy)
    };
    let longs = ColumnOptions {
        stored_as: Some("long".to_owned()),
        ..options(policy)
    };
    let mut plans: Vec<ColumnPlan> = types
        .iter()
        .map(|ty| plan_column(ty, &options(policy)).unwrap())
        .collect();
    plans.push(plan_column(&array_of(scalar("int4")), &deep).unwrap());
    plans.push(plan_column(&scalar("time"), &longs).unwrap());
    plans.push(plan_column(&scalar("xid8"), &longs).unwrap());
    plans
}

fn random_bytes() -> impl Strategy<Value = Vec<u8>> {
    let special = b"{}[]()\",;\\=>-+.:0123456789 NULLemptyinfinityBC$xaft\0\xff".to_vec();
    prop_oneof![
        prop::collection::vec(prop::sample::select(special), 0..24),
        prop::collection::vec(any::<u8>(), 0..24),
        nasty().prop_map(String::into_bytes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic_and_always_append_one(
        values in prop::collection::vec(random_bytes(), 1..12),
    ) {
        for policy in [OnInvalid::Error, OnInvalid::Clamp, OnInvalid::Null, OnInvalid::String] {
            for plan in all_plans(policy) {
                let mut builder = plan.builder();
                let mut refused = Vec::new();
                for value in &values {
                    refused.push(builder.append_text(value).is_err());
                    refused.push(builder.append_binary(value).is_err());
                    refused.push(builder.append_copy(value).is_err());
                    prop_assert_eq!(builder.len(), refused.len());
                }
                let array = builder.finish().unwrap();
                prop_assert_eq!(array.data_type(), &plan.data_type);
                for (row, refused) in refused.into_iter().enumerate() {
                    prop_assert!(!refused || array.is_null(row));
                }
                array.to_data().validate_full().unwrap();
            }
        }
    }

    /// Literals of a real shape, broken in one place.
    #[test]
    fn damaged_literals_never_panic(
        (ty, values) in values_of_one_type(),
        place: prop::sample::Index,
        byte in prop::sample::select(b"{}[](),;\"\\ x\0".to_vec()),
    ) {
        let mut builder = plan(&ty).builder();
        let mut expected = 0;
        for value in values {
            let mut bytes = written(&ty, &value).into_bytes();
            if !bytes.is_empty() {
                let at = place.index(bytes.len());
                bytes[at] = byte;
            }
            let _ = builder.append_text(&bytes);
            expected += 1;
        }
        let array = builder.finish().unwrap();
        prop_assert_eq!(array.len(), expected);
        array.to_data().validate_full().unwrap();
    }
}
