//! Who may come in, and what they are told of the server.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use alluvium_change::{Error, Result, code};
use async_trait::async_trait;
use futures::Sink;
use pgwire::api::auth::sasl::SASLAuthStartupHandler;
use pgwire::api::auth::sasl::scram::{SCRAM_ITERATIONS, ScramAuth, gen_salted_password};
use pgwire::api::auth::{
    AuthSource, LoginInfo, Password, ServerParameterProvider, StartupHandler,
    finish_authentication, protocol_negotiation, save_startup_parameters_to_metadata,
};
use pgwire::api::{ClientInfo, METADATA_DATABASE, PidSecretKeyGenerator};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::startup::SecretKey;
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use pgwire::tokio::TlsAcceptor;
use pgwire::tokio::tokio_rustls::rustls;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::connection::{Connection, Identity};
use super::error;

const SALT_BYTES: usize = 16;

/// Names and what their passwords are proven with (SCRAM, RFC 5802); passwords are not kept.
#[derive(Clone)]
pub(super) struct Users(Arc<HashMap<String, Password>>);

impl Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Users").field(&self.0.keys()).finish()
    }
}

impl Users {
    /// None when nobody is named: then everybody is let in.
    pub(super) fn of(passwords: &BTreeMap<String, String>) -> Option<Self> {
        let salted = passwords
            .iter()
            .map(|(name, password)| (name.clone(), salted(password)));
        let users: HashMap<String, Password> = salted.collect();
        (!users.is_empty()).then(|| Self(Arc::new(users)))
    }
}

fn salted(password: &str) -> Password {
    let salt: [u8; SALT_BYTES] = random();
    let salted = gen_salted_password(password, &salt, SCRAM_ITERATIONS);
    Password::new(Some(salt.to_vec()), salted)
}

/// From the system's generator.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let provider = rustls::crypto::ring::default_provider();
    if provider.secure_random.fill(&mut bytes).is_err() {
        // Without randomness nobody may guess right either.
        tracing::error!("the system gives no random numbers");
    }
    bytes
}

#[async_trait]
impl AuthSource for Users {
    async fn get_password(&self, login: &LoginInfo) -> PgWireResult<Password> {
        let known = login.user().and_then(|user| self.0.get(user));
        // Who is not known is asked as everybody is, and is never right.
        Ok(known.cloned().unwrap_or_else(|| {
            let secret: [u8; 32] = random();
            Password::new(Some(secret[..SALT_BYTES].to_vec()), secret.to_vec())
        }))
    }
}

/// TLS with this certificate and key.
pub(super) fn acceptor((cert, key): &(PathBuf, PathBuf)) -> Result<TlsAcceptor> {
    let failed = |what: &str, path: &PathBuf, error: &dyn std::fmt::Display| {
        Error::new(&code::CONFIG_VALUE, format!("[serve.pg] {what} = \"{}\" cannot be used", path.display()))
            .with_detail(error.to_string())
            .with_hint("it has to be a PEM file: the certificate first, then those that vouch for it; the key beside it")
    };
    let certs = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
        .map_err(|error| failed("tls_cert", cert, &error))?;
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| failed("tls_key", key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(certs, private)
        })
        .map_err(|error| failed("tls_cert", cert, &error))?;
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What a client is told; the names are PostgreSQL's.
pub(super) struct Told;

/// The version whose catalogs and functions are nearest.
pub(super) const SERVER_VERSION: &str = concat!("17.0 (alluvium ", env!("CARGO_PKG_VERSION"), ")");

impl ServerParameterProvider for Told {
    fn server_parameters<C: ClientInfo>(&self, client: &C) -> Option<HashMap<String, String>> {
        let of_client = |name: &str| client.metadata().get(name).cloned().unwrap_or_default();
        let told = [
            ("server_version", SERVER_VERSION.to_owned()),
            ("server_encoding", "UTF8".to_owned()),
            ("client_encoding", "UTF8".to_owned()),
            ("application_name", of_client("application_name")),
            ("session_authorization", of_client("user")),
            ("is_superuser", "off".to_owned()),
            ("in_hot_standby", "on".to_owned()),
            ("default_transaction_read_only", "on".to_owned()),
            ("DateStyle", "ISO, MDY".to_owned()),
            ("IntervalStyle", "postgres".to_owned()),
            ("TimeZone", super::connection::zone_name(client.metadata())),
            ("integer_datetimes", "on".to_owned()),
            ("standard_conforming_strings", "on".to_owned()),
        ];
        Some(told.map(|(name, value)| (name.to_owned(), value)).into())
    }
}

impl PidSecretKeyGenerator for Identity {
    fn generate(&self, _: &dyn ClientInfo) -> (i32, SecretKey) {
        self.register(SecretKey::I32(i32::from_be_bytes(random())))
    }
}

/// Asks who comes for their password.
pub(super) type Sasl = SASLAuthStartupHandler<Told>;

pub(super) fn sasl(users: &Users, identity: &Arc<Identity>) -> Sasl {
    let identity: Arc<dyn PidSecretKeyGenerator> = Arc::clone(identity) as _;
    SASLAuthStartupHandler::new(Arc::new(Told))
        .with_scram(ScramAuth::new(Arc::new(users.clone())))
        .with_pid_secret_key_generator(identity)
}

#[async_trait]
impl StartupHandler for Connection {
    async fn on_startup<C>(
        &self,
        client: &mut C,
        message: PgWireFrontendMessage,
    ) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if let PgWireFrontendMessage::Startup(startup) = &message {
            if !self.has_place() {
                return Err(error::fatal("53300", "sorry, too many clients already"));
            }
            if startup.parameters.contains_key("replication") {
                return Err(error::fatal(
                    "0A000",
                    "this server has no replication: it is a lake, not a database",
                ));
            }
        }
        if let Some(sasl) = &self.sasl {
            sasl.on_startup(client, message).await?;
        } else if let PgWireFrontendMessage::Startup(startup) = &message {
            protocol_negotiation(client, startup).await?;
            save_startup_parameters_to_metadata(client, startup);
            let (pid, secret) = self.identity.generate(client);
            client.set_pid_and_secret_key(pid, secret);
            finish_authentication(client, &Told).await?;
        }
        self.adopt_parameters(client.metadata());
        tracing::trace!(
            database = client.metadata().get(METADATA_DATABASE),
            "a PostgreSQL client"
        );
        Ok(())
    }
}
