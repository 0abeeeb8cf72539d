//! One thread that polls several paths in turn.
//!
//! Paths that poll never sleep, so each on a thread of its own takes a processor. The two queues of a
//! pair are better off sharing one: their threads would take it from each other in the middle of the
//! work, for longer than a ring lasts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::wait::PATIENCE;
use crate::event::{Event, sleep};

/// What came of a member's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It did something.
    Busy,
    /// There was nothing to do.
    Idle,
    /// There will be nothing to do until its wake event is signalled.
    Asleep,
    /// It is done for good.
    Over,
}

/// A path that is polled.
pub(super) trait Member: Send {
    /// One round; `look`: whether a sleeper is to see if it was woken.
    fn turn(&mut self, look: bool) -> Turn;
    /// Signalled when a sleeper has something to do.
    fn wake(&self) -> &Event;
}

/// Rounds between two looks at sleepers while others work.
const LOOK_ROUNDS: u32 = 256;

/// Members that share a thread, which lives as long as there are any.
pub struct Poller {
    state: Mutex<State>,
    /// Whether somebody is about to join.
    changed: AtomicBool,
    wake: Event,
}

#[derive(Default)]
struct State {
    joining: Vec<Box<dyn Member>>,
    runs: bool,
}

impl Poller {
    /// Nobody yet, and no thread.
    pub fn new() -> std::io::Result<Self> {
        let (state, changed) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self { state, changed, wake: Event::create()? })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Take a member in; the thread is called `name` if it is to be started for it.
    pub(super) fn join(
        self: &Arc<Self>,
        name: &str,
        member: Box<dyn Member>,
    ) -> std::io::Result<()> {
        let mut state = self.lock();
        if !state.runs {
            let poller = Arc::clone(self);
            std::thread::Builder::new().name(name.into()).spawn(move || poller.run())?;
            state.runs = true;
        }
        state.joining.push(member);
        self.changed.store(true, Ordering::Relaxed);
        self.wake.signal();
        Ok(())
    }

    fn run(&self) {
        let mut members: Vec<Box<dyn Member>> = Vec::new();
        let (mut rounds, mut look, mut idle_since) = (0u32, true, None);
        loop {
            if self.changed.swap(false, Ordering::Relaxed) || members.is_empty() {
                let mut state = self.lock();
                members.append(&mut state.joining);
                if members.is_empty() {
                    state.runs = false;
                    return;
                }
            }
            let (mut busy, mut asleep) = (false, true);
            members.retain_mut(|member| {
                // A path that panicked has printed its message; the others go on.
                let turn = catch_unwind(AssertUnwindSafe(|| member.turn(look)));
                let turn = turn.unwrap_or(Turn::Over);
                busy |= turn == Turn::Busy;
                asleep &= matches!(turn, Turn::Asleep | Turn::Over);
                turn != Turn::Over
            });
            rounds = rounds.wrapping_add(1);
            look = rounds % LOOK_ROUNDS == 0;
            if busy {
                idle_since = None;
            } else if asleep && !members.is_empty() {
                let wakes = members.iter().map(|member| member.wake().fd());
                sleep(&wakes.chain([self.wake.fd()]).collect::<Vec<_>>(), -1);
                self.wake.drain();
                look = true;
            } else if idle_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
                std::hint::spin_loop();
            } else {
                // The processor may be somebody else's too.
                std::thread::yield_now();
            }
        }
    }
}
