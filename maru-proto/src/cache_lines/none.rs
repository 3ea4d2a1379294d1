//! Processors of which it is not known how a process writes lines back: memory that needs it is refused.

/// There are none.
#[derive(Clone, Copy, Debug)]
pub(super) enum Instructions {}

impl Instructions {
    pub(super) fn detect() -> Option<(Instructions, usize)> {
        None
    }

    pub(super) fn names(&self) -> (&'static str, &'static str) {
        match *self {}
    }

    /// # Safety
    /// There is nothing to call it on.
    pub(super) unsafe fn write_back(&self, _: impl Iterator<Item = *const u8>) {
        match *self {}
    }

    /// # Safety
    /// There is nothing to call it on.
    pub(super) unsafe fn invalidate(&self, _: impl Iterator<Item = *const u8>) {
        match *self {}
    }
}

#[cfg(test)]
impl Instructions {
    /// Every way that this processor has.
    pub(super) fn all() -> Vec<Instructions> {
        Vec::new()
    }
}
