//! Identifiers: of objects, transactions, blobs, requests and transfers.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use alloc::string::String;
use serde::{Deserialize, Serialize};

/// The id of an object, whose revisions are stored by transactions.
///
/// The server allocates oids ([`Request::NewOids`](crate::Request::NewOids)) and never reuses one.
/// It never allocates oid 0, [`Oid::ROOT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Oid(pub u64);

impl Oid {
    /// The root object: the application stores in it what leads to all other objects.
    ///
    /// As in ZODB, the oid 0 is fixed so that every client finds the root. The protocol treats it
    /// as any other oid.
    pub const ROOT: Oid = Oid(0);
}

/// The id of a committed transaction, assigned at commit. Tids are strictly increasing, and time
/// stamps in ZODB's format.
///
/// The upper 32 bits count minutes from 1900, on a calendar in which every month has 31 days. The
/// lower 32 bits are the fraction of that minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tid(pub u64);

impl Tid {
    /// Before every transaction: the base of an object that does not exist yet.
    pub const ZERO: Tid = Tid(0);
    /// After every transaction.
    pub const MAX: Tid = Tid(u64::MAX);

    /// Returns the tid of a moment, given as the time since the Unix epoch (UTC).
    ///
    /// A moment after the year 9892 counts as the last one of that range: the minutes must fit 32
    /// bits.
    #[must_use]
    pub fn from_unix(since_epoch: Duration) -> Tid {
        const LAST_SECOND: u64 = 250_000_000_000; // in the year 9892
        let seconds = since_epoch.as_secs().min(LAST_SECOND);
        let (year, month, day) = civil_from_days(seconds / 86_400);
        let of_day = seconds % 86_400;
        let days = ((year - 1900) * 12 + (month - 1)) * 31 + (day - 1);
        let minutes = (days * 24 + of_day / 3600) * 60 + of_day % 3600 / 60;
        let nanos_of_minute = (of_day % 60) * 1_000_000_000 + u64::from(since_epoch.subsec_nanos());
        let fraction = (u128::from(nanos_of_minute) << 32) / 60_000_000_000;
        // The fraction of a minute is below 1, so it fits 32 bits.
        Tid((minutes << 32) | fraction as u64)
    }

    /// Returns the moment of this tid as the time since the Unix epoch; `None` before 1970.
    #[must_use]
    pub fn to_unix(self) -> Option<Duration> {
        let minutes = self.0 >> 32;
        let days = minutes / 1440;
        let (day, months) = (days % 31 + 1, days / 31);
        let (month, year) = (months % 12 + 1, months / 12 + 1900);
        let days = days_from_civil(year, month, day)?;
        let nanos = (u128::from(self.0 & 0xffff_ffff) * 60_000_000_000) >> 32;
        Some(Duration::from_secs(days * 86_400 + minutes % 1440 * 60) + Duration::from_nanos(nanos as u64))
    }

    /// Returns the tid directly after this one; [`Tid::MAX`] stays as it is.
    ///
    /// [`Request::LoadBefore`](crate::Request::LoadBefore) with `tid.successor()` loads the state
    /// as of `tid`.
    #[must_use]
    pub const fn successor(self) -> Tid {
        Tid(self.0.saturating_add(1))
    }

    /// Returns the tid directly before this one; [`Tid::ZERO`] stays as it is.
    #[must_use]
    pub const fn predecessor(self) -> Tid {
        Tid(self.0.saturating_sub(1))
    }

    /// Returns the tid for the next commit at the moment `now`: `now` itself if the clock has
    /// advanced, else [`successor`](Tid::successor).
    #[must_use]
    pub fn next(self, now: Tid) -> Tid {
        now.max(self.successor())
    }
}

/// Returns year, month and day of a day counted from 1970-01-01 (proleptic Gregorian; Howard
/// Hinnant's algorithm).
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, day)
}

/// Returns the inverse of [`civil_from_days`]; `None` before 1970.
fn days_from_civil(year: u64, month: u64, day: u64) -> Option<u64> {
    let y = year - u64::from(month <= 2);
    let era = y / 400;
    let yoe = y % 400;
    let mp = if month > 2 { month - 3 } else { month + 9 };
    let doy = (153 * mp + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    (era * 146_097 + doe).checked_sub(719_468)
}

/// The id of one revision of one blob. Its bytes never change, so a cache needs no invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobId {
    /// The object that the blob belongs to.
    pub oid: Oid,
    /// The transaction that stored this revision of it.
    pub tid: Tid,
}

impl BlobId {
    /// The number of buckets of a blob directory: a prime, as in ZEO's blob cache.
    pub const BUCKETS: u64 = 997;

    /// Returns the bucket of this blob: `oid mod 997`.
    #[must_use]
    pub fn bucket(self) -> u64 {
        self.oid.0 % Self::BUCKETS
    }

    /// Returns the file name of this blob in its bucket: `<oid div 997>.<tid, 16 hex>.blob`.
    ///
    /// Caches, servers and ZEO's own cache use this name.
    #[must_use]
    pub fn file_name(self) -> String {
        alloc::format!("{}.{}.blob", self.oid.0 / Self::BUCKETS, self.tid)
    }

    /// Returns the blob with this [`bucket`](BlobId::bucket) and [`file_name`](BlobId::file_name);
    /// `None` for any other name.
    #[must_use]
    pub fn from_file_name(bucket: u64, name: &str) -> Option<BlobId> {
        let (quotient, tid) = name.strip_suffix(".blob")?.split_once('.')?;
        let oid = quotient.parse::<u64>().ok()?.checked_mul(Self::BUCKETS)?.checked_add(bucket)?;
        let blob = BlobId { oid: Oid(oid), tid: tid.parse().ok()? };
        (blob.bucket() == bucket && blob.file_name() == name).then_some(blob)
    }
}

/// The name of a transaction: 128 random bits that the client chooses before the transaction has a
/// [`Tid`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TxnId(pub [u8; 16]);

/// The BLAKE3-256 digest of a blob's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

/// The number of a request on one connection.
///
/// The client numbers its requests in strictly increasing order from 1. The default, 0, is before
/// the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// The number of a transfer of one blob on one connection: that of the request that it belongs to.
///
/// A request has at most one transfer, so a transfer id is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TransferId(pub u64);

impl From<RequestId> for TransferId {
    fn from(request: RequestId) -> TransferId {
        TransferId(request.0)
    }
}

impl From<TransferId> for RequestId {
    fn from(transfer: TransferId) -> RequestId {
        RequestId(transfer.0)
    }
}

/// A text is not an id of the expected form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {digits} hexadecimal digits")]
pub struct ParseIdError {
    digits: usize,
}

/// A text is not a [`BlobId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a decimal oid, `@` and a tid of 16 hexadecimal digits, as in 12@03f2a1b4c5d6e7f8")]
#[non_exhaustive]
pub struct ParseBlobIdError;

/// Parses exactly `N` bytes of hexadecimal digits.
fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], ParseIdError> {
    let error = ParseIdError { digits: N * 2 };
    if text.len() != N * 2 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(error);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let pair = core::str::from_utf8(pair).map_err(|_| error)?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| error)?;
    }
    Ok(bytes)
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for Oid {
    type Err = core::num::ParseIntError;
    fn from_str(text: &str) -> Result<Oid, Self::Err> {
        text.parse().map(Oid)
    }
}

impl fmt::Display for Tid {
    /// Writes sixteen hexadecimal digits, so that the texts sort as the tids compare.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Tid {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Tid, ParseIdError> {
        parse_hex(text).map(|bytes| Tid(u64::from_be_bytes(bytes)))
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.oid, self.tid)
    }
}

impl FromStr for BlobId {
    type Err = ParseBlobIdError;

    /// Parses what `Display` prints: the oid, `@`, and the tid.
    fn from_str(text: &str) -> Result<BlobId, ParseBlobIdError> {
        let (oid, tid) = text.split_once('@').ok_or(ParseBlobIdError)?;
        let oid = oid.parse().map_err(|_| ParseBlobIdError)?;
        let tid = tid.parse().map_err(|_| ParseBlobIdError)?;
        Ok(BlobId { oid, tid })
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }
}

impl AsRef<[u8]> for Digest {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

macro_rules! hex_id {
    ($id:ident) => {
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($id))
            }
        }

        impl FromStr for $id {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<$id, ParseIdError> {
                parse_hex(text).map($id)
            }
        }
    };
}
hex_id!(TxnId);
hex_id!(Digest);

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    #[test]
    fn a_tid_is_zodbs_time_stamp() {
        // ZODB: TimeStamp(2007, 5, 18, 14, 2, 22.0): ((107*12 + 4)*31 + 17)*1440 + 14*60 + 2, and
        // 22 s of a minute.
        let tid = Tid::from_unix(Duration::from_secs(1_179_496_942));
        assert_eq!(tid.0 >> 32, ((107 * 12 + 4) * 31 + 17) * 1440 + 14 * 60 + 2);
        assert_eq!(tid.0 & 0xffff_ffff, (22 << 32) / 60);
    }

    #[test]
    fn tids_increase_when_the_clock_goes_back() {
        let last = Tid(1000);
        assert_eq!(last.next(Tid(5)), Tid(1001));
        assert_eq!(last.next(Tid(2000)), Tid(2000));
    }

    #[test]
    fn ids_print_and_parse() {
        assert_eq!(Tid(0xabc).to_string(), "0000000000000abc");
        assert_eq!("0000000000000ABC".parse(), Ok(Tid(0xabc)));
        assert!("abc".parse::<Tid>().is_err());
        assert!("+000000000000abc".parse::<Tid>().is_err());
        let txn = TxnId(core::array::from_fn(|i| i as u8));
        assert_eq!(txn.to_string().parse(), Ok(txn));
        for text in
            ["", "@", "1", "1@", "@0000000000000abc", "1@abc", "1@0000000000000abc@", "x@0000000000000abc"]
        {
            assert_eq!(text.parse::<BlobId>(), Err(ParseBlobIdError), "{text}");
        }
    }

    #[test]
    fn other_file_names_are_refused() {
        for name in ["", "1.blob", "01.0000000000000abc.blob", "1.0000000000000ABC.blob", "1.abc.blob", "x"] {
            assert_eq!(BlobId::from_file_name(3, name), None, "{name}");
        }
    }

    #[test]
    fn successor_and_predecessor_stop_at_the_ends() {
        assert_eq!((Tid(7).successor(), Tid(7).predecessor()), (Tid(8), Tid(6)));
        assert_eq!((Tid::MAX.successor(), Tid::ZERO.predecessor()), (Tid::MAX, Tid::ZERO));
    }

    proptest! {
        #[test]
        fn blob_names_and_file_names_parse_back(oid: u64, tid: u64) {
            let blob = BlobId { oid: Oid(oid), tid: Tid(tid) };
            prop_assert_eq!(BlobId::from_file_name(blob.bucket(), &blob.file_name()), Some(blob));
            prop_assert_eq!(blob.to_string().parse(), Ok(blob));
        }

        #[test]
        fn tids_keep_the_order_and_the_moment(a in 0u64..250_000_000_000_000, b in 0u64..250_000_000_000_000) {
            let (a, b) = (Duration::from_millis(a), Duration::from_millis(b));
            prop_assert_eq!(a.cmp(&b), Tid::from_unix(a).cmp(&Tid::from_unix(b)));
            let back = Tid::from_unix(a).to_unix().unwrap();
            prop_assert!(a.abs_diff(back) < Duration::from_micros(1));
        }
    }
}
