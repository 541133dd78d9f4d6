//! A query's rows on their way to the client: computed and encoded on the threads of queries.
//!
//! Invariant: so many pieces wait for a client and no more; a query ends when nobody takes its rows.

use std::sync::Arc;

use alluvium_change::{Error, Result, code};
use alluvium_query::pg::{Format, RowFormat, kind_of};
use alluvium_query::{Command, Described, Session, Statement};
use arrow::array::ArrayRef;
use arrow::datatypes::Schema;
use futures::{Stream, StreamExt as _, stream};
use pgwire::api::results::{FieldFormat, FieldInfo, QueryResponse};
use pgwire::error::PgWireResult;
use pgwire::messages::data::DataRow;
use tokio::sync::mpsc;

use super::connection::Connection;
use super::error;

/// Batches of rows that may wait for the client.
const PIECES: usize = 1;

/// A statement to run.
pub(super) struct Asked {
    /// All of the text that it came in.
    pub(super) text: Arc<str>,
    /// Which of the text's statements.
    pub(super) nth: usize,
    pub(super) values: Vec<ArrayRef>,
    /// By column; one for all; none for text.
    pub(super) formats: Vec<FieldFormat>,
}

/// Rows of a query that goes on as they are taken.
pub(super) struct Cursor {
    pub(super) fields: Arc<Vec<FieldInfo>>,
    pub(super) rows:
        Arc<tokio::sync::Mutex<futures::stream::BoxStream<'static, PgWireResult<DataRow>>>>,
}

type Piece = Result<Vec<DataRow>>;

/// The format of the column of a number.
fn format_of(formats: &[FieldFormat], nth: usize) -> FieldFormat {
    match formats {
        [] => FieldFormat::Text,
        [all] => *all,
        each => each.get(nth).copied().unwrap_or(FieldFormat::Text),
    }
}

/// What a client is told of the columns.
pub(super) fn fields(schema: &Schema, formats: &[FieldFormat]) -> Vec<FieldInfo> {
    let fields = schema.fields().iter().enumerate();
    fields
        .map(|(nth, field)| {
            let kind = kind_of(field);
            FieldInfo::new(
                field.name().clone(),
                None,
                None,
                kind.pg,
                format_of(formats, nth),
            )
            .with_type_size(kind.size)
            .with_type_modifier(kind.modifier)
        })
        .collect()
}

impl Connection {
    /// Starts a query. Answers when its columns are known.
    pub(super) async fn start(self: &Arc<Self>, asked: Asked) -> PgWireResult<QueryResponse> {
        let (told, telling) = tokio::sync::oneshot::channel();
        let (sender, receiver) = mpsc::channel::<Piece>(PIECES);
        let cancelled = self.identity.cancel.arm();
        let (zone, timeout) = {
            let settings = self.settings();
            (settings.zone, settings.timeout)
        };
        let connection = Arc::clone(self);
        let queries = self.shared.queries.clone();
        queries.runtime().spawn(async move {
            let mut told = Some(told);
            let work = async {
                let _turn = connection.shared.queries.turn().await?;
                let (session, statement) = connection.open(&asked).await?;
                let mut result = session.run_with(&statement, &asked.values).await?;
                let formats = &asked.formats;
                let format = RowFormat::new(&result.schema, |nth| match format_of(formats, nth) {
                    FieldFormat::Text => Format::Text,
                    FieldFormat::Binary => Format::Binary,
                }, zone);
                if let Some(told) = told.take() {
                    let _ = told.send(Ok(fields(&result.schema, formats)));
                }
                let columns = i16::try_from(result.schema.fields().len()).unwrap_or(i16::MAX);
                while let Some(batch) = result.batches.next().await {
                    let batch = batch?;
                    let mut rows = Vec::with_capacity(batch.num_rows());
                    format.rows(&batch, |row| rows.push(DataRow::new(row, columns)))?;
                    if sender.send(Ok(rows)).await.is_err() {
                        break;
                    }
                }
                Ok(())
            };
            let ended = |why: &str, hint: &str| Err(Error::new(&code::SQL_ENDED, why).with_hint(hint));
            let late = async {
                match timeout {
                    Some(timeout) => tokio::time::sleep(timeout).await,
                    None => std::future::pending().await,
                }
            };
            let outcome = tokio::select! {
                outcome = work => outcome,
                Ok(()) = cancelled => ended("canceling statement due to user request", "run it again"),
                () = late => ended("canceling statement due to statement timeout", "SET statement_timeout = 0, or to more"),
                // Nobody takes the rows any more.
                () = sender.closed() => Ok(()),
            };
            if let Err(error) = outcome {
                match told {
                    Some(told) => drop(told.send(Err(error))),
                    None => drop(sender.send(Err(error)).await),
                }
            }
        });
        let fields = telling
            .await
            .unwrap_or_else(|_| Err(Error::bug("a query ended without an answer")))
            .map_err(|error| error::of(&error))?;
        Ok(QueryResponse::new(Arc::new(fields), taken(receiver)))
    }

    /// A session in which the statement sees the lake as it is now.
    pub(super) async fn open(&self, asked: &Asked) -> Result<(Session, Statement)> {
        let queries = &self.shared.queries;
        let session = queries.open()?;
        let mut statements = session.statements(&asked.text)?;
        if asked.nth >= statements.len() {
            return Err(Error::bug("a statement is not there any more"));
        }
        let statement = statements.swap_remove(asked.nth);
        let statement = match statement.command()? {
            Command::Declare { query, .. } | Command::Copy { query, .. } => query,
            _ => statement,
        };
        let views = queries
            .views()
            .of(session.silver_tables(&[&statement]))
            .await;
        self.note_position(views.values().map(|view| view.position).max());
        session.show(views)?;
        Ok((session, statement))
    }

    /// What a prepared statement needs and answers.
    pub(super) async fn describe(&self, text: &Arc<str>) -> PgWireResult<Described> {
        let asked = Asked {
            text: Arc::clone(text),
            nth: 0,
            values: Vec::new(),
            formats: Vec::new(),
        };
        let described = async {
            let (session, statement) = self.open(&asked).await?;
            session.describe(&statement).await
        };
        described.await.map_err(|error| error::of(&error))
    }

    /// What the statements of a text ask for.
    pub(super) fn parse(&self, text: &str) -> PgWireResult<Vec<Command>> {
        let statements = Statement::all_of(text).map_err(|error| error::of(&error))?;
        let commands = statements
            .iter()
            .map(Statement::command)
            .collect::<Result<_>>();
        commands.map_err(|error| error::of(&error))
    }
}

fn taken(receiver: mpsc::Receiver<Piece>) -> impl Stream<Item = PgWireResult<DataRow>> + Send {
    let pieces = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    pieces.flat_map(|piece| {
        stream::iter(match piece {
            Ok(rows) => rows.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error::of(&error))],
        })
    })
}
