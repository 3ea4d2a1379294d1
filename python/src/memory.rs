//! Memory of regions as Python buffers, which own what they show.

use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use maru_client::{ChunkRef, RegionMemory};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyRuntimeError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;

use crate::answers::value;
use crate::held::Page;

/// How often this process is the child of a fork since it has this module.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// What keeps a range of memory as it is, and mapped.
pub(crate) enum Holder {
    /// Nothing but the mapping.
    Region(#[expect(dead_code, reason = "it is kept for what it does when it is dropped")] RegionMemory),
    /// The page is this process's to write into.
    Page(Arc<Page>),
    /// The chunk is pinned.
    Chunk(ChunkRef),
}

/// A range of mapped memory. `memoryview` shows it, and whatever is made of that keeps it: the mapping, and the page or
/// the pin if there is one, last until nothing refers to it any more.
#[pyclass(frozen, module = "maru_handler._native")]
pub(crate) struct Memory {
    holder: ManuallyDrop<Holder>,
    start: *mut u8,
    length: usize,
    readonly: bool,
    /// Of which process it is.
    forks: u32,
}

// SAFETY: the memory is mapped as long as the holder lives, which may be dropped by any thread; what is in it is shared with
// other processes, and Python code reads and writes it under its own rules, from any thread.
unsafe impl Send for Memory {}
// SAFETY: as above; nothing of it changes.
unsafe impl Sync for Memory {}

impl Memory {
    /// A range of a region that the holder keeps mapped; it can be written if that is asked for and the mapping allows it.
    ///
    /// # Panics
    /// When the range is not inside the region.
    pub(crate) fn new(
        holder: Holder,
        region: &RegionMemory,
        offset: usize,
        length: usize,
        writable: bool,
    ) -> Memory {
        assert!(offset.checked_add(length).is_some_and(|end| end <= region.len()), "the range is inside");
        // SAFETY: the offset is inside the region.
        let start = unsafe { region.as_ptr().add(offset) };
        let readonly = !(writable && region.is_writable());
        Memory { holder: ManuallyDrop::new(holder), start, length, readonly, forks: forks() }
    }

    /// The page that it shows, if that was allocated here.
    pub(crate) fn page(&self) -> Option<&Arc<Page>> {
        match &*self.holder {
            Holder::Page(page) => Some(page),
            _ => None,
        }
    }

    /// Checks that what was read of it is what was stored.
    ///
    /// # Errors
    /// `MaruError` where the server has released the pin of the chunk, or may have; `TypeError` where it is no page's and no
    /// chunk's memory; `RuntimeError` in the child of a fork, whose parent has the pin.
    pub(crate) fn check(&self, py: Python<'_>) -> PyResult<()> {
        if self.forks != forks() {
            return Err(PyRuntimeError::new_err(
                "what the parent of a fork has pinned, its child can't check",
            ));
        }
        match &*self.holder {
            Holder::Region(_) => {
                Err(PyTypeError::new_err("nothing keeps this memory as it is, so it can't be checked"))
            }
            Holder::Page(_) => Ok(()),
            Holder::Chunk(chunk) => value(py.detach(|| chunk.check())),
        }
    }

    /// A `memoryview` of it.
    pub(crate) fn view(self, py: Python<'_>) -> PyResult<Bound<'_, PyMemoryView>> {
        let memory = Bound::new(py, self)?.into_any();
        untrack(&memory);
        PyMemoryView::from(&memory)
    }
}

/// Spares Python's collector an object that can't be part of a cycle: a batch makes a thousand of them.
pub(crate) fn untrack(object: &Bound<'_, PyAny>) {
    // SAFETY: the object is alive, and its type one of `#[pyclass]`, whose objects the collector knows.
    unsafe { ffi::PyObject_GC_UnTrack(object.as_ptr().cast()) };
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
        let length =
            memory.length.try_into().map_err(|_| PyBufferError::new_err("the memory is too long"))?;
        let readonly = c_int::from(memory.readonly);
        // SAFETY: `view` is valid, it gets a reference to this object, and that keeps the mapping.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), memory.start.cast(), length, readonly, flags)
        };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.forks == forks() {
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

/// How often this process is the child of a fork since it has this module.
pub(crate) fn forks() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// This process is the child of a fork: whatever was made before belongs to the parent.
#[pyfunction]
pub(crate) fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}
