//! What each kind of statement answers.

use std::sync::Arc;

use alluvium_query::{Command, CopyKind};
use pgwire::api::Type;
use pgwire::api::results::{FieldFormat, FieldInfo, QueryResponse};
use pgwire::error::PgWireResult;
use pgwire::messages::data::DataRow;
use pgwire::messages::response::TransactionStatus;

use super::connection::Connection;
use super::copy::Copied;
use super::error;
use super::rows::{Asked, Cursor};

/// What a statement answers.
pub(super) enum Answer {
    Rows(QueryResponse),
    Copy(Copied),
    Done(&'static str),
}

impl Connection {
    /// Carries out a statement in a transaction of this state, which it may change.
    pub(super) async fn perform(
        self: &Arc<Self>,
        mut asked: Asked,
        command: Command,
        transaction: &mut TransactionStatus,
    ) -> PgWireResult<Answer> {
        let ends = matches!(command, Command::Commit | Command::Rollback);
        let goes_back = matches!(command, Command::Savepoint("ROLLBACK"));
        if *transaction == TransactionStatus::Error && !ends && !goes_back {
            return Err(error::said(
                "25P02",
                "current transaction is aborted, commands ignored until end of transaction block",
            ));
        }
        Ok(match command {
            Command::Query => Answer::Rows(self.start(asked).await?),
            Command::Begin { .. } => {
                *transaction = TransactionStatus::Transaction;
                Answer::Done("BEGIN")
            }
            Command::Commit | Command::Rollback => {
                let failed = *transaction == TransactionStatus::Error;
                *transaction = TransactionStatus::Idle;
                self.cursors().clear();
                let commits = matches!(command, Command::Commit) && !failed;
                Answer::Done(if commits { "COMMIT" } else { "ROLLBACK" })
            }
            Command::Savepoint(tag) => {
                if goes_back {
                    *transaction = TransactionStatus::Transaction;
                }
                Answer::Done(tag)
            }
            Command::Set { name, value } => {
                self.settings().set(&name, value)?;
                Answer::Done("SET")
            }
            Command::ResetAll => {
                self.settings().reset_all()?;
                Answer::Done("RESET")
            }
            Command::Show(name) => Answer::Rows(self.shown(&name)?),
            Command::Declare { cursor, .. } => {
                if *transaction == TransactionStatus::Idle {
                    return Err(error::said(
                        "25P01",
                        "DECLARE CURSOR can only be used in transaction blocks",
                    ));
                }
                if self.cursors().contains_key(&cursor) {
                    return Err(error::said(
                        "42P03",
                        format!("cursor \"{cursor}\" already exists"),
                    ));
                }
                let rows = self.declare(asked).await?;
                self.cursors().insert(cursor, rows);
                Answer::Done("DECLARE CURSOR")
            }
            Command::Fetch { cursor, rows } => {
                Answer::Rows(self.fetch(&cursor, rows, &asked.formats)?)
            }
            Command::Close(cursor) => {
                self.close(cursor.as_deref())?;
                Answer::Done(if cursor.is_some() {
                    "CLOSE CURSOR"
                } else {
                    "CLOSE CURSOR ALL"
                })
            }
            Command::Copy { form, .. } => {
                asked.formats = vec![match form.kind {
                    CopyKind::Binary => FieldFormat::Binary,
                    CopyKind::Text | CopyKind::Csv => FieldFormat::Text,
                }];
                let rows = self.start(asked).await?;
                Answer::Copy(Copied { rows, form })
            }
            Command::Discard => {
                self.cursors().clear();
                self.settings().reset_all()?;
                Answer::Done("DISCARD ALL")
            }
            Command::Deallocate(_) => Answer::Done("DEALLOCATE"),
        })
    }

    fn close(&self, cursor: Option<&str>) -> PgWireResult<()> {
        let mut cursors = self.cursors();
        match cursor {
            None => cursors.clear(),
            Some(name) => {
                cursors.remove(name).ok_or_else(|| no_cursor(name))?;
            }
        }
        Ok(())
    }

    pub(super) fn cursor(&self, name: &str) -> PgWireResult<Cursor> {
        let cursors = self.cursors();
        cursors.get(name).cloned().ok_or_else(|| no_cursor(name))
    }

    fn fetch(
        &self,
        name: &str,
        rows: Option<u64>,
        formats: &[FieldFormat],
    ) -> PgWireResult<QueryResponse> {
        let most = rows
            .and_then(|rows| usize::try_from(rows).ok())
            .unwrap_or(usize::MAX);
        let zone = self.settings().zone;
        let mut response = self.cursor(name)?.fetch(most, formats, zone);
        response.set_command_tag("FETCH");
        Ok(response)
    }

    fn shown(&self, name: &str) -> PgWireResult<QueryResponse> {
        if name == "all" {
            let settings = self.settings();
            let all: Vec<_> = settings
                .all()
                .map(|(name, value)| vec![name.clone(), value.clone(), String::new()])
                .collect();
            drop(settings);
            return Ok(texts("SHOW", &["name", "setting", "description"], all));
        }
        let value = self.show(name)?;
        Ok(texts("SHOW", &[name], vec![vec![value]]))
    }
}

fn no_cursor(name: &str) -> pgwire::error::PgWireError {
    error::said("34000", format!("cursor \"{name}\" does not exist"))
}

/// The columns that `SHOW` answers.
pub(super) fn shown_fields(name: &str) -> Vec<FieldInfo> {
    let names: &[&str] = if name == "all" {
        &["name", "setting", "description"]
    } else {
        &[name]
    };
    names.iter().map(|name| text_field(name)).collect()
}

fn text_field(name: &str) -> FieldInfo {
    FieldInfo::new(name.to_owned(), None, None, Type::TEXT, FieldFormat::Text).with_type_size(-1)
}

fn texts(tag: &str, names: &[&str], rows: Vec<Vec<String>>) -> QueryResponse {
    use bytes::{BufMut as _, BytesMut};
    let fields = names.iter().map(|name| text_field(name)).collect();
    let columns = i16::try_from(names.len()).unwrap_or(i16::MAX);
    let rows: Vec<_> = rows
        .into_iter()
        .map(|row| {
            let mut data = BytesMut::new();
            for value in row {
                data.put_i32(i32::try_from(value.len()).unwrap_or(i32::MAX));
                data.put_slice(value.as_bytes());
            }
            Ok(DataRow::new(data, columns))
        })
        .collect();
    let mut response = QueryResponse::new(Arc::new(fields), futures::stream::iter(rows));
    response.set_command_tag(tag);
    response
}
