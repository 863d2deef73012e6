//! Time as the caller measures it: this crate has no clock.

use core::ops::Add;
use core::time::Duration;

/// A moment: the time since an epoch that the caller chooses once for each connection.
///
/// `Instant::elapsed` of an instant that the caller keeps is such a time. The time should not go
/// backwards in the calls to one connection. If it does, the connection uses the latest moment that
/// it was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub Duration);

impl Time {
    /// The epoch.
    pub const ZERO: Time = Time(Duration::ZERO);

    /// Returns the time from `earlier` to this moment; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Time) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, later: Duration) -> Time {
        Time(self.0.saturating_add(later))
    }
}
