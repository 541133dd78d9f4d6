//! A private PostgreSQL server: own directory, own port, loopback only.

use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use alluvium_change::{Error, Result, code};
use tokio::process::Command;

/// A running server; [`PrivatePostgres::stop`] ends it.
pub(crate) struct PrivatePostgres {
    programs: PathBuf,
    dir: PathBuf,
    port: u16,
    /// PostgreSQL refuses to run as root.
    run_as: Option<(u32, u32)>,
}

impl PrivatePostgres {
    /// Makes a cluster below `dir` and starts it.
    pub(crate) async fn start(dir: &Path) -> Result<Self> {
        let programs = find_programs()?;
        let io = |error: std::io::Error| {
            Error::new(&code::USAGE, "cannot prepare the demo's PostgreSQL")
                .with_detail(error.to_string())
        };
        std::fs::create_dir_all(dir).map_err(io)?;
        let is_root = std::fs::metadata(dir).map_err(io)?.uid() == 0;
        let run_as = if is_root { unprivileged_user() } else { None };
        if let Some((uid, gid)) = run_as {
            chown(dir, Some(uid), Some(gid)).map_err(io)?;
            let parent = dir.parent().unwrap_or(dir);
            std::fs::set_permissions(parent, std::fs::Permissions::from_mode(0o755)).map_err(io)?;
        }
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .map_err(io)?
            .port();
        let server = Self {
            programs,
            dir: dir.to_owned(),
            port,
            run_as,
        };
        let data = server.data();
        server
            .call(
                "initdb",
                &[
                    "-D",
                    &data,
                    "-U",
                    "postgres",
                    "-E",
                    "UTF8",
                    "--locale=C.UTF-8",
                    "--no-sync",
                    "-A",
                    "trust",
                ],
            )
            .await?;
        let socket_dir = dir.display();
        let settings = format!(
            "-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='{socket_dir}' \
             -c wal_level=logical -c max_wal_senders=10 -c max_replication_slots=10"
        );
        let log = dir.join("server.log").display().to_string();
        server
            .call(
                "pg_ctl",
                &["start", "-w", "-D", &data, "-l", &log, "-o", &settings],
            )
            .await?;
        Ok(server)
    }

    fn data(&self) -> String {
        self.dir.join("data").display().to_string()
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Stops the server; its directory can be removed then.
    pub(crate) async fn stop(&self) {
        let data = self.data();
        if let Err(error) = self
            .call("pg_ctl", &["stop", "-D", &data, "-m", "immediate"])
            .await
        {
            tracing::warn!(error = %error, "cannot stop the demo's PostgreSQL");
        }
    }

    async fn call(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(self.programs.join(program));
        command
            .args(arguments)
            .current_dir(&self.dir)
            .env("LC_ALL", "C.UTF-8");
        command.stdin(std::process::Stdio::null());
        // A server must not hold our pipes open, or waiting for its starter never ends.
        let out = self.dir.join(format!("{program}.out"));
        let file = std::fs::File::create(&out).and_then(|file| Ok((file.try_clone()?, file)));
        if let Ok((stdout, stderr)) = file {
            command.stdout(stdout).stderr(stderr);
        }
        if let Some((uid, gid)) = self.run_as {
            command.uid(uid).gid(gid);
        }
        let failed = |detail: String| {
            Error::new(
                &code::USAGE,
                format!("{program} of the demo's PostgreSQL failed"),
            )
            .with_detail(detail)
            .with_hint("see that PostgreSQL 13 or later is installed: apt-get install postgresql")
        };
        let status = command
            .status()
            .await
            .map_err(|error| failed(error.to_string()))?;
        if status.success() {
            return Ok(());
        }
        Err(failed(std::fs::read_to_string(out).unwrap_or_default()))
    }
}

/// The newest installed server's programs.
fn find_programs() -> Result<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for root in [
        "/usr/lib/postgresql",
        "/usr/local/lib/postgresql",
        "/opt/homebrew/opt",
    ] {
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let version = name.trim_start_matches("postgresql@").parse().unwrap_or(0);
            found.push((version, entry.path().join("bin")));
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    found.extend(std::env::split_paths(&path).map(|dir| (0, dir)));
    found.retain(|(_, dir)| dir.join("initdb").is_file() && dir.join("pg_ctl").is_file());
    found.sort();
    found.pop().map(|(_, dir)| dir).ok_or_else(|| {
        Error::new(
            &code::USAGE,
            "the demo needs a PostgreSQL server, and none is installed",
        )
        .with_hint("apt-get install postgresql, or run: make demo")
    })
}

fn unprivileged_user() -> Option<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    ["postgres", "nobody"].iter().find_map(|wanted| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(wanted)).then_some(())?;
            let uid = fields.nth(1)?.parse().ok()?;
            Some((uid, fields.next()?.parse().ok()?))
        })
    })
}
