//! Sources of the transfers that leave, read when the socket accepts bytes. The bytes of a file go to the socket inside
//! the kernel, with `sendfile` (zero-copy). If they must be hashed, they are read shortly before into a buffer that stays
//! in the processor's cache; that is cheaper than copying all of them to the socket.
//!
//! Bytes that change between hashing and sending are sent as they are then. The receiver hashes them as well, and refuses
//! them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use blobferry_platform::aligned_buf::AlignedBuf;
use blobferry_platform::os::FileStamp;
use blobferry_platform::progress::{OnProgress, Progress};
use blobferry_protocol::{BlobId, Digest, RequestError, Slice, TransferId};
use bytes::Bytes;
use rustix::io::Errno;

/// The source of one transfer: a file, or bytes in memory.
pub struct Source {
    bytes: SourceBytes,
    end: u64,
    hashing: Option<Box<Hashing>>,
    /// The file must still have this stamp when its last byte is read.
    unchanged: Option<FileStamp>,
    /// The stored blob, and the path of its file.
    stored: Option<Arc<Stored>>,
    /// The digest that all bytes must have when the last one is read.
    expected: Option<Digest>,
    progress: Option<OnProgress>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({:?} up to {})", self.bytes, self.end)
    }
}

#[derive(Debug)]
enum SourceBytes {
    Memory(Bytes),
    File(Arc<File>),
}

/// Hashes bytes that are read, or sent without being read.
#[derive(Debug, Default)]
struct Hashing {
    hasher: blake3::Hasher,
    /// A buffer for bytes that are read only to be hashed.
    buffer: Option<AlignedBuf>,
}

/// Bytes that are read at once only to be hashed.
const HASH_BUFFER: usize = 64 << 10;

impl Hashing {
    /// Hashes bytes that were read at an offset. Bytes that are read again after a lost connection are skipped.
    fn update(&mut self, offset: u64, read: &[u8]) {
        let known = self.hasher.count().saturating_sub(offset);
        let new = usize::try_from(known).ok().and_then(|known| read.get(known..));
        self.hasher.update(new.unwrap_or_default());
    }

    /// Hashes a slice of a file that is going to be sent without being read.
    fn hash_slice(&mut self, file: &File, slice: Slice) -> io::Result<()> {
        let (mut offset, end) = (self.hasher.count().max(slice.offset), slice.offset + slice.len);
        let block = self.buffer.get_or_insert_with(|| AlignedBuf::new(HASH_BUFFER));
        while offset < end {
            let len = usize::try_from(end - offset).map_or(HASH_BUFFER, |rest| rest.min(HASH_BUFFER));
            let buffer = block.get_mut(..len).unwrap_or_default();
            file.read_exact_at(buffer, offset)?;
            self.hasher.update(buffer);
            offset += len as u64;
        }
        Ok(())
    }

    fn digest(&self) -> Digest {
        Digest(*self.hasher.finalize().as_bytes())
    }
}

/// A stored blob, for error messages.
#[derive(Debug)]
struct Stored {
    blob: BlobId,
    path: PathBuf,
}

/// What is left of a slice of a file, to be sent with `sendfile`.
#[derive(Debug)]
pub struct FileSlice {
    file: Arc<File>,
    slice: Slice,
    stored: Option<Arc<Stored>>,
}

impl FileSlice {
    /// Returns the transfer.
    #[must_use]
    pub fn transfer(&self) -> TransferId {
        self.slice.transfer
    }

    /// Returns the bytes that are still to be sent.
    pub(super) fn left(&self) -> u64 {
        self.slice.len
    }

    /// Sends as many bytes as the socket accepts at once.
    pub(super) fn send(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        let (mut offset, most) = (self.slice.offset, usize::try_from(self.slice.len).unwrap_or(usize::MAX));
        match rustix::fs::sendfile(socket, &self.file, Some(&mut offset), most)? {
            0 if most > 0 => Err(ErrorKind::UnexpectedEof.into()),
            n => {
                self.slice.offset += n as u64;
                self.slice.len -= n as u64;
                Ok(n)
            }
        }
    }

    /// Appends what is left to a buffer.
    ///
    /// # Errors
    /// Why the file cannot be read: abort the transfer with it.
    pub(super) fn read(&self, into: &mut Vec<u8>) -> Result<(), RequestError> {
        let read = append(&self.file, self.slice, into);
        read.map_err(|error| unreadable(self.stored.as_deref(), not_read(&error)))
    }
}

fn not_read(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => "the file became shorter while it was read".into(),
        _ => format!("the file cannot be read: {error}"),
    }
}

fn unreadable(stored: Option<&Stored>, detail: String) -> RequestError {
    match stored {
        Some(Stored { blob, path }) => {
            RequestError::Damaged { blob: *blob, detail: format!("{}: {detail}", path.display()) }
        }
        None => RequestError::Source { detail },
    }
}

impl Source {
    /// Creates a source that reads a file up to the offset `end`.
    #[must_use]
    pub fn file(file: File, end: u64) -> Source {
        Source::new(SourceBytes::File(Arc::new(file)), end)
    }

    /// Creates a source of bytes in memory. Offsets are those of the whole blob; reading stops at `end`.
    #[must_use]
    pub fn memory(bytes: Bytes, end: u64) -> Source {
        Source::new(SourceBytes::Memory(bytes), end)
    }

    fn new(bytes: SourceBytes, end: u64) -> Source {
        Source { bytes, end, hashing: None, unchanged: None, stored: None, expected: None, progress: None }
    }

    /// Hashes the bytes as they are read, all of them from 0 on.
    #[must_use]
    pub fn hashed(mut self) -> Source {
        self.hashing = Some(Box::default());
        self
    }

    /// Fails if the file has another stamp when its last byte is read.
    #[must_use]
    pub fn unchanged(mut self, stamp: FileStamp) -> Source {
        self.unchanged = Some(stamp);
        self
    }

    /// Declares the file the stored copy of a blob: every error in reading it is reported as
    /// [`Damaged`](RequestError::Damaged).
    #[must_use]
    pub fn stored(mut self, blob: BlobId, path: PathBuf) -> Source {
        self.stored = Some(Arc::new(Stored { blob, path }));
        self
    }

    /// Hashes the bytes as they are read, all of them from 0 on, and fails instead of giving out the last of them if
    /// they do not have this digest: so the sender cannot be trusted to have sent the blob.
    #[must_use]
    pub fn expecting(mut self, digest: Digest) -> Source {
        self.expected = Some(digest);
        self.hashed()
    }

    /// Returns why the receiver refused the bytes. If the file has changed meanwhile, that is the reason to report.
    #[must_use]
    pub fn explain(&self, error: RequestError) -> RequestError {
        match (&error, self.check_unchanged()) {
            (RequestError::Mismatch { .. }, Err(detail)) => unreadable(self.stored.as_deref(), detail),
            _ => error,
        }
    }

    /// Reports progress after every read.
    #[must_use]
    pub fn on_progress(mut self, progress: Option<OnProgress>) -> Source {
        self.progress = progress;
        self
    }

    fn read(&mut self, slice: Slice, into: &mut Vec<u8>) -> Result<(), RequestError> {
        self.try_read(slice, into).map_err(|detail| unreadable(self.stored.as_deref(), detail))
    }

    /// Returns the slice of a file, hashed if it has to be. Returns `None` for bytes in memory.
    fn slice(&mut self, slice: Slice) -> Result<Option<FileSlice>, RequestError> {
        let SourceBytes::File(file) = &self.bytes else { return Ok(None) };
        let body = FileSlice { file: file.clone(), slice, stored: self.stored.clone() };
        let hashed = match &mut self.hashing {
            Some(hashing) => hashing.hash_slice(file, slice).map_err(|error| not_read(&error)),
            None => Ok(()),
        };
        let hashed = hashed.and_then(|()| self.have_read(slice));
        hashed.map_err(|detail| unreadable(self.stored.as_deref(), detail))?;
        Ok(Some(body))
    }

    fn report_progress(&self, slice: Slice) {
        if let Some(progress) = &self.progress {
            progress(Progress { done: slice.offset + slice.len, total: self.end });
        }
    }

    fn try_read(&mut self, slice: Slice, into: &mut Vec<u8>) -> Result<(), String> {
        let before = into.len();
        match &self.bytes {
            SourceBytes::Memory(bytes) => {
                let start = usize::try_from(slice.offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(usize::try_from(slice.len).unwrap_or(usize::MAX));
                into.extend_from_slice(bytes.get(start..end).ok_or("it is shorter than announced")?);
            }
            SourceBytes::File(file) => append(file, slice, into).map_err(|error| not_read(&error))?,
        }
        if let Some(hashing) = &mut self.hashing {
            hashing.update(slice.offset, into.get(before..).unwrap_or_default());
        }
        self.have_read(slice)
    }

    fn have_read(&self, slice: Slice) -> Result<(), String> {
        self.report_progress(slice);
        if slice.offset + slice.len == self.end { self.check_whole() } else { Ok(()) }
    }

    fn check_unchanged(&self) -> Result<(), String> {
        match (&self.bytes, self.unchanged) {
            (SourceBytes::File(file), Some(before)) if FileStamp::of(file).ok() != Some(before) => {
                Err("the file was changed while it was read".into())
            }
            _ => Ok(()),
        }
    }

    /// Checks what is known only after the last byte was read.
    fn check_whole(&self) -> Result<(), String> {
        self.check_unchanged()?;
        match (&self.hashing, self.expected) {
            (Some(hashing), Some(expected)) => {
                let found = hashing.digest();
                let wrong = || format!("its bytes have the digest {found}, not {expected}");
                if found == expected { Ok(()) } else { Err(wrong()) }
            }
            _ => Ok(()),
        }
    }
}

/// Appends a slice of a file to a buffer. The kernel writes into memory that is not initialized, which saves a pass of
/// zeros over every byte.
fn append(file: &File, slice: Slice, into: &mut Vec<u8>) -> io::Result<()> {
    /// Bytes behind the slice that may be read and dropped, at most.
    const MAX_EXCESS: usize = 4096;
    let len = usize::try_from(slice.len).unwrap_or(usize::MAX);
    let (start, end) = (into.len(), into.len().saturating_add(len));
    into.reserve_exact(len);
    if into.capacity() - end > MAX_EXCESS {
        into.resize(end, 0);
        return file.read_exact_at(into.get_mut(start..).unwrap_or_default(), slice.offset);
    }
    while into.len() < end {
        let offset = slice.offset + (into.len() - start) as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(into), offset) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    into.truncate(end);
    Ok(())
}

/// A transfer whose source was read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// The transfer.
    pub transfer: TransferId,
    /// The digest of its bytes, if they were hashed.
    pub digest: Option<Digest>,
}

/// The sources of one connection.
#[derive(Debug, Default)]
pub struct OutgoingTransfers {
    sources: BTreeMap<TransferId, Source>,
    drained: Vec<Drained>,
}

impl OutgoingTransfers {
    /// Adds the source of a transfer that has begun, until it is removed. A source without bytes must not be added.
    pub fn insert(&mut self, transfer: TransferId, source: Source) {
        self.sources.insert(transfer, source);
    }

    /// Removes the source of a transfer that is over.
    pub fn remove(&mut self, transfer: TransferId) {
        self.sources.remove(&transfer);
    }

    /// Takes the source of a transfer that was cut off.
    pub fn take(&mut self, transfer: TransferId) -> Option<Source> {
        self.sources.remove(&transfer)
    }

    /// Supplies a slice of a transfer. The bytes are appended to `into`; or, with `zero_copy` and if they are in a file, a
    /// file slice is returned, which the caller sends. If sending fails, abort the transfer.
    ///
    /// # Errors
    /// Why the source failed: abort the transfer with it. The source is dropped.
    pub fn give(
        &mut self,
        slice: Slice,
        into: &mut Vec<u8>,
        zero_copy: bool,
    ) -> Result<Option<FileSlice>, RequestError> {
        let transfer = slice.transfer;
        let source = self.sources.get_mut(&transfer);
        let source = source.ok_or_else(|| RequestError::Source { detail: "it is gone".into() })?;
        let file_slice = if zero_copy { source.slice(slice) } else { Ok(None) };
        let given = match file_slice {
            Ok(None) => source.read(slice, into).map(|()| None),
            file_slice => file_slice,
        };
        if given.is_err() {
            self.sources.remove(&transfer);
        } else if slice.offset + slice.len == source.end {
            let digest = source.hashing.as_ref().map(|hashing| hashing.digest());
            self.drained.push(Drained { transfer, digest });
        }
        given
    }

    /// Returns the transfers whose sources were read to their ends since the last call.
    pub fn take_drained(&mut self) -> Vec<Drained> {
        std::mem::take(&mut self.drained)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const T: TransferId = TransferId(1);

    fn slice(offset: u64, len: u64) -> Slice {
        Slice { transfer: T, offset, len }
    }

    fn take(outgoing: &mut OutgoingTransfers, slice: Slice, into: &mut Vec<u8>) -> Result<(), RequestError> {
        outgoing.give(slice, into, false).map(|body| assert!(body.is_none()))
    }

    fn outgoing(source: Source) -> OutgoingTransfers {
        let mut outgoing = OutgoingTransfers::default();
        outgoing.insert(T, source);
        outgoing
    }

    fn file(bytes: &[u8]) -> (tempfile::NamedTempFile, File) {
        let mut named = tempfile::NamedTempFile::new().unwrap();
        named.write_all(bytes).unwrap();
        let file = named.reopen().unwrap();
        (named, file)
    }

    #[test]
    fn source_is_hashed_while_it_is_read() {
        let (_named, file) = file(b"hello world");
        let mut outgoing = outgoing(Source::file(file, 11).hashed());
        let mut read = Vec::new();
        take(&mut outgoing, slice(0, 6), &mut read).unwrap();
        assert_eq!(&read, b"hello ");
        assert_eq!(outgoing.take_drained(), []);
        take(&mut outgoing, slice(6, 5), &mut read).unwrap();
        assert_eq!(&read, b"hello world");
        let digest = Some(Digest(*blake3::hash(b"hello world").as_bytes()));
        assert_eq!(outgoing.take_drained(), [Drained { transfer: T, digest }]);
        outgoing.remove(T);
        assert_eq!(outgoing.sources.len(), 0);
    }

    #[test]
    fn bytes_read_again_are_hashed_once() {
        let mut outgoing = outgoing(Source::memory(Bytes::from_static(b"hello world"), 11).hashed());
        take(&mut outgoing, slice(0, 8), &mut Vec::new()).unwrap();
        let mut again = OutgoingTransfers::default();
        again.insert(T, outgoing.take(T).unwrap());
        take(&mut again, slice(2, 3), &mut Vec::new()).unwrap();
        take(&mut again, slice(5, 6), &mut Vec::new()).unwrap();
        let digest = Some(Digest(*blake3::hash(b"hello world").as_bytes()));
        assert_eq!(again.take_drained(), [Drained { transfer: T, digest }]);
    }

    #[test]
    fn shortened_file_fails() {
        let (named, file) = file(b"hello world");
        named.as_file().set_len(5).unwrap();
        let mut outgoing = outgoing(Source::file(file, 11));
        let error = take(&mut outgoing, slice(0, 11), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("shorter"), "{error}");
        assert_eq!((outgoing.sources.len(), outgoing.take_drained()), (0, Vec::new()));
    }

    #[test]
    fn changed_file_fails_at_its_end() {
        let (mut named, file) = file(b"hello world");
        let stamp = FileStamp::of(&file).unwrap();
        let mut outgoing = outgoing(Source::file(file, 11).unchanged(stamp));
        take(&mut outgoing, slice(0, 5), &mut Vec::new()).unwrap();
        named.write_all(b" and more").unwrap();
        let error = take(&mut outgoing, slice(5, 6), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("changed"), "{error}");
    }

    #[test]
    fn damaged_blob_fails_before_its_last_byte() {
        let blob = BlobId { oid: blobferry_protocol::Oid(1), tid: blobferry_protocol::Tid(2) };
        let stored = |bytes: &[u8], end| {
            let (named, file) = file(bytes);
            let digest = Digest(*blake3::hash(b"hello world").as_bytes());
            let path = named.path().to_owned();
            (named, outgoing(Source::file(file, end).stored(blob, path).expecting(digest)))
        };
        let (_named, mut right) = stored(b"hello world", 11);
        take(&mut right, slice(0, 6), &mut Vec::new()).unwrap();
        take(&mut right, slice(6, 5), &mut Vec::new()).unwrap();
        assert_eq!(right.take_drained().len(), 1);

        for (bytes, wrong) in [(&b"hello_world"[..], "digest"), (b"hello", "shorter")] {
            let (_named, mut wrong_one) = stored(bytes, 11);
            let read = take(&mut wrong_one, slice(0, 6), &mut Vec::new());
            let read = read.and_then(|()| take(&mut wrong_one, slice(6, 5), &mut Vec::new()));
            let error = read.unwrap_err();
            assert!(matches!(error, RequestError::Damaged { blob: it, .. } if it == blob), "{error}");
            assert!(error.to_string().contains(wrong), "{error}");
            assert_eq!((wrong_one.sources.len(), wrong_one.take_drained()), (0, Vec::new()));
        }
    }

    #[test]
    fn file_slice_is_hashed_once_before_last_byte() {
        let bytes: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let digest = Digest(*blake3::hash(&bytes).as_bytes());
        let body = |outgoing: &mut OutgoingTransfers, offset, len| {
            outgoing.give(slice(offset, len), &mut Vec::new(), true).map(|body| body.unwrap().left())
        };
        let (mut named, first) = file(&bytes);
        let stamp = FileStamp::of(&first).unwrap();
        let mut outgoing = outgoing(Source::file(first, 300_000).hashed().unchanged(stamp));
        assert_eq!(body(&mut outgoing, 0, 100_000), Ok(100_000));
        // After a lost connection, a part is read for another one without zero-copy.
        assert_eq!(body(&mut outgoing, 50_000, 100_000), Ok(100_000));
        take(&mut outgoing, slice(150_000, 50_000), &mut Vec::new()).unwrap();
        assert_eq!(body(&mut outgoing, 200_000, 100_000), Ok(100_000));
        assert_eq!(outgoing.take_drained(), [Drained { transfer: T, digest: Some(digest) }]);

        // If the file changes between hashing and sending, the receiver finds that out.
        named.write_all(b"more").unwrap();
        let refused = RequestError::Mismatch { detail: "another digest".into() };
        let explained = outgoing.sources[&T].explain(refused.clone());
        assert!(explained.to_string().contains("changed"), "{explained}");
        assert_eq!(outgoing.sources[&T].explain(RequestError::Stopping), RequestError::Stopping);
        let error = body(&mut outgoing, 200_000, 100_000).unwrap_err();
        assert!(error.to_string().contains("changed"), "{error}");
        let (_named, fine) = file(&bytes);
        let stamp = FileStamp::of(&fine).unwrap();
        assert_eq!(Source::file(fine, 1).unchanged(stamp).explain(refused.clone()), refused);

        let blob = BlobId { oid: blobferry_protocol::Oid(1), tid: blobferry_protocol::Tid(2) };
        let source = Source::file(named.reopen().unwrap(), 300_000);
        let mut wrong =
            self::outgoing(source.stored(blob, named.path().to_owned()).expecting(Digest([7; 32])));
        assert_eq!(body(&mut wrong, 0, 200_000), Ok(200_000));
        let error = body(&mut wrong, 200_000, 100_000).unwrap_err();
        assert!(matches!(error, RequestError::Damaged { blob: it, .. } if it == blob), "{error}");
        assert_eq!((wrong.sources.len(), wrong.take_drained()), (0, Vec::new()));
    }

    #[test]
    fn memory_is_not_read_beyond_its_end() {
        let mut outgoing = outgoing(Source::memory(Bytes::from_static(b"hello"), 5));
        assert!(take(&mut outgoing, slice(3, 4), &mut Vec::new()).is_err());
    }

    #[test]
    fn append_reads_exactly_the_slice() {
        let bytes: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        let (_named, file) = file(&bytes);
        for (before, room) in [(0, 0), (10, 0), (10, 5_000), (10, 10_100), (10, 90_000)] {
            let mut into = Vec::with_capacity(before + room);
            into.resize(before, 9);
            append(&file, slice(777, 10_000), &mut into).unwrap();
            assert_eq!(into[..before], vec![9; before]);
            assert_eq!(into[before..], bytes[777..10_777], "with room for {room}");
        }
        for room in [0, 200_000] {
            let past = append(&file, slice(99_000, 1_001), &mut Vec::with_capacity(room)).unwrap_err();
            assert_eq!(past.kind(), ErrorKind::UnexpectedEof);
        }
    }
}
