//! Serves the files of a directory through a read-only store of this program's own.
//!
//! Each file is an object with one revision: its record is the file's name, its blob the file. A
//! read-only [`Store`] needs seven methods. Everything that would write refuses by default.
//!
//! Blobs never change, so the files must not change while they are served.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blobferry_cache::{Cache, CacheConfig};
use blobferry_protocol::{BlobId, BlobInfo, Digest, HistoryEntry, Oid, RequestError, Revision, Tid, TxnMeta};
use blobferry_store::{MAX_LISTED, OpenBlob, Store, StoredRevision};
use blobferry_transport_tokio::{Client, ClientConfig, Server, ServerConfig};

/// The one transaction that has stored everything.
pub(crate) const TID: Tid = Tid(1);

/// A store of the files that were in a directory when it was opened.
pub(crate) struct DirectoryStore {
    files: BTreeMap<Oid, StoredFile>,
}

struct StoredFile {
    name: Vec<u8>,
    path: PathBuf,
    info: BlobInfo,
}

impl DirectoryStore {
    /// Reads all files of a directory once, for their digests. Oids follow the order of names.
    pub(crate) fn open(dir: &Path) -> io::Result<DirectoryStore> {
        let mut paths = fs::read_dir(dir)?
            .map(|entry| entry.map(|entry| entry.path()))
            .filter(|path| path.as_ref().map_or(true, |path| path.is_file()))
            .collect::<io::Result<Vec<PathBuf>>>()?;
        paths.sort();
        let files = (1..).map(Oid).zip(paths).map(|(oid, path)| Ok((oid, StoredFile::open(path)?)));
        Ok(DirectoryStore { files: files.collect::<io::Result<_>>()? })
    }

    fn find(&self, oid: Oid) -> Result<&StoredFile, RequestError> {
        self.files.get(&oid).ok_or(RequestError::NoSuchObject { oid })
    }
}

impl StoredFile {
    fn open(path: PathBuf) -> io::Result<StoredFile> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(&path)?)?;
        let info = BlobInfo { size: hasher.count(), digest: Digest(*hasher.finalize().as_bytes()) };
        let name = path.file_name().unwrap_or_default().as_encoded_bytes().to_vec();
        Ok(StoredFile { name, path, info })
    }

    fn revision(&self) -> Revision {
        Revision { tid: TID, next: None, data: self.name.clone(), blob: Some(self.info) }
    }
}

impl Store for DirectoryStore {
    fn last_tid(&self) -> Tid {
        if self.files.is_empty() { Tid::ZERO } else { TID }
    }

    fn load(&self, oid: Oid) -> Result<Revision, RequestError> {
        self.find(oid).map(StoredFile::revision)
    }

    fn load_before(&self, oid: Oid, before: Tid) -> Result<Option<Revision>, RequestError> {
        self.find(oid).map(|file| (before > TID).then(|| file.revision()))
    }

    fn load_serial(&self, oid: Oid, tid: Tid) -> Result<Revision, RequestError> {
        match self.find(oid) {
            Ok(file) if tid == TID => Ok(file.revision()),
            _ => Err(RequestError::NoSuchRevision { oid, tid }),
        }
    }

    fn history(&self, oid: Oid, limit: u32) -> Result<Vec<HistoryEntry>, RequestError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let file = self.find(oid)?;
        let size = Some(file.name.len() as u64);
        Ok(vec![HistoryEntry { tid: TID, meta: TxnMeta::default(), size, blob: Some(file.info) }])
    }

    fn revisions(&self, after: Option<(Tid, Oid)>, limit: u32) -> Result<Vec<StoredRevision>, RequestError> {
        let all = self.files.iter().map(|(oid, file)| StoredRevision {
            tid: TID,
            oid: *oid,
            size: Some(file.name.len() as u64),
            blob: Some(file.info),
        });
        let behind = all.filter(|revision| after.is_none_or(|after| (revision.tid, revision.oid) > after));
        Ok(behind.take(limit.min(MAX_LISTED) as usize).collect())
    }

    fn open_blob(&self, blob: BlobId) -> Result<OpenBlob, RequestError> {
        let stored = self.files.get(&blob.oid).filter(|_| blob.tid == TID);
        let StoredFile { path, info, .. } = stored.ok_or(RequestError::NoSuchBlob { blob })?;
        let damaged = |detail: String| RequestError::Damaged { blob, detail };
        let file = File::open(path).map_err(|error| damaged(format!("could not open its file: {error}")))?;
        let size = file.metadata().map_err(|error| damaged(error.to_string()))?.len();
        if size != info.size {
            return Err(damaged(format!("its file has {size} bytes, not {}", info.size)));
        }
        Ok(OpenBlob::File { info: *info, file, path: path.clone() })
    }
}

/// Serves a directory, and reads everything back as a client.
#[tokio::main]
pub(crate) async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let home = tempfile::tempdir()?;
    let dir = home.path().join("files");
    fs::create_dir(&dir)?;
    fs::write(dir.join("hello"), "hello world")?;
    fs::write(dir.join("large"), vec![7; 1 << 20])?;

    let store = Arc::new(DirectoryStore::open(&dir)?);
    let oids: Vec<Oid> = store.files.keys().copied().collect();
    let server = Server::bind("127.0.0.1:0", store, ServerConfig::default()).await?;
    let cache = Cache::open(home.path().join("cache"), CacheConfig::default())?;
    let client = Client::connect(server.local_addr(), cache, ClientConfig::default()).await?;
    for oid in oids {
        let revision = client.load(oid).await?;
        let name = String::from_utf8(revision.data)?;
        let cached = client.load_blob(BlobId { oid, tid: revision.tid }).await?;
        if fs::read(cached.path())? != fs::read(dir.join(&name))? {
            return Err(format!("{name} has arrived with other bytes").into());
        }
        println!("{name}: {} bytes have arrived as they are in the directory", cached.size());
    }
    client.close().await;
    server.stop().await;
    Ok(())
}
