//! What was carried and what was dropped, readable while the paths run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

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

        impl Tally {
            /// Both together.
            fn plus(self, other: Self) -> Self {
                Self { $($name: self.$name.wrapping_add(other.$name),)+ }
            }
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

impl Counters {
    /// As `add`, on the only thread that counts packets and bytes here. A read-modify-write would wait
    /// until every frame that was just written has its cache line, in the middle of the work.
    fn add_alone(&self, tally: &Tally) {
        for (counter, count) in [(&self.packets, tally.packets), (&self.bytes, tally.bytes)] {
            if count > 0 {
                let sum = counter.load(Ordering::Relaxed).wrapping_add(count);
                counter.store(sum, Ordering::Relaxed);
            }
        }
        self.add(&Tally { packets: 0, bytes: 0, ..*tally });
    }
}

/// All paths of one direction of a port: those that have ended, and the counters of those that are
/// there.
#[derive(Debug, Default)]
pub struct Totals {
    paths: Mutex<(Tally, Vec<Arc<Counters>>)>,
}

impl Totals {
    fn lock(&self) -> MutexGuard<'_, (Tally, Vec<Arc<Counters>>)> {
        self.paths.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What all of them counted so far.
    pub fn read(&self) -> Tally {
        let paths = self.lock();
        paths.1.iter().fold(paths.0, |sum, path| sum.plus(path.read()))
    }

    fn end(&self, path: &Arc<Counters>) {
        let mut paths = self.lock();
        let (ended, there) = &mut *paths;
        if let Some(at) = there.iter().position(|one| Arc::ptr_eq(one, path)) {
            *ended = ended.plus(there.swap_remove(at).read());
        }
    }
}

/// Where a path counts: counters of its own, which those of its direction at the port sum up, also
/// when it is gone. Only the path counts packets and bytes.
pub struct Ledger {
    path: Arc<Counters>,
    port: Arc<Totals>,
}

impl Ledger {
    /// Counters of a new path at a port.
    pub(super) fn new(port: &Arc<Totals>) -> Self {
        let path = Arc::<Counters>::default();
        port.lock().1.push(Arc::clone(&path));
        Self { path, port: Arc::clone(port) }
    }

    /// Count all of a tally.
    #[inline]
    pub fn add(&mut self, tally: &Tally) {
        self.path.add_alone(tally);
    }

    /// The counters of the path.
    pub fn path(&self) -> &Arc<Counters> {
        &self.path
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.port.end(&self.path);
    }
}
