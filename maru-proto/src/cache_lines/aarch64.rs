//! The instructions of aarch64, which the kernel lets processes use.

use std::arch::asm;

/// Every processor has them: DC CVAC writes a line back, DC CIVAC writes it back and drops it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instructions;

impl Instructions {
    /// They, and the bytes of a line.
    pub(super) fn detect() -> Option<(Instructions, usize)> {
        let cache_type: u64;
        // SAFETY: the register tells of the caches; where it may not be read directly, the kernel answers in its stead.
        unsafe {
            asm!("mrs {}, ctr_el0", out(reg) cache_type, options(nomem, nostack, preserves_flags));
        }
        // The smallest line of any data cache, as a power of two of words of 4 bytes.
        Some((Instructions, 4 << (cache_type >> 16 & 0xF)))
    }

    pub(super) fn names(&self) -> (&'static str, &'static str) {
        ("dc cvac", "dc civac")
    }

    /// Writes lines back. They are in memory before whatever follows, as that which tells of them.
    ///
    /// # Safety
    /// The addresses are readable.
    pub(super) unsafe fn write_back(&self, lines: impl Iterator<Item = *const u8>) {
        lines.for_each(|line| {
            // SAFETY: to the program it is a load that leaves no value; the address is readable, as the caller says.
            unsafe { asm!("dc cvac, {}", in(reg) line, options(nostack, preserves_flags)) };
        });
        fence();
    }

    /// Drops lines. Whatever was loaded before was loaded before them, as that which told of new bytes, and whatever is loaded
    /// later comes from memory.
    ///
    /// # Safety
    /// The addresses are readable.
    pub(super) unsafe fn invalidate(&self, lines: impl Iterator<Item = *const u8>) {
        fence();
        lines.for_each(|line| {
            // SAFETY: as above.
            unsafe { asm!("dc civac, {}", in(reg) line, options(nostack, preserves_flags)) };
        });
        fence();
    }
}

/// Waits until all that was before is done, for the whole system: other hosts are in no domain of this one's.
fn fence() {
    // SAFETY: a barrier touches no memory.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}

#[cfg(test)]
impl Instructions {
    /// Every way that this processor has.
    pub(super) fn all() -> Vec<Instructions> {
        vec![Instructions]
    }
}
