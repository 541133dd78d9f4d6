//! The project's own checks: `cargo xtask check` is what `.ci/run` and the pre-commit hook call.

mod tidy;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

const USAGE: &str = "\
usage: cargo xtask check [--fast]    format, tidy, clippy with warnings denied
       cargo xtask tidy              only what clippy cannot see: sizes, headers, crate edges,
                                     single copies, error pages, the table of metrics, links from
                                     docs into the code
       cargo xtask docs              writes what of the docs is made from the code
--fast leaves out clippy";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args.as_slice() {
        ["check"] => check(true),
        ["check", "--fast"] => check(false),
        ["tidy"] => tidy(),
        ["docs"] => tidy::metrics::write(&project_dir()),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(thorough: bool) -> Result<()> {
    cargo(
        &["fmt", "--all", "--check"],
        "not formatted: run cargo fmt --all",
    )?;
    tidy()?;
    if thorough {
        let clippy = [
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ];
        cargo(&clippy, "clippy has something to say")?;
        typos()?;
    }
    eprintln!("check: ok");
    Ok(())
}

fn tidy() -> Result<()> {
    let root = project_dir();
    let faults = tidy::faults(&root)?;
    for fault in &faults {
        eprintln!("{fault}");
    }
    if !faults.is_empty() {
        bail!("tidy found {} faults", faults.len());
    }
    Ok(())
}

/// Spelling, where the tool is installed: it is no part of the toolchain.
fn typos() -> Result<()> {
    let Ok(status) = Command::new("typos").current_dir(project_dir()).status() else {
        eprintln!(
            "check: typos is not installed, spelling is not checked (cargo install typos-cli)"
        );
        return Ok(());
    };
    if !status.success() {
        bail!("typos found spelling mistakes");
    }
    Ok(())
}

fn cargo(args: &[&str], complaint: &str) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // What cargo set for xtask itself: build scripts that watch it would run again, and nearly
    // every crate be built again after them.
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    let status = command
        .args(args)
        .current_dir(project_dir())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("{complaint}");
    }
    Ok(())
}

fn project_dir() -> PathBuf {
    // Asked when it runs: clones that share a target directory share this program too.
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.parent().unwrap_or(&here).to_path_buf()
}
