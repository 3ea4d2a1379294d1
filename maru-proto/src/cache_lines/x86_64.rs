//! The instructions of x86-64.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _mm_mfence};

/// Which of the instructions the processor has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instructions {
    write_back: Instruction,
    invalidate: Instruction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    /// Writes a line back, and may keep it.
    Clwb,
    /// Writes a line back and drops it, not in order with others.
    Clflushopt,
    /// The same, one after the other; every processor has it.
    Clflush,
}

impl Instructions {
    /// The best that there is, and the bytes of a line.
    #[allow(
        unused_unsafe,
        reason = "CPUID became safe to ask with a later compiler than the oldest that builds this"
    )]
    pub(super) fn detect() -> Option<(Instructions, usize)> {
        // SAFETY: every x86-64 processor has CPUID, and leaf 1.
        let basic = unsafe { __cpuid(1) };
        // SAFETY: as above; the highest leaf is in leaf 0.
        let extended = if unsafe { __cpuid(0) }.eax >= 7 {
            // SAFETY: the leaf is there.
            unsafe { __cpuid_count(7, 0) }.ebx
        } else {
            0
        };
        let invalidate = if extended >> 23 & 1 == 1 { Instruction::Clflushopt } else { Instruction::Clflush };
        let write_back = if extended >> 24 & 1 == 1 { Instruction::Clwb } else { invalidate };
        // CLFLUSH, on whose size the others work, is counted in words of 8 bytes.
        let line = (basic.ebx >> 8 & 0xFF) as usize * 8;
        Some((Instructions { write_back, invalidate }, line))
    }

    pub(super) fn names(&self) -> (&'static str, &'static str) {
        (self.write_back.name(), self.invalidate.name())
    }

    /// Writes lines back. They are in memory before any later store is seen by anybody, as that which tells of them.
    ///
    /// # Safety
    /// The addresses are readable.
    pub(super) unsafe fn write_back(&self, lines: impl Iterator<Item = *const u8>) {
        // SAFETY: as the caller says.
        unsafe { self.write_back.on_each(lines) };
        fence();
    }

    /// Drops lines. Whatever was loaded before was loaded before them, as that which told of new bytes, and whatever is loaded
    /// later comes from memory.
    ///
    /// # Safety
    /// The addresses are readable.
    pub(super) unsafe fn invalidate(&self, lines: impl Iterator<Item = *const u8>) {
        fence();
        // SAFETY: as the caller says.
        unsafe { self.invalidate.on_each(lines) };
        fence();
    }
}

impl Instruction {
    fn name(self) -> &'static str {
        match self {
            Instruction::Clwb => "clwb",
            Instruction::Clflushopt => "clflushopt",
            Instruction::Clflush => "clflush",
        }
    }

    /// # Safety
    /// The addresses are readable, and the processor has the instruction.
    unsafe fn on_each(self, lines: impl Iterator<Item = *const u8>) {
        match self {
            Instruction::Clwb => lines.for_each(|line| {
                // SAFETY: to the program it is a load that leaves no value; the address is readable, as the caller says.
                unsafe { asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags)) };
            }),
            Instruction::Clflushopt => lines.for_each(|line| {
                // SAFETY: as above.
                unsafe { asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags)) };
            }),
            Instruction::Clflush => lines.for_each(|line| {
                // SAFETY: as above.
                unsafe { asm!("clflush [{}]", in(reg) line, options(nostack, preserves_flags)) };
            }),
        }
    }
}

/// Orders all that was before with all that follows. It is MFENCE, which unlike SFENCE also keeps later loads behind it, and
/// costs some hundred cycles once a chunk.
fn fence() {
    // SAFETY: a fence touches no memory, and every x86-64 processor has it.
    unsafe { _mm_mfence() };
}

#[cfg(test)]
impl Instructions {
    /// Every way that this processor has.
    pub(super) fn all() -> Vec<Instructions> {
        let (best, _) = Instructions::detect().expect("every x86-64 processor can");
        let plain = Instructions { write_back: Instruction::Clflush, invalidate: Instruction::Clflush };
        vec![best, Instructions { write_back: best.invalidate, ..best }, plain]
    }
}
