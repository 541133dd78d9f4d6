//! One module per command; each loads the project, calls a crate, prints a result.

pub(crate) mod care;
pub(crate) mod doctor;
pub(crate) mod errors;
pub(crate) mod init;
pub(crate) mod resync;
pub(crate) mod run;
pub(crate) mod sql;
pub(crate) mod status;
pub(crate) mod tables;

use std::process::ExitCode;

use alluvium_change::Result;
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Args;
use crate::print;

/// A command did what it should, but something needs attention.
pub(crate) const STOPPED_TABLES: u8 = 3;

/// Prints a completion script.
pub(crate) fn completions(shell: Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "alluvium", &mut script);
    print::write(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
