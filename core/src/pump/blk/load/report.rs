//! What a load has seen.

use hdrhistogram::Histogram;

/// Latencies are told apart to 1 % (two digits), from a nanosecond to this.
const LATENCY_NS_MAX: u64 = 100_000_000_000;
const DIGITS: u8 = 2;

macro_rules! tallies {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counts of a load's work.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Tally {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Tally {
            /// Each with its name.
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

tallies! {
    /// Requests that came back, whatever their status.
    requests,
    /// Those that were to read.
    reads,
    /// Those that were to write.
    writes,
    /// Data bytes of requests that ended well.
    bytes,
    /// Requests whose status is not OK.
    errors,
    /// Reads whose data was checked.
    verified,
    /// Of those, the ones with other bytes than there should be.
    mismatches,
    /// Publications.
    batches,
    /// Available buffer notifications sent.
    kicks,
    /// Used buffer notifications that came.
    calls,
    /// Used elements or descriptors read.
    used_entries,
}

/// What a run came to.
pub struct Report {
    /// The counts.
    pub tally: Tally,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Of the thread that drove the queues.
    pub cpu_seconds: f64,
    /// From before a request's publication to after its reaping, in nanoseconds.
    pub latency_ns: Histogram<u64>,
    /// The first request that went wrong, in words.
    pub first_failure: Option<String>,
}

impl Default for Report {
    fn default() -> Self {
        let latency_ns = Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS);
        Self {
            tally: Tally::default(),
            seconds: 0.0,
            cpu_seconds: 0.0,
            latency_ns: latency_ns.expect("constants that make a histogram"),
            first_failure: None,
        }
    }
}

impl Report {
    /// Forgets everything and keeps the room.
    pub fn clear(&mut self) {
        self.latency_ns.reset();
        (self.tally, self.seconds, self.cpu_seconds) = Default::default();
        self.first_failure = None;
    }

    /// Notes a failure in words if it is the first.
    pub fn fail(&mut self, text: impl FnOnce() -> String) {
        self.first_failure.get_or_insert_with(text);
    }
}
