//! What each PostgreSQL type becomes in the lake, and how its values travel.
//!
//! Between `catalog`, which reads types from `pg_type`, and [`crate::value`], which decodes.
//! `docs/reference/types.md` is the same map in words.
//!
//! Invariant: a type that is not known is kept as the text of its output function, with a note;
//! no column is ever left out because of its type.

use std::collections::HashSet;

use alluvium_change::{Error, Result, code};
use arrow::datatypes::DataType;
use serde::{Deserialize, Serialize};

use crate::value::{BinaryForm, ColumnBuilder, Decimal, Decoder, LongForm, TextForm};

/// A PostgreSQL type with domains unwrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgType {
    pub oid: u32,
    /// `pg_type.typname`: `int4`, not `integer`.
    pub name: String,
    pub schema: String,
    /// As `format_type()` writes it, for people.
    pub label: String,
    /// The type modifier, -1 for none. Of an array, its elements have it too.
    pub typmod: i32,
    /// `pg_type.typdelim`: what separates elements in an array of this type.
    pub delimiter: u8,
    pub kind: PgKind,
}

/// How a type is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PgKind {
    Scalar,
    Enum,
    Array(Box<PgType>),
    /// Attributes in order, dropped ones left out.
    Composite(Vec<(String, PgType)>),
    /// Of this type.
    Range(Box<PgType>),
    /// Of this range type.
    Multirange(Box<PgType>),
}

/// What happens to a value that the column's Delta type cannot hold: an infinite date, a NaN in a
/// decimal, an array of another depth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnInvalid {
    /// It is an error: the table stops until somebody chooses.
    #[default]
    Error,
    /// The nearest value the type holds. Where there is none (NaN, an array's depth): an error.
    ///
    /// Infinite dates and timestamps become the largest or smallest number whose negation exists
    /// too (`i32::MAX` days, `i64::MAX` microseconds and their negatives). DuckDB shows these as
    /// infinities; Spark as a far day; readers limited to the years 1 to 9999 (Python) cannot show
    /// them, as they cannot show PostgreSQL's other far dates.
    Clamp,
    /// NULL. Within an array, composite or range only the element becomes NULL.
    Null,
    /// The whole column is stored as text. Changes nothing for types that hold every value.
    String,
}

/// How a column is to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnOptions {
    pub on_invalid: OnInvalid,
    /// Another type than the map's: `string` for any type; `decimal(p,s)` for `numeric` (also in
    /// arrays and ranges); `long` for integers, `time` (microseconds), `xid`, `xid8`, `cid`.
    pub stored_as: Option<String>,
    /// Dimensions of an array column, as declared; 0 counts as 1.
    pub dimensions: u8,
    /// Places after the point in the database's `lc_monetary`.
    pub money_fraction_digits: u8,
}

impl Default for ColumnOptions {
    fn default() -> Self {
        Self {
            on_invalid: OnInvalid::Error,
            stored_as: None,
            dimensions: 1,
            money_fraction_digits: 2,
        }
    }
}

/// How the initial copy asks for a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyForm {
    /// The type's own binary form, as `COPY (FORMAT binary)` sends it.
    Binary,
    /// The text of the type's output function, selected as `text`.
    Text,
}

/// How one column is decoded and stored.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnPlan {
    /// The Arrow type its values get.
    pub data_type: DataType,
    pub copy_form: CopyForm,
    /// Something to tell people once, such as an unknown type kept as its text.
    pub note: Option<String>,
    decoder: Decoder,
    on_invalid: OnInvalid,
}

impl ColumnPlan {
    fn new(decoder: Decoder, on_invalid: OnInvalid, note: Option<String>) -> Self {
        let copy_form = if decoder.reads_binary() {
            CopyForm::Binary
        } else {
            CopyForm::Text
        };
        Self {
            data_type: decoder.data_type(),
            copy_form,
            note,
            decoder,
            on_invalid,
        }
    }

    /// The same, but copied as text: another type than the one whose binary form is known has its
    /// name.
    fn by_text(mut self) -> Self {
        self.copy_form = CopyForm::Text;
        self
    }

    /// Whether a value in its type's binary form becomes what its text becomes, on every version of
    /// the server.
    #[must_use]
    pub fn reads_binary_tuples(&self) -> bool {
        // The text of a "char" beyond ASCII is another one since PostgreSQL 16.
        self.copy_form == CopyForm::Binary && !matches!(self.decoder, Decoder::Text(TextForm::Char))
    }

    /// What both sides together save on a value that comes in binary form, in nanoseconds of CPU as
    /// measured (docs/design/0005); negative where text is quicker.
    pub(crate) fn binary_saves_ns(&self) -> i64 {
        match &self.decoder {
            Decoder::Int16 | Decoder::Int32 | Decoder::Int64(_) => 20,
            Decoder::Float32 | Decoder::Float64 => 60,
            Decoder::Money { .. } | Decoder::Date => 70,
            Decoder::Timestamp { .. } => 90,
            Decoder::Text(TextForm::Uuid) => 80,
            Decoder::Binary(_) => 250,
            // The server makes a larger buffer for each value than it needs for text.
            Decoder::Text(TextForm::Jsonb) => -50,
            Decoder::Text(_) => -20,
            _ => 0,
        }
    }

    /// A builder for values of this column.
    #[must_use]
    pub fn builder(&self) -> ColumnBuilder {
        ColumnBuilder::new(&self.decoder, self.copy_form, self.on_invalid)
    }
}

/// Plans a column of type `ty`.
///
/// # Errors
/// When `options.stored_as` is not a type that this column can be stored as.
pub fn plan_column(ty: &PgType, options: &ColumnOptions) -> Result<ColumnPlan> {
    let plan = plan_any(ty, options)?;
    Ok(if has_known_binary_form(ty) {
        plan
    } else {
        plan.by_text()
    })
}

/// Anybody can make a type and give it the name of one of ours: then its binary form is not known.
fn has_known_binary_form(ty: &PgType) -> bool {
    ty.kind != PgKind::Scalar || ty.schema == "pg_catalog" || ty.name == "citext"
}

fn plan_any(ty: &PgType, options: &ColumnOptions) -> Result<ColumnPlan> {
    let stored_as = match &options.stored_as {
        None => None,
        Some(text) => Some(
            StoredAs::parse(text)
                .ok_or_else(|| cannot_store(ty, text, "it is not a type that can be chosen"))?,
        ),
    };
    if stored_as == Some(StoredAs::String) {
        return Ok(ColumnPlan::new(whole_as_text(ty), options.on_invalid, None));
    }
    let mut planner = Planner {
        options,
        stored_as,
        stored_as_used: false,
        note: None,
    };
    let decoder = planner.plan(ty, usize::from(options.dimensions.max(1)));
    if let (Some(text), false) = (&options.stored_as, planner.stored_as_used) {
        return Err(cannot_store(ty, text, "its values are no such numbers"));
    }
    if options.on_invalid == OnInvalid::String && decoder.may_refuse() {
        return Ok(ColumnPlan::new(whole_as_text(ty), options.on_invalid, None));
    }
    Ok(ColumnPlan::new(decoder, options.on_invalid, planner.note))
}

fn cannot_store(ty: &PgType, stored_as: &str, why: &str) -> Error {
    let message = format!(
        "a column of type \"{}\" cannot be stored as \"{stored_as}\"",
        ty.label
    );
    Error::new(&code::CONFIG_VALUE, message)
        .with_detail(why)
        .with_hint(
            "stored_as takes \"string\" for any type, \"decimal(38,9)\" for numeric, \
         \"long\" for integers, time and transaction ids",
        )
}

/// The decoder for text of any type, by the cheaper way of copying it.
fn whole_as_text(ty: &PgType) -> Decoder {
    match (&ty.kind, text_form(ty)) {
        (PgKind::Scalar | PgKind::Enum, Some(form)) => Decoder::Text(form),
        _ => Decoder::Text(TextForm::TextOnly),
    }
}

/// A choice of the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StoredAs {
    String,
    Long,
    Decimal(Decimal),
}

impl StoredAs {
    fn parse(text: &str) -> Option<Self> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        match text.to_ascii_lowercase().as_str() {
            "string" => Some(Self::String),
            "long" => Some(Self::Long),
            other => {
                let inner = other.strip_prefix("decimal(")?.strip_suffix(')')?;
                let (precision, scale) = inner.split_once(',')?;
                let (precision, scale) = (precision.parse().ok()?, scale.parse().ok()?);
                let valid = (1..=38).contains(&precision) && scale <= precision;
                valid.then_some(Self::Decimal(Decimal { precision, scale }))
            }
        }
    }
}

struct Planner<'a> {
    options: &'a ColumnOptions,
    stored_as: Option<StoredAs>,
    stored_as_used: bool,
    note: Option<String>,
}

impl Planner<'_> {
    fn note(&mut self, text: String) {
        self.note.get_or_insert(text);
    }

    fn plan(&mut self, ty: &PgType, dimensions: usize) -> Decoder {
        match &ty.kind {
            PgKind::Enum => Decoder::Text(TextForm::Plain),
            PgKind::Scalar => self.scalar(ty),
            PgKind::Array(element) => Decoder::Array {
                dimensions,
                delimiter: element.delimiter,
                element: Box::new(self.plan(element, 1)),
            },
            PgKind::Composite(fields) => self.composite(ty, fields),
            PgKind::Range(bound) => Decoder::Range(Box::new(self.plan(bound, 1))),
            PgKind::Multirange(range) => match &range.kind {
                PgKind::Range(bound) => Decoder::Multirange(Box::new(self.plan(bound, 1))),
                _ => self.unknown(ty),
            },
        }
    }

    fn composite(&mut self, ty: &PgType, fields: &[(String, PgType)]) -> Decoder {
        let mut names = HashSet::new();
        if fields.is_empty() {
            self.note(format!(
                "type \"{}\" has no fields and is stored as its text",
                ty.label
            ));
            return Decoder::Text(TextForm::TextOnly);
        }
        if !fields
            .iter()
            .all(|(name, _)| names.insert(name.to_lowercase()))
        {
            self.note(format!(
                "type \"{}\" has fields whose names differ by letter case only, which Delta does \
                 not allow, and is stored as its text",
                ty.label
            ));
            return Decoder::Text(TextForm::TextOnly);
        }
        let fields = fields
            .iter()
            .map(|(name, ty)| (name.clone(), self.plan(ty, 1)));
        Decoder::Composite(fields.collect())
    }

    fn unknown(&mut self, ty: &PgType) -> Decoder {
        self.note(format!(
            "type \"{}\" is not known and is stored as its text",
            ty.label
        ));
        Decoder::Text(TextForm::TextOnly)
    }

    fn scalar(&mut self, ty: &PgType) -> Decoder {
        match self.stored_as {
            Some(StoredAs::Long) => {
                if let Some(form) = long_form(&ty.name) {
                    self.stored_as_used = true;
                    return Decoder::Int64(form);
                }
            }
            Some(StoredAs::Decimal(decimal)) if ty.name == "numeric" => {
                self.stored_as_used = true;
                return Decoder::Numeric(decimal);
            }
            _ => {}
        }
        if let Some(form) = text_form(ty) {
            return Decoder::Text(form);
        }
        match ty.name.as_str() {
            "bool" => Decoder::Bool,
            "int2" => Decoder::Int16,
            "int4" => Decoder::Int32,
            "int8" => Decoder::Int64(LongForm::Int8),
            "oid" => Decoder::Int64(LongForm::Oid),
            "float4" => Decoder::Float32,
            "float8" => Decoder::Float64,
            "numeric" => match numeric_decimal(ty.typmod) {
                Some(decimal) => Decoder::Numeric(decimal),
                None => Decoder::Text(TextForm::TextOnly),
            },
            "money" => self.money(),
            "bytea" => Decoder::Binary(BinaryForm::Bytea),
            "date" => Decoder::Date,
            "timestamp" => Decoder::Timestamp { utc: false },
            "timestamptz" => Decoder::Timestamp { utc: true },
            "point" => Decoder::Point,
            "hstore" => Decoder::Hstore,
            "vector" | "halfvec" => Decoder::Vector,
            "geometry" | "geography" => Decoder::Binary(BinaryForm::HexEwkb),
            _ => self.unknown(ty),
        }
    }

    /// `DECIMAL(19,2)`; a currency with more places keeps them all.
    fn money(&mut self) -> Decoder {
        let fraction_digits = self.options.money_fraction_digits.min(19);
        if fraction_digits > 2 {
            self.note(format!(
                "money has {fraction_digits} fraction digits in this database"
            ));
        }
        let decimal = Decimal {
            precision: 19,
            scale: fraction_digits.max(2),
        };
        Decoder::Money {
            decimal,
            fraction_digits,
        }
    }
}

/// Types that can be stored as 64-bit integers.
fn long_form(name: &str) -> Option<LongForm> {
    match name {
        "int2" => Some(LongForm::Int2),
        "int4" => Some(LongForm::Int4),
        "int8" => Some(LongForm::Int8),
        "oid" => Some(LongForm::Oid),
        "xid" | "cid" | "xid8" => Some(LongForm::Unsigned),
        "time" => Some(LongForm::TimeMicros),
        _ => None,
    }
}

/// Types known to be stored as text, and how the copy sends them.
fn text_form(ty: &PgType) -> Option<TextForm> {
    if ty.kind == PgKind::Enum {
        return Some(TextForm::Plain);
    }
    match ty.name.as_str() {
        "text" | "varchar" | "bpchar" | "name" | "json" | "citext" => Some(TextForm::Plain),
        "char" => Some(TextForm::Char),
        "jsonb" => Some(TextForm::Jsonb),
        "uuid" => Some(TextForm::Uuid),
        "xml" | "bit" | "varbit" | "time" | "timetz" | "interval" | "inet" | "cidr" | "macaddr"
        | "macaddr8" | "tsvector" | "tsquery" | "box" | "lseg" | "path" | "polygon" | "circle"
        | "line" | "ltree" | "lquery" | "ltxtquery" | "pg_lsn" | "xid" | "xid8" | "cid" | "tid"
        | "txid_snapshot" | "pg_snapshot" | "jsonpath" | "refcursor" | "int2vector"
        | "oidvector" | "aclitem" | "gtsvector" | "pg_node_tree" | "sparsevec" | "isbn"
        | "isbn13" | "issn" | "issn13" | "ismn" | "ismn13" | "ean13" | "upc" | "cube" | "seg"
        | "regproc" | "regprocedure" | "regoper" | "regoperator" | "regclass" | "regtype"
        | "regrole" | "regnamespace" | "regconfig" | "regdictionary" | "regcollation" => {
            Some(TextForm::TextOnly)
        }
        _ => None,
    }
}

/// The decimal type of `numeric` with this modifier; None without one, or beyond 38 digits.
fn numeric_decimal(typmod: i32) -> Option<Decimal> {
    let packed = typmod.checked_sub(4).filter(|packed| *packed >= 0)?;
    let precision = (packed >> 16) & 0xFFFF;
    // 11 bits with sign; before PostgreSQL 15 never negative, and below 1024.
    let scale = ((packed & 0x7FF) ^ 0x400) - 0x400;
    let (precision, scale) = if scale < 0 {
        (precision - scale, 0)
    } else {
        (precision.max(scale), scale)
    };
    let decimal = Decimal {
        precision: precision.try_into().ok()?,
        scale: scale.try_into().ok()?,
    };
    (1..=38).contains(&decimal.precision).then_some(decimal)
}

#[cfg(test)]
mod tests;
