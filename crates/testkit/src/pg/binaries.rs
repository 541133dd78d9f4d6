//! Which PostgreSQL versions are installed, and where.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

const OLDEST_MAJOR: u16 = 13;

/// The server programs of one major version.
#[derive(Debug, Clone)]
pub(super) struct Binaries {
    pub(super) major: u16,
    /// Holds `initdb` and `postgres`.
    pub(super) dir: PathBuf,
    from_distribution: bool,
}

impl Binaries {
    /// Each version once; the distribution's before a downloaded one.
    pub(super) fn all() -> BTreeMap<u16, Self> {
        let mut found = BTreeMap::new();
        let mut roots = vec![(PathBuf::from("/usr/lib/postgresql"), true)];
        roots.extend(download_dirs().into_iter().map(|dir| (dir, false)));
        for (root, from_distribution) in roots {
            for (major, dir) in majors_in(&root) {
                found.entry(major).or_insert(Self {
                    major,
                    dir,
                    from_distribution,
                });
            }
        }
        found
    }

    /// The wanted major version, or the newest of the distribution, or the newest of all.
    pub(super) fn find(major: Option<u16>) -> Result<Self> {
        let mut all = Self::all();
        if let Some(major) = major {
            let have: Vec<u16> = all.keys().copied().collect();
            return all.remove(&major).with_context(|| {
                format!("PostgreSQL {major} is not here, only {have:?}; get it with: tools/postgres-binaries {major}")
            });
        }
        let newest = all
            .values()
            .rev()
            .find(|binaries| binaries.from_distribution)
            .or_else(|| all.values().next_back());
        match newest {
            Some(binaries) => Ok(binaries.clone()),
            None => bail!(
                "no PostgreSQL server (13 or later) found; install one with: apt-get install postgresql"
            ),
        }
    }
}

/// Where `tools/postgres-binaries` puts them; the two must agree.
fn download_dirs() -> Vec<PathBuf> {
    let cache = std::env::var_os("ALLUVIUM_CACHE").map(PathBuf::from);
    let home_cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .map(|cache| cache.join("alluvium"));
    let shared = Some(PathBuf::from("/var/cache/alluvium"));
    [cache, shared, home_cache]
        .into_iter()
        .flatten()
        .map(|cache| cache.join("postgres"))
        .collect()
}

/// The versions below `root`, which has a directory `<major>/bin` for each.
fn majors_in(root: &Path) -> Vec<(u16, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(root) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let major: u16 = entry.file_name().to_str()?.parse().ok()?;
            let dir = entry.path().join("bin");
            let runnable =
                is_executable(&dir.join("initdb")) && is_executable(&dir.join("postgres"));
            (major >= OLDEST_MAJOR && runnable).then_some((major, dir))
        })
        .collect()
}

fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0)
}
