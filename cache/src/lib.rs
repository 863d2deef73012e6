//! A machine's cache of blobs, which many processes share, and each of them may die at any moment.
//!
//! A blob is immutable, so each machine downloads it at most once. A program claims a blob, and
//! gets either the blob or the right and the duty to download it. All other claims wait meanwhile:
//! of threads of the same process, and of other processes that have the directory open. No claim
//! polls, and none waits forever. If the downloading process dies, the next claim takes over, and
//! continues with the bytes that have arrived. A [follower](Cache::follow) reads a blob while it is
//! being downloaded.
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
//! // The first claim gets the download. The bytes come from a server; here they are constants.
//! let Claim::Download(mut download) = cache.claim(blob)? else { panic!("in the cache already?") };
//! download.start(0, 11)?; // from the first of 11 bytes
//! download.write(b"hello ")?;
//! download.write(b"world")?;
//! let digest = Digest(*blake3::hash(b"hello world").as_bytes());
//! let cached = download.finish(digest)?; // verifies size and digest; only now it is visible
//! assert_eq!(std::io::read_to_string(cached.file())?, "hello world");
//!
//! // Later claims get the file.
//! let Claim::Hit(cached) = cache.claim(blob)? else { panic!("not in the cache?") };
//! assert_eq!(cached.size(), 11);
//!
//! // The files of a transaction are in the cache when the transaction is finished.
//! # let report = home.path().join("report");
//! # std::fs::write(&report, "42")?;
//! let mut buffer = cache.buffer();
//! let buffered = buffer.take(Oid(8), &report, Take::Copy)?;
//! assert_eq!(buffered.size(), 2); // send it to the server, vote, and get the tid
//! let cached = buffer.finish(Tid(2))?;
//! assert_eq!(cached[0].blob(), BlobId { oid: Oid(8), tid: Tid(2) });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Guarantees
//!
//! * A file under a blob's name has all of the blob's bytes, whatever process died while it was
//!   made, and after a power cut.
//! * A machine has at most one download of a blob at a time. If the downloading process dies, the
//!   bytes that have arrived need not be sent again.
//! * A follower reports the end only if the blob is in the cache, and the bytes that it returned
//!   were the blob's.
//! * A blob that was handed out stays readable, whatever happens to the cache.
//! * No lock file is ever deleted, so no two processes hold the same lock.
//!
//! # Overview
//!
//! [`Cache`] is the cache: [`Cache::claim`] for reading, [`Cache::follow`] for reading along,
//! [`Cache::buffer`] for writing. [`Layout`] is the directory, and [`BlobWriter`] a file that is
//! being filled; servers use these two as well.

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
