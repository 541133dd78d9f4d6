//! One module per command; each loads the project, calls a crate, prints a result.

pub mod doctor;
pub mod errors;
pub mod init;
pub mod resync;
pub mod run;
pub mod sql;
pub mod status;
pub mod tables;

use std::process::ExitCode;

use alluvium_change::Result;
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Args;
use crate::print;

/// A command did what it should, but something needs attention.
pub const STOPPED_TABLES: u8 = 3;

/// Prints a completion script.
pub fn completions(shell: Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "alluvium", &mut script);
    print::write(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
