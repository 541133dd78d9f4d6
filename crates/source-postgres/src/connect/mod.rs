//! Connections to the server: options, encryption, session settings, the meaning of its errors.
//!
//! Every session of the crate starts here, so none can miss the settings that decoding relies on.

mod error;
mod options;
mod password;
mod session;
mod tls;
mod transport;

pub use error::{ServerError, map_error, server_error};
pub use options::{ConnectOptions, Host, SslMode};

pub(crate) use error::map_io;
pub(crate) use session::{NEWER_TIMEOUTS_SQL, SETTINGS};
pub(crate) use transport::Transport;

use alluvium_change::{Error, Result, code};
use tokio_postgres::{Client, NoTls};

/// Opens an ordinary session with every setting that decoding relies on.
///
/// The connection's own task ends when the client is dropped.
///
/// # Errors
/// `PG_CONNECT`, `PG_AUTH`, `PG_DATABASE`, `PG_TLS`, `PG_RIGHTS`, `PG_SLOTS_FULL`: see the code's
/// page; the server's own words are in the message and detail.
pub async fn connect(options: &ConnectOptions) -> Result<Client> {
    let client = transport::open(options, |transport| start(options, transport)).await?;
    client
        .batch_execute(&session::settings_sql())
        .await
        .map_err(|error| map_error(error, "setting up the session"))?;
    Ok(client)
}

/// Opens the stream of a replication session and hands it to `start`.
pub(crate) async fn open<T, F>(
    options: &ConnectOptions,
    start: impl Fn(Transport) -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    transport::open(options, start).await
}

async fn start(options: &ConnectOptions, transport: Transport) -> Result<Client> {
    let mut config = tokio_postgres::Config::new();
    config
        .user(&options.user)
        .dbname(&options.database)
        .application_name(&options.application_name)
        // The transport is encrypted already where it should be.
        .ssl_mode(tokio_postgres::config::SslMode::Disable);
    if let Some(password) = options.password() {
        config.password(password);
    }
    if let Some(server_options) = &options.server_options {
        config.options(server_options);
    }
    let (client, connection) = config
        .connect_raw(transport, NoTls)
        .await
        .map_err(|error| start_error(map_error(error, &doing(options)), options))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            // Whoever uses the client gets the error too.
            tracing::debug!(error = %error, "a session ended");
        }
    });
    Ok(client)
}

/// What was tried, for messages.
pub(crate) fn doing(options: &ConnectOptions) -> String {
    format!("connecting to \"{options}\" as \"{}\"", options.user)
}

/// Adds what only the client knows: that it had no password, and why.
pub(crate) fn start_error(error: Error, options: &ConnectOptions) -> Error {
    if !error.is(&code::PG_AUTH) || options.password().is_some() {
        return error;
    }
    let note = options.password_note.clone();
    error.with_detail(note.unwrap_or_else(|| "no password was given or found".to_owned()))
}
