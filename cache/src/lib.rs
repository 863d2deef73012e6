//! A machine's cache of blobs, shared by many processes that may die at any moment.
//!
//! A blob is immutable, so it needs to be downloaded once a machine. Whoever wants one claims it, and is either given
//! it, or told to download it while everybody else waits: threads of the same process, and other processes that
//! have the directory open. Nobody polls, and nobody is left waiting: should the downloader die, the next one takes
//! over, and goes on with the bytes that are there. Who does not want to wait for the end reads along meanwhile.
//!
//! ```
//! use blobferry_cache::{Cache, CacheConfig, Claim, Take};
//! use blobferry_protocol::{BlobId, Digest, Oid, Tid};
//!
//! # let home = tempfile::tempdir()?;
//! # let dir = home.path().join("cache");
//! let cache = Cache::open(&dir, CacheConfig::default())?;
//! let blob = BlobId { oid: Oid(7), tid: Tid(1) };
//!
//! // The first one who wants it downloads it. The bytes come from a server; here they are just there.
//! let Claim::Download(mut download) = cache.claim(blob)? else { panic!("it is there already?") };
//! download.start(0, 11)?; // from the first of 11 bytes
//! download.write(b"hello ")?;
//! download.write(b"world")?;
//! let digest = Digest(*blake3::hash(b"hello world").as_bytes());
//! let cached = download.finish(digest)?; // checks size and digest; only now is it visible
//! assert_eq!(std::io::read_to_string(cached.file())?, "hello world");
//!
//! // Everybody after that is given the file.
//! let Claim::Hit(cached) = cache.claim(blob)? else { panic!("it is not there?") };
//! assert_eq!(cached.size(), 11);
//!
//! // What is written in a transaction is in the cache when the transaction is finished.
//! # let report = home.path().join("report");
//! # std::fs::write(&report, "42")?;
//! let mut buffer = cache.buffer();
//! let buffered = buffer.take(Oid(8), &report, Take::Copy)?;
//! assert_eq!(buffered.size(), 2); // now send it to the server, vote, and get its tid
//! let cached = buffer.finish(Tid(2))?;
//! assert_eq!(cached[0].blob(), BlobId { oid: Oid(8), tid: Tid(2) });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is promised
//!
//! * A file under a blob's name has all of the blob's bytes, whoever died while it was made, and after a power cut.
//! * At most one download of a blob at a time, on one machine. Bytes that have arrived need not be sent again because
//!   their downloader has died.
//! * Who reads along reads the end only when the blob is there and what it has read were its bytes.
//! * A blob that was handed out stays readable, whatever happens to the cache.
//! * No lock file is ever deleted, so no two processes hold the same lock.
//!
//! # What is in the house
//!
//! [`Layout`] is the directory, and [`BlobWriter`] a file that is being filled: servers use these two as well.
//! [`Cache`] is the rest: [`Cache::claim`] for reading, [`Cache::follow`] for reading along, [`Cache::buffer`] for writing.

mod blob_name;
mod cache;
mod cache_dir;
mod cached_blob;
mod claim;
mod error;
mod follow;
mod lock;
mod maintenance;
mod quota;
#[cfg(test)]
#[cfg(feature = "shuttle")]
mod schedules;
mod segments;
mod transaction_buffer;
mod verified;

pub use blobferry_platform::blobdir::{BlobFile, BlobWriter, Layout, LayoutError, WriteError};
pub use cache::{Cache, CacheConfig};
pub use cached_blob::CachedBlob;
pub use claim::Claim;
pub use claim::download::Download;
pub use claim::small::SmallClaim;
pub use error::CacheError;
pub use follow::Follow;
pub use follow::end::{FollowEnd, FollowError};
pub use maintenance::verify::Verified;
pub use maintenance::{CacheEntry, Evicted, Usage};
pub use transaction_buffer::{Buffered, Take, TransactionBuffer};
