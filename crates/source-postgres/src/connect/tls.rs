//! What each `sslmode` trusts, as in libpq, on rustls with the ring provider.
//!
//! - `allow`, `prefer`, `require`: encrypted, any certificate (`require` with a root certificate
//!   behaves as `verify-ca`, as in libpq)
//! - `verify-ca`: signed by a trusted certificate
//! - `verify-full`: and made out to the host's name; without a root certificate the machine's own
//!   are trusted
//!
//! A server certificate that is itself in the root file is trusted as it is: self-signed
//! certificates are what most private servers have.

use std::path::Path;
use std::sync::Arc;

use alluvium_change::{Error, Result, code};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::options::{ConnectOptions, Host, SslMode};

/// The client configuration for `options.ssl_mode`.
pub(super) fn client_config(options: &ConnectOptions) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trust = Trust::of(options)?;
    let verifier = Verifier::new(trust, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| tls_error("the TLS library refused its own settings", error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let (Some(cert), Some(key)) = (&options.ssl_cert, &options.ssl_key) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = read_certificates(cert)?;
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| tls_error(&format!("cannot read key \"{}\"", key.display()), error))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| tls_error("the client certificate and its key cannot be used", error))
}

/// The name the certificate is checked against and the server told of.
pub(super) fn server_name(options: &ConnectOptions) -> Result<ServerName<'static>> {
    let Host::Tcp(host) = &options.host else {
        return Err(Error::bug("TLS was asked for on a unix socket"));
    };
    ServerName::try_from(host.clone()).map_err(|error| {
        tls_error(
            &format!("\"{host}\" cannot be the name of a certificate"),
            error,
        )
    })
}

pub(super) fn tls_error(
    message: &str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::new(&code::PG_TLS, message)
        .with_detail(error.to_string())
        .with_source(error)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let cannot = || format!("cannot read certificates \"{}\"", path.display());
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| tls_error(&cannot(), error))?;
    if certificates.is_empty() {
        return Err(Error::new(&code::PG_TLS, cannot()).with_detail("the file holds none"));
    }
    Ok(certificates)
}

/// What a server certificate has to show.
#[derive(Debug)]
enum Trust {
    Anything,
    Roots {
        roots: Vec<CertificateDer<'static>>,
        check_name: bool,
    },
}

impl Trust {
    fn of(options: &ConnectOptions) -> Result<Self> {
        let is_system = |path: &Path| path.as_os_str() == "system";
        let check_name = options.ssl_mode == SslMode::VerifyFull;
        match (options.ssl_mode, options.ssl_root_cert.as_deref()) {
            (SslMode::Disable | SslMode::Allow | SslMode::Prefer, _) | (SslMode::Require, None) => {
                Ok(Self::Anything)
            }
            (SslMode::VerifyFull, path) if path.is_none_or(is_system) => {
                let found = rustls_native_certs::load_native_certs();
                if found.certs.is_empty() {
                    return Err(Error::new(
                        &code::PG_TLS,
                        "the machine has no trusted certificates",
                    )
                    .with_hint("give the server's root certificate with sslrootcert="));
                }
                Ok(Self::Roots {
                    roots: found.certs,
                    check_name,
                })
            }
            // Anybody can get a certificate signed by a public authority for some name.
            (_, path) if path.is_none_or(is_system) => Err(Error::new(
                &code::PG_TLS,
                format!(
                    "sslmode {} needs a root certificate",
                    options.ssl_mode.name()
                ),
            )
            .with_hint("give it with sslrootcert=, or use sslmode=verify-full")),
            (_, Some(path)) => Ok(Self::Roots {
                roots: read_certificates(path)?,
                check_name,
            }),
            (_, None) => Err(Error::bug(
                "sslmode without a root certificate passed the checks",
            )),
        }
    }
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(trust: Trust, provider: &Arc<CryptoProvider>) -> Result<Self> {
        let mut chain = None;
        if let Trust::Roots { roots, .. } = &trust {
            let mut store = RootCertStore::empty();
            let (added, _ignored) = store.add_parsable_certificates(roots.iter().cloned());
            if added == 0 {
                return Err(Error::new(&code::PG_TLS, "no root certificate can be used"));
            }
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
                    .build()
                    .map_err(|error| tls_error("the root certificates cannot be used", error))?;
            chain = Some(verifier);
        }
        Ok(Self {
            trust,
            chain,
            provider: Arc::clone(provider),
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (Trust::Roots { roots, check_name }, Some(chain)) = (&self.trust, &self.chain) else {
            return Ok(ServerCertVerified::assertion());
        };
        if roots
            .iter()
            .any(|root| root.as_ref() == end_entity.as_ref())
        {
            if *check_name {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                rustls::client::verify_server_name(&parsed, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        let verified =
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is looked at last: all else was in order.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !check_name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
