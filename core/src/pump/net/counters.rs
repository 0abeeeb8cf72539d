//! What was carried and what was dropped, readable while the paths run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Packets counted by what became of them.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Tally {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Tally {
            /// Each counter with its name.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),+].into_iter()
            }
        }

        /// The same, shared between threads. They count apart: a reader may see one counter ahead of
        /// another.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($name: AtomicU64,)+
        }

        impl Counters {
            /// Count all of a tally.
            pub fn add(&self, tally: &Tally) {
                $(if tally.$name > 0 {
                    self.$name.fetch_add(tally.$name, Ordering::Relaxed);
                })+
            }

            /// What was counted so far.
            pub fn read(&self) -> Tally {
                Tally { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Packets that the port took, or that the driver has got.
    packets,
    /// Bytes of their frames, headers not counted.
    bytes,
    /// Transmit: buffers that hold no packet. Receive: buffers without room for a header, and packets
    /// of the port that the driver must not see.
    dropped_malformed,
    /// Receive: packets that do not fit into a buffer (or, mergeable, into the whole ring).
    dropped_no_room,
    /// Receive: packets for which a hub had no place left.
    dropped_inbox_full,
    /// Packets that the port refused, and failures to read from it.
    dropped_port_error,
    /// Receive: packets above the negotiated MTU.
    dropped_mtu,
    /// Transmit: packets discarded while the queue was disabled.
    dropped_disabled,
}

/// Where a path counts: its own counters, and those of its direction at the port, which outlive it.
#[derive(Clone, Default)]
pub struct Ledger {
    path: Arc<Counters>,
    port: Arc<Counters>,
}

impl Ledger {
    /// Counters of a new path at a port.
    pub(super) fn new(port: &Arc<Counters>) -> Self {
        Self { path: Arc::default(), port: Arc::clone(port) }
    }

    /// Count all of a tally.
    pub fn add(&self, tally: &Tally) {
        self.path.add(tally);
        self.port.add(tally);
    }

    /// The counters of the path.
    pub fn path(&self) -> &Arc<Counters> {
        &self.path
    }
}
