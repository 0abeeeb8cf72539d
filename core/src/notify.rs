//! When to notify: suppression flags and event indices as range tests (2.7.7, 2.7.10, 2.8.14).

use crate::error::Fault;

/// Whether an event index lies in what was passed on the way from `old` to `new`, both free-running
/// 16-bit indices. A test for equality would miss an event inside a batch.
#[inline]
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Packed event suppression flags (2.8.10): notify always.
pub const EVENT_ENABLE: u16 = 0;
/// Never notify.
pub const EVENT_DISABLE: u16 = 1;
/// Notify when the descriptor named by offset and wrap counter is reached.
pub const EVENT_DESC: u16 = 2;

/// The event suppression structure as one word: offset and wrap counter below, flags above.
#[inline]
pub fn event_word(slot: u16, wrap: bool, flags: u16) -> u32 {
    u32::from(slot) | u32::from(wrap) << 15 | u32::from(flags) << 16
}

/// What one side of a packed ring has passed since it last decided on a notification.
#[derive(Clone, Copy, Debug)]
pub struct Passed {
    /// The next slot to be written, and its wrap counter.
    pub slot: u16,
    /// The wrap counter of `slot`.
    pub wrap: bool,
    /// Slots passed since the last decision; may exceed the ring when decisions were rare.
    pub slots: u32,
}

/// Whether the word that the other side wrote asks for a notification after `passed`.
pub fn packed_wanted(word: u32, passed: Passed, size: u16, event_idx: bool) -> Result<bool, Fault> {
    let flags = (word >> 16) as u16 & 3;
    match flags {
        EVENT_ENABLE => Ok(true),
        EVENT_DISABLE => Ok(false),
        EVENT_DESC if event_idx => {
            let offset = word as u16 & 0x7fff;
            if offset >= size {
                return Err(Fault::EventOffset { offset, size });
            }
            let wrap = word & 0x8000 != 0;
            let lap = if wrap == passed.wrap { 0 } else { i64::from(size) };
            let event = i64::from(offset) - lap;
            let new = i64::from(passed.slot);
            Ok(new - i64::from(passed.slots) <= event && event < new)
        }
        _ => Err(Fault::ReservedEventFlags { flags }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_inside_a_batch_fires() {
        let fires: Vec<bool> = (0..4).map(|event| need_event(event, 3, 0)).collect();
        assert_eq!(fires, [true, true, true, false]);
        assert!(need_event(0xffff, 1, 0xfffe));
        assert!(!need_event(5, 5, 5));
    }

    #[test]
    fn a_packed_event_fires_across_the_wrap() {
        let passed = Passed { slot: 2, wrap: false, slots: 4 };
        let wanted = |slot, wrap| {
            packed_wanted(event_word(slot, wrap, EVENT_DESC), passed, 8, true).unwrap()
        };
        assert!(wanted(6, true) && wanted(7, true) && wanted(0, false) && wanted(1, false));
        assert!(!wanted(2, false) && !wanted(5, true) && !wanted(6, false));
    }

    #[test]
    fn reserved_values_are_faults() {
        let passed = Passed { slot: 1, wrap: true, slots: 1 };
        assert_eq!(
            packed_wanted(event_word(0, true, 3), passed, 8, true),
            Err(Fault::ReservedEventFlags { flags: 3 })
        );
        assert_eq!(
            packed_wanted(event_word(0, true, EVENT_DESC), passed, 8, false),
            Err(Fault::ReservedEventFlags { flags: 2 })
        );
        assert_eq!(
            packed_wanted(event_word(8, true, EVENT_DESC), passed, 8, true),
            Err(Fault::EventOffset { offset: 8, size: 8 })
        );
    }
}
