//! A private PostgreSQL cluster: own directory, free port, logical replication on.
//!
//! The server is our child. As root it runs as `postgres` or `nobody`, because it refuses root. A
//! small watchdog shell holds the read end of a pipe whose write end is ours alone: when this
//! process ends in whatever way, the shell sees end of file, stops the server by its pid and
//! removes the directory.

mod binaries;
mod client;
mod os_user;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use self::binaries::Binaries;
use self::os_user::OsUser;
use crate::tools::{checked, send_signal, write_file};

const START_PATIENCE: Duration = Duration::from_secs(60);
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// What every test wants unless it says otherwise; `fsync` is off because nobody pulls the plug.
const DEFAULT_CONF: &[(&str, &str)] = &[
    ("wal_level", "logical"),
    ("max_wal_senders", "20"),
    ("max_replication_slots", "20"),
    ("max_prepared_transactions", "20"),
    ("max_connections", "100"),
    ("listen_addresses", "127.0.0.1"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("shared_buffers", "64MB"),
    ("max_wal_size", "2GB"),
    ("log_line_prefix", "%m [%p] %q%a "),
    ("timezone", "UTC"),
];

/// How a cluster shall be made. [`PgCluster::start`] is the short form.
#[derive(Debug, Clone, Default)]
pub struct PgBuilder {
    version: Option<u16>,
    conf: Vec<(String, String)>,
    password: Option<String>,
    initdb_args: Vec<String>,
}

impl PgBuilder {
    /// This major version; without it the newest one of the distribution.
    #[must_use]
    pub fn version(mut self, version: u16) -> Self {
        self.version = Some(version);
        self
    }

    /// A line of `postgresql.conf`; the last one of a name counts, also over the defaults.
    #[must_use]
    pub fn conf(mut self, name: &str, value: &str) -> Self {
        self.conf.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Connections over TCP must give this password (scram-sha-256); [`PgCluster::url`] has it.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// A further argument of `initdb`, such as `--encoding=LATIN1`; the last one of a name counts.
    #[must_use]
    pub fn initdb_arg(mut self, arg: &str) -> Self {
        self.initdb_args.push(arg.to_owned());
        self
    }

    /// Makes the cluster and waits until it takes connections.
    pub fn start(self) -> Result<PgCluster> {
        let binaries = Binaries::find(self.version)?;
        let os_user = OsUser::for_server()?;
        let root = os_user::enterable_temp_dir(os_user.as_ref())?;
        let dir = tempfile::Builder::new()
            .prefix("alluvium-pg-")
            .tempdir_in(&root)
            .with_context(|| format!("cannot make a directory in {}", root.display()))?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        if let Some(user) = &os_user {
            chown(dir.path(), Some(user.uid), Some(user.gid))?;
        }
        let mut cluster = PgCluster {
            watchdog: None,
            server: None,
            port: 0,
            binaries,
            os_user,
            builder: self,
            dir,
        };
        cluster.initdb()?;
        cluster.watchdog = Some(cluster.spawn_watchdog()?);
        cluster.start_again()?;
        Ok(cluster)
    }
}

/// A private, running PostgreSQL. Dropping it stops the server and removes its directory.
#[derive(Debug)]
pub struct PgCluster {
    watchdog: Option<Child>,
    server: Option<Child>,
    port: u16,
    binaries: Binaries,
    os_user: Option<OsUser>,
    builder: PgBuilder,
    // Last: removed after the server has stopped.
    dir: TempDir,
}

impl PgCluster {
    /// Starts a cluster of this major version (`None`: the newest of the distribution) with
    /// further lines of `postgresql.conf`.
    pub fn start(version: Option<u16>, conf: &[(&str, &str)]) -> Result<Self> {
        let builder = PgBuilder {
            version,
            ..PgBuilder::default()
        };
        conf.iter()
            .fold(builder, |builder, (name, value)| builder.conf(name, value))
            .start()
    }

    #[must_use]
    pub fn builder() -> PgBuilder {
        PgBuilder::default()
    }

    /// The major versions that can be started here (13 and later), ascending.
    #[must_use]
    pub fn available_versions() -> Vec<u16> {
        Binaries::all().into_keys().collect()
    }

    /// The versions a test that covers several should run on: the distribution's newest, and one
    /// other if there is one. `ALLUVIUM_TEST_PG_VERSIONS=13,15,18` chooses others.
    pub fn versions_to_test() -> Result<Vec<u16>> {
        if let Ok(text) = std::env::var("ALLUVIUM_TEST_PG_VERSIONS") {
            return text
                .split(',')
                .map(|part| part.trim().parse().context("ALLUVIUM_TEST_PG_VERSIONS"))
                .collect();
        }
        let main = Binaries::find(None)?.major;
        let other = Self::available_versions()
            .into_iter()
            .rev()
            .find(|&major| major != main);
        Ok(std::iter::once(main).chain(other).collect())
    }

    /// Connection URL of the superuser `postgres` (with the password, where there is one).
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let password = self
            .builder
            .password
            .as_ref()
            .map_or_else(String::new, |password| format!(":{password}"));
        format!(
            "postgres://postgres{password}@127.0.0.1:{}/{database}",
            self.port
        )
    }

    /// The same over restarts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Major version.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.binaries.major
    }

    /// The cluster's own directory: `data/` (with `pg_hba.conf`) and `server.log` are in it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Process id of the server, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    /// What the server has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("server.log")).unwrap_or_default()
    }

    /// Runs statements in database `postgres`; several, parted by `;`, are one transaction.
    pub fn execute(&self, sql: &str) -> Result<()> {
        self.execute_in("postgres", sql)
    }

    /// Runs statements in `database`; several, parted by `;`, are one transaction.
    pub fn execute_in(&self, database: &str, sql: &str) -> Result<()> {
        client::execute(&self.url(database), sql)
    }

    /// The result as text, from database `postgres`: columns parted by `|`, rows by a line feed,
    /// NULL empty.
    pub fn query_text(&self, sql: &str) -> Result<String> {
        self.query_text_in("postgres", sql)
    }

    /// As [`Self::query_text`], from `database`.
    pub fn query_text_in(&self, database: &str, sql: &str) -> Result<String> {
        client::query_text(&self.url(database), sql)
    }

    /// Stops the server as an administrator would: transactions are rolled back, a checkpoint is
    /// written, walsenders drain.
    pub fn stop_fast(&mut self) -> Result<()> {
        self.stop("INT")
    }

    /// Stops the server as a crash would: the next start recovers from the WAL.
    pub fn stop_immediate(&mut self) -> Result<()> {
        self.stop("QUIT")
    }

    /// Starts the stopped server on the same port; does nothing when it runs.
    pub fn start_again(&mut self) -> Result<()> {
        if self.server.is_some() {
            return Ok(());
        }
        for attempt in 1.. {
            if self.port == 0 {
                self.port = free_port()?;
            }
            self.write_conf()?;
            let mut server = self.spawn_server()?;
            match self.wait_until_ready(&mut server) {
                Ok(()) => {
                    self.server = Some(server);
                    break;
                }
                Err(error) => {
                    send_signal(server.id(), "QUIT");
                    let _ = server.wait();
                    let taken = self.log().contains("could not bind");
                    if !taken || attempt == 5 {
                        return Err(error.context(format!("the server's log:\n{}", self.log())));
                    }
                    // Another process was quicker; before the first start any port will do.
                    self.port = 0;
                }
            }
        }
        Ok(())
    }

    /// Writes a setting for good (as `ALTER SYSTEM` would, but also when the server is down); it
    /// counts from the next start.
    pub fn set_conf(&mut self, name: &str, value: &str) {
        let line = (name.to_owned(), value.to_owned());
        self.builder.conf.push(line);
    }

    fn data_dir(&self) -> PathBuf {
        self.dir().join("data")
    }

    /// A server program that runs as the right user with a clean environment.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.dir.join(program));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", self.dir())
            .current_dir(self.dir())
            .stdin(Stdio::null());
        if let Some(user) = &self.os_user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    fn initdb(&self) -> Result<()> {
        let mut initdb = self.command("initdb");
        initdb.arg("-D").arg(self.data_dir());
        initdb.args(["-U", "postgres", "--no-sync", "--auth-local=trust"]);
        initdb.args(["--encoding=UTF8", "--locale=C.UTF-8"]);
        if let Some(password) = &self.builder.password {
            let file = self.dir().join("password");
            write_file(&file, &format!("{password}\n"))?;
            initdb.arg("--auth-host=scram-sha-256");
            initdb.arg(format!("--pwfile={}", file.display()));
        } else {
            initdb.arg("--auth-host=trust");
        }
        initdb.args(&self.builder.initdb_args);
        checked(&mut initdb)?;
        let mut main_conf = fs::read_to_string(self.data_dir().join("postgresql.conf"))?;
        main_conf.push_str("include 'test.conf'\n");
        write_file(&self.data_dir().join("postgresql.conf"), &main_conf)
    }

    fn write_conf(&self) -> Result<()> {
        let port = self.port.to_string();
        let socket_dir = self.dir().display().to_string();
        let own = [
            ("port", port.as_str()),
            ("unix_socket_directories", socket_dir.as_str()),
        ];
        let given = self
            .builder
            .conf
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()));
        let text: String = DEFAULT_CONF
            .iter()
            .copied()
            .chain(own)
            .chain(given)
            .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")))
            .collect();
        write_file(&self.data_dir().join("test.conf"), &text)
    }

    fn spawn_server(&self) -> Result<Child> {
        let log = fs::File::create(self.dir().join("server.log"))?;
        // A group of its own: Ctrl-C ends the test, whose watchdog then stops the server.
        self.command("postgres")
            .arg("-D")
            .arg(self.data_dir())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("cannot start postgres")
    }

    /// The postmaster writes `ready` into the eighth line of its pid file.
    fn wait_until_ready(&self, server: &mut Child) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        let pid = server.id().to_string();
        while Instant::now() < deadline {
            if let Some(status) = server.try_wait()? {
                bail!("postgres ended with {status} instead of starting");
            }
            let text =
                fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            if lines.first() == Some(&pid.as_str()) && lines.get(7) == Some(&"ready") {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!(
            "postgres did not start within {} s",
            START_PATIENCE.as_secs()
        );
    }

    fn stop(&mut self, signal: &str) -> Result<()> {
        let Some(mut server) = self.server.take() else {
            return Ok(());
        };
        send_signal(server.id(), signal);
        let deadline = Instant::now() + STOP_PATIENCE;
        while server.try_wait()?.is_none() {
            if Instant::now() >= deadline {
                send_signal(server.id(), "QUIT");
                server.wait()?;
                bail!("postgres did not stop within {} s", STOP_PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn spawn_watchdog(&self) -> Result<Child> {
        const SCRIPT: &str = r#"trap '' INT TERM HUP; read -r _
            pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null
            for _ in 1 2 3 4 5 6 7 8 9 10; do [ -e "$1/data/postmaster.pid" ] || break; sleep 0.2; done
            rm -rf "$1""#;
        Command::new("sh")
            .args(["-c", SCRIPT, "watchdog"])
            .arg(self.dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .process_group(0)
            .spawn()
            .context("cannot start the watchdog shell")
    }
}

impl Drop for PgCluster {
    fn drop(&mut self) {
        let _ = self.stop("QUIT");
        if let Some(mut watchdog) = self.watchdog.take() {
            drop(watchdog.stdin.take());
            let _ = watchdog.wait();
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
