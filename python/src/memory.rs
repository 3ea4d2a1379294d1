//! Memory of regions as Python buffers, which own what they show.

use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use maru_client::RegionMemory;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;

use crate::held::{Chunk, Page};

/// How often this process is the child of a fork since it has this module.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// What keeps a range of memory as it is.
pub(crate) enum Holder {
    /// Nothing but the mapping.
    Region(RegionMemory),
    /// The page is this process's to write into.
    Page(Arc<Page>),
    /// The chunk is pinned.
    Chunk(Arc<Chunk>),
}

impl Holder {
    fn region(&self) -> &RegionMemory {
        match self {
            Holder::Region(memory) => memory,
            Holder::Page(page) => &page.memory,
            Holder::Chunk(chunk) => &chunk.memory,
        }
    }
}

/// A range of mapped memory. `memoryview` shows it, and whatever is made of that keeps it: the mapping, and the page or
/// the pin if there is one, last until nothing refers to it any more.
#[pyclass(frozen, module = "maru_handler._native")]
pub(crate) struct Memory {
    holder: ManuallyDrop<Holder>,
    offset: usize,
    length: usize,
    readonly: bool,
    /// Of which process it is.
    forks: u32,
}

impl Memory {
    /// A range of the holder's region; it can be written if that is asked for and the mapping allows it.
    ///
    /// # Panics
    /// When the range is not inside the region.
    pub(crate) fn new(holder: Holder, offset: usize, length: usize, writable: bool) -> Memory {
        let region = holder.region();
        assert!(offset.checked_add(length).is_some_and(|end| end <= region.len()), "the range is inside");
        let readonly = !(writable && region.is_writable());
        let forks = FORKS.load(Ordering::Relaxed);
        Memory { holder: ManuallyDrop::new(holder), offset, length, readonly, forks }
    }

    /// A `memoryview` of it.
    pub(crate) fn view(self, py: Python<'_>) -> PyResult<Bound<'_, PyMemoryView>> {
        PyMemoryView::from(Bound::new(py, self)?.as_any())
    }
}

#[pymethods]
impl Memory {
    /// Fills a request for the buffer: bytes, one dimension.
    ///
    /// # Safety
    /// Python calls it with a `Py_buffer` that it owns.
    #[expect(clippy::needless_pass_by_value, reason = "pyo3 hands it over")]
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let memory = slf.get();
        // SAFETY: the range was checked to be inside the region.
        let start = unsafe { memory.holder.region().as_ptr().add(memory.offset) };
        let length =
            memory.length.try_into().map_err(|_| PyBufferError::new_err("the memory is too long"))?;
        let readonly = c_int::from(memory.readonly);
        // SAFETY: `view` is valid, it gets a reference to this object, and that keeps the mapping.
        let filled =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start.cast(), length, readonly, flags) };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }

    fn __len__(&self) -> usize {
        self.length
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.forks == FORKS.load(Ordering::Relaxed) {
            // SAFETY: the value is not used again.
            unsafe { ManuallyDrop::drop(&mut self.holder) };
        }
        // In the child of a fork the page or pin is still the parent's, on a connection that the child must not touch.
    }
}

/// Where the bytes of a buffer lie in this process, also of one that can't be written.
#[pyfunction]
pub(crate) fn address(buffer: &Bound<'_, PyAny>) -> PyResult<usize> {
    Ok(PyBuffer::<u8>::get(buffer)?.buf_ptr() as usize)
}

/// This process is the child of a fork: whatever was made before belongs to the parent.
#[pyfunction]
pub(crate) fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}
