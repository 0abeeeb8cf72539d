//! Order as a type: what is outstanding, and what leaves next.
//!
//! With IN_ORDER (6, bit 35) buffers leave as they came, so what is outstanding is a queue, a
//! buffer's place in it is arithmetic, and one used entry covers a whole run. Without it, what is
//! outstanding is a table. The rings take the order as a type parameter and never test for it.

mod added;
mod taken;

pub use added::{Added, AddedRuns, AddedTable, Sent, SentRun};
pub use taken::{Taken, TakenQueue, TakenTable, Token, UsedEntry};

/// Buffers are used in the order in which they were made available.
#[derive(Debug)]
pub enum InOrder {}

/// Buffers are used in any order.
#[derive(Debug)]
pub enum AnyOrder {}

/// The two orders, with the bookkeeping that each needs.
pub trait Order {
    /// Whether buffers leave as they came, so that one used entry may cover several.
    const IN_ORDER: bool;
    /// What the device half has taken and not yet used.
    type Taken: Taken;
    /// What the driver half has added and not yet reaped.
    type Added: Added;
}

impl Order for InOrder {
    const IN_ORDER: bool = true;
    type Taken = TakenQueue;
    type Added = AddedRuns;
}

impl Order for AnyOrder {
    const IN_ORDER: bool = false;
    type Taken = TakenTable;
    type Added = AddedTable;
}
