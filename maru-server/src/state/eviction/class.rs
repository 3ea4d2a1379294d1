//! The classes of what is asked for, by what a key-value cache knows of it: was it asked for before, how far is it from the
//! end of the request that asks for it, how deep in its chain is it.
//!
//! The last key of a request mostly stands for a chunk that is not full: the next request has more in its place.

use super::Chain;

/// Distances from the end that are told apart: the last, the one before, the others.
const BEHINDS: u8 = 3;
/// Depths that are told apart.
const DEPTHS: u8 = 4;
/// Classes.
pub(super) const CLASSES: usize = 2 * (BEHINDS * DEPTHS) as usize;
/// Into how many broader classes they fall, level by level, each a part of the one before.
pub(super) const LEVELS: [usize; 3] = [2, 2 * BEHINDS as usize, CLASSES];

/// The class of a key at this place of its chain.
pub(super) fn class(came_back: bool, chain: &Chain) -> u8 {
    let behind = chain.length().saturating_sub(chain.position() + 1);
    let behind = u8::try_from(behind).map_or(BEHINDS - 1, |behind| behind.min(BEHINDS - 1));
    let depth = match chain.position() {
        0..=1 => 0,
        2..=7 => 1,
        8..=31 => 2,
        _ => DEPTHS - 1,
    };
    (u8::from(came_back) * BEHINDS + behind) * DEPTHS + depth
}

/// The class of what was asked for before and was of class `before`. A request for a single key says nothing of where in
/// a chain it is.
pub(super) fn class_again(before: u8, chain: &Chain) -> u8 {
    if chain.length() <= 1 { before % (BEHINDS * DEPTHS) + BEHINDS * DEPTHS } else { class(true, chain) }
}
