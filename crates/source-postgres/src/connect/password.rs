//! Passwords from files: one that holds nothing else, and libpq's password file (`~/.pgpass`).

use std::path::Path;

use alluvium_change::{Error, Result, code};

use super::options::{ConnectOptions, Host};

/// A password file's answer.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) password: Option<String>,
    /// Why the file was not used.
    pub(super) note: Option<String>,
}

/// The content of `path` without the line end.
pub(super) fn read_password_file(path: &Path) -> Result<String> {
    let content = std::fs::read_to_string(path).map_err(|error| {
        Error::new(
            &code::CONFIG_READ,
            format!("cannot read password file \"{}\"", path.display()),
        )
        .with_hint("check password_file in the project file")
        .with_source(error)
    })?;
    Ok(content.trim_end_matches(['\r', '\n']).to_owned())
}

/// The first line of a libpq password file that fits. A missing file is no error.
pub(super) fn look_up(path: &Path, options: &ConnectOptions) -> Found {
    let Ok(metadata) = std::fs::metadata(path) else {
        return Found::default();
    };
    let ignored = |why: &str| Found {
        password: None,
        note: Some(format!(
            "password file \"{}\" was not used: {why}",
            path.display()
        )),
    };
    if !metadata.is_file() {
        return ignored("it is not a plain file");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        if metadata.permissions().mode() & 0o077 != 0 {
            return ignored("others may read it (it needs chmod 600)");
        }
    }
    match std::fs::read_to_string(path) {
        Ok(content) => Found {
            password: find(&content, options),
            note: None,
        },
        Err(error) => ignored(&error.to_string()),
    }
}

fn find(content: &str, options: &ConnectOptions) -> Option<String> {
    // libpq looks a socket in a default directory up as "localhost".
    let host = match &options.host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) if matches!(path.to_str(), Some("/var/run/postgresql" | "/tmp")) => {
            "localhost".to_owned()
        }
        Host::Unix(path) => path.to_string_lossy().into_owned(),
    };
    let port = options.port.to_string();
    let wanted = [
        host.as_str(),
        port.as_str(),
        &options.database,
        &options.user,
    ];
    content
        .lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let mut fields = Fields(line.trim_end_matches('\r'));
            for wanted in wanted {
                let (raw, text) = fields.next_field()?;
                if raw != "*" && text != wanted {
                    return None;
                }
            }
            Some(unescape(fields.0)).filter(|password| !password.is_empty())
        })
}

/// Fields separated by `:`; a backslash makes the next character ordinary.
struct Fields<'a>(&'a str);

impl<'a> Fields<'a> {
    /// The next field but the last, as written and unescaped.
    fn next_field(&mut self) -> Option<(&'a str, String)> {
        let mut escaped = false;
        let end = self.0.find(|c: char| {
            let is_end = c == ':' && !escaped;
            escaped = c == '\\' && !escaped;
            is_end
        })?;
        let (raw, rest) = self.0.split_at_checked(end)?;
        self.0 = rest.strip_prefix(':')?;
        Some((raw, unescape(raw)))
    }
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        plain.push(if c == '\\' {
            chars.next().unwrap_or(c)
        } else {
            c
        });
    }
    plain
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn options(url: &str) -> ConnectOptions {
        ConnectOptions::parse_with(url, None, &|_| None).unwrap()
    }

    #[test]
    fn lines_match_in_order_with_wildcards_and_escapes() {
        let file = "# comment\n\
                    short:line\n\
                    other:5432:shop:anna:wrong\n\
                    db:5432:shop:an\\:na:with\\:colon\\\\\n\
                    db:*:*:anna:star\n\
                    localhost:5432:*:*:socket\n\
                    *:*:*:*:last:with:colons\n";
        let find = |url| find(file, &options(url));
        assert_eq!(
            find("postgres://an%3Ana@db/shop").as_deref(),
            Some("with:colon\\")
        );
        assert_eq!(find("postgres://anna@db:77/x").as_deref(), Some("star"));
        assert_eq!(find("postgres://x@%2Ftmp/y").as_deref(), Some("socket"));
        assert_eq!(
            find("postgres://x@%2Fsrv/y").as_deref(),
            Some("last:with:colons")
        );
    }

    #[test]
    fn a_file_others_may_read_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pass");
        std::fs::write(&path, "*:*:*:*:secret\n").unwrap();
        let o = options("postgres://u@h/d");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let found = look_up(&path, &o);
        assert!(found.password.is_none() && found.note.unwrap().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(look_up(&path, &o).password.as_deref(), Some("secret"));
        assert!(look_up(&directory.path().join("none"), &o).note.is_none());
    }

    #[test]
    fn a_password_file_loses_its_line_end_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pw");
        std::fs::write(&path, " a b \r\n").unwrap();
        assert_eq!(read_password_file(&path).unwrap(), " a b ");
        assert!(read_password_file(&directory.path().join("none")).is_err());
    }
}
