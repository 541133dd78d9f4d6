//! Where to connect and as whom: a connection URL, completed as libpq does.
//!
//! Order of precedence: the URL, the password file of the project, `PG*` variables, `~/.pgpass`.
//! Invariant: no `Debug` or `Display` of anything here shows a password.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alluvium_change::{Error, Result, code};

use super::password;

const DEFAULT_PORT: u16 = 5432;
/// libpq waits for ever; a pipeline has to answer in seconds.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Where servers of the usual packages put their socket.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Whether and how a connection is encrypted, as in libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    /// The mode's name in a URL.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let modes = [
            Self::Disable,
            Self::Allow,
            Self::Prefer,
            Self::Require,
            Self::VerifyCa,
            Self::VerifyFull,
        ];
        modes
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| {
                Error::new(&code::PG_URL, format!("sslmode cannot be \"{text}\"")).with_hint(
                    "sslmode is one of: disable, allow, prefer, require, verify-ca, verify-full",
                )
            })
    }
}

/// The server's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name or an IP address.
    Tcp(String),
    /// The directory of a unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(name) => f.write_str(name),
            Self::Unix(directory) => write!(f, "{}", directory.display()),
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"********\"")
    }
}

/// Everything needed to open a connection, checked and complete.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    pub host: Host,
    pub port: u16,
    pub user: String,
    pub database: String,
    pub ssl_mode: SslMode,
    /// Trusted certificates; `system` means those of the machine.
    pub ssl_root_cert: Option<PathBuf>,
    pub ssl_cert: Option<PathBuf>,
    pub ssl_key: Option<PathBuf>,
    pub connect_timeout: Duration,
    pub application_name: String,
    /// Server options of the URL (`options=`); our own settings win over them.
    pub server_options: Option<String>,
    password: Option<Secret>,
    /// Why a password file was not used: told when the server asks for a password.
    pub(super) password_note: Option<String>,
}

/// `host:port/database`, without user and password.
impl fmt::Display for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host, self.port, self.database)
    }
}

impl ConnectOptions {
    /// Reads `postgres://user:password@host:port/database?key=value`, every part optional.
    ///
    /// # Errors
    /// `PG_URL` when the text cannot be understood, `CONFIG_READ` when a named password file
    /// cannot be read.
    pub fn parse(url: &str, password_file: Option<&Path>) -> Result<Self> {
        Self::parse_with(url, password_file, &|name| {
            std::env::var(name).ok().filter(|value| !value.is_empty())
        })
    }

    pub(super) fn parse_with(
        url: &str,
        password_file: Option<&Path>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let mut parts = Parts::parse(url)?;
        let home = env("HOME").map(PathBuf::from);
        let port = match parts.port.take().or_else(|| env("PGPORT")) {
            None => DEFAULT_PORT,
            Some(text) => text.parse().ok().filter(|&port| port != 0).ok_or_else(|| {
                Error::new(&code::PG_URL, format!("\"{text}\" is not a port number"))
            })?,
        };
        let host = host(parts.host.take().or_else(|| env("PGHOST")), port)?;
        let user = parts
            .user
            .take()
            .or_else(|| env("PGUSER"))
            .or_else(|| env("USER"))
            .or_else(|| env("LOGNAME"))
            .ok_or_else(|| {
                Error::new(&code::PG_URL, "the url names no user")
                    .with_hint("write postgres://user@host/database, or set PGUSER")
            })?;
        let database = parts
            .database
            .take()
            .or_else(|| env("PGDATABASE"))
            .unwrap_or_else(|| user.clone());
        let ssl_mode = match parts.ssl_mode.take().or_else(|| env("PGSSLMODE")) {
            None => SslMode::Prefer,
            Some(text) => SslMode::parse(&text)?,
        };
        let path_of = |given: Option<String>, variable: &str, in_home: &str| {
            let default = || {
                home.as_ref()
                    .map(|h| h.join(in_home))
                    .filter(|p| p.is_file())
            };
            given
                .or_else(|| env(variable))
                .map(PathBuf::from)
                .or_else(default)
        };
        let mut options = Self {
            host,
            port,
            user,
            database,
            ssl_mode,
            ssl_root_cert: path_of(parts.ssl_root_cert, "PGSSLROOTCERT", ".postgresql/root.crt"),
            ssl_cert: path_of(parts.ssl_cert, "PGSSLCERT", ".postgresql/postgresql.crt"),
            ssl_key: path_of(parts.ssl_key, "PGSSLKEY", ".postgresql/postgresql.key"),
            connect_timeout: timeout(parts.connect_timeout.or_else(|| env("PGCONNECT_TIMEOUT")))?,
            application_name: parts
                .application_name
                .unwrap_or_else(|| format!("alluvium {}", std::process::id())),
            server_options: parts.options,
            password: parts.password.map(Secret),
            password_note: None,
        };
        options.find_password(password_file, parts.pass_file, home.as_deref(), env)?;
        Ok(options)
    }

    /// The password, when one was given or found.
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        self.password.as_ref().map(|secret| secret.0.as_str())
    }

    fn find_password(
        &mut self,
        password_file: Option<&Path>,
        pass_file: Option<String>,
        home: Option<&Path>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<()> {
        if self.password.is_some() {
            return Ok(());
        }
        if let Some(path) = password_file {
            self.password = Some(Secret(password::read_password_file(path)?));
        } else if let Some(password) = env("PGPASSWORD") {
            self.password = Some(Secret(password));
        } else {
            let pass_file = pass_file
                .or_else(|| env("PGPASSFILE"))
                .map(PathBuf::from)
                .or_else(|| home.map(|home| home.join(".pgpass")));
            if let Some(path) = pass_file {
                let found = password::look_up(&path, self);
                self.password_note = found.note;
                self.password = found.password.map(Secret);
            }
        }
        Ok(())
    }
}

fn host(given: Option<String>, port: u16) -> Result<Host> {
    match given {
        Some(path) if path.starts_with('/') => Ok(Host::Unix(path.into())),
        Some(list) if list.contains(',') => Err(Error::new(
            &code::PG_URL,
            format!("\"{list}\" names several hosts"),
        )
        .with_hint("name one host: a slot lives on one server")),
        Some(name) => Ok(Host::Tcp(name)),
        None => {
            let socket = SOCKET_DIRECTORIES
                .into_iter()
                .map(PathBuf::from)
                .find(|directory| {
                    directory
                        .join(format!(".s.PGSQL.{port}"))
                        .try_exists()
                        .unwrap_or(false)
                });
            Ok(socket.map_or_else(|| Host::Tcp("localhost".to_owned()), Host::Unix))
        }
    }
}

fn timeout(text: Option<String>) -> Result<Duration> {
    let Some(text) = text else {
        return Ok(DEFAULT_CONNECT_TIMEOUT);
    };
    match text.parse::<u32>() {
        // libpq: zero means no limit.
        Ok(0) => Ok(Duration::from_secs(u64::from(u32::MAX))),
        Ok(secs) => Ok(Duration::from_secs(u64::from(secs))),
        Err(_) => {
            let message = format!("connect_timeout \"{text}\" is not a number of seconds");
            Err(Error::new(&code::PG_URL, message))
        }
    }
}

/// The parts of a URL, decoded, nothing filled in.
#[derive(Default)]
struct Parts {
    host: Option<String>,
    port: Option<String>,
    user: Option<String>,
    password: Option<String>,
    database: Option<String>,
    ssl_mode: Option<String>,
    ssl_root_cert: Option<String>,
    ssl_cert: Option<String>,
    ssl_key: Option<String>,
    connect_timeout: Option<String>,
    application_name: Option<String>,
    options: Option<String>,
    pass_file: Option<String>,
}

impl Parts {
    fn parse(url: &str) -> Result<Self> {
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or_else(|| Error::new(&code::PG_URL, "the url does not begin with postgres://"))?;
        if rest.contains('#') {
            return Err(Error::new(&code::PG_URL, "the url holds a \"#\"")
                .with_hint("write \"#\" in a user name or password as %23"));
        }
        let mut parts = Self::default();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (user_info, address) = match authority.rsplit_once('@') {
            Some((user_info, address)) => (user_info, address),
            None => ("", authority),
        };
        let (user, password) = match user_info.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (user_info, None),
        };
        let (host, port) = split_address(address)?;
        parts.user = non_empty(decode(user)?);
        parts.password = password.map(decode).transpose()?.and_then(non_empty);
        parts.host = non_empty(decode(host)?);
        parts.port = non_empty(decode(port)?);
        parts.database = non_empty(decode(database)?);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                Error::new(&code::PG_URL, "a parameter of the url has no value")
                    .with_hint("parameters are written ?key=value&key=value")
            })?;
            parts.set(&decode(key)?, decode(value)?)?;
        }
        Ok(parts)
    }

    fn set(&mut self, key: &str, value: String) -> Result<()> {
        let place = match key {
            "host" | "hostaddr" => &mut self.host,
            "port" => &mut self.port,
            "user" => &mut self.user,
            "password" => &mut self.password,
            "dbname" => &mut self.database,
            "sslmode" => &mut self.ssl_mode,
            "sslrootcert" => &mut self.ssl_root_cert,
            "sslcert" => &mut self.ssl_cert,
            "sslkey" => &mut self.ssl_key,
            "connect_timeout" => &mut self.connect_timeout,
            "application_name" => &mut self.application_name,
            "options" => &mut self.options,
            "passfile" => &mut self.pass_file,
            // Our own way is what these ask for, or better.
            "fallback_application_name"
            | "client_encoding"
            | "keepalives"
            | "keepalives_idle"
            | "keepalives_interval"
            | "keepalives_count"
            | "tcp_user_timeout"
            | "gssencmode" => {
                return Ok(());
            }
            "channel_binding" if value != "require" => return Ok(()),
            "sslnegotiation" if value == "postgres" => return Ok(()),
            "target_session_attrs" if value == "any" => return Ok(()),
            _ => {
                let message = format!("the url's parameter \"{key}\" is not supported");
                return Err(Error::new(&code::PG_URL, message).with_hint(
                    "supported: host, port, user, password, dbname, sslmode, sslrootcert, \
                     sslcert, sslkey, connect_timeout, application_name, options, passfile",
                ));
            }
        };
        *place = non_empty(value);
        Ok(())
    }
}

/// `host`, `host:port`, `[v6]:port`; the port may be missing.
fn split_address(address: &str) -> Result<(&str, &str)> {
    if let Some(rest) = address.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or_else(|| {
            Error::new(&code::PG_URL, "the url's IPv6 address has no closing \"]\"")
        })?;
        return match (after, after.strip_prefix(':')) {
            ("", _) => Ok((host, "")),
            (_, Some(port)) => Ok((host, port)),
            _ => Err(Error::new(
                &code::PG_URL,
                "the url has text after the IPv6 address",
            )),
        };
    }
    Ok(address.rsplit_once(':').unwrap_or((address, "")))
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Percent-decoding; the result has to be UTF-8 without zero bytes.
fn decode(text: &str) -> Result<String> {
    let invalid = |what: &str| Error::new(&code::PG_URL, format!("the url holds {what}"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
        let value = digit()
            .zip(digit())
            .and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        match value {
            Some(0) => return Err(invalid("a zero byte")),
            Some(value) => bytes.push(value),
            None => {
                return Err(invalid("a \"%\" without two hexadecimal digits")
                    .with_hint("write \"%\" itself as %25"));
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| invalid("bytes that are not UTF-8"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    fn parse(url: &str) -> Result<ConnectOptions> {
        ConnectOptions::parse_with(url, None, &|_| None)
    }

    #[test]
    fn a_full_url() {
        let o = parse("postgres://us%40er:p%3Ass%2F@db.example:6543/sh%20op?sslmode=verify-full&connect_timeout=3").unwrap();
        assert_eq!(o.host, Host::Tcp("db.example".into()));
        assert_eq!(
            (o.port, o.user.as_str(), o.database.as_str()),
            (6543, "us@er", "sh op")
        );
        assert_eq!(o.password(), Some("p:ss/"));
        assert_eq!(o.ssl_mode, SslMode::VerifyFull);
        assert_eq!(o.connect_timeout, Duration::from_secs(3));
        let shown = format!("{o:?} {o}");
        assert!(!shown.contains("p:ss"), "{shown}");
    }

    #[test]
    fn sockets_and_ipv6() {
        for url in [
            "postgresql://u@%2Fvar%2Frun/d",
            "postgresql://u@/d?host=/var/run",
            "postgres://u@ignored/d?host=%2Fvar%2Frun",
        ] {
            assert_eq!(
                parse(url).unwrap().host,
                Host::Unix("/var/run".into()),
                "{url}"
            );
        }
        let o = parse("postgres://u@[::1]:99/").unwrap();
        assert_eq!(
            (o.host, o.port, o.database),
            (Host::Tcp("::1".into()), 99, "u".to_owned())
        );
    }

    #[test]
    fn the_environment_fills_gaps() {
        let env = |name: &str| match name {
            "PGHOST" => Some("h".to_owned()),
            "PGPORT" => Some("1234".to_owned()),
            "PGUSER" => Some("envuser".to_owned()),
            "PGPASSWORD" => Some("secret".to_owned()),
            "PGSSLMODE" => Some("require".to_owned()),
            _ => None,
        };
        let o = ConnectOptions::parse_with("postgres://", None, &env).unwrap();
        assert_eq!(o.host, Host::Tcp("h".into()));
        assert_eq!(
            (o.port, o.user.as_str(), o.database.as_str()),
            (1234, "envuser", "envuser")
        );
        assert_eq!(
            (o.password(), o.ssl_mode),
            (Some("secret"), SslMode::Require)
        );
        let o = ConnectOptions::parse_with("postgres://a:b@c/d", None, &env).unwrap();
        assert_eq!((o.password(), o.user.as_str()), (Some("b"), "a"));
    }

    #[test]
    fn malformed_urls_are_refused_without_showing_the_password() {
        for url in [
            "mysql://u@h/d",
            "postgres://u:topsecret@h:port/d",
            "postgres://u:topsecret@h:70000/d",
            "postgres://u:topsecret@h:0/d",
            "postgres://u:topsecret%zz@h/d",
            "postgres://u:topsecret%00@h/d",
            "postgres://u:topsecret#x@h/d",
            "postgres://u:topsecret@h1,h2/d",
            "postgres://u:topsecret@[::1/d",
            "postgres://u:topsecret@h/d?sslmode=maybe",
            "postgres://u:topsecret@h/d?nonsense=1",
            "postgres://u:topsecret@h/d?sslmode",
            "postgres://u:topsecret@h/d?connect_timeout=soon",
            "postgres://",
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.is(&code::PG_URL), "{url}: {error:?}");
            assert!(!format!("{error:?}").contains("topsecret"), "{error:?}");
        }
    }
}
