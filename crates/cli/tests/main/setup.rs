//! A database, a project that follows it, and the program.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alluvium_testkit::{Alluvium, Finished, PgCluster, check};
use serde_json::Value;

pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// The signal by which a process ends that crashes where a test wants it to.
pub(crate) const ABORT: i32 = 6;
pub(crate) const CAUGHT_UP: &[&str] = &["run", "--until-caught-up"];

pub(crate) fn bin() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_alluvium"))
}

pub(crate) struct Setup {
    pub pg: PgCluster,
    pub dir: tempfile::TempDir,
}

impl Setup {
    /// A server of the distribution's version, with `sql` run, and a project that follows `tables`.
    pub(crate) fn new(sql: &str, tables: &str) -> Self {
        Self::on(PgCluster::start(None, &[]).unwrap(), sql, tables, "")
    }

    pub(crate) fn on(pg: PgCluster, sql: &str, tables: &str, more: &str) -> Self {
        if !sql.is_empty() {
            pg.execute(sql).unwrap();
        }
        let setup = Self {
            pg,
            dir: tempfile::tempdir().unwrap(),
        };
        setup.configure(tables, more);
        setup
    }

    /// Writes the project file; `more` is appended.
    pub(crate) fn configure(&self, tables: &str, more: &str) {
        let url = self.pg.url("postgres");
        let text = format!(
            "[source.test]\ntype = \"postgres\"\nurl = \"{url}\"\ntables = [{tables}]\n\
             [lake]\npath = \"lake\"\n{more}\n"
        );
        std::fs::write(self.dir.path().join("alluvium.toml"), text).unwrap();
    }

    /// Forgets the lake, all state, and the slots.
    pub(crate) fn start_anew(&self) {
        let _ = std::fs::remove_dir_all(self.lake());
        let _ = std::fs::remove_dir_all(self.dir.path().join(".alluvium"));
        self.pg
            .execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
            .unwrap();
    }

    /// Adds a line to `[source.test]`.
    pub(crate) fn set_in_source(&self, line: &str) {
        let file = self.dir.path().join("alluvium.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let with_line = text.replacen("[lake]", &format!("{line}\n[lake]"), 1);
        std::fs::write(&file, with_line).unwrap();
    }

    pub(crate) fn lake(&self) -> PathBuf {
        self.dir.path().join("lake")
    }

    /// Runs the program to its end.
    pub(crate) fn alluvium(&self, args: &[&str]) -> Finished {
        self.alluvium_with(args, &[])
    }

    pub(crate) fn alluvium_with(&self, args: &[&str], envs: &[(&str, &str)]) -> Finished {
        Alluvium::run(bin(), args, self.dir.path(), envs, PATIENCE).unwrap()
    }

    /// `run --until-caught-up`, which must succeed.
    pub(crate) fn catch_up(&self) {
        self.alluvium(CAUGHT_UP).success().unwrap();
    }

    pub(crate) fn spawn_run(&self) -> Alluvium {
        Alluvium::spawn(bin(), &["run"], self.dir.path(), &[]).unwrap()
    }

    /// Source and silver are equal for both readers, also under pushed-down predicates.
    pub(crate) fn assert_equal(&self) {
        self.assert_equal_but(&[]);
    }

    pub(crate) fn assert_equal_but(&self, args: &[&str]) {
        let args = [&["--probes", "8"], args].concat();
        check::compare(&self.pg.url("postgres"), &self.lake(), &args)
            .unwrap()
            .expect_equal()
            .unwrap();
    }

    /// Runs a shell script in the project's directory, with the program as `$1`. File systems that it
    /// mounts end with it.
    pub(crate) fn in_mount_namespace(&self, script: &str) {
        let status = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount"])
            .args(["sh", "-c", script, "sh"])
            .arg(bin())
            .current_dir(self.dir.path())
            .status()
            .unwrap();
        assert!(
            status.success(),
            "no mount namespace could be made: {status}"
        );
    }

    /// One table's entry of `alluvium status`.
    pub(crate) fn status(&self, table: &str) -> Value {
        let finished = self.alluvium(&["status", "--output", "json"]);
        let whole: Value = serde_json::from_str(&finished.stdout).unwrap_or(Value::Null);
        let found = whole["tables"]
            .as_array()
            .and_then(|rows| rows.iter().find(|row| row["table"] == table));
        found.cloned().unwrap_or(Value::Null)
    }

    /// The answer of `alluvium sql` as JSON rows.
    pub(crate) fn sql(&self, query: &str) -> Value {
        let finished = self
            .alluvium(&["sql", query, "--output", "json"])
            .success()
            .unwrap();
        serde_json::from_str(&finished.stdout).unwrap()
    }

    /// Waits until `done` holds, or fails with the running program's log.
    pub(crate) fn wait(&self, running: &Alluvium, what: &str, done: impl Fn() -> bool) {
        let since = Instant::now();
        while !done() {
            assert!(
                since.elapsed() < PATIENCE,
                "waited in vain until {what}\n{}",
                running.stderr()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Ends a running pipeline as an administrator would; it must say that all is well.
pub(crate) fn terminate(mut running: Alluvium) -> String {
    running.terminate();
    let status = running.wait_timeout(PATIENCE).unwrap();
    let stderr = running.stderr();
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{stderr}");
    stderr
}
