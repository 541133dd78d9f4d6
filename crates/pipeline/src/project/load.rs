//! Reads and checks the project file; every fault names line, key and the fix.

use std::path::{Path, PathBuf};

use alluvium_change::{Error, Result, code};
use alluvium_lake::{Compression, LakeSettings};
use alluvium_source_postgres::replication::Protocol;
use alluvium_source_postgres::tuples::Tuples;

use super::{
    Limits, LimitsFile, MergeMode, Project, ProjectFile, ProtocolFile, SourceFile, SourceSettings,
};

/// Reads the project file at `path`; a directory stands for the `alluvium.toml` in it.
///
/// # Errors
/// The file cannot be read, is not TOML, has an unknown key or a value that cannot be.
pub fn load(path: &Path) -> Result<Project> {
    let file = if path.is_dir() {
        path.join(super::FILE_NAME)
    } else {
        path.to_owned()
    };
    let text = std::fs::read_to_string(&file).map_err(|error| {
        Error::new(
            &code::CONFIG_READ,
            format!("cannot read project file \"{}\"", file.display()),
        )
        .with_detail(error.to_string())
    })?;
    let absolute = std::path::absolute(&file).unwrap_or(file);
    parse(&text, &absolute, |name| std::env::var(name).ok())
}

/// Parses a project file's text; `variable` looks up `${NAME}`.
///
/// # Errors
/// As [`load`].
pub fn parse(
    text: &str,
    file: &Path,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Project> {
    let written: ProjectFile = toml::from_str(text).map_err(|error| explain(text, file, &error))?;
    let dir = file
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    let mut sources = written.source.into_iter();
    let Some((name, source)) = sources.next() else {
        return Err(value_error(file, "there is no [source.<name>]", "add one"));
    };
    if sources.next().is_some() {
        return Err(value_error(
            file,
            "there is more than one [source.<name>]",
            "keep one source in a project; write a second project file for the other",
        ));
    }
    let expand = |text: &str| expand_variables(text, file, &variable);
    if written.commit.min_interval_ms > written.commit.max_interval_ms
        || written.commit.delta_checkpoint_every_commits == 0
    {
        return Err(value_error(
            file,
            "[commit] has an interval or count that cannot be",
            "min_interval_ms must not exceed max_interval_ms; delta_checkpoint_every_commits is at least 1",
        ));
    }
    for (table, settings) in &written.tables {
        if !table.contains('.') {
            return Err(value_error(
                file,
                &format!("[tables.\"{table}\"] does not name a schema"),
                &format!("write [tables.\"public.{table}\"]"),
            ));
        }
        if settings.commit_every.is_some() && settings.merge_mode != MergeMode::CopyOnWrite {
            return Err(value_error(
                file,
                &format!("commit_every of \"{table}\" has no effect"),
                "write merge_mode = \"copy_on_write\", or leave it out",
            ));
        }
        if !settings.key.is_empty() && settings.merge_mode == MergeMode::AppendOnly {
            return Err(value_error(
                file,
                &format!("\"{table}\" is append_only, and needs no key"),
                "leave out key, or merge_mode",
            ));
        }
        for column in &settings.metadata_columns {
            if !["_commit_lsn", "_commit_time", "_op"].contains(&column.as_str()) {
                return Err(value_error(
                    file,
                    &format!("metadata_columns of \"{table}\" has \"{column}\""),
                    "choose among \"_commit_lsn\", \"_commit_time\" and \"_op\"",
                ));
            }
        }
    }
    let limits = limits(&written.limits, file)?;
    Ok(Project {
        // Without the "." of "./lake".
        lake_path: dir.join(expand(&written.lake.path)?).components().collect(),
        compression: compression(written.lake.compression.as_deref(), file)?,
        source: source_settings(name, source, file, &dir, &expand)?,
        serve: written.serve.settings(&limits, file, &expand)?,
        limits,
        commit: written.commit,
        maintain: written.maintain.settings(file)?,
        tables: written.tables,
        pipeline: written.pipeline,
        file: file.to_owned(),
        dir,
    })
}

fn source_settings(
    name: String,
    source: SourceFile,
    file: &Path,
    dir: &Path,
    expand: &impl Fn(&str) -> Result<String>,
) -> Result<SourceSettings> {
    if source.kind != "postgres" {
        return Err(value_error(
            file,
            &format!("source \"{name}\" has type \"{}\"", source.kind),
            "write type = \"postgres\"",
        ));
    }
    let all = |items: &[String]| {
        items
            .iter()
            .map(|item| expand(item))
            .collect::<Result<Vec<_>>>()
    };
    let own = format!("alluvium_{}", identifier(&name));
    let slot = expand(source.slot.as_deref().unwrap_or(&own))?;
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if slot.is_empty() || slot.len() > 63 || !slot.chars().all(valid) {
        return Err(value_error(
            file,
            &format!("slot \"{slot}\" is not a name PostgreSQL takes"),
            "use lower-case letters, digits and underscores, at most 63",
        ));
    }
    let protocol = protocol(source.protocol.as_ref(), file)?;
    if source.two_phase && protocol == Protocol::V1 {
        return Err(value_error(
            file,
            "protocol = 1 has no two_phase",
            "write protocol = \"auto\", or leave two_phase out",
        ));
    }
    Ok(SourceSettings {
        url: expand(&source.url)?,
        password_file: source.password_file.map(|path| dir.join(path)),
        tables: all(&source.tables)?,
        exclude: all(&source.exclude)?,
        publication: expand(source.publication.as_deref().unwrap_or(&own))?,
        slot,
        protocol,
        tuples: tuples(source.tuples.as_deref(), file)?,
        two_phase: source.two_phase,
        name,
    })
}

fn protocol(written: Option<&ProtocolFile>, file: &Path) -> Result<Protocol> {
    match written {
        None => Ok(Protocol::Auto),
        Some(ProtocolFile::Word(word)) if word == "auto" => Ok(Protocol::Auto),
        Some(ProtocolFile::Version(1)) => Ok(Protocol::V1),
        Some(ProtocolFile::Version(2)) => Ok(Protocol::V2),
        Some(other) => {
            let other = match other {
                ProtocolFile::Version(version) => version.to_string(),
                ProtocolFile::Word(word) => format!("\"{word}\""),
            };
            Err(value_error(
                file,
                &format!("protocol = {other} is not known"),
                "write \"auto\", 1 or 2",
            ))
        }
    }
}

fn tuples(written: Option<&str>, file: &Path) -> Result<Tuples> {
    match written {
        None | Some("auto") => Ok(Tuples::Auto),
        Some("text") => Ok(Tuples::Text),
        Some("binary") => Ok(Tuples::Binary),
        Some(other) => Err(value_error(
            file,
            &format!("tuples = \"{other}\" is not known"),
            "write \"auto\", \"text\" or \"binary\"",
        )),
    }
}

fn compression(written: Option<&str>, file: &Path) -> Result<Compression> {
    let (codec, level) = match written.map(|text| text.split_once(':').unwrap_or((text, ""))) {
        None => return Ok(LakeSettings::default().compression),
        Some(parts) => parts,
    };
    let known = match (codec, level) {
        ("none", "") => Some(Compression::Uncompressed),
        ("snappy", "") => Some(Compression::Snappy),
        ("lz4", "") => Some(Compression::Lz4),
        ("zstd", "") => Some(Compression::Zstd(1)),
        ("zstd", level) => level
            .parse()
            .ok()
            .filter(|level| (1..=22).contains(level))
            .map(Compression::Zstd),
        _ => None,
    };
    known.ok_or_else(|| {
        let written = written.unwrap_or_default();
        value_error(
            file,
            &format!("[lake] compression = \"{written}\" is not known"),
            "write \"zstd\", \"zstd:3\" (levels 1 to 22), \"lz4\", \"snappy\" or \"none\"",
        )
    })
}

fn identifier(name: &str) -> String {
    let fold = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '_'
        }
    };
    name.chars().map(fold).take(50).collect()
}

fn limits(written: &LimitsFile, file: &Path) -> Result<Limits> {
    const LEAST_BYTES: u64 = 128 << 20;
    let memory_bytes = parse_bytes(&written.memory).ok_or_else(|| {
        value_error(
            file,
            &format!("[limits] memory = \"{}\" is not a size", written.memory),
            "write a number with a unit, such as \"512MiB\" or \"2GiB\"",
        )
    })?;
    if memory_bytes < LEAST_BYTES {
        return Err(Error::new(
            &code::MEMORY,
            format!("[limits] memory = \"{}\" is too small", written.memory),
        )
        .with_hint("give at least 128MiB"));
    }
    let index_memory_bytes = match &written.index_memory {
        None => memory_bytes / 4,
        Some(text) => parse_bytes(text).ok_or_else(|| {
            value_error(
                file,
                &format!("[limits] index_memory = \"{text}\" is not a size"),
                "write a number with a unit, such as \"256MiB\"",
            )
        })?,
    };
    if !(1..=64).contains(&written.copy_workers) {
        return Err(value_error(
            file,
            "[limits] copy_workers cannot be",
            "choose 1 to 64",
        ));
    }
    Ok(Limits {
        memory_bytes,
        index_memory_bytes,
        copy_workers: written.copy_workers,
    })
}

/// `"512MiB"`, `"1GB"`, `"1073741824"` as bytes.
pub(super) fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn expand_variables(
    text: &str,
    file: &Path,
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        expanded.push_str(before);
        let Some((name, tail)) = after.split_once('}') else {
            return Err(value_error(file, "a \"${\" has no \"}\"", "write ${NAME}"));
        };
        let value = variable(name).ok_or_else(|| {
            Error::new(
                &code::CONFIG_ENV,
                format!("environment variable \"{name}\" is not set"),
            )
            .with_detail(format!(
                "project file \"{}\" uses ${{{name}}}",
                file.display()
            ))
            .with_hint(format!("export {name}=..., or write the value in the file"))
        })?;
        expanded.push_str(&value);
        rest = tail;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

pub(super) fn value_error(file: &Path, message: &str, hint: &str) -> Error {
    Error::new(&code::CONFIG_VALUE, message.to_owned())
        .with_detail(format!("project file \"{}\"", file.display()))
        .with_hint(hint.to_owned())
}

fn explain(text: &str, file: &Path, error: &toml::de::Error) -> Error {
    let place = error.span().map_or_else(String::new, |span| {
        let before = text.get(..span.start).unwrap_or("");
        let line = before.matches('\n').count() + 1;
        // The key alone: a value may be a secret.
        let written = text.lines().nth(line - 1).unwrap_or("").trim();
        let key = written
            .split_once('=')
            .map_or(written, |(key, _)| key.trim_end());
        format!(", line {line}: {key}")
    });
    let detail = format!("project file \"{}\"{place}", file.display());
    let message = error.message();
    let Some(unknown) = message.strip_prefix("unknown field `") else {
        return Error::new(
            &code::CONFIG_SYNTAX,
            message.lines().collect::<Vec<_>>().join(" "),
        )
        .with_detail(detail);
    };
    let mut quoted = unknown.split('`').step_by(2);
    let key = quoted.next().unwrap_or("");
    let valid: Vec<&str> = unknown.split('`').skip(2).step_by(2).collect();
    let nearest = valid
        .iter()
        .min_by_key(|name| strsim::damerau_levenshtein(name, key));
    let hint = nearest.map_or_else(
        || code::CONFIG_KEY.hint.to_owned(),
        |nearest| {
            format!(
                "did you mean \"{nearest}\"? valid here: {}",
                valid.join(", ")
            )
        },
    );
    Error::new(&code::CONFIG_KEY, format!("unknown key \"{key}\""))
        .with_detail(detail)
        .with_hint(hint)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        reason = "tests fail by panicking"
    )]
    use super::*;

    const SMALL: &str = "[source.shop]\ntype = \"postgres\"\nurl = \"postgres://u@h/db\"\n\
                         [lake]\npath = \"./lake\"\n";

    fn read(text: &str) -> Result<Project> {
        parse(text, Path::new("/p/alluvium.toml"), |name| {
            (name == "SET").then(|| "value".to_owned())
        })
    }

    #[test]
    fn defaults_are_those_of_the_reference() {
        let project = read(SMALL).unwrap();
        assert_eq!(project.source.slot, "alluvium_shop");
        assert_eq!(project.source.publication, "alluvium_shop");
        assert_eq!(project.source.tables, ["public.*"]);
        assert_eq!(project.limits.memory_bytes, 1 << 30);
        assert_eq!(project.limits.index_memory_bytes, 1 << 28);
        assert_eq!(project.lake_path, Path::new("/p/lake"));
        assert_eq!(project.source.protocol, Protocol::Auto);
        let older = read(&SMALL.replace("[lake]", "protocol = 1\n[lake]")).unwrap();
        assert_eq!(older.source.protocol, Protocol::V1);
        assert_eq!(project.source.tuples, Tuples::Auto);
        let binary = read(&SMALL.replace("[lake]", "tuples = \"binary\"\n[lake]")).unwrap();
        assert_eq!(binary.source.tuples, Tuples::Binary);
        assert!(!project.source.two_phase);
        let prepared = read(&SMALL.replace("[lake]", "two_phase = true\n[lake]")).unwrap();
        assert!(prepared.source.two_phase);
        assert_eq!(project.compression, Compression::Zstd(1));
    }

    #[test]
    fn compression_is_a_codec_with_its_level() {
        let of = |text: &str| {
            let written = format!("compression = \"{text}\"\n[limits]");
            read(&format!("{SMALL}{written}")).map(|project| project.compression)
        };
        assert_eq!(of("zstd").unwrap(), Compression::Zstd(1));
        assert_eq!(of("zstd:22").unwrap(), Compression::Zstd(22));
        assert_eq!(of("lz4").unwrap(), Compression::Lz4);
        assert_eq!(of("snappy").unwrap(), Compression::Snappy);
        assert_eq!(of("none").unwrap(), Compression::Uncompressed);
        for wrong in ["", "gzip", "zstd:0", "zstd:23", "zstd:fast", "lz4:1"] {
            let error = of(wrong).unwrap_err();
            assert!(error.is(&code::CONFIG_VALUE), "{wrong}: {error}");
            assert!(error.hint().contains("zstd:3"), "{}", error.hint());
        }
    }

    #[test]
    fn an_unknown_key_names_its_line_and_the_nearest_valid_key() {
        let error = read(&SMALL.replace("url", "ulr")).unwrap_err();
        assert!(error.is(&code::CONFIG_KEY), "{error}");
        assert!(
            error.hint().contains("did you mean \"url\""),
            "{}",
            error.hint()
        );
        assert!(
            error.detail().unwrap().contains("line 3"),
            "{:?}",
            error.detail()
        );
    }

    #[test]
    fn variables_are_filled_in_or_named() {
        let project = read(&SMALL.replace("u@h", "${SET}@h")).unwrap();
        assert_eq!(project.source.url, "postgres://value@h/db");
        let error = read(&SMALL.replace("u@h", "${MISSING}@h")).unwrap_err();
        assert!(error.is(&code::CONFIG_ENV) && error.message().contains("MISSING"));
    }

    #[test]
    fn sizes_take_units() {
        assert_eq!(parse_bytes("512MiB"), Some(512 << 20));
        assert_eq!(parse_bytes("2 GB"), Some(2_000_000_000));
        assert_eq!(parse_bytes("12 parsecs"), None);
        assert_eq!(parse_bytes(""), None);
        assert_eq!(parse_bytes("99999999999999999999GiB"), None);
    }

    #[test]
    fn impossible_values_are_refused() {
        for (from, to) in [
            ("\"postgres\"", "\"oracle\""),
            ("[lake]", "protocol = 3\n[lake]"),
            ("[lake]", "protocol = \"2\"\n[lake]"),
            ("[lake]", "tuples = \"some\"\n[lake]"),
            ("[lake]", "protocol = 1\ntwo_phase = true\n[lake]"),
            ("[lake]", "two_phase = \"on\"\n[lake]"),
            ("[lake]", "[limits]\nmemory = \"1 parsec\"\n[lake]"),
            ("[lake]", "[limits]\nmemory = \"1MiB\"\n[lake]"),
            ("[lake]", "[limits]\nindex_memory = \"much\"\n[lake]"),
            ("[lake]", "[tables.orders]\n[lake]"),
            (
                "[lake]",
                "[tables.\"public.a\"]\nmetadata_columns = [\"x\"]\n[lake]",
            ),
            (
                "[lake]",
                "[commit]\nmin_interval_ms = 10\nmax_interval_ms = 1\n[lake]",
            ),
        ] {
            assert!(read(&SMALL.replace(from, to)).is_err(), "{to} was taken");
        }
    }
}
