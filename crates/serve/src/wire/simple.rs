//! The simple protocol: texts of statements, their rows as text.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use futures::{Sink, SinkExt as _};
use pgwire::api::query::{
    SimpleQueryHandler, send_execution_response, send_query_response, send_ready_for_query,
};
use pgwire::api::results::{Response, Tag};
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore, PgWireConnectionState};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::response::EmptyQueryResponse;
use pgwire::messages::simplequery::Query;

use super::connection::Connection;
use super::rows::Asked;
use super::statement::Answer;
use super::{copy, error};

#[async_trait]
impl SimpleQueryHandler for Talk {
    async fn on_query<C>(&self, client: &mut C, query: Query) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        client.set_state(PgWireConnectionState::QueryInProgress);
        let commands = self.0.parse(&query.query)?;
        if commands.is_empty() {
            client
                .feed(PgWireBackendMessage::EmptyQueryResponse(
                    EmptyQueryResponse::new(),
                ))
                .await?;
        }
        let text: Arc<str> = query.query.into();
        for (nth, command) in commands.into_iter().enumerate() {
            let asked = Asked {
                text: Arc::clone(&text),
                nth,
                values: Vec::new(),
                formats: Vec::new(),
            };
            let mut transaction = client.transaction_status();
            let answer = self.0.perform(asked, command, &mut transaction).await?;
            client.set_transaction_status(transaction);
            match answer {
                Answer::Copy(copied) => copy::send(client, copied).await?,
                Answer::Rows(rows) => send_query_response(client, rows, true).await?,
                Answer::Done(tag) => send_execution_response(client, Tag::new(tag)).await?,
            }
        }
        client.set_state(PgWireConnectionState::ReadyForQuery);
        let transaction = client.transaction_status();
        send_ready_for_query(client, transaction).await
    }

    async fn do_query<C>(&self, _: &mut C, _: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        Err(error::said(
            "XX000",
            "a query came another way than it is answered",
        ))
    }
}

/// The connection, as pgwire calls it.
pub(super) struct Talk(pub(super) Arc<Connection>);
