//! The local file system as an object store whose writes are durable.
//!
//! Delta checkpoints, `_last_checkpoint` and `.crc` are written by the kernel's engine through an
//! object store, which syncs nothing by itself: after a power cut a checkpoint could be torn, and
//! whoever lists the log would find it. Commits themselves do not pass here (see `committer`).

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    Attributes, CopyMode, CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, UploadPart,
};

use crate::fs::{Link, WholeFile};

/// [`LocalFileSystem`] in which a file that is written is whole and durable, or not there.
#[derive(Debug)]
pub(super) struct DurableStore {
    files: LocalFileSystem,
}

impl DurableStore {
    pub(super) fn new() -> Self {
        Self {
            files: LocalFileSystem::new(),
        }
    }

    fn file_path(&self, location: &Path) -> Result<PathBuf> {
        self.files.path_to_filesystem(location)
    }
}

impl fmt::Display for DurableStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DurableStore")
    }
}

/// The kernel puts listed paths into URLs as they are: a `%` in a directory's name would be decoded
/// there, and name another directory.
fn for_url(mut meta: ObjectMeta) -> ObjectMeta {
    let location = meta.location.as_ref();
    if location.contains('%')
        && let Ok(encoded) = Path::parse(location.replace('%', "%25"))
    {
        meta.location = encoded;
    }
    meta
}

/// A whole file, opened at once: the log of a table is many small files, and handing each over to
/// another thread would cost more than opening it.
fn open_whole(path: PathBuf, location: &Path) -> std::io::Result<GetResult> {
    let file = std::fs::File::open(&path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    let meta = ObjectMeta {
        location: location.clone(),
        last_modified: metadata.modified()?.into(),
        size: metadata.len(),
        e_tag: None,
        version: None,
    };
    Ok(GetResult {
        payload: GetResultPayload::File(file, path),
        range: 0..meta.size,
        attributes: Attributes::default(),
        meta,
    })
}

/// The files of a directory that come after `offset`. Others are not looked at: of a log with many
/// commits, the last few are asked for again and again. Directories in it have nothing of a log.
fn list_after(
    dir: &std::path::Path,
    prefix: Option<&Path>,
    offset: &Path,
) -> Vec<Result<ObjectMeta>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(e) => return vec![Err(generic(e))],
    };
    let mut listed = Vec::new();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                listed.push(Err(generic(e)));
                continue;
            }
        };
        let name = entry.file_name();
        let location = name
            .to_str()
            .map(|name| prefix.cloned().unwrap_or_default().join(name));
        let Some(location) = location.filter(|location| location > offset) else {
            continue;
        };
        match entry.metadata() {
            Ok(metadata) if metadata.is_file() => listed.push(Ok(ObjectMeta {
                location,
                last_modified: metadata.modified().unwrap_or(std::time::UNIX_EPOCH).into(),
                size: metadata.len(),
                e_tag: None,
                version: None,
            })),
            Ok(_) => {}
            // It was removed meanwhile.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => listed.push(Err(generic(e))),
        }
    }
    listed
}

/// Asked for as it is, without conditions.
fn is_plain(options: &GetOptions) -> bool {
    matches!(
        options,
        GetOptions {
            if_match: None,
            if_none_match: None,
            if_modified_since: None,
            if_unmodified_since: None,
            range: None,
            version: None,
            head: false,
            ..
        }
    )
}

fn generic(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> object_store::Error {
    object_store::Error::Generic {
        store: "durable",
        source: error.into(),
    }
}

/// Gives a file that is written its name, as `mode` has it.
fn publish(file: WholeFile, location: &Path, mode: &PutMode) -> Result<PutResult> {
    let replaces = match mode {
        PutMode::Overwrite => true,
        PutMode::Create => false,
        PutMode::Update(_) => {
            return Err(object_store::Error::NotImplemented {
                operation: "update".to_owned(),
                implementer: "DurableStore".to_owned(),
            });
        }
    };
    match file.publish(replaces).map_err(generic)? {
        Link::Made => Ok(PutResult {
            e_tag: None,
            version: None,
        }),
        Link::Taken => Err(object_store::Error::AlreadyExists {
            path: location.to_string(),
            source: "the name is taken".into(),
        }),
    }
}

#[async_trait]
impl ObjectStore for DurableStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let mut file = WholeFile::create(&self.file_path(location)?).map_err(generic)?;
        for bytes in &payload {
            file.write(bytes).map_err(generic)?;
        }
        publish(file, location, &opts.mode)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let file = WholeFile::create(&self.file_path(location)?).map_err(generic)?;
        Ok(Box::new(DurableUpload {
            location: location.clone(),
            file: Some(file),
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        // What cannot be opened gets its error below.
        if location.extension() == Some("json")
            && is_plain(&options)
            && let Ok(opened) = open_whole(self.file_path(location)?, location)
        {
            return Ok(opened);
        }
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix).map_ok(for_url).boxed()
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let listed = match self.file_path(prefix.unwrap_or(&Path::ROOT)) {
            Ok(dir) => list_after(&dir, prefix, offset),
            Err(error) => vec![Err(error)],
        };
        futures::stream::iter(listed).map_ok(for_url).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let bytes = self
            .get_opts(from, GetOptions::default())
            .await?
            .bytes()
            .await?;
        let mode = match options.mode {
            CopyMode::Overwrite => PutMode::Overwrite,
            CopyMode::Create => PutMode::Create,
        };
        self.put_opts(to, bytes.into(), mode.into()).await?;
        Ok(())
    }
}

/// A file that comes in parts, in order.
#[derive(Debug)]
struct DurableUpload {
    location: Path,
    /// None when it is complete, or was given up.
    file: Option<WholeFile>,
}

impl DurableUpload {
    fn ended(&self) -> object_store::Error {
        generic(format!("\"{}\" is no longer written", self.location))
    }
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let written = match &mut self.file {
            Some(file) => data
                .iter()
                .try_for_each(|bytes| file.write(bytes))
                .map_err(generic),
            None => Err(self.ended()),
        };
        Box::pin(std::future::ready(written))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let file = self.file.take().ok_or_else(|| self.ended())?;
        publish(file, &self.location, &PutMode::Overwrite)
    }

    async fn abort(&mut self) -> Result<()> {
        self.file = None;
        Ok(())
    }
}
