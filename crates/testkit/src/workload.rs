//! The seeded random workload of `tools/check/workload.py`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::tools::{check_script, checked, send_signal};

/// What a run did.
#[derive(Debug, Clone, Deserialize)]
pub struct Stats {
    pub seconds: f64,
    pub transactions: u64,
    pub rows: u64,
    pub seed: u64,
}

/// Makes the ten tables `w_*`, each with this many rows.
pub fn setup(pg_url: &str, rows: u32) -> Result<()> {
    let mut command = check_script("workload.py");
    command.args(["--pg", pg_url, "setup", "--rows", &rows.to_string()]);
    checked(&mut command).map(drop)
}

/// Runs the workload to its end. `args` are those of `workload.py run`: `--txns 1000`,
/// `--seconds 60`, `--rate 200`, `--clients 3`, `--no-truncate`, `--reconnect`.
pub fn run(pg_url: &str, seed: u64, args: &[&str]) -> Result<Stats> {
    let mut command = check_script("workload.py");
    command.args(["--pg", pg_url, "run", "--seed", &seed.to_string()]);
    let output = checked(command.args(args))?;
    parse(&output.stdout)
}

/// A workload in the background. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

/// Starts the workload with the arguments of [`run`] and waits until its first transaction begins.
/// It runs until it is stopped, or as long as `args` say.
pub fn spawn(pg_url: &str, seed: u64, args: &[&str]) -> Result<Running> {
    let mut command = check_script("workload.py");
    command.args([
        "--pg",
        pg_url,
        "run",
        "--announce",
        "--seed",
        &seed.to_string(),
    ]);
    let mut child = command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start workload.py")?;
    let stdout = child.stdout.take().context("workload.py has no output")?;
    let mut running = Running {
        child,
        stdout: BufReader::new(stdout),
    };
    let mut line = String::new();
    running.stdout.read_line(&mut line)?;
    if line.trim() != "running" {
        bail!("workload.py did not start, it said: {line}");
    }
    Ok(running)
}

impl Running {
    /// Lets the transactions in hand end, then stops.
    pub fn stop(self) -> Result<Stats> {
        send_signal(self.child.id(), "TERM");
        self.wait(Duration::from_secs(60))
    }

    /// Waits for the end of a run with `--txns` or `--seconds`.
    pub fn wait(mut self, patience: Duration) -> Result<Stats> {
        let deadline = Instant::now() + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() >= deadline {
                bail!("the workload did not end within {} s", patience.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        if !status.success() {
            bail!("workload.py ended with {status}");
        }
        let mut result = Vec::new();
        self.stdout.read_to_end(&mut result)?;
        parse(&result)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(stdout: &[u8]) -> Result<Stats> {
    serde_json::from_slice(stdout).with_context(|| {
        format!(
            "workload.py printed no result: {}",
            String::from_utf8_lossy(stdout)
        )
    })
}
