//! A query's rows on their way to the client: computed and encoded on the threads of queries.
//!
//! Invariant: so many pieces wait for a client and no more; a query ends when nobody takes its rows.

use std::sync::Arc;

use alluvium_change::{Error, Result};
use alluvium_query::pg::{Format, RowFormat, Zone, kind_of};
use alluvium_query::{Command, Described, Session, Statement};
use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef};
use futures::{Stream, StreamExt as _, stream};
use pgwire::api::results::{FieldFormat, FieldInfo, QueryResponse};
use pgwire::error::PgWireResult;
use pgwire::messages::data::DataRow;
use tokio::sync::{Mutex, mpsc};

use super::connection::Connection;
use super::error;
use crate::query::{Limits, Running};

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
#[derive(Clone)]
pub(super) struct Cursor {
    pub(super) schema: SchemaRef,
    rows: Arc<Mutex<Waiting>>,
}

/// What a cursor has not given yet.
struct Waiting {
    begun: Option<RecordBatch>,
    batches: mpsc::Receiver<Result<RecordBatch>>,
}

impl Waiting {
    /// At least one row, unless there is none any more.
    async fn take(&mut self, most: usize) -> Option<Result<RecordBatch>> {
        let batch = match self.begun.take() {
            Some(batch) => batch,
            None => match self.batches.recv().await? {
                Ok(batch) => batch,
                Err(error) => return Some(Err(error)),
            },
        };
        let taken = batch.num_rows().min(most);
        let left = batch.num_rows() - taken;
        self.begun = (left > 0).then(|| batch.slice(taken, left));
        Some(Ok(batch.slice(0, taken)))
    }
}

impl Cursor {
    /// The next rows, so many at most.
    pub(super) fn fetch(
        &self,
        most: usize,
        formats: &[FieldFormat],
        zone: Option<Zone>,
    ) -> QueryResponse {
        let encode = encoder(&self.schema, formats, zone);
        let begin = (Arc::clone(&self.rows), most, encode);
        let pieces = stream::unfold(begin, |(rows, most, mut encode)| async move {
            if most == 0 {
                return None;
            }
            let taken = rows.lock().await.take(most).await?;
            let left = most - taken.as_ref().map_or(most, RecordBatch::num_rows);
            let piece = taken.and_then(|batch| encode(&batch));
            Some((piece, (rows, left, encode)))
        });
        let fields = Arc::new(fields(&self.schema, formats));
        QueryResponse::new(fields, row_by_row(pieces))
    }
}

/// Makes rows of batches.
fn encoder(
    schema: &SchemaRef,
    formats: &[FieldFormat],
    zone: Option<Zone>,
) -> impl FnMut(&RecordBatch) -> Result<Vec<DataRow>> + Send + use<> {
    let form = |nth| match format_of(formats, nth) {
        FieldFormat::Text => Format::Text,
        FieldFormat::Binary => Format::Binary,
    };
    let format = RowFormat::new(schema, form, zone);
    let columns = i16::try_from(schema.fields().len()).unwrap_or(i16::MAX);
    move |batch| {
        let mut rows = Vec::with_capacity(batch.num_rows());
        format.rows(batch, |row| rows.push(DataRow::new(row, columns)))?;
        Ok(rows)
    }
}

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
    /// Starts a query, whose rows are encoded as they come. Answers when its columns are known.
    pub(super) async fn start(self: &Arc<Self>, asked: Asked) -> PgWireResult<QueryResponse> {
        let zone = self.settings().zone;
        let formats = asked.formats.clone();
        let encoder = move |schema: &SchemaRef| encoder(schema, &formats, zone);
        let formats = asked.formats.clone();
        let running = self.run(asked, encoder).await?;
        let fields = fields(&running.schema, &formats);
        let pieces = stream::unfold(running.pieces, |mut pieces| async move {
            pieces.recv().await.map(|piece| (piece, pieces))
        });
        Ok(QueryResponse::new(Arc::new(fields), row_by_row(pieces)))
    }

    /// Starts a query whose rows are encoded when they are asked for.
    pub(super) async fn declare(self: &Arc<Self>, asked: Asked) -> PgWireResult<Cursor> {
        let encoder = |_: &SchemaRef| |batch: &RecordBatch| Ok(batch.clone());
        let running = self.run(asked, encoder).await?;
        let rows = Waiting {
            begun: None,
            batches: running.pieces,
        };
        Ok(Cursor {
            schema: running.schema,
            rows: Arc::new(Mutex::new(rows)),
        })
    }

    async fn run<P, E>(
        self: &Arc<Self>,
        asked: Asked,
        encoder: impl FnOnce(&SchemaRef) -> E + Send + 'static,
    ) -> PgWireResult<Running<P>>
    where
        P: Send + 'static,
        E: FnMut(&RecordBatch) -> Result<P> + Send + 'static,
    {
        let limits = Limits {
            timeout: self.settings().timeout,
            // Until the time is over: there are only so many connections.
            patience: None,
            cancelled: Some(self.identity.cancel.arm()),
        };
        let connection = Arc::clone(self);
        let opened = async move {
            let (session, statement) = connection.open(&asked).await?;
            session.run_with(&statement, &asked.values).await
        };
        let running = self.shared.queries.run(opened, encoder, limits).await;
        running.map_err(|error| error::of(&error))
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

fn row_by_row(
    pieces: impl Stream<Item = Result<Vec<DataRow>>> + Send,
) -> impl Stream<Item = PgWireResult<DataRow>> + Send {
    pieces.flat_map(|piece| {
        stream::iter(match piece {
            Ok(rows) => rows.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error::of(&error))],
        })
    })
}
