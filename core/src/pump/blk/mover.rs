//! Moves the data of a round's requests, each by the way that is quickest for it.
//!
//! Copies from and to the page cache are made at once, by a system call each: there is nothing to
//! wait for, and on the way through io_uring a 4 KiB read takes half as long again, a write (which
//! most file systems leave to a thread of the kernel) many times as long. What has to wait for the
//! storage, which is a read of what is not in the cache and everything with O_DIRECT, goes through
//! io_uring: one submission for all of a batch, and the storage works on all of it at once. Where the
//! file system cannot tell what is in the cache (tmpfs among them), io_uring would leave the read to a
//! thread as well, so it is made at once.

use std::io;
use std::sync::RwLockReadGuard;

use libc::iovec;

use super::disk::Disk;
use super::store::{Store, Way, advance};
use super::uring::{Transfer, Uring};

/// A path's io_uring, made when there is something for it to do.
pub enum Engine {
    /// Nothing came up yet.
    Idle,
    Ready(Box<Uring>),
    /// There is none to be had, or none is wanted: every transfer is made at once.
    Refused,
}

impl Engine {
    /// A ring that has room, or None.
    fn ring(&mut self, store: &Store) -> Option<&mut Uring> {
        if let Self::Idle = self {
            *self =
                Uring::new(&store.file).map_or(Self::Refused, |ring| Self::Ready(Box::new(ring)));
        }
        match self {
            Self::Ready(ring) => Some(ring),
            _ => None,
        }
    }

    fn ready(&mut self) -> Option<&mut Uring> {
        match self {
            Self::Ready(ring) => Some(ring),
            _ => None,
        }
    }

    /// Transfers that have not come back.
    pub fn in_flight(&self) -> usize {
        match self {
            Self::Ready(ring) => ring.in_flight(),
            _ => 0,
        }
    }

    /// Waits until nothing is in flight, and forgets how it ended.
    pub fn quiesce(&mut self) {
        while self.in_flight() > 0 {
            let ring = self.ready().expect("what is in flight is in a ring");
            ring.wait(false);
            ring.finished();
        }
    }
}

/// The transfers of one round.
pub struct Mover<'a> {
    disk: &'a Disk,
    engine: &'a mut Engine,
    polling: bool,
    /// Held while direct writes are in flight; once only, since to ask for it again could wait for
    /// somebody who waits for it to be given back.
    beside_others: Option<RwLockReadGuard<'a, ()>>,
    /// Those that were under way, and how they ended.
    finished: &'a mut Vec<(usize, io::Result<()>)>,
    queued: u64,
}

impl<'a> Mover<'a> {
    /// With nothing in flight. `polling`: look for completions again and again before sleeping.
    pub fn new(
        disk: &'a Disk,
        engine: &'a mut Engine,
        polling: bool,
        finished: &'a mut Vec<(usize, io::Result<()>)>,
    ) -> Self {
        finished.clear();
        Self { disk, engine, polling, beside_others: None, finished, queued: 0 }
    }

    /// Transfers that went through io_uring since the last question, and the calls for that.
    pub fn take_counts(&mut self) -> (u64, u64) {
        let submissions =
            self.engine.ready().map_or(0, |ring| std::mem::take(&mut ring.submissions));
        (std::mem::take(&mut self.queued), submissions)
    }

    /// Transfers that have not come back.
    pub fn in_flight(&self) -> usize {
        self.engine.in_flight()
    }

    /// Moves all bytes of `vectors`; false if that is under way, and `finished` says when it is done.
    ///
    /// # Safety
    /// As for [`Store::transfer`], until it is done.
    pub unsafe fn begin(
        &mut self,
        way: Way,
        offset: u64,
        vectors: &mut [iovec],
        tag: usize,
    ) -> io::Result<bool> {
        let store = match self.disk.store() {
            Some(store) if !matches!(self.engine, Engine::Refused) => store,
            _ => {
                // SAFETY: as promised to us.
                unsafe { self.disk.transfer(way, offset, vectors)? };
                return Ok(true);
            }
        };
        let length: usize = vectors.iter().map(|vector| vector.iov_len).sum();
        let at_hand = match (&store.direct, way) {
            _ if length == 0 => return Ok(true),
            // SAFETY: as promised to us.
            (None, Way::Read) => unsafe { store.read_at_hand(offset, vectors) },
            (None, Way::Write) => None,
            (Some(direct), _) if direct.admits(offset, vectors) => {
                if way == Way::Write && self.beside_others.is_none() {
                    self.beside_others = Some(direct.beside_others());
                }
                Some(0)
            }
            (Some(_), _) => {
                self.quiesce();
                None
            }
        };
        let Some(at_hand) = at_hand else {
            // SAFETY: as promised to us.
            unsafe { store.transfer(way, offset, vectors)? };
            return Ok(true);
        };
        if at_hand == length {
            return Ok(true);
        }
        advance(vectors, at_hand);
        let offset = offset + at_hand as u64;
        let vectors = vectors.iter().filter(|vector| vector.iov_len > 0).copied().collect();
        // SAFETY: as promised to us.
        unsafe { self.queue(store, Transfer { tag, way, offset, vectors }) }
    }

    unsafe fn queue(&mut self, store: &Store, mut transfer: Transfer) -> io::Result<bool> {
        while let Some(ring) = self.engine.ring(store)
            && !ring.has_room()
            && ring.in_flight() > 0
        {
            ring.wait(self.polling);
            self.collect();
        }
        match self.engine.ring(store).filter(|ring| ring.has_room()) {
            Some(ring) => {
                self.queued += 1;
                // SAFETY: as promised to us.
                unsafe { ring.push(transfer) };
                Ok(false)
            }
            None => {
                self.beside_others = None;
                // SAFETY: as promised to us.
                unsafe { store.transfer(transfer.way, transfer.offset, &mut transfer.vectors)? };
                Ok(true)
            }
        }
    }

    /// Tells the kernel of all that is to be moved.
    pub fn submit(&mut self) {
        if let Some(ring) = self.engine.ready() {
            ring.submit();
        }
    }

    /// Waits until something under way is done, if anything is.
    pub fn wait(&mut self) {
        let polling = self.polling;
        if self.finished.is_empty()
            && let Some(ring) = self.engine.ready()
        {
            ring.wait(polling);
        }
        self.collect();
    }

    /// Waits until nothing is under way, for something that has to be alone.
    pub fn quiesce(&mut self) {
        while let Some(ring) = self.engine.ready()
            && ring.in_flight() > 0
        {
            ring.wait(self.polling);
            self.collect();
        }
    }

    /// What was under way and is done: the tag, and how it ended.
    pub fn finished(&mut self) -> std::vec::Drain<'_, (usize, io::Result<()>)> {
        self.collect();
        self.finished.drain(..)
    }

    fn collect(&mut self) {
        let Some(ring) = self.engine.ready() else { return };
        let mut again = Vec::new();
        for (transfer, result) in ring.finished() {
            let length: usize = transfer.vectors.iter().map(|vector| vector.iov_len).sum();
            match usize::try_from(result) {
                Ok(moved) if moved >= length => self.finished.push((transfer.tag, Ok(()))),
                other => again.push((transfer, other.unwrap_or(0))),
            }
        }
        if !again.is_empty() {
            self.carry_out(again);
        } else if ring.in_flight() == 0 {
            self.beside_others = None;
        }
    }

    /// What io_uring did in part or not at all is done the plain way, which goes on to the end or
    /// says why not.
    fn carry_out(&mut self, again: Vec<(Transfer, usize)>) {
        self.quiesce(); // it may have to be alone
        self.beside_others = None;
        let store = self.disk.store().expect("only what has a file goes through io_uring");
        for (mut transfer, moved) in again {
            advance(&mut transfer.vectors, moved);
            let offset = transfer.offset + moved as u64;
            // SAFETY: whoever began the transfer promised it until it is done.
            let result = unsafe { store.transfer(transfer.way, offset, &mut transfer.vectors) };
            self.finished.push((transfer.tag, result));
        }
    }
}

impl Drop for Mover<'_> {
    /// Nothing is in flight between rounds, whatever ends one: what owns the memory may change.
    fn drop(&mut self) {
        self.engine.quiesce();
    }
}

#[cfg(test)]
mod tests;
