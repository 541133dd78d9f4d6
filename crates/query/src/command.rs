//! What a statement asks for beside rows: settings, transactions, cursors, as a server is asked.
//!
//! Pure. Invariant: what is not named here and is no query is refused, because it would write.

use std::collections::VecDeque;

use alluvium_change::Result;
use datafusion::common::DataFusionError;
use datafusion::sql::parser::{DFParser, Statement as Parsed};
use datafusion::sql::sqlparser::ast::{
    CloseCursor, CopyLegacyCsvOption, CopyLegacyOption, CopyOption, CopySource, CopyTarget,
    Declare, Expr, FetchDirection, Ident, Query, Set, Statement as Sql, TransactionIsolationLevel,
    TransactionMode, Value, ValueWithSpan,
};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::Token;

use crate::session::{Statement, read_only, refused};

/// What a statement asks a server for.
#[derive(Debug, Clone)]
pub enum Command {
    /// To be planned and run.
    Query,
    /// `BEGIN`; with the isolation levels above `READ COMMITTED` all of it sees one state.
    Begin {
        one_state: bool,
    },
    Commit,
    Rollback,
    /// `SAVEPOINT` and its kin: nothing is written that could be taken back.
    Savepoint(&'static str),
    /// None for `DEFAULT` and `RESET`.
    Set {
        name: String,
        value: Option<String>,
    },
    ResetAll,
    Show(String),
    Declare {
        cursor: String,
        query: Statement,
    },
    /// None for all rows.
    Fetch {
        cursor: String,
        rows: Option<u64>,
    },
    /// None for all.
    Close(Option<String>),
    /// `COPY … TO STDOUT`.
    Copy {
        query: Statement,
        form: CopyForm,
    },
    Discard,
    /// None for all.
    Deallocate(Option<String>),
}

/// How `COPY` writes rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyForm {
    pub kind: CopyKind,
    pub delimiter: u8,
    pub null: String,
    pub header: bool,
}

/// The formats of `COPY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyKind {
    Text,
    Csv,
    Binary,
}

/// Parses what comes. `COPY` is PostgreSQL's, not that of DataFusion.
pub(crate) fn parse_all(
    parser: &mut DFParser<'_>,
) -> std::result::Result<Vec<Parsed>, DataFusionError> {
    let mut parsed = VecDeque::new();
    let is = |parser: &DFParser<'_>, keyword| matches!(parser.parser.peek_token_ref().token, Token::Word(ref word) if word.keyword == keyword);
    if !is(parser, Keyword::COPY) {
        parsed = parser.parse_statements()?;
    } else {
        let copy = parser.parser.parse_statement()?;
        parsed.push_back(Parsed::Statement(Box::new(copy)));
        while parser.parser.consume_token(&Token::SemiColon) {}
        parser.parser.expect_token(&Token::EOF)?;
    }
    Ok(parsed.into())
}

impl Statement {
    /// What it asks for.
    ///
    /// # Errors
    /// `SQL_WRITES`: it does not only read.
    pub fn command(&self) -> Result<Command> {
        let sql = match &self.0 {
            Parsed::Statement(sql) => sql.as_ref(),
            Parsed::Reset(reset) => {
                let text = reset.to_string();
                let name = text.split_whitespace().last().unwrap_or_default();
                return Ok(match name.eq_ignore_ascii_case("all") {
                    true => Command::ResetAll,
                    false => set(name, None),
                });
            }
            other => return read_only(other).map(|()| Command::Query),
        };
        Ok(match sql {
            Sql::StartTransaction { modes, .. } => Command::Begin {
                one_state: one_state(modes),
            },
            Sql::Commit { .. } => Command::Commit,
            Sql::Rollback {
                savepoint: None, ..
            } => Command::Rollback,
            Sql::Rollback { .. } => Command::Savepoint("ROLLBACK"),
            Sql::Savepoint { .. } => Command::Savepoint("SAVEPOINT"),
            Sql::ReleaseSavepoint { .. } => Command::Savepoint("RELEASE"),
            Sql::Set(set) => settings(set)?,
            Sql::ShowVariable { variable } => show(variable),
            Sql::Declare { stmts } => declare(stmts)?,
            Sql::Fetch {
                name, direction, ..
            } => fetch(name, direction)?,
            Sql::Close { cursor } => Command::Close(match cursor {
                CloseCursor::All => None,
                CloseCursor::Specific { name } => Some(folded(name)),
            }),
            Sql::Copy { .. } => copy(sql)?,
            Sql::Discard { .. } => Command::Discard,
            Sql::Deallocate { name, .. } => {
                let name = folded(name);
                Command::Deallocate((name != "all").then_some(name))
            }
            _ => read_only(&self.0).map(|()| Command::Query)?,
        })
    }
}

/// As PostgreSQL reads a name.
fn folded(name: &Ident) -> String {
    match name.quote_style {
        Some(_) => name.value.clone(),
        None => name.value.to_lowercase(),
    }
}

fn one_state(modes: &[TransactionMode]) -> bool {
    modes.iter().any(|mode| {
        matches!(
            mode,
            TransactionMode::IsolationLevel(
                TransactionIsolationLevel::RepeatableRead
                    | TransactionIsolationLevel::Serializable
                    | TransactionIsolationLevel::Snapshot
            )
        )
    })
}

fn set(name: &str, value: Option<String>) -> Command {
    Command::Set {
        name: name.to_lowercase(),
        value,
    }
}

fn settings(asked: &Set) -> Result<Command> {
    Ok(match asked {
        Set::SingleAssignment {
            variable, values, ..
        } => {
            let name = variable.to_string();
            if name.starts_with("datafusion.") {
                return Ok(Command::Query);
            }
            let values: Vec<String> = values.iter().map(text).collect();
            let value = values.join(", ");
            set(
                &name,
                (!value.eq_ignore_ascii_case("default")).then_some(value),
            )
        }
        Set::SetTimeZone { value, .. } => set("timezone", Some(text(value))),
        Set::SetNames { charset_name, .. } => {
            set("client_encoding", Some(charset_name.value.clone()))
        }
        Set::SetNamesDefault {} => set("client_encoding", None),
        Set::SetTransaction { modes, .. } => {
            let level = if one_state(modes) {
                "repeatable read"
            } else {
                "read committed"
            };
            set("transaction_isolation", Some(level.to_owned()))
        }
        Set::SetRole { role_name, .. } => set("role", role_name.as_ref().map(folded)),
        other => return Err(refused(&other.to_string())),
    })
}

/// A setting's value without its quotes.
fn text(value: &Expr) -> String {
    match value {
        Expr::Value(ValueWithSpan {
            value: Value::SingleQuotedString(text) | Value::DoubleQuotedString(text),
            ..
        }) => text.clone(),
        Expr::Identifier(name) => name.value.clone(),
        other => other.to_string(),
    }
}

fn show(words: &[Ident]) -> Command {
    let words: Vec<String> = words.iter().map(|word| word.value.to_lowercase()).collect();
    match words.join(" ").as_str() {
        name if name.starts_with("datafusion") => Command::Query,
        "time zone" => Command::Show("timezone".to_owned()),
        "transaction isolation level" => Command::Show("transaction_isolation".to_owned()),
        "session authorization" => Command::Show("session_authorization".to_owned()),
        _ => Command::Show(words.join(".")),
    }
}

fn query(query: &Query) -> Statement {
    Statement(Parsed::Statement(Box::new(Sql::Query(Box::new(
        query.clone(),
    )))))
}

fn declare(declared: &[Declare]) -> Result<Command> {
    match declared {
        [
            Declare {
                names,
                for_query: Some(of),
                scroll,
                ..
            },
        ] if *scroll != Some(true) => match names.as_slice() {
            [name] => Ok(Command::Declare {
                cursor: folded(name),
                query: query(of),
            }),
            _ => Err(refused("DECLARE of several names")),
        },
        [
            Declare {
                scroll: Some(true), ..
            },
        ] => Err(refused("a cursor that goes back (SCROLL)")),
        _ => Err(refused("DECLARE of anything but a cursor")),
    }
}

fn fetch(cursor: &Ident, direction: &FetchDirection) -> Result<Command> {
    let number = |limit: &ValueWithSpan| limit.to_string().parse::<u64>().ok();
    let rows = match direction {
        FetchDirection::Next | FetchDirection::Forward { limit: None } => Some(1),
        FetchDirection::All | FetchDirection::ForwardAll => None,
        FetchDirection::Count { limit } | FetchDirection::Forward { limit: Some(limit) } => {
            Some(number(limit).ok_or_else(|| refused("FETCH backwards"))?)
        }
        _ => return Err(refused("FETCH in any direction but forward")),
    };
    Ok(Command::Fetch {
        cursor: folded(cursor),
        rows,
    })
}

fn copy(sql: &Sql) -> Result<Command> {
    let Sql::Copy {
        source,
        to: true,
        target: CopyTarget::Stdout,
        options,
        legacy_options,
        ..
    } = sql
    else {
        return Err(refused("COPY of anything but TO STDOUT"));
    };
    let of = match source {
        CopySource::Query(of) => query(of),
        CopySource::Table {
            table_name,
            columns,
        } => {
            let columns: Vec<String> = columns.iter().map(ToString::to_string).collect();
            let columns = match columns.is_empty() {
                true => "*".to_owned(),
                false => columns.join(", "),
            };
            let text = format!("SELECT {columns} FROM {table_name}");
            Statement::all_of(&text)?
                .pop()
                .ok_or_else(|| refused("COPY of nothing"))?
        }
    };
    let form = copy_form(options, legacy_options)?;
    Ok(Command::Copy { query: of, form })
}

fn copy_form(options: &[CopyOption], legacy: &[CopyLegacyOption]) -> Result<CopyForm> {
    let mut kind = CopyKind::Text;
    let (mut delimiter, mut null, mut header) = (None, None, false);
    let other = |option: &dyn std::fmt::Display| Err(refused(&format!("COPY with {option}")));
    for option in options {
        match option {
            CopyOption::Format(name) => {
                kind = match name.value.to_lowercase().as_str() {
                    "text" => CopyKind::Text,
                    "csv" => CopyKind::Csv,
                    "binary" => CopyKind::Binary,
                    _ => return other(option),
                }
            }
            CopyOption::Delimiter(char) => delimiter = Some(*char),
            CopyOption::Null(text) => null = Some(text),
            CopyOption::Header(wanted) => header = *wanted,
            CopyOption::Quote('"') | CopyOption::Escape('"') => {}
            CopyOption::Encoding(name) if name.to_lowercase().replace('-', "") == "utf8" => {}
            _ => return other(option),
        }
    }
    for option in legacy {
        match option {
            CopyLegacyOption::Binary => kind = CopyKind::Binary,
            CopyLegacyOption::Delimiter(char) => delimiter = Some(*char),
            CopyLegacyOption::Null(text) => null = Some(text),
            CopyLegacyOption::Csv(more) => {
                kind = CopyKind::Csv;
                for option in more {
                    match option {
                        CopyLegacyCsvOption::Header => header = true,
                        CopyLegacyCsvOption::Quote('"') | CopyLegacyCsvOption::Escape('"') => {}
                        _ => return other(option),
                    }
                }
            }
            _ => return other(option),
        }
    }
    let (usual_delimiter, usual_null) = match kind {
        CopyKind::Csv => (',', ""),
        _ => ('\t', "\\N"),
    };
    let delimiter = delimiter.unwrap_or(usual_delimiter);
    let is_letter =
        delimiter.is_ascii_alphanumeric() || matches!(delimiter, '\\' | '\n' | '\r' | '.' | '"');
    match u8::try_from(delimiter) {
        Ok(delimiter) if delimiter.is_ascii() && !is_letter => Ok(CopyForm {
            kind,
            delimiter,
            null: null.map_or(usual_null, String::as_str).to_owned(),
            header,
        }),
        _ => other(&format!("DELIMITER '{delimiter}'")),
    }
}
