//! What block requests came to.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters of a round, or as they stood when they were read.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            /// Each with its name.
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }

        /// Counters that grow while others read them.
        #[derive(Debug, Default)]
        pub struct Stats {
            $($name: AtomicU64,)*
        }

        impl Stats {
            /// Add what a round came to.
            pub fn add(&self, counts: &Counts) {
                $(if counts.$name > 0 {
                    self.$name.fetch_add(counts.$name, Ordering::Relaxed);
                })*
            }

            /// How they stand.
            pub fn counts(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Rounds that handled requests.
    batches,
    /// Requests to read, whatever became of them.
    reads,
    /// Requests to write.
    writes,
    /// Requests to flush.
    flushes,
    /// Requests to discard.
    discards,
    /// Requests to write zeroes.
    write_zeroes,
    /// Requests for the serial.
    get_ids,
    /// Requests that ended with IOERR, or had no room for a status.
    errors,
    /// Requests that ended with UNSUPP.
    unsupported,
    /// Transfers that went through io_uring.
    queued,
    /// Calls that told io_uring of transfers.
    submissions,
    /// Bytes of reads that ended well.
    bytes_read,
    /// Bytes of writes that ended well.
    bytes_written,
}
