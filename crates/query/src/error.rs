//! DataFusion's errors in the words of a person asking a question.
//!
//! At the edge of the crate: nothing of DataFusion leaves it. What is the lake's fault keeps its
//! own code; a name that does not exist comes with the nearest that does.

use alluvium_change::{Code, Error, code};
use datafusion::common::{Column, DataFusionError, SchemaError};

/// An error of planning or running a query.
pub(crate) fn sql_error(error: &DataFusionError) -> Error {
    let root = error.find_root();
    match root {
        DataFusionError::External(source) => {
            if let Some(own) = source.downcast_ref::<Error>() {
                return copy(own);
            }
            plain(&code::SQL, &source.to_string())
        }
        DataFusionError::SchemaError(schema_error, _) => schema(schema_error),
        DataFusionError::SQL(parser_error, _) => {
            let text = parser_error.to_string();
            plain(
                &code::SQL_SYNTAX,
                text.strip_prefix("sql parser error: ").unwrap_or(&text),
            )
        }
        DataFusionError::ResourcesExhausted(_) => {
            Error::new(&code::MEMORY, "the query needs more memory than it may use")
                .with_detail(message(root))
        }
        DataFusionError::ObjectStore(source) => {
            let kind = match source.as_ref() {
                object_store::Error::NotFound { .. } => &code::LAKE_CORRUPT,
                _ => &code::LAKE_IO,
            };
            Error::new(kind, "a file of the lake cannot be read").with_detail(message(root))
        }
        DataFusionError::ParquetError(_) => Error::new(
            &code::LAKE_CORRUPT,
            "a file of the lake is missing or damaged",
        )
        .with_detail(message(root)),
        DataFusionError::IoError(_) => {
            Error::new(&code::LAKE_IO, "a file could not be read or written")
                .with_detail(message(root))
        }
        DataFusionError::Internal(text) => Error::new(&code::SQL, "the query engine failed")
            .with_detail(text.lines().next().unwrap_or_default())
            .with_hint("write the query another way, and please report it"),
        DataFusionError::NotImplemented(_) => plain(&code::SQL, &message(root))
            .with_hint("write the query another way: the engine does not know this one yet"),
        _ => plain(&code::SQL, &message(root)),
    }
}

/// The text without its kind ("Error during planning: ") and without a backtrace.
fn message(error: &DataFusionError) -> String {
    let text = error.message();
    let text = text
        .split(DataFusionError::BACK_TRACE_SEP)
        .next()
        .unwrap_or_default();
    // Errors within errors keep their kinds' names.
    let mut text = text.replace("Error during planning: ", "");
    while let Some(rest) = text
        .strip_prefix("Internal error: ")
        .or(text.strip_prefix("Execution error: "))
    {
        text = rest.to_owned();
    }
    text.replacen(", errors: ", "\n", 1).trim().to_owned()
}

/// A first line as message, the rest as detail; in the house's letter case.
fn plain(kind: &'static Code, text: &str) -> Error {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    let mut message = first.trim().trim_end_matches(['.', ':']).to_owned();
    let mut letters = message.chars();
    if let (Some(first), Some(second)) = (letters.next(), letters.next())
        && first.is_ascii_uppercase()
        && !second.is_uppercase()
    {
        message = format!(
            "{}{}",
            first.to_ascii_lowercase(),
            message.get(1..).unwrap_or_default()
        );
    }
    let error = Error::new(kind, message);
    if rest.trim().is_empty() {
        error
    } else {
        error.with_detail(rest.trim())
    }
}

/// An error that passed through DataFusion, which hands out references only.
fn copy(error: &Error) -> Error {
    let copy = Error::new(error.code(), error.message()).with_hint(error.hint());
    match error.detail() {
        Some(detail) => copy.with_detail(detail),
        None => copy,
    }
}

fn schema(error: &SchemaError) -> Error {
    match error {
        SchemaError::FieldNotFound {
            field,
            valid_fields,
        } => unknown_column(field, valid_fields),
        SchemaError::AmbiguousReference { field } => Error::new(
            &code::SQL,
            format!("column \"{}\" could be of several tables", field.name),
        )
        .with_hint("put the table's name before it"),
        SchemaError::DuplicateQualifiedField { name, .. }
        | SchemaError::DuplicateUnqualifiedField { name } => {
            Error::new(&code::SQL, format!("column \"{name}\" comes twice"))
                .with_hint("give one of them another name: ... AS name")
        }
    }
}

fn unknown_column(field: &Column, valid: &[Column]) -> Error {
    let error = Error::new(
        &code::SQL_COLUMN,
        format!("column \"{}\" does not exist", field.name),
    );
    let of_table = |column: &&Column| field.relation.is_none() || column.relation == field.relation;
    let names: Vec<&str> = valid
        .iter()
        .filter(of_table)
        .map(|column| column.name.as_str())
        .collect();
    match nearest(&field.name, names.iter().copied()) {
        Some(name) => error.with_hint(format!("did you mean {}?", quoted(name))),
        None if names.is_empty() => error.with_hint("no column of this name can be seen here"),
        None => {
            const SHOWN: usize = 20;
            let mut list = names
                .iter()
                .take(SHOWN)
                .map(|name| quoted(name))
                .collect::<Vec<_>>()
                .join(", ");
            if names.len() > SHOWN {
                list.push_str(", ...");
            }
            error.with_hint(format!("there are: {list}"))
        }
    }
}

/// The candidate most like `name`, letter case aside; none when all are far from it.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let wanted = name.to_lowercase();
    let limit = (wanted.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&wanted, &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// `name` as SQL has to write it: quoted when unquoted it would be folded or not be one word.
pub(crate) fn quoted(name: &str) -> String {
    let mut letters = name.chars();
    let plain = letters
        .next()
        .is_some_and(|first| first.is_ascii_lowercase() || first == '_')
        && letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_offered_and_no_far_one() {
        let names = ["orders", "Customers", "order_lines"];
        assert_eq!(nearest("ordres", names), Some("orders"));
        assert_eq!(nearest("customers", names), Some("Customers"));
        assert_eq!(nearest("xyz", names), None);
        assert_eq!(nearest("", names), None);
    }

    #[test]
    fn names_are_quoted_when_they_must_be() {
        assert_eq!(quoted("orders_2"), "orders_2");
        assert_eq!(quoted("Orders"), "\"Orders\"");
        assert_eq!(quoted("2x"), "\"2x\"");
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
