//! What the benches' command lines and tables have in common.

use virtq_core::ring::feature;

pub const KINDS: [(&str, u64); 4] = [
    ("split, any order", 0),
    ("split, in order", feature::IN_ORDER),
    ("packed, any order", feature::RING_PACKED),
    ("packed, in order", feature::RING_PACKED | feature::IN_ORDER),
];

/// The word behind an option.
pub fn text(name: &str) -> Option<String> {
    let args: Vec<String> = std::env::args().collect();
    let at = args.iter().position(|arg| arg == name)?;
    args.get(at + 1).cloned()
}

/// The number behind an option.
pub fn option(name: &str, default: u64) -> u64 {
    text(name).and_then(|value| value.parse().ok()).unwrap_or(default)
}

pub fn is_set(name: &str) -> bool {
    std::env::args().any(|arg| arg == name)
}
