//! Moments, as the caller tells them: there is no clock in this crate.

use core::ops::Add;
use core::time::Duration;

/// A moment: the time since an epoch that the caller chose once for a connection. `Instant::elapsed` of an instant of
/// its own is all that it takes.
///
/// It should never go backwards in the calls to one connection; where it does, the machine takes the later moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub Duration);

impl Time {
    /// The epoch.
    pub const ZERO: Time = Time(Duration::ZERO);

    /// How long after `earlier` this is; zero where it is not.
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
