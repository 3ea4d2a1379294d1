//! Answers as the Python objects that users get.

use std::sync::Arc;

use maru_client::{ChunkRef, Deleted, MaruHandler, Pinned, RegionMemory, Stored, StoredEach, Unpinned};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::error::{MaruError, exception};
use crate::held::Held;
use crate::memory::{Holder, Memory, untrack};

/// A chunk where it lies.
///
/// ``view`` keeps the chunk pinned: as long as it, or anything made of it without copying, is alive, nobody can delete,
/// evict or overwrite the chunk, unless this process is out of the server's reach for longer than its grace period.
///
/// Attributes:
///     view: Its bytes; one dimension, format ``B``, read-only unless the handler was told otherwise.
///     region_id: The region that it lies in.
///     page_index: The index of its page in the region.
#[pyclass(module = "maru_handler.memory.types", weakref)]
pub(crate) struct MemoryInfo {
    #[pyo3(get, set)]
    view: Py<PyAny>,
    #[pyo3(get, set)]
    region_id: u32,
    #[pyo3(get, set)]
    page_index: u32,
}

#[pymethods]
impl MemoryInfo {
    #[new]
    #[pyo3(signature = (view, region_id=0, page_index=0))]
    fn new(view: Py<PyAny>, region_id: u32, page_index: u32) -> MemoryInfo {
        MemoryInfo { view, region_id, page_index }
    }

    /// Raises ``MaruError`` unless everything that was read of the chunk so far is what was stored.
    ///
    /// Call it after the bytes were used, where the server may be out of reach for longer than its grace period. It costs a
    /// look at the clock.
    ///
    /// Raises:
    ///     MaruError: The server has released the pin of the chunk, or may have: what was read of it means nothing.
    ///     TypeError: ``view`` shows nothing that a handler has handed out.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        let unknown = || PyTypeError::new_err("the view shows no chunk of a handler, so it can't be checked");
        let shown = self.view.bind(py).getattr_opt("obj")?.ok_or_else(unknown)?;
        shown.cast::<Memory>().map_err(|_| unknown())?.get().check(py)
    }

    /// Whether ``check`` fails at the moment.
    #[getter]
    fn revoked(&self, py: Python<'_>) -> PyResult<bool> {
        match self.check(py) {
            Err(error) if error.is_instance_of::<MaruError>(py) => Ok(true),
            checked => checked.map(|()| false),
        }
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (region_id, page_index, length) = (self.region_id, self.page_index, self.view.bind(py).len()?);
        Ok(format!("MemoryInfo(region_id={region_id}, page_index={page_index}, {length} bytes)"))
    }
}

/// Chunks on their way to Python, each with the memory that it lies in.
pub(crate) struct Chunks {
    pub(crate) found: Vec<Option<(ChunkRef, RegionMemory)>>,
    pub(crate) held: Arc<Held>,
    pub(crate) writable: bool,
}

impl Chunks {
    /// Finds the memory that chunks lie in; those whose region is gone are not found.
    pub(crate) fn new(
        handler: &MaruHandler,
        held: &Arc<Held>,
        writable: bool,
        chunks: Vec<Option<ChunkRef>>,
    ) -> Chunks {
        let mut last: Option<(u32, RegionMemory)> = None;
        let found = chunks.into_iter().map(|chunk| {
            let chunk = chunk?;
            let region_id = chunk.region_id();
            // Chunks of one prompt lie in few regions.
            if last.as_ref().is_none_or(|(id, _)| *id != region_id) {
                last = Some((region_id, handler.region_memory(region_id)?));
            }
            last.as_ref().map(|(_, memory)| (chunk, memory.clone()))
        });
        Chunks { found: found.collect(), held: Arc::clone(held), writable }
    }
}

impl<'py> IntoPyObject<'py> for Chunks {
    type Target = PyList;
    type Output = Bound<'py, PyList>;
    type Error = PyErr;

    /// A list of `MemoryInfo` or `None`; the view of each keeps the pin.
    fn into_pyobject(mut self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        self.held.add_chunks(self.found.iter_mut().flatten().map(|(chunk, _)| chunk));
        let mut list = Vec::with_capacity(self.found.len());
        for found in self.found {
            let Some((guard, memory)) = found else {
                list.push(py.None().into_bound(py));
                continue;
            };
            let (region_id, page_index, length) = (guard.region_id(), guard.page_index(), guard.len());
            let offset = guard.as_ptr() as usize - memory.as_ptr() as usize;
            let view = Memory::new(Holder::Chunk(guard), &memory, offset, length, self.writable).view(py)?;
            let info = MemoryInfo { view: view.into_any().unbind(), region_id, page_index };
            let info = Bound::new(py, info)?.into_any();
            // A view of memory refers to nothing that could refer to it.
            untrack(&info);
            list.push(info);
        }
        PyList::new(py, list)
    }
}

/// Whether each chunk is there under its key, stored now or before.
pub(crate) fn stored(outcomes: StoredEach) -> Vec<bool> {
    let is_there = |outcome| match outcome {
        Ok(Stored::Stored | Stored::AlreadyExists) => true,
        Err(status) => {
            tracing::warn!(%status, "a chunk was not stored");
            false
        }
    };
    outcomes.into_iter().map(is_there).collect()
}

/// Whether each chunk was pinned.
pub(crate) fn pinned(outcomes: Vec<Pinned>) -> Vec<bool> {
    outcomes.into_iter().map(|outcome| outcome == Pinned::Pinned).collect()
}

/// Whether each chunk lost a pin.
pub(crate) fn unpinned(outcomes: Vec<Unpinned>) -> Vec<bool> {
    outcomes.into_iter().map(|outcome| outcome == Unpinned::Unpinned).collect()
}

/// Whether each chunk was deleted.
pub(crate) fn deleted(outcomes: Vec<Deleted>) -> Vec<bool> {
    outcomes.into_iter().map(|outcome| outcome == Deleted::Deleted).collect()
}

/// The value of an answer, or its error as an exception.
pub(crate) fn value<T>(answer: maru_client::Result<T>) -> PyResult<T> {
    answer.map_err(|error| exception(&error))
}
