//! One client: its settings, its cursors, and how a query of it is ended.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alluvium_change::Lsn;
use alluvium_query::pg::Zone;
use pgwire::error::PgWireResult;
use pgwire::messages::startup::SecretKey;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::rows::Cursor;
use super::startup::{SERVER_VERSION, Sasl, sasl};
use super::{Shared, error};

/// Ends the query that runs, if one does.
#[derive(Clone, Default)]
pub(super) struct Cancel(Arc<Mutex<Option<oneshot::Sender<()>>>>);

impl Cancel {
    fn held(&self) -> MutexGuard<'_, Option<oneshot::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a query that begins.
    pub(super) fn arm(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        *self.held() = Some(sender);
        receiver
    }

    pub(super) fn now(&self) {
        if let Some(sender) = self.held().take() {
            let _ = sender.send(());
        }
    }
}

/// What others know a connection by.
pub(super) struct Identity {
    shared: Arc<Shared>,
    pub(super) cancel: Cancel,
    pid: Mutex<Option<i32>>,
}

impl Identity {
    pub(super) fn register(&self, secret: SecretKey) -> (i32, SecretKey) {
        let pid = self.shared.register(&self.cancel, secret.clone());
        *self.pid.lock().unwrap_or_else(PoisonError::into_inner) = Some(pid);
        (pid, secret)
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        let pid = self
            .pid
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        pid.into_iter().for_each(|pid| self.shared.forget(pid));
    }
}

/// A client's connection.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) identity: Arc<Identity>,
    pub(super) sasl: Option<Sasl>,
    /// Among those that may be there at a time.
    place: Option<OwnedSemaphorePermit>,
    settings: Mutex<Settings>,
    cursors: Mutex<HashMap<String, Cursor>>,
    /// At which position of the source the last query saw the lake, where a pipeline told it.
    seen: Mutex<Option<Lsn>>,
}

fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, place: Option<OwnedSemaphorePermit>) -> Self {
        let identity = Arc::new(Identity {
            shared: Arc::clone(&shared),
            cancel: Cancel::default(),
            pid: Mutex::default(),
        });
        Self {
            sasl: shared.users.as_ref().map(|users| sasl(users, &identity)),
            identity,
            place,
            settings: Mutex::new(Settings::of(&shared)),
            shared,
            cursors: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    pub(super) fn has_place(&self) -> bool {
        self.place.is_some()
    }

    pub(super) fn settings(&self) -> MutexGuard<'_, Settings> {
        locked(&self.settings)
    }

    pub(super) fn cursors(&self) -> MutexGuard<'_, HashMap<String, Cursor>> {
        locked(&self.cursors)
    }

    pub(super) fn note_position(&self, position: Option<Lsn>) {
        *locked(&self.seen) = position;
    }

    /// Settings that came with the connection; those that are not known are left alone.
    pub(super) fn adopt_parameters(&self, parameters: &HashMap<String, String>) {
        let mut settings = self.settings();
        for (name, value) in parameters {
            let _ = settings.set(&name.to_lowercase(), Some(value.clone()));
        }
        settings.begin();
    }

    /// The value of a setting, for `SHOW`.
    pub(super) fn show(&self, name: &str) -> PgWireResult<String> {
        if name == "alluvium.lsn" {
            return Ok(locked(&self.seen)
                .map(|lsn| lsn.to_string())
                .unwrap_or_default());
        }
        self.settings().get(name)
    }
}

/// Settings by name, as `SHOW` tells them.
pub(super) struct Settings {
    values: BTreeMap<String, String>,
    /// As they were when the connection began.
    first: BTreeMap<String, String>,
    /// None for UTC.
    pub(super) zone: Option<Zone>,
    /// After which a query is given up.
    pub(super) timeout: Option<Duration>,
}

/// What a client may set, whether it has an effect here or not; and what it is at first.
const KNOWN: &[(&str, &str)] = &[
    ("application_name", ""),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("client_min_messages", "notice"),
    ("datestyle", "ISO, MDY"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "on"),
    ("extra_float_digits", "1"),
    ("idle_in_transaction_session_timeout", "0"),
    ("in_hot_standby", "on"),
    ("integer_datetimes", "on"),
    ("intervalstyle", "postgres"),
    ("jit", "off"),
    ("lc_messages", "C"),
    ("lc_monetary", "C"),
    ("lc_numeric", "C"),
    ("lc_time", "C"),
    ("lock_timeout", "0"),
    ("max_identifier_length", "255"),
    ("role", "none"),
    ("row_security", "on"),
    ("search_path", "silver"),
    ("server_encoding", "UTF8"),
    ("server_version", SERVER_VERSION),
    ("server_version_num", "170000"),
    ("session_authorization", ""),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "0"),
    ("synchronize_seqscans", "on"),
    ("synchronous_commit", "on"),
    ("timezone", "UTC"),
    ("transaction_isolation", "read committed"),
    ("transaction_read_only", "on"),
];

/// What nobody sets.
const FIXED: &[&str] = &[
    "in_hot_standby",
    "integer_datetimes",
    "max_identifier_length",
    "server_encoding",
    "server_version",
    "server_version_num",
];

impl Settings {
    fn of(shared: &Shared) -> Self {
        let mut values: BTreeMap<String, String> = KNOWN
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let timeout = shared.queries.timeout();
        if let Some(timeout) = timeout {
            values.insert(
                "statement_timeout".to_owned(),
                format!("{}ms", timeout.as_millis()),
            );
        }
        Self {
            first: values.clone(),
            values,
            zone: None,
            timeout,
        }
    }

    fn begin(&mut self) {
        self.first.clone_from(&self.values);
    }

    fn get(&self, name: &str) -> PgWireResult<String> {
        let found = self.values.get(name);
        found.cloned().ok_or_else(|| unknown(name))
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = (&String, &String)> {
        self.values.iter()
    }

    /// None for what it was at first.
    pub(super) fn set(&mut self, name: &str, value: Option<String>) -> PgWireResult<()> {
        // Names with a point are an application's own.
        if !self.values.contains_key(name) && !name.contains('.') {
            return Err(unknown(name));
        }
        if FIXED.contains(&name) {
            return Err(error::said(
                "55P02",
                format!("parameter \"{name}\" cannot be changed"),
            ));
        }
        let Some(value) = value.or_else(|| self.first.get(name).cloned()) else {
            self.values.remove(name);
            return Ok(());
        };
        let wrong = || {
            error::said(
                "22023",
                format!("invalid value for parameter \"{name}\": \"{value}\""),
            )
        };
        let mut held = value.clone();
        match name {
            "timezone" => (self.zone, held) = zone(&value).ok_or_else(wrong)?,
            "statement_timeout" => {
                let asked = milliseconds(&value).ok_or_else(wrong)?;
                self.timeout = (asked > 0).then(|| Duration::from_millis(asked));
            }
            "client_encoding"
                if !matches!(
                    value.to_lowercase().replace('-', "").as_str(),
                    "utf8" | "unicode"
                ) =>
            {
                return Err(error::said("22023", "this server speaks UTF8 alone"));
            }
            "client_encoding" => "UTF8".clone_into(&mut held),
            "bytea_output" if value != "hex" => return Err(wrong()),
            "intervalstyle" if value != "postgres" => return Err(wrong()),
            "datestyle" if !value.to_lowercase().starts_with("iso") => return Err(wrong()),
            _ => {}
        }
        self.values.insert(name.to_owned(), held);
        Ok(())
    }

    /// As they were when the connection began.
    pub(super) fn reset_all(&mut self) -> PgWireResult<()> {
        let first = self.first.clone();
        self.values.retain(|name, _| first.contains_key(name));
        for (name, value) in first {
            if !FIXED.contains(&name.as_str()) {
                self.set(&name, Some(value))?;
            }
        }
        Ok(())
    }
}

fn unknown(name: &str) -> pgwire::error::PgWireError {
    error::said(
        "42704",
        format!("unrecognized configuration parameter \"{name}\""),
    )
}

/// A time zone, none for UTC, and its name.
fn zone(name: &str) -> Option<(Option<Zone>, String)> {
    match name.to_uppercase().as_str() {
        "UTC" | "GMT" | "Z" | "UCT" | "ETC/UTC" | "DEFAULT" | "LOCAL" => {
            Some((None, "UTC".to_owned()))
        }
        _ => {
            let found = Zone::from_str(&iso_offset(name)?).ok()?;
            Some((Some(found), name.to_owned()))
        }
    }
}

/// An offset as ISO 8601 has it, east of Greenwich; other names as they are. As PostgreSQL reads them: hours
/// (`5.5`) count to the east, offsets (`+05:30`) as in POSIX to the west.
fn iso_offset(name: &str) -> Option<String> {
    if let Ok(hours) = name.trim().parse::<f64>() {
        if !hours.is_finite() || hours.abs() > 15.0 {
            return None;
        }
        let sign = if hours < 0.0 { '-' } else { '+' };
        let minutes = (hours.abs() * 60.0).round();
        return Some(format!(
            "{sign}{:02}:{:02}",
            (minutes / 60.0).floor(),
            minutes % 60.0
        ));
    }
    Some(match name.split_at_checked(1) {
        Some(("+", offset)) => format!("-{offset}"),
        Some(("-", offset)) => format!("+{offset}"),
        _ => name.to_owned(),
    })
}

/// What a client that begins with these parameters is told of its zone.
pub(super) fn zone_name(parameters: &HashMap<String, String>) -> String {
    let asked = parameters
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("timezone"));
    let known = asked.and_then(|(_, name)| zone(name));
    known.map_or("UTC".to_owned(), |(_, name)| name)
}

/// `5000`, `5s`, `5min`.
fn milliseconds(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}
