//! The seeded random workload of `tools/check/workload.py`.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::tools::{check_script, checked, send_signal};

const SIGTERM: i32 = 15;

/// What a run did.
#[derive(Debug, Clone, Default, Deserialize)]
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
    child: Option<Child>,
}

/// Starts the workload with the arguments of [`run`]; give it `--seconds`, or stop it.
pub fn spawn(pg_url: &str, seed: u64, args: &[&str]) -> Result<Running> {
    let mut command = check_script("workload.py");
    command.args(["--pg", pg_url, "run", "--seed", &seed.to_string()]);
    let child = command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("cannot start workload.py")?;
    Ok(Running { child: Some(child) })
}

impl Running {
    /// Lets the transactions in hand end, then stops.
    pub fn stop(self) -> Result<Stats> {
        if let Some(child) = &self.child {
            send_signal(child.id(), "TERM");
        }
        self.wait(Duration::from_secs(60))
    }

    /// Waits for the end of a run with `--txns` or `--seconds`.
    pub fn wait(mut self, patience: Duration) -> Result<Stats> {
        let child = self.child.as_mut().context("the workload was taken")?;
        let deadline = Instant::now() + patience;
        while child.try_wait()?.is_none() {
            if Instant::now() >= deadline {
                bail!("the workload did not end within {} s", patience.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let child = self.child.take().context("the workload was taken")?;
        let output = child.wait_with_output()?;
        if output.status.signal() == Some(SIGTERM) {
            // Stopped before it had installed its handler, so before the first transaction.
            return Ok(Stats::default());
        }
        if !output.status.success() {
            bail!("workload.py ended with {}", output.status);
        }
        parse(&output.stdout)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
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
