//! Data paths that run without the interpreter: each queue on a thread of its own.

pub mod blk;
pub mod distance;
pub mod load;
pub mod loopback;
pub mod net;
mod pace;
pub mod poller;
pub mod shared;
mod wait;
pub mod worker;

pub use poller::Poller;
pub use shared::{Knock, SharedQueue, Visit};
pub use wait::Wait;
pub use worker::{Path, Wants, Worker};
