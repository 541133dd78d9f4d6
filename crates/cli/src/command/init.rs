//! `alluvium init`: a project file with every setting and its default.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use alluvium_change::{Error, Result, code};
use alluvium_pipeline::project::{self, InitAnswers};
use alluvium_source_postgres::connect::ConnectOptions;

use crate::args::Init;
use crate::print;

/// Writes the project file at `config`, asking for what the flags leave open.
pub(crate) fn init(config: &Path, init: &Init) -> Result<ExitCode> {
    let file = if config.is_dir() {
        config.join(project::FILE_NAME)
    } else {
        config.to_owned()
    };
    let exists = file.try_exists().unwrap_or(false);
    if exists && !init.force {
        return Err(Error::new(
            &code::USAGE,
            format!("\"{}\" exists already", file.display()),
        )
        .with_hint("keep it, or replace it with: alluvium init --force"));
    }
    let url = match &init.url {
        Some(url) => url.clone(),
        None => ask(
            "Connection url",
            "postgres://postgres@localhost:5432/postgres",
        )?,
    };
    let options = ConnectOptions::parse(&url, None)?;
    let source_name = match &init.source {
        Some(name) => name.clone(),
        None => ask("Name of this source", &name_of(&options.database))?,
    };
    let tables = match init.tables.as_slice() {
        [] => vec![ask("Tables (glob over schema.table)", "public.*")?],
        tables => tables.to_vec(),
    };
    let lake_path = match &init.lake {
        Some(lake) => lake.clone(),
        None => ask("Lake directory", "./lake")?,
    };
    let answers = InitAnswers {
        source_name,
        url,
        tables,
        lake_path,
    };
    let text = project::render_template(&answers);
    // What init writes must be what run reads.
    project::parse(&text, &file, |name| std::env::var(name).ok())?;
    std::fs::write(&file, text).map_err(|error| {
        Error::new(
            &code::CONFIG_READ,
            format!("cannot write \"{}\"", file.display()),
        )
        .with_detail(error.to_string())
        .with_hint("check the rights on the directory")
    })?;
    let config = if config == Path::new(project::FILE_NAME) {
        String::new()
    } else {
        format!(" --config {}", config.display())
    };
    print::write(&format!(
        "wrote {}\n\nNext steps:\n  alluvium doctor{config}    # is everything ready? each finding comes with its fix\n  \
         alluvium run{config}       # copy, then follow every change; stop with Ctrl-C\n  \
         alluvium sql{config} \"SELECT * FROM ...\"\n",
        file.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn name_of(database: &str) -> String {
    let name: String = database
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    if name.is_empty() {
        "source".to_owned()
    } else {
        name.to_ascii_lowercase()
    }
}

/// Asks a person; without one, the default is the answer.
fn ask(question: &str, default: &str) -> Result<String> {
    if !std::io::stdin().is_terminal() {
        return Ok(default.to_owned());
    }
    let failed = |error| Error::new(&code::USAGE, "cannot read the answer").with_source(error);
    eprint!("{question} [{default}]: ");
    std::io::stderr().flush().map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(failed)?;
    let answer = answer.trim();
    Ok(if answer.is_empty() {
        default.to_owned()
    } else {
        answer.to_owned()
    })
}
