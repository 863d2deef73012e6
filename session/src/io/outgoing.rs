//! Sources: where transfers that leave come from, read when the socket takes them. What is in a file is lent: it goes from
//! there to the socket inside the kernel. Where it is to be hashed as well, it is read a little before, for that alone, into
//! a buffer that stays in the processor's cache: that costs less than to copy all of it to the socket.
//!
//! So bytes that change in between are sent as they are then. The receiver, who hashes for itself, refuses them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use blobferry_protocol::{BlobId, Digest, RequestError, Slice, TransferId};
use bytes::Bytes;
use rustix::io::Errno;

use blobferry_platform::aligned_buf::AlignedBuf;
use blobferry_platform::os::FileStamp;
use blobferry_platform::progress::{OnProgress, Progress};

/// Where the bytes of one transfer come from.
pub struct Source {
    bytes: SourceBytes,
    end: u64,
    hashing: Option<Box<Hashing>>,
    /// The file must be like this when the last byte was read.
    unchanged: Option<FileStamp>,
    /// The blob that is kept there, and where that is.
    kept: Option<Arc<Kept>>,
    /// What the bytes must have hashed to when the last one was read.
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

/// Hashes what is read, or lent.
#[derive(Debug, Default)]
struct Hashing {
    hasher: blake3::Hasher,
    /// Where bytes that are lent are read to.
    buffer: Option<AlignedBuf>,
}

/// Bytes that are read at once only to be hashed.
const HASHED: usize = 64 << 10;

impl Hashing {
    /// Bytes from an offset on were read. What is read again, because a connection was lost, was hashed before.
    fn update(&mut self, offset: u64, read: &[u8]) {
        let known = self.hasher.count().saturating_sub(offset);
        let new = usize::try_from(known).ok().and_then(|known| read.get(known..));
        self.hasher.update(new.unwrap_or_default());
    }

    /// Reads bytes that are going to be lent.
    fn look_at(&mut self, file: &File, slice: Slice) -> io::Result<()> {
        let (mut offset, end) = (self.hasher.count().max(slice.offset), slice.offset + slice.len);
        let block = self.buffer.get_or_insert_with(|| AlignedBuf::new(HASHED));
        while offset < end {
            let len = usize::try_from(end - offset).map_or(HASHED, |rest| rest.min(HASHED));
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

#[derive(Debug)]
struct Kept {
    blob: BlobId,
    path: PathBuf,
}

/// A slice of a file that is to go from there to a socket, and what is left of it.
#[derive(Debug)]
pub struct FileSlice {
    file: Arc<File>,
    slice: Slice,
    kept: Option<Arc<Kept>>,
}

impl FileSlice {
    /// The transfer.
    #[must_use]
    pub fn transfer(&self) -> TransferId {
        self.slice.transfer
    }

    /// Bytes that are still to be moved.
    pub(super) fn left(&self) -> u64 {
        self.slice.len
    }

    /// Moves as many bytes as the socket takes at once.
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
    /// Why the file can not be read: abort the transfer with it.
    pub(super) fn read(&self, into: &mut Vec<u8>) -> Result<(), RequestError> {
        let read = append(&self.file, self.slice, into);
        read.map_err(|error| unreadable(self.kept.as_deref(), not_read(&error)))
    }
}

fn not_read(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => "the file became shorter while it was read".into(),
        _ => format!("the file can not be read: {error}"),
    }
}

fn unreadable(kept: Option<&Kept>, detail: String) -> RequestError {
    match kept {
        Some(Kept { blob, path }) => {
            RequestError::Damaged { blob: *blob, detail: format!("{}: {detail}", path.display()) }
        }
        None => RequestError::Source { detail },
    }
}

impl Source {
    /// A file that is read up to the offset `end`.
    #[must_use]
    pub fn file(file: File, end: u64) -> Source {
        Source::new(SourceBytes::File(Arc::new(file)), end)
    }

    /// Bytes in memory; offsets are those of the whole blob, `end` is where reading stops.
    #[must_use]
    pub fn memory(bytes: Bytes, end: u64) -> Source {
        Source::new(SourceBytes::Memory(bytes), end)
    }

    fn new(bytes: SourceBytes, end: u64) -> Source {
        Source { bytes, end, hashing: None, unchanged: None, kept: None, expected: None, progress: None }
    }

    /// Hashes the bytes as they are read, all of them from 0 on.
    #[must_use]
    pub fn hashed(mut self) -> Source {
        self.hashing = Some(Box::default());
        self
    }

    /// Fails if the file does not look like this any more when its last byte was read.
    #[must_use]
    pub fn unchanged(mut self, stamp: FileStamp) -> Source {
        self.unchanged = Some(stamp);
        self
    }

    /// The file is the only copy of a blob that others rely on: whatever is wrong with it is damage, and told as
    /// [`Damaged`](RequestError::Damaged).
    #[must_use]
    pub fn kept(mut self, blob: BlobId, path: PathBuf) -> Source {
        self.kept = Some(Arc::new(Kept { blob, path }));
        self
    }

    /// Hashes the bytes as they are read, all of them from 0 on, and fails instead of giving out the last of them if
    /// they do not have this digest: so who sends them can not be believed to have sent the blob.
    #[must_use]
    pub fn expecting(mut self, digest: Digest) -> Source {
        self.expected = Some(digest);
        self.hashed()
    }

    /// Why the receiver did not want what was sent: a file that has changed behind our back is the reason that helps.
    #[must_use]
    pub fn explain(&self, error: RequestError) -> RequestError {
        match (&error, self.check_unchanged()) {
            (RequestError::Mismatch { .. }, Err(detail)) => unreadable(self.kept.as_deref(), detail),
            _ => error,
        }
    }

    /// Tells how far it is after every read.
    #[must_use]
    pub fn on_progress(mut self, progress: Option<OnProgress>) -> Source {
        self.progress = progress;
        self
    }

    fn read(&mut self, slice: Slice, into: &mut Vec<u8>) -> Result<(), RequestError> {
        self.try_read(slice, into).map_err(|detail| unreadable(self.kept.as_deref(), detail))
    }

    /// Lends what is in a file.
    fn lend(&mut self, slice: Slice) -> Result<Option<FileSlice>, RequestError> {
        let SourceBytes::File(file) = &self.bytes else { return Ok(None) };
        let body = FileSlice { file: file.clone(), slice, kept: self.kept.clone() };
        let looked = match &mut self.hashing {
            Some(hashing) => hashing.look_at(file, slice).map_err(|error| not_read(&error)),
            None => Ok(()),
        };
        let looked = looked.and_then(|()| self.have_read(slice));
        looked.map_err(|detail| unreadable(self.kept.as_deref(), detail))?;
        Ok(Some(body))
    }

    fn tell_progress(&self, slice: Slice) {
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
        self.tell_progress(slice);
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

    /// What can be said only when the last byte was read.
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

/// Appends a slice of a file to a buffer. The kernel fills memory that was never written to: to fill that with zeros
/// first would be one more pass over every byte.
fn append(file: &File, slice: Slice, into: &mut Vec<u8>) -> io::Result<()> {
    /// So many bytes may be read in vain behind the slice.
    const VAIN: usize = 4096;
    let len = usize::try_from(slice.len).unwrap_or(usize::MAX);
    let (start, end) = (into.len(), into.len().saturating_add(len));
    into.reserve_exact(len);
    if into.capacity() - end > VAIN {
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

/// A source that was read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// The transfer.
    pub transfer: TransferId,
    /// The digest of its bytes, where they were hashed.
    pub digest: Option<Digest>,
}

/// The sources of one connection.
#[derive(Debug, Default)]
pub struct OutgoingTransfers {
    outlets: BTreeMap<TransferId, Source>,
    drained: Vec<Drained>,
}

impl OutgoingTransfers {
    /// Has the source of a transfer that has begun; it is kept until it is removed. One without bytes must not be inserted.
    pub fn insert(&mut self, transfer: TransferId, source: Source) {
        self.outlets.insert(transfer, source);
    }

    /// Drops the source of a transfer that is over.
    pub fn remove(&mut self, transfer: TransferId) {
        self.outlets.remove(&transfer);
    }

    /// Gives back the source of a transfer that was cut off.
    pub fn take(&mut self, transfer: TransferId) -> Option<Source> {
        self.outlets.remove(&transfer)
    }

    /// Gives what is to be sent: appended to a buffer, or, where that is wanted and it is in a file, lent: then the caller
    /// moves it to the socket. If that fails, abort the transfer.
    ///
    /// # Errors
    /// Why the source fails: abort the transfer with it. The source is dropped.
    pub fn give(
        &mut self,
        slice: Slice,
        into: &mut Vec<u8>,
        lend: bool,
    ) -> Result<Option<FileSlice>, RequestError> {
        let transfer = slice.transfer;
        let source = self.outlets.get_mut(&transfer);
        let source = source.ok_or_else(|| RequestError::Source { detail: "it is gone".into() })?;
        let lent = if lend { source.lend(slice) } else { Ok(None) };
        let given = match lent {
            Ok(None) => source.read(slice, into).map(|()| None),
            lent => lent,
        };
        if given.is_err() {
            self.outlets.remove(&transfer);
        } else if slice.offset + slice.len == source.end {
            let digest = source.hashing.as_ref().map(|hashing| hashing.digest());
            self.drained.push(Drained { transfer, digest });
        }
        given
    }

    /// The sources that were read to their ends since the last call.
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

    fn take(outlets: &mut OutgoingTransfers, slice: Slice, into: &mut Vec<u8>) -> Result<(), RequestError> {
        outlets.give(slice, into, false).map(|lent| assert!(lent.is_none()))
    }

    fn outlets(source: Source) -> OutgoingTransfers {
        let mut outlets = OutgoingTransfers::default();
        outlets.insert(T, source);
        outlets
    }

    fn file(bytes: &[u8]) -> (tempfile::NamedTempFile, File) {
        let mut named = tempfile::NamedTempFile::new().unwrap();
        named.write_all(bytes).unwrap();
        let file = named.reopen().unwrap();
        (named, file)
    }

    #[test]
    fn a_source_is_read_in_pieces_and_hashed_on_the_way() {
        let (_named, file) = file(b"hello world");
        let mut outlets = outlets(Source::file(file, 11).hashed());
        let mut read = Vec::new();
        take(&mut outlets, slice(0, 6), &mut read).unwrap();
        assert_eq!(&read, b"hello ");
        assert_eq!(outlets.take_drained(), []);
        take(&mut outlets, slice(6, 5), &mut read).unwrap();
        assert_eq!(&read, b"hello world");
        let digest = Some(Digest(*blake3::hash(b"hello world").as_bytes()));
        assert_eq!(outlets.take_drained(), [Drained { transfer: T, digest }]);
        outlets.remove(T);
        assert_eq!(outlets.outlets.len(), 0);
    }

    #[test]
    fn what_is_read_again_is_hashed_once() {
        let mut outlets = outlets(Source::memory(Bytes::from_static(b"hello world"), 11).hashed());
        take(&mut outlets, slice(0, 8), &mut Vec::new()).unwrap();
        let mut again = OutgoingTransfers::default();
        again.insert(T, outlets.take(T).unwrap());
        take(&mut again, slice(2, 3), &mut Vec::new()).unwrap();
        take(&mut again, slice(5, 6), &mut Vec::new()).unwrap();
        let digest = Some(Digest(*blake3::hash(b"hello world").as_bytes()));
        assert_eq!(again.take_drained(), [Drained { transfer: T, digest }]);
    }

    #[test]
    fn a_file_that_has_become_shorter_fails() {
        let (named, file) = file(b"hello world");
        named.as_file().set_len(5).unwrap();
        let mut outlets = outlets(Source::file(file, 11));
        let error = take(&mut outlets, slice(0, 11), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("shorter"), "{error}");
        assert_eq!((outlets.outlets.len(), outlets.take_drained()), (0, Vec::new()));
    }

    #[test]
    fn a_file_that_was_written_to_fails_at_its_end() {
        let (mut named, file) = file(b"hello world");
        let stamp = FileStamp::of(&file).unwrap();
        let mut outlets = outlets(Source::file(file, 11).unchanged(stamp));
        take(&mut outlets, slice(0, 5), &mut Vec::new()).unwrap();
        named.write_all(b" and more").unwrap();
        let error = take(&mut outlets, slice(5, 6), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("changed"), "{error}");
    }

    #[test]
    fn a_kept_blob_with_other_bytes_is_damage_before_its_last_byte_is_given_out() {
        let blob = BlobId { oid: blobferry_protocol::Oid(1), tid: blobferry_protocol::Tid(2) };
        let kept = |bytes: &[u8], end| {
            let (named, file) = file(bytes);
            let digest = Digest(*blake3::hash(b"hello world").as_bytes());
            let path = named.path().to_owned();
            (named, outlets(Source::file(file, end).kept(blob, path).expecting(digest)))
        };
        let (_named, mut right) = kept(b"hello world", 11);
        take(&mut right, slice(0, 6), &mut Vec::new()).unwrap();
        take(&mut right, slice(6, 5), &mut Vec::new()).unwrap();
        assert_eq!(right.take_drained().len(), 1);

        for (bytes, wrong) in [(&b"hello_world"[..], "digest"), (b"hello", "shorter")] {
            let (_named, mut wrong_one) = kept(bytes, 11);
            let read = take(&mut wrong_one, slice(0, 6), &mut Vec::new());
            let read = read.and_then(|()| take(&mut wrong_one, slice(6, 5), &mut Vec::new()));
            let error = read.unwrap_err();
            assert!(matches!(error, RequestError::Damaged { blob: it, .. } if it == blob), "{error}");
            assert!(error.to_string().contains(wrong), "{error}");
            assert_eq!((wrong_one.outlets.len(), wrong_one.take_drained()), (0, Vec::new()));
        }
    }

    #[test]
    fn what_is_lent_is_hashed_once_and_looked_at_before_its_last_byte_is_given_out() {
        let bytes: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let digest = Digest(*blake3::hash(&bytes).as_bytes());
        let lend = |outlets: &mut OutgoingTransfers, offset, len| {
            outlets.give(slice(offset, len), &mut Vec::new(), true).map(|lent| lent.unwrap().left())
        };
        let (mut named, first) = file(&bytes);
        let stamp = FileStamp::of(&first).unwrap();
        let mut outlets = outlets(Source::file(first, 300_000).hashed().unchanged(stamp));
        assert_eq!(lend(&mut outlets, 0, 100_000), Ok(100_000));
        // A connection was lost; a part is read for another one, in which nothing is lent.
        assert_eq!(lend(&mut outlets, 50_000, 100_000), Ok(100_000));
        take(&mut outlets, slice(150_000, 50_000), &mut Vec::new()).unwrap();
        assert_eq!(lend(&mut outlets, 200_000, 100_000), Ok(100_000));
        assert_eq!(outlets.take_drained(), [Drained { transfer: T, digest: Some(digest) }]);

        // It may change when it was looked at, and before it is moved: the receiver finds that out.
        named.write_all(b"more").unwrap();
        let refused = RequestError::Mismatch { detail: "another digest".into() };
        let explained = outlets.outlets[&T].explain(refused.clone());
        assert!(explained.to_string().contains("changed"), "{explained}");
        assert_eq!(outlets.outlets[&T].explain(RequestError::Stopping), RequestError::Stopping);
        let error = lend(&mut outlets, 200_000, 100_000).unwrap_err();
        assert!(error.to_string().contains("changed"), "{error}");
        let (_named, fine) = file(&bytes);
        let stamp = FileStamp::of(&fine).unwrap();
        assert_eq!(Source::file(fine, 1).unchanged(stamp).explain(refused.clone()), refused);

        let blob = BlobId { oid: blobferry_protocol::Oid(1), tid: blobferry_protocol::Tid(2) };
        let source = Source::file(named.reopen().unwrap(), 300_000);
        let mut wrong = self::outlets(source.kept(blob, named.path().to_owned()).expecting(Digest([7; 32])));
        assert_eq!(lend(&mut wrong, 0, 200_000), Ok(200_000));
        let error = lend(&mut wrong, 200_000, 100_000).unwrap_err();
        assert!(matches!(error, RequestError::Damaged { blob: it, .. } if it == blob), "{error}");
        assert_eq!((wrong.outlets.len(), wrong.take_drained()), (0, Vec::new()));
    }

    #[test]
    fn bytes_in_memory_are_never_read_beyond_their_end() {
        let mut outlets = outlets(Source::memory(Bytes::from_static(b"hello"), 5));
        assert!(take(&mut outlets, slice(3, 4), &mut Vec::new()).is_err());
    }

    #[test]
    fn a_slice_is_read_whole_whatever_the_buffer_has_room_for_and_nothing_behind_it_stays() {
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
