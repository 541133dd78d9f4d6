//! The program as users run it: a child process.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::tools::send_signal;

/// A running `alluvium`. Dropping it kills it.
#[derive(Debug)]
pub struct Alluvium {
    child: Child,
    status: Option<ExitStatus>,
    output_dir: TempDir,
}

/// An `alluvium` that has ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Exit code; `None` when a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Fails with the program's output unless it ended with exit code 0.
    pub fn success(self) -> Result<Self> {
        if !self.status.success() {
            bail!(
                "alluvium ended with {}\nstdout:\n{}\nstderr:\n{}",
                self.status,
                self.stdout,
                self.stderr
            );
        }
        Ok(self)
    }
}

impl Alluvium {
    /// The built binary beside the test's own (`target/debug/alluvium`). Tests of the `cli` crate
    /// use `env!("CARGO_BIN_EXE_alluvium")`, which cargo keeps up to date.
    pub fn bin() -> Result<PathBuf> {
        let test = std::env::current_exe().context("cannot find the test's own program")?;
        let built = test
            .ancestors()
            .skip(1)
            .take(2)
            .map(|dir| dir.join("alluvium"))
            .find(|path| path.is_file());
        built.with_context(|| {
            format!(
                "no alluvium beside {}; build it with: cargo build -p alluvium",
                test.display()
            )
        })
    }

    /// Starts `bin args...` in `cwd` with further environment variables.
    pub fn spawn<A: AsRef<OsStr>>(
        bin: &Path,
        args: &[A],
        cwd: &Path,
        envs: &[(&str, &str)],
    ) -> Result<Self> {
        let output_dir = tempfile::Builder::new().prefix("alluvium-out-").tempdir()?;
        let child = Command::new(bin)
            .args(args)
            .current_dir(cwd)
            .envs(envs.iter().copied())
            .stdin(Stdio::null())
            .stdout(File::create(output_dir.path().join("stdout"))?)
            .stderr(File::create(output_dir.path().join("stderr"))?)
            .spawn()
            .with_context(|| format!("cannot start {}", bin.display()))?;
        Ok(Self {
            child,
            status: None,
            output_dir,
        })
    }

    /// Runs `bin args...` to its end; longer than `patience` is an error, and kills it.
    pub fn run<A: AsRef<OsStr>>(
        bin: &Path,
        args: &[A],
        cwd: &Path,
        envs: &[(&str, &str)],
        patience: Duration,
    ) -> Result<Finished> {
        let mut running = Self::spawn(bin, args, cwd, envs)?;
        match running.wait_timeout(patience)? {
            Some(status) => Ok(running.finished(status)),
            None => bail!(
                "alluvium still runs after {} s\nstdout:\n{}\nstderr:\n{}",
                patience.as_secs(),
                running.stdout(),
                running.stderr()
            ),
        }
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, as a crash of the machine's memory would: returns when the process is gone.
    pub fn kill_9(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        // std's kill is SIGKILL on Unix.
        self.child.kill()?;
        let status = self.child.wait()?;
        self.status = Some(status);
        Ok(status)
    }

    /// Asks it to end (SIGTERM) and does not wait.
    pub fn terminate(&self) {
        if self.status.is_none() {
            send_signal(self.child.id(), "TERM");
        }
    }

    /// How it ended; `None` when it still runs after `patience`.
    pub fn wait_timeout(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + patience;
        loop {
            if self.status.is_none() {
                self.status = self.child.try_wait()?;
            }
            if self.status.is_some() || Instant::now() >= deadline {
                return Ok(self.status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM, then waits at most `patience` for a clean end; longer is an error.
    pub fn stop(mut self, patience: Duration) -> Result<Finished> {
        self.terminate();
        match self.wait_timeout(patience)? {
            Some(status) => Ok(self.finished(status)),
            None => bail!(
                "alluvium does not end within {} s of SIGTERM\nstderr:\n{}",
                patience.as_secs(),
                self.stderr()
            ),
        }
    }

    /// Waits until standard error or output holds `text`.
    pub fn wait_for_output(&mut self, text: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            // Asked before looking, so that the last words of a process that ends are seen.
            let ended = self.wait_timeout(Duration::ZERO)?;
            if self.stderr().contains(text) || self.stdout().contains(text) {
                return Ok(());
            }
            if ended.is_some() || Instant::now() >= deadline {
                bail!(
                    "alluvium did not say \"{text}\" ({ended:?})\nstderr:\n{}",
                    self.stderr()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.output("stdout")
    }

    /// Standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.output("stderr")
    }

    fn output(&self, name: &str) -> String {
        let bytes = std::fs::read(self.output_dir.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn finished(&self, status: ExitStatus) -> Finished {
        Finished {
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }
}

impl Drop for Alluvium {
    fn drop(&mut self) {
        let _ = self.kill_9();
    }
}
