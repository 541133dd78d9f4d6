//! Random conditions and what they mean.

use proptest::prelude::*;

use super::Row;

/// A condition, as SQL and as a function of a row with SQL's three values.
#[derive(Debug, Clone)]
pub(super) enum Predicate {
    Id(&'static str, i64),
    A(&'static str, i32),
    F(&'static str, f64),
    S(&'static str, String),
    Starts(String),
    D(&'static str, i64),
    Wide(&'static str, i64),
    T(&'static str, i64),
    B,
    Added(&'static str, String),
    IsNull(&'static str),
    AIn(Vec<i32>),
    Not(Box<Predicate>),
    And(Box<Predicate>, Box<Predicate>),
    Or(Box<Predicate>, Box<Predicate>),
}

fn compare<T: PartialOrd>(operator: &str, left: &T, right: &T) -> bool {
    match operator {
        "=" => left == right,
        "<>" => left != right,
        "<" => left < right,
        "<=" => left <= right,
        ">" => left > right,
        _ => left >= right,
    }
}

/// Floats as PostgreSQL orders them: NaN equal to itself, above all.
fn ordered(value: f64) -> (bool, f64) {
    if value.is_nan() {
        (true, 0.0)
    } else {
        (false, value)
    }
}

impl Predicate {
    pub(super) fn sql(&self) -> String {
        match self {
            Self::Id(op, value) => format!("id {op} {value}"),
            Self::A(op, value) => format!("a {op} {value}"),
            Self::F(op, value) if value.is_nan() => format!("f {op} cast('NaN' as double)"),
            Self::F(op, value) => format!("f {op} {value}"),
            Self::S(op, value) => format!("s {op} '{value}'"),
            Self::Starts(value) => format!("s like '{value}%'"),
            Self::D(op, value) => format!("d {op} {}", *value as f64 / 100.0),
            Self::Wide(op, value) => format!(
                "wide {op} cast('{value}000000000000000000000000000000000.0001' as decimal(38,4))"
            ),
            Self::T(op, value) => {
                let sign = if *value < 0 { "-" } else { "+" };
                format!(
                    "t {op} timestamptz '1970-01-01T00:00:00Z' {sign} interval '{} microseconds'",
                    value.abs()
                )
            }
            Self::B => "b".to_owned(),
            Self::Added(op, value) => format!("added {op} '{value}'"),
            Self::IsNull(column) => format!("{column} is null"),
            Self::AIn(values) => {
                let list: Vec<String> = values.iter().map(i32::to_string).collect();
                format!("a in ({})", list.join(", "))
            }
            Self::Not(inner) => format!("not ({})", inner.sql()),
            Self::And(left, right) => format!("({}) and ({})", left.sql(), right.sql()),
            Self::Or(left, right) => format!("({}) or ({})", left.sql(), right.sql()),
        }
    }

    pub(super) fn holds(&self, row: &Row) -> Option<bool> {
        match self {
            Self::Id(op, value) => Some(compare(op, &row.id, value)),
            Self::A(op, value) => row.a.map(|a| compare(op, &a, value)),
            Self::F(op, value) => row.f.map(|f| compare(op, &ordered(f), &ordered(*value))),
            Self::S(op, value) => row.s.as_ref().map(|s| compare(op, s, value)),
            Self::Starts(value) => row.s.as_ref().map(|s| s.starts_with(value)),
            Self::D(op, value) => row.d.map(|d| compare(op, &d, &i128::from(*value))),
            Self::Wide(op, value) => {
                let unit = 10_i128.pow(37);
                let value = i128::from(*value) * unit + if *value < 0 { -1 } else { 1 };
                row.wide.map(|wide| compare(op, &wide, &value))
            }
            Self::T(op, value) => row.t.map(|t| compare(op, &t, value)),
            Self::B => row.b,
            Self::Added(op, value) => row.added.as_ref().map(|added| compare(op, added, value)),
            Self::IsNull(column) => Some(match *column {
                "a" => row.a.is_none(),
                "f" => row.f.is_none(),
                "t" => row.t.is_none(),
                "b" => row.b.is_none(),
                "wide" => row.wide.is_none(),
                _ => row.added.is_none(),
            }),
            Self::AIn(values) => row.a.map(|a| values.contains(&a)),
            Self::Not(inner) => inner.holds(row).map(|holds| !holds),
            Self::And(left, right) => match (left.holds(row), right.holds(row)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
            Self::Or(left, right) => match (left.holds(row), right.holds(row)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
        }
    }
}

pub(super) fn predicate() -> impl Strategy<Value = Predicate> {
    let op = || prop::sample::select(vec!["=", "<>", "<", "<=", ">", ">="]);
    let leaf = prop_oneof![
        (op(), -10..1500_i64).prop_map(|(op, value)| Predicate::Id(op, value)),
        (op(), -25..25_i32).prop_map(|(op, value)| Predicate::A(op, value)),
        (op(), -40..40_i32).prop_map(|(op, value)| Predicate::F(op, f64::from(value) / 4.0)),
        op().prop_map(|op| Predicate::F(op, f64::NAN)),
        (op(), "(|a|ab|ä|~)[0-9]").prop_map(|(op, value)| Predicate::S(op, value)),
        "(a|ab|ä|~|b)".prop_map(Predicate::Starts),
        (op(), -600..600_i64).prop_map(|(op, value)| Predicate::D(op, value)),
        (op(), prop::sample::select(vec![-3, -2, -1, 1, 2, 3]))
            .prop_map(|(op, value)| Predicate::Wide(op, value)),
        (op(), -6_000..6_000_i64).prop_map(|(op, value)| Predicate::T(op, value)),
        Just(Predicate::B),
        (op(), "x[0-5]").prop_map(|(op, value)| Predicate::Added(op, value)),
        prop::sample::select(vec!["a", "f", "t", "b", "wide", "added"]).prop_map(Predicate::IsNull),
        prop::collection::vec(-25..25_i32, 1..5).prop_map(Predicate::AIn),
    ];
    leaf.prop_recursive(3, 8, 2, |inner| {
        prop_oneof![
            inner
                .clone()
                .prop_map(|inner| Predicate::Not(Box::new(inner))),
            (inner.clone(), inner.clone())
                .prop_map(|(left, right)| Predicate::And(Box::new(left), Box::new(right))),
            (inner.clone(), inner)
                .prop_map(|(left, right)| Predicate::Or(Box::new(left), Box::new(right))),
        ]
    })
}
