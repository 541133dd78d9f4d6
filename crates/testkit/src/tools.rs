//! The project's own Python tools, run as programs.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// The root of the project's working tree.
pub(crate) fn project_dir() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// `python3 tools/check/<script>`; the first call builds the private virtual environment.
pub(crate) fn check_script(script: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(project_dir().join("tools/check").join(script));
    command
}

/// Runs `command` to its end and takes its output.
pub(crate) fn output_of(command: &mut Command) -> Result<Output> {
    let shown = format!("{command:?}");
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {shown}"))
}

/// As [`output_of`], and a failure is an error that holds what the command printed.
pub(crate) fn checked(command: &mut Command) -> Result<Output> {
    let output = output_of(command)?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// Sends a signal (`"TERM"`, `"KILL"`, ...) to one process; one that is gone already is no error.
pub(crate) fn send_signal(pid: u32, signal: &str) {
    let _ = Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(pid.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Writes `text` to a new file, or replaces the old one.
pub(crate) fn write_file(path: &Path, text: &str) -> Result<()> {
    let mut file =
        std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    Ok(())
}
