//! The operating system's user that runs the server: PostgreSQL refuses root.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

#[derive(Debug, Clone, Copy)]
pub(super) struct OsUser {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl OsUser {
    /// `None` when this process may run the server itself; for root `postgres`, else `nobody`.
    pub(super) fn for_server() -> Result<Option<Self>> {
        // The owner of our own entry in /proc is who we are, without an unsafe call.
        if fs::metadata("/proc/self")
            .context("cannot read /proc/self")?
            .uid()
            != 0
        {
            return Ok(None);
        }
        let passwd = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        let find = |name: &str| {
            passwd.lines().find_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                let [user, _, uid, gid, ..] = fields.as_slice() else {
                    return None;
                };
                (*user == name).then_some(())?;
                Some(Self {
                    uid: uid.parse().ok()?,
                    gid: gid.parse().ok()?,
                })
            })
        };
        match find("postgres").or_else(|| find("nobody")) {
            Some(user) => Ok(Some(user)),
            None => bail!("running as root, and there is no user \"postgres\" or \"nobody\""),
        }
    }
}

/// A directory for temporary files that `user` can enter.
pub(super) fn enterable_temp_dir(user: Option<&OsUser>) -> Result<PathBuf> {
    let usual = std::env::temp_dir();
    if user.is_none() {
        return Ok(usual);
    }
    [usual, PathBuf::from("/tmp"), PathBuf::from("/var/tmp")]
        .into_iter()
        .find(|dir| others_may_enter(dir))
        .context("no directory for temporary files that other users may enter")
}

fn others_may_enter(dir: &Path) -> bool {
    const OTHERS_EXECUTE: u32 = 0o001;
    dir.canonicalize().is_ok_and(|dir| {
        dir.ancestors()
            .all(|part| fs::metadata(part).is_ok_and(|meta| meta.mode() & OTHERS_EXECUTE != 0))
    })
}
