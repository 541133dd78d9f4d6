//! The extended protocol: statements with parameters, prepared once, their rows as text or binary.

use std::fmt::Debug;
use std::sync::Arc;

use alluvium_query::Command;
use arrow::datatypes::DataType;
use async_trait::async_trait;
use futures::{Sink, SinkExt as _};
use pgwire::api::portal::{Format, Portal, PortalExecutionState};
use pgwire::api::query::{
    ExtendedQueryHandler, send_execution_response, send_partial_query_response,
};
use pgwire::api::results::{
    DescribePortalResponse, DescribeStatementResponse, FieldFormat, FieldInfo, Response, Tag,
};
use pgwire::api::stmt::{QueryParser, StoredStatement};
use pgwire::api::store::{Entry, PortalStore};
use pgwire::api::{ClientInfo, ClientPortalStore, DEFAULT_NAME, PgWireConnectionState, Type};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::extendedquery::Execute;
use pgwire::messages::response::EmptyQueryResponse;

use super::connection::Connection;
use super::rows::{Asked, fields};
use super::simple::Talk;
use super::statement::{Answer, shown_fields};
use super::{copy, error, parameters};

/// A statement that was prepared.
#[derive(Clone)]
pub(super) struct Prepared {
    text: Arc<str>,
    command: Command,
    /// Of its parameters, as far as it says.
    wanted: Vec<Option<DataType>>,
    parameters: Vec<Type>,
    fields: Vec<FieldInfo>,
}

/// Prepares statements.
pub(super) struct Parser(Arc<Connection>);

#[async_trait]
impl QueryParser for Parser {
    type Statement = Prepared;

    async fn parse_sql<C>(
        &self,
        _: &C,
        sql: &str,
        types: &[Option<Type>],
    ) -> PgWireResult<Option<Prepared>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        let mut commands = self.0.parse(sql)?;
        let Some(command) = commands.pop() else {
            return Ok(None);
        };
        if !commands.is_empty() {
            return Err(error::said(
                "42601",
                "cannot insert multiple commands into a prepared statement",
            ));
        }
        let text: Arc<str> = sql.into();
        let (wanted, fields) = match &command {
            Command::Query => {
                let described = self.0.describe(&text).await?;
                (described.parameters, fields(&described.schema, &[]))
            }
            Command::Declare { .. } | Command::Copy { .. } => {
                (self.0.describe(&text).await?.parameters, Vec::new())
            }
            Command::Show(name) => (Vec::new(), shown_fields(name)),
            Command::Fetch { cursor, .. } => {
                (Vec::new(), fields(&self.0.cursor(cursor)?.schema, &[]))
            }
            _ => (Vec::new(), Vec::new()),
        };
        let given = |nth: usize| {
            types
                .get(nth)
                .cloned()
                .flatten()
                .filter(|given| *given != Type::UNKNOWN)
        };
        let parameters = (0..wanted.len().max(types.len()))
            .map(|nth| {
                given(nth).unwrap_or_else(|| {
                    parameters::type_of(wanted.get(nth).and_then(Option::as_ref))
                })
            })
            .collect();
        Ok(Some(Prepared {
            text,
            command,
            wanted,
            parameters,
            fields,
        }))
    }

    fn get_parameter_types(&self, statement: &Prepared) -> PgWireResult<Vec<Type>> {
        Ok(statement.parameters.clone())
    }

    fn get_result_schema(
        &self,
        statement: &Prepared,
        _: Option<&Format>,
    ) -> PgWireResult<Vec<FieldInfo>> {
        Ok(statement.fields.clone())
    }
}

/// By column; one for all; none for text.
fn formats(format: &Format) -> Vec<FieldFormat> {
    match format {
        Format::UnifiedText => Vec::new(),
        Format::UnifiedBinary => vec![FieldFormat::Binary],
        Format::Individual(codes) => codes.iter().map(|code| FieldFormat::from(*code)).collect(),
    }
}

fn in_formats(fields: &[FieldInfo], format: &Format) -> Vec<FieldInfo> {
    let formats = formats(format);
    let fields = fields.iter().enumerate();
    fields
        .map(|(nth, field)| {
            let format = match formats.as_slice() {
                [] => FieldFormat::Text,
                [all] => *all,
                each => each.get(nth).copied().unwrap_or(FieldFormat::Text),
            };
            FieldInfo::new(
                field.name().to_owned(),
                None,
                None,
                field.datatype().clone(),
                format,
            )
            .with_type_size(field.type_size())
            .with_type_modifier(field.type_modifier())
        })
        .collect()
}

#[async_trait]
impl ExtendedQueryHandler for Talk {
    type Statement = Prepared;
    type QueryParser = Parser;

    fn query_parser(&self) -> Arc<Parser> {
        Arc::new(Parser(Arc::clone(&self.0)))
    }

    async fn on_execute<C>(&self, client: &mut C, message: Execute) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Prepared>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        client.set_state(PgWireConnectionState::QueryInProgress);
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        let portal = match client.portal_store().get_portal(name) {
            Some(Entry::Value(portal)) => portal,
            Some(Entry::Empty) => {
                client
                    .feed(PgWireBackendMessage::EmptyQueryResponse(
                        EmptyQueryResponse::new(),
                    ))
                    .await?;
                client.set_state(PgWireConnectionState::ReadyForQuery);
                return Ok(());
            }
            None => return Err(PgWireError::PortalNotFound(name.to_owned())),
        };
        let most = usize::try_from(message.max_rows).unwrap_or(0);
        let state = portal.state();
        let mut state = state.lock().await;
        if matches!(*state, PortalExecutionState::Initial) {
            let mut transaction = client.transaction_status();
            let prepared = &portal.statement.statement;
            let asked = Asked {
                text: Arc::clone(&prepared.text),
                nth: 0,
                values: parameters::values(&portal, &prepared.parameters, &prepared.wanted)?,
                formats: formats(&portal.result_column_format),
            };
            let answer = self
                .0
                .perform(asked, prepared.command.clone(), &mut transaction)
                .await?;
            client.set_transaction_status(transaction);
            match answer {
                Answer::Rows(rows) => *state = PortalExecutionState::Suspended(rows),
                Answer::Copy(copied) => {
                    *state = PortalExecutionState::Finished;
                    copy::send(client, copied).await?;
                    client.set_state(PgWireConnectionState::ReadyForQuery);
                    return Ok(());
                }
                Answer::Done(tag) => {
                    *state = PortalExecutionState::Finished;
                    send_execution_response(client, Tag::new(tag)).await?;
                    client.set_state(PgWireConnectionState::ReadyForQuery);
                    return Ok(());
                }
            }
        }
        // Row by row: pgwire's own way would collect all that one message asks for.
        match &mut *state {
            PortalExecutionState::Suspended(rows) => {
                if !send_partial_query_response(client, rows, most).await? {
                    *state = PortalExecutionState::Finished;
                }
            }
            _ => send_execution_response(client, Tag::new("SELECT").with_rows(0)).await?,
        }
        client.set_state(PgWireConnectionState::ReadyForQuery);
        Ok(())
    }

    async fn do_describe_statement<C>(
        &self,
        _: &mut C,
        target: &StoredStatement<Prepared>,
    ) -> PgWireResult<DescribeStatementResponse>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Prepared>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let prepared = &target.statement;
        Ok(DescribeStatementResponse::new(
            prepared.parameters.clone(),
            prepared.fields.clone(),
        ))
    }

    async fn do_describe_portal<C>(
        &self,
        _: &mut C,
        target: &Portal<Prepared>,
    ) -> PgWireResult<DescribePortalResponse>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Prepared>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let fields = &target.statement.statement.fields;
        Ok(DescribePortalResponse::new(in_formats(
            fields,
            &target.result_column_format,
        )))
    }

    async fn do_query<C>(&self, _: &mut C, _: &Portal<Prepared>, _: usize) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Prepared>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        Err(error::said(
            "XX000",
            "a query came another way than it is answered",
        ))
    }
}
