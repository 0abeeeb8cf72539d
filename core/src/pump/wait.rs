//! How whoever finds nothing to do waits.

use std::time::Duration;

/// How a path or a load waits when it finds nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Look again at once, and never ask for notifications.
    Poll,
    /// Look again for a while, then sleep until notified.
    Adaptive,
    /// Sleep until notified.
    Event,
}

/// How long `Wait::Adaptive` looks before it sleeps.
pub(super) const SPIN: Duration = Duration::from_micros(50);
/// How long `Wait::Poll` looks before it lets others on its processor go first.
pub(super) const PATIENCE: Duration = Duration::from_micros(10);
