//! Which PostgreSQL type a column has to a client.

use arrow::datatypes::{DataType, Field};
use postgres_types::Type;

/// Where a field's metadata says of which type the column is at the source, as `format_type` writes it.
pub const SOURCE_TYPE_KEY: &str = "alluvium.type";

/// A PostgreSQL type whose values can be written as text and in binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    pub pg: Type,
    /// `pg_type.typlen`: bytes of the binary form; negative where it varies.
    pub size: i16,
    /// `pg_attribute.atttypmod`; -1 for none.
    pub modifier: i32,
}

impl Kind {
    pub(super) fn of(pg: Type) -> Self {
        let size = match pg {
            Type::BOOL => 1,
            Type::INT2 => 2,
            Type::INT4 | Type::FLOAT4 | Type::DATE | Type::OID => 4,
            Type::INT8 | Type::FLOAT8 | Type::TIME | Type::TIMESTAMP | Type::TIMESTAMPTZ => 8,
            Type::UUID | Type::INTERVAL => 16,
            _ => -1,
        };
        Self {
            pg,
            size,
            modifier: -1,
        }
    }

    /// Of the elements of an array.
    pub(super) fn element(&self) -> Option<Self> {
        match self.pg.kind() {
            postgres_types::Kind::Array(element) => Some(Self::of(element.clone())),
            _ => None,
        }
    }
}

/// What a client is told of a column.
#[must_use]
pub fn kind_of(field: &Field) -> Kind {
    let source = field.metadata().get(SOURCE_TYPE_KEY).map(String::as_str);
    let data_type = value_type(field.data_type());
    if let Some(item) = item_of(data_type) {
        // An array in an array has the same type to PostgreSQL, and the element's modifier.
        let mut inner = item;
        while let Some(item) = item_of(value_type(inner.data_type())) {
            inner = item;
        }
        let source = source.map(|source| source.trim_end_matches("[]"));
        let array = array_of(&scalar(value_type(inner.data_type()), source).pg);
        return Kind::of(array);
    }
    scalar(data_type, source)
}

fn item_of(data_type: &DataType) -> Option<&Field> {
    match data_type {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => Some(item),
        _ => None,
    }
}

fn value_type(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, value) => value,
        DataType::RunEndEncoded(_, value) => value.data_type(),
        other => other,
    }
}

fn scalar(data_type: &DataType, source: Option<&str>) -> Kind {
    let pg = match data_type {
        DataType::Boolean => Type::BOOL,
        DataType::Int8 | DataType::UInt8 | DataType::Int16 => Type::INT2,
        DataType::UInt16 | DataType::Int32 => Type::INT4,
        DataType::UInt32 | DataType::Int64 => Type::INT8,
        DataType::Float16 | DataType::Float32 => Type::FLOAT4,
        DataType::Float64 => Type::FLOAT8,
        DataType::UInt64 => Type::NUMERIC,
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => return numeric(*precision, *scale),
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => Type::BYTEA,
        DataType::Date32 | DataType::Date64 => Type::DATE,
        DataType::Time32(_) | DataType::Time64(_) => Type::TIME,
        DataType::Timestamp(_, None) => Type::TIMESTAMP,
        DataType::Timestamp(_, Some(_)) => Type::TIMESTAMPTZ,
        DataType::Duration(_) | DataType::Interval(_) => Type::INTERVAL,
        DataType::Struct(_) | DataType::Map(..) | DataType::Union(..) => Type::JSON,
        _ => return text(source.unwrap_or("text")),
    };
    Kind::of(pg)
}

fn numeric(precision: u8, scale: i8) -> Kind {
    // numerictypmodin: precision above, scale below, past the four bytes of a length.
    let modifier = (i32::from(precision) << 16 | (i32::from(scale) & 0x7ff)) + 4;
    Kind {
        modifier,
        ..Kind::of(Type::NUMERIC)
    }
}

/// Of text that is of this type at the source.
fn text(source: &str) -> Kind {
    let (name, length) = match source.split_once('(') {
        Some((name, rest)) => (name, rest.trim_end_matches(')').parse::<i32>().ok()),
        None => (source, None),
    };
    let pg = match name {
        "uuid" => Type::UUID,
        "json" => Type::JSON,
        "jsonb" => Type::JSONB,
        "numeric" => Type::NUMERIC,
        "time without time zone" => Type::TIME,
        "interval" => Type::INTERVAL,
        "inet" => Type::INET,
        "cidr" => Type::CIDR,
        "character varying" => Type::VARCHAR,
        "character" => Type::BPCHAR,
        "name" => Type::NAME,
        "xml" => Type::XML,
        _ => Type::TEXT,
    };
    let counts = matches!(pg, Type::VARCHAR | Type::BPCHAR);
    let modifier = length.filter(|_| counts).map_or(-1, |length| length + 4);
    Kind {
        modifier,
        ..Kind::of(pg)
    }
}

fn array_of(element: &Type) -> Type {
    match *element {
        Type::BOOL => Type::BOOL_ARRAY,
        Type::INT2 => Type::INT2_ARRAY,
        Type::INT4 => Type::INT4_ARRAY,
        Type::INT8 => Type::INT8_ARRAY,
        Type::FLOAT4 => Type::FLOAT4_ARRAY,
        Type::FLOAT8 => Type::FLOAT8_ARRAY,
        Type::NUMERIC => Type::NUMERIC_ARRAY,
        Type::BYTEA => Type::BYTEA_ARRAY,
        Type::DATE => Type::DATE_ARRAY,
        Type::TIME => Type::TIME_ARRAY,
        Type::TIMESTAMP => Type::TIMESTAMP_ARRAY,
        Type::TIMESTAMPTZ => Type::TIMESTAMPTZ_ARRAY,
        Type::INTERVAL => Type::INTERVAL_ARRAY,
        Type::UUID => Type::UUID_ARRAY,
        Type::JSON => Type::JSON_ARRAY,
        Type::JSONB => Type::JSONB_ARRAY,
        Type::INET => Type::INET_ARRAY,
        Type::CIDR => Type::CIDR_ARRAY,
        Type::VARCHAR => Type::VARCHAR_ARRAY,
        Type::BPCHAR => Type::BPCHAR_ARRAY,
        Type::NAME => Type::NAME_ARRAY,
        Type::XML => Type::XML_ARRAY,
        _ => Type::TEXT_ARRAY,
    }
}
