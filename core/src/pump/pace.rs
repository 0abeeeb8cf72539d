//! How an end that polls goes about it. The line that it looks at is the one that the other end is
//! about to write, and each look takes it away from there: ends that look as often as they can end up
//! handing every buffer over by itself, and wait for each other's lines all the time.

/// Pauses between two looks at the most: a microsecond or less, a part of what a ring lasts.
const REST_MAX: u32 = 64;
/// Turns without anything to do after which others may have the processor.
const PATIENCE: u32 = 512;

/// When to look again. Whoever runs out of work early rests a little longer each time, so that more
/// lies there the next time; whoever has found much rests less.
#[derive(Debug)]
pub struct Pace {
    /// Buffers that may be found at the most before there are none.
    most: usize,
    /// Found since there were none.
    found: usize,
    /// Pauses between two looks, and those that are left until the next one.
    rest: u32,
    left: u32,
}

impl Pace {
    pub fn new(most: usize) -> Self {
        Self { most, found: 0, rest: 0, left: 0 }
    }

    /// Whether it is time to look; to be asked once a turn.
    #[inline]
    pub fn is_rested(&mut self) -> bool {
        if self.left == 0 {
            return true;
        }
        self.left -= 1;
        false
    }

    /// What a look has found.
    #[inline]
    pub fn found(&mut self, count: usize) {
        if count > 0 {
            self.found += count;
        } else {
            self.run_out();
        }
    }

    fn run_out(&mut self) {
        if self.found < self.most / 4 {
            self.rest = (2 * self.rest + 1).min(REST_MAX);
        } else if self.found > self.most / 2 {
            self.rest /= 2;
        }
        self.left = self.rest;
        self.found = 0;
    }
}

/// Turns without anything to do. Whoever has waited for long lets others run: the other end may be
/// waiting for this very processor.
#[derive(Debug, Default)]
pub struct Idleness {
    turns: u32,
}

impl Idleness {
    #[inline]
    pub fn is_over(&mut self) {
        self.turns = 0;
    }

    #[inline]
    pub fn pause(&mut self) {
        self.turns = self.turns.saturating_add(1);
        if self.turns < PATIENCE {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns until the next look.
    fn rest(pace: &mut Pace) -> u32 {
        (0..).find(|_| pace.is_rested()).unwrap()
    }

    #[test]
    fn who_finds_little_rests_longer_and_who_finds_much_less() {
        let mut pace = Pace::new(64);
        let mut rests = Vec::new();
        for found in [0, 3, 15, 0, 0, 0, 0, 0, 16, 32, 33, 64, 64, 64, 64, 64, 64, 64] {
            pace.found(found);
            if found > 0 {
                assert_eq!(rest(&mut pace), 0, "there may be more");
                pace.found(0);
            }
            rests.push(rest(&mut pace));
        }
        let grown = [1, 3, 7, 15, 31, 63, 64, 64, 64, 64];
        assert_eq!(rests[..10], grown);
        assert_eq!(rests[10..], [32, 16, 8, 4, 2, 1, 0, 0]);
    }

    #[test]
    fn a_small_ring_is_looked_at_as_well() {
        let mut pace = Pace::new(1);
        for _ in 0..10 {
            pace.found(1);
            pace.found(0);
        }
        assert_eq!(rest(&mut pace), 0);
    }
}
