//! A hub: what one device sends, the others receive.
//!
//! Each receive queue has an inbox of bounded size that its path empties; a packet that finds it full
//! is dropped. The hub learns which device uses an address as the source of its frames, and sends
//! what is addressed there to that device only. No offloads pass: every frame is complete.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::flow::Flows;
use super::{BATCH, Counters, Frames, HEADER_BYTES, Ledger, Link, Receiver, Sender, Tally};
use crate::event::Event;

/// Packets and bytes that wait for one receive queue.
const INBOX_PACKETS_MAX: usize = 4096;
const INBOX_BYTES_MAX: usize = 8 << 20;
/// Empty packets kept for reuse, and how large the room in them may be.
const SPARES_MAX: usize = 2 * BATCH;
const SPARE_BYTES_MAX: usize = 2048;
/// Addresses that are remembered; more are sent to everyone.
const ADDRESSES_MAX: usize = 4096;

type Address = [u8; 6];

/// What devices meet at. It lives as long as any of them holds it.
#[derive(Default)]
pub struct Hub {
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    joined: u64,
    members: Vec<Member>,
    homes: HashMap<Address, u64>,
}

struct Member {
    id: u64,
    flows: Arc<Flows>,
    inboxes: Vec<Arc<Inbox>>,
}

impl Hub {
    /// A hub without members.
    pub fn new() -> Self {
        Self::default()
    }

    /// Devices that are connected.
    pub fn members(&self) -> usize {
        self.read().members.len()
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    /// Pass on a packet of member `from`: to the device that uses its destination, else to all others.
    fn forward(&self, from: u64, packet: &[u8]) {
        let destination = address(packet, 0);
        let home = self.homes.get(&destination).filter(|_| !is_group(&destination));
        for member in &self.members {
            if member.id != from && home.is_none_or(|home| *home == member.id) {
                member.deliver(packet);
            }
        }
    }

    fn knows(&self, member: u64, source: &Address) -> bool {
        is_group(source) || self.homes.get(source) == Some(&member)
    }

    fn learn(&mut self, member: u64, source: Address) {
        if self.homes.len() < ADDRESSES_MAX || self.homes.contains_key(&source) {
            self.homes.insert(source, member);
        }
    }
}

impl Member {
    /// Put a packet into the inbox of one queue: one that is enabled, unless none is. Before its driver
    /// has set up any receive queue, a device gets nothing.
    fn deliver(&self, packet: &[u8]) {
        let enabled = self.inboxes.iter().filter(|inbox| inbox.is_enabled());
        let at = match enabled.clone().count() {
            0 | 1 => 0,
            _ => self.flows.choose(&packet[HEADER_BYTES..], enabled.clone().map(|one| one.pair)),
        };
        let inbox = enabled.clone().nth(at).or(self.inboxes.first());
        if let Some(inbox) = inbox {
            inbox.put(packet);
        }
    }
}

/// A device's place at a hub, given up when the last of its queues is gone.
struct Membership {
    hub: Arc<Hub>,
    id: u64,
    flows: Arc<Flows>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut state = self.hub.write();
        state.members.retain(|member| member.id != self.id);
        state.homes.retain(|_, home| *home != self.id);
    }
}

/// The hub as the port of one device.
pub struct HubLink {
    membership: Arc<Membership>,
}

impl HubLink {
    /// Connect a device to a hub.
    pub fn new(hub: Arc<Hub>) -> Self {
        let flows = Arc::new(Flows::default());
        let mut state = hub.write();
        state.joined += 1;
        let id = state.joined;
        state.members.push(Member { id, flows: Arc::clone(&flows), inboxes: Vec::new() });
        drop(state);
        Self { membership: Arc::new(Membership { hub, id, flows }) }
    }
}

impl Link for HubLink {
    fn sender(&self, pair: u16) -> io::Result<Box<dyn Sender>> {
        let membership = Arc::clone(&self.membership);
        Ok(Box::new(Uplink { membership, pair, packet: Vec::new(), new: Vec::new() }))
    }

    fn receiver(&self, pair: u16, ledger: &Ledger) -> io::Result<Box<dyn Receiver>> {
        let membership = Arc::clone(&self.membership);
        let inbox = Arc::new(Inbox::new(pair, Arc::clone(ledger.path()))?);
        let mut state = membership.hub.write();
        if let Some(member) = state.members.iter_mut().find(|member| member.id == membership.id) {
            member.inboxes.push(Arc::clone(&inbox));
        }
        drop(state);
        let (arrived, read) = (VecDeque::new(), Vec::new());
        Ok(Box::new(Downlink { membership, inbox, arrived, read }))
    }
}

/// From a transmit queue into the hub.
struct Uplink {
    membership: Arc<Membership>,
    pair: u16,
    packet: Vec<u8>,
    /// Addresses to be learned when the batch is through.
    new: Vec<Address>,
}

impl Sender for Uplink {
    fn send(&mut self, frames: &Frames<'_>, tally: &mut Tally) {
        let Membership { hub, id, flows } = self.membership.as_ref();
        let state = hub.read();
        for frame in frames.iter() {
            // Copied once, so that what is decided upon is what is passed on.
            self.packet.clear();
            self.packet.resize(HEADER_BYTES, 0);
            frame.append_to(&mut self.packet);
            tally.packets += 1;
            tally.bytes += frame.len() as u64;
            let source = address(&self.packet, 6);
            if !state.knows(*id, &source) && !self.new.contains(&source) {
                self.new.push(source);
            }
            flows.sent(&self.packet[HEADER_BYTES..], self.pair);
            state.forward(*id, &self.packet);
        }
        drop(state);
        if !self.new.is_empty() {
            let mut state = hub.write();
            self.new.drain(..).for_each(|source| state.learn(*id, source));
        }
    }
}

fn address(packet: &[u8], offset: usize) -> Address {
    let start = HEADER_BYTES + offset;
    packet[start..start + 6].try_into().expect("a frame has both addresses")
}

fn is_group(address: &Address) -> bool {
    address[0] & 1 != 0
}

/// Where packets wait for a receive queue.
struct Inbox {
    pair: u16,
    enabled: AtomicBool,
    waiting: Mutex<Waiting>,
    arrived: Event,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Waiting {
    packets: VecDeque<Vec<u8>>,
    bytes: usize,
    spares: Vec<Vec<u8>>,
    /// The receiver found nothing and is to be told when that changes.
    awaited: bool,
}

impl Inbox {
    fn new(pair: u16, counters: Arc<Counters>) -> io::Result<Self> {
        Ok(Self {
            pair,
            enabled: AtomicBool::new(false),
            waiting: Mutex::default(),
            arrived: Event::create()?,
            counters,
        })
    }

    fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn put(&self, packet: &[u8]) {
        let mut waiting = self.lock();
        let is_full = waiting.packets.len() >= INBOX_PACKETS_MAX
            || waiting.bytes + packet.len() > INBOX_BYTES_MAX;
        if is_full {
            drop(waiting);
            self.counters.add(&Tally { dropped_inbox_full: 1, ..Tally::default() });
            return;
        }
        let mut copy = waiting.spares.pop().unwrap_or_default();
        copy.extend_from_slice(packet);
        waiting.bytes += packet.len();
        waiting.packets.push_back(copy);
        if std::mem::take(&mut waiting.awaited) {
            self.arrived.signal();
        }
    }

    /// Move a batch into `arrived`; give the packets in `read` back for reuse.
    fn take(&self, arrived: &mut VecDeque<Vec<u8>>, read: &mut Vec<Vec<u8>>) {
        let mut waiting = self.lock();
        let room = SPARES_MAX - waiting.spares.len();
        waiting.spares.extend(read.drain(..).filter(fits_spare).take(room));
        let count = waiting.packets.len().min(BATCH);
        arrived.extend(waiting.packets.drain(..count));
        waiting.bytes -= arrived.iter().map(Vec::len).sum::<usize>();
        if count == 0 && !waiting.awaited {
            // Under the lock: a signal from now on is for a packet that was not seen.
            self.arrived.drain();
            waiting.awaited = true;
        }
    }
}

fn fits_spare(packet: &Vec<u8>) -> bool {
    packet.capacity() <= SPARE_BYTES_MAX
}

/// From the hub to a receive queue.
struct Downlink {
    membership: Arc<Membership>,
    inbox: Arc<Inbox>,
    /// Taken out of the inbox, oldest first.
    arrived: VecDeque<Vec<u8>>,
    read: Vec<Vec<u8>>,
}

impl Receiver for Downlink {
    fn next(&mut self, packet: &mut Vec<u8>, _tally: &mut Tally) -> bool {
        if self.arrived.is_empty() {
            self.inbox.take(&mut self.arrived, &mut self.read);
        }
        let Some(next) = self.arrived.pop_front() else { return false };
        self.read.push(std::mem::replace(packet, next));
        true
    }

    fn ahead(&self) -> usize {
        self.arrived.len()
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.inbox.arrived.fd())
    }

    fn enable(&mut self, enabled: bool) {
        if self.inbox.is_enabled() != enabled {
            self.inbox.enabled.store(enabled, Ordering::Relaxed);
        }
    }
}

impl Drop for Downlink {
    fn drop(&mut self) {
        let mut state = self.membership.hub.write();
        for member in &mut state.members {
            member.inboxes.retain(|inbox| !Arc::ptr_eq(inbox, &self.inbox));
        }
    }
}
