//! The data path of the network device (5.1): packets between virtqueues and a port.
//!
//! A [`Port`] is what the packets of one device go to and come from: a tap interface, a hub, capture
//! files, a source, a sink. Each transmit queue is a [`TransmitPath`] in front of a [`Sender`] of the
//! port, each receive queue a [`ReceivePath`] behind a [`Receiver`]. What a port must know is small:
//! what to do with the frames of a batch, and which packet comes next.

mod counters;
mod flow;
mod frame;
pub mod hub;
pub mod load;
mod pcap;
mod port;
mod receive;
mod sink;
mod source;
mod tap;
#[cfg(test)]
mod tests;
mod transmit;

pub use counters::{Counters, Ledger, Tally};
pub use hub::{Hub, HubLink};
pub use pcap::PcapLink;
pub use port::{Frame, Frames, Link, OpenError, Port, Receiver, Sender};
pub use receive::ReceivePath;
pub use sink::SinkLink;
pub use source::SourceLink;
pub use tap::TapLink;
pub use transmit::TransmitPath;

/// Bytes of `struct virtio_net_hdr` in front of each frame, for the features of this device.
pub const HEADER_BYTES: usize = 12;
/// Where the header has `num_buffers`.
const NUM_BUFFERS_OFFSET: usize = 10;
/// Bytes of two addresses and a type; nothing shorter is a frame.
pub const FRAME_BYTES_MIN: usize = 14;
/// The largest frame that segmentation offload lets through (net.rxbuf.drv.big-buffers).
pub const FRAME_BYTES_MAX: usize = 65589;

/// Packets of one round.
const BATCH: usize = 64;

/// Feature bits that say which offloads the driver accepts in received packets (5.1.3).
pub mod offload {
    /// VIRTIO_NET_F_GUEST_CSUM
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// VIRTIO_NET_F_GUEST_TSO4
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// VIRTIO_NET_F_GUEST_TSO6
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// VIRTIO_NET_F_GUEST_ECN
    pub const GUEST_ECN: u64 = 1 << 9;
    /// VIRTIO_NET_F_GUEST_UFO
    pub const GUEST_UFO: u64 = 1 << 10;
}
