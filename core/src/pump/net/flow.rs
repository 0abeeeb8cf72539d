//! Which queue pair a packet belongs to: the one on which the driver last sent to the same peer.
//!
//! The device steers by flow, and the flow that a driver sends on transmitqX should reach it on
//! receiveqX (net.ctrl.mq.dev.auto-steering, net.ctrl.mq.dev.same-queue). A flow is known by a number
//! that is the same in both directions.

use std::sync::atomic::{AtomicU16, Ordering};

const SLOTS: usize = 256;

/// The queue pair of each flow of one driver. Flows that share a slot share the pair.
pub(super) struct Flows {
    /// Pair + 1, or 0 where nothing was sent yet.
    slots: [AtomicU16; SLOTS],
}

impl Default for Flows {
    fn default() -> Self {
        Self { slots: [const { AtomicU16::new(0) }; SLOTS] }
    }
}

impl Flows {
    /// The driver sent a frame on `pair`.
    pub fn sent(&self, frame: &[u8], pair: u16) {
        let slot = &self.slots[usize::from(flow(frame))];
        if slot.load(Ordering::Relaxed) != pair + 1 {
            slot.store(pair + 1, Ordering::Relaxed);
        }
    }

    /// Which of `pairs` gets a frame, by position.
    pub fn choose(&self, frame: &[u8], mut pairs: impl Iterator<Item = u16> + Clone) -> usize {
        let flow = usize::from(flow(frame));
        let sent_on = self.slots[flow].load(Ordering::Relaxed);
        let count = pairs.clone().count().max(1);
        pairs.position(|pair| pair + 1 == sent_on).unwrap_or(flow % count)
    }
}

/// A number for the conversation that a frame belongs to, the same for both directions.
fn flow(frame: &[u8]) -> u8 {
    let mut at = 12;
    if frame.get(at..at + 2) == Some(&[0x81, 0x00]) {
        at += 4;
    }
    let kind = frame.get(at..at + 2).unwrap_or_default();
    let body = frame.get(at + 2..).unwrap_or_default();
    let (addresses, protocol, ports) = match (kind, body.len()) {
        ([0x08, 0x00], 20..) => {
            let is_fragment = body[6] & 0x3f != 0 || body[7] != 0;
            let ports = if is_fragment { None } else { Some(usize::from(body[0] & 15) * 4) };
            (&body[12..20], body[9], ports)
        }
        ([0x86, 0xdd], 40..) => (&body[8..40], body[6], Some(40)),
        _ => (frame.get(..12).unwrap_or_default(), 0, None),
    };
    let ports = ports
        .filter(|_| matches!(protocol, 6 | 17))
        .and_then(|at| body.get(at..at + 4))
        .unwrap_or_default();
    let mixed = [addresses, ports].into_iter().fold(u32::from(protocol), |mixed, both| {
        let (one, other) = both.split_at(both.len() / 2);
        // Addition and exclusive or forget who is who; the multiplication does not commute with
        // either, so that neighbours differ.
        one.iter().zip(other).fold(mixed, |mixed, (a, b)| {
            let pair = u32::from(a ^ b) << 9 | (u32::from(*a) + u32::from(*b));
            (mixed ^ pair).wrapping_mul(0x9e37_79b1).rotate_left(13)
        })
    });
    (mixed >> 24) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(from: [u8; 4], to: [u8; 4], from_port: u16, to_port: u16, fragment: bool) -> Vec<u8> {
        let mut frame = vec![0; 14];
        frame[12..].copy_from_slice(&[8, 0]);
        let mut ip = [0; 20];
        ip[0] = 0x45;
        ip[6] = if fragment { 0x20 } else { 0x40 };
        ip[9] = 17;
        ip[12..16].copy_from_slice(&from);
        ip[16..].copy_from_slice(&to);
        frame.extend(ip);
        frame.extend(from_port.to_be_bytes());
        frame.extend(to_port.to_be_bytes());
        frame
    }

    #[test]
    fn both_directions_are_one_flow() {
        let (a, b) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        assert_eq!(flow(&udp(a, b, 1000, 53, false)), flow(&udp(b, a, 53, 1000, false)));
        let flows: std::collections::HashSet<_> =
            (0..64).map(|port| flow(&udp(a, b, 1000 + port, 53, false))).collect();
        assert!(flows.len() > 32, "64 flows fall into {} slots", flows.len());
        assert_eq!(flow(&udp(a, b, 1, 2, true)), flow(&udp(a, b, 3, 4, true)), "fragments");
    }

    #[test]
    fn cut_frames_have_a_flow() {
        let whole = udp([1; 4], [2; 4], 3, 4, false);
        for len in 0..whole.len() {
            flow(&whole[..len]);
        }
        let mut tagged = whole.clone();
        tagged.splice(12..12, [0x81, 0, 0, 1]);
        assert_eq!(flow(&tagged), flow(&whole));
    }

    #[test]
    fn answers_come_where_the_question_was_sent() {
        let flows = Flows::default();
        let (question, answer) =
            (udp([1; 4], [2; 4], 7, 9, false), udp([2; 4], [1; 4], 9, 7, false));
        for pair in [2, 0, 1] {
            flows.sent(&question, pair);
            assert_eq!(flows.choose(&answer, [0, 1, 2].into_iter()), usize::from(pair));
        }
        flows.sent(&question, 2);
        assert!(flows.choose(&answer, [0, 1].into_iter()) < 2, "pair 2 is not in use");
    }
}
