//! Compiles `docs/errors/*.md` into the binary, for `alluvium errors CODE`.
#![allow(clippy::print_stdout, reason = "how a build script speaks to cargo")]

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pages = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../../docs/errors");
    println!("cargo::rerun-if-changed={}", pages.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(&pages).into_iter().flatten() {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            files.push(path.canonicalize()?);
        }
    }
    files.sort();
    let mut code = String::from("static PAGES: &[(&str, &str)] = &[\n");
    for file in files {
        let id = file
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        writeln!(
            code,
            "    ({id:?}, include_str!({:?})),",
            file.display().to_string()
        )?;
    }
    code.push_str("];\n");
    fs::write(
        Path::new(&env::var("OUT_DIR")?).join("error_pages.rs"),
        code,
    )?;
    Ok(())
}
