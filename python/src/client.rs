//! The client of one instance. Whatever waits, maps or copies does so without the interpreter's lock.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use maru_client::{
    Address, Config, DeviceMap, Error, KeyDigest, MaruHandler, PageLocation, PageMut, PoolKind, PoolUuid,
    StatKind,
};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyKeyError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMemoryView};
use pyo3_async_runtimes::tokio::future_into_py;

use crate::answers::{Chunks, deleted, pinned, stored, unpinned, value};
use crate::error::exception;
use crate::held::{Held, Page};
use crate::keys::{digest, digests};
use crate::memory::{Holder, Memory, forks};

/// What an `AllocHandle` says: region, index and length, and the memory that it shows if it shows any.
type Handle<'py> = (u32, u32, usize, Option<Bound<'py, PyAny>>);

/// A page in Python: a view of its first bytes, its region, its index.
type PageView<'py> = (Bound<'py, PyMemoryView>, u32, u32);

/// A pool in Python: path, whether it is a device, bytes, free bytes, granularity.
type Pool = (String, bool, u64, u64, u64);

/// Pages are multiples of this many bytes.
const PAGE_UNIT: usize = 4096;

/// A connected instance.
#[pyclass(frozen, module = "maru_handler._native")]
pub(crate) struct Client {
    handler: MaruHandler,
    held: Arc<Held>,
    /// Bytes of the largest chunk. Pages are that, rounded up to what the pool can give.
    chunk_size: usize,
    /// Whether retrieved chunks can be written, as far as their mapping allows it.
    writable: bool,
}

/// Answers to awaited requests are waited for by one thread, however many there are.
pub(crate) fn init_runtime() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).thread_name("maru-aio");
    pyo3_async_runtimes::tokio::init(builder);
}

#[pymethods]
impl Client {
    /// Connects and opens an instance.
    #[new]
    #[pyo3(signature = (address, instance_id, chunk_size, region_size, *, timeout_ms, expand_size, auto_expand, eager,
                        prefault, map_all, copy_on_write, checksum, auth_token, report_stats, tls_ca, tls_identity,
                        device_map))]
    #[expect(clippy::too_many_arguments, reason = "they are named, and one class calls this")]
    fn new(
        py: Python<'_>,
        address: &str,
        instance_id: String,
        chunk_size: usize,
        region_size: u64,
        timeout_ms: u64,
        expand_size: Option<u64>,
        auto_expand: bool,
        eager: bool,
        prefault: bool,
        map_all: bool,
        copy_on_write: bool,
        checksum: bool,
        auth_token: Option<Vec<u8>>,
        report_stats: bool,
        tls_ca: Option<PathBuf>,
        tls_identity: Option<(PathBuf, PathBuf)>,
        device_map: HashMap<String, PathBuf>,
    ) -> PyResult<Client> {
        let address = value(address.parse::<Address>())?;
        let page_size = chunk_size.next_multiple_of(PAGE_UNIT);
        let at_least_a_page = |size: u64| size.max(page_size as u64);
        let mut config = Config::new()
            .address(address)
            .instance_id(instance_id)
            .page_size(page_size)
            .region_size(at_least_a_page(region_size))
            .auto_expand(auto_expand)
            .eager(eager)
            .prefault(prefault)
            .copy_on_write(copy_on_write)
            .report_stats(report_stats)
            .checksum(checksum)
            .timeout(Duration::from_millis(timeout_ms));
        if let Some(size) = expand_size {
            config = config.expand_size(at_least_a_page(size));
        }
        if let Some(token) = auth_token {
            config = config.auth_token(token);
        }
        if let Some(path) = tls_ca {
            config = config.tls_ca(path);
        }
        if let Some((certificate, key)) = tls_identity {
            config = config.tls_identity(certificate, key);
        }
        let mut map = DeviceMap::default();
        for (pool, path) in device_map {
            let pool = pool.parse::<PoolUuid>().map_err(|error| PyValueError::new_err(error.to_string()))?;
            map.insert(pool, path);
        }
        config = config.device_map(map);
        let handler = py.detach(|| {
            let handler = MaruHandler::connect(config)?;
            if map_all {
                map_regions(&handler)?;
            }
            Ok(handler)
        });
        Ok(Client { handler: value(handler)?, held: Arc::default(), chunk_size, writable: copy_on_write })
    }

    /// Refuses new work and gives regions back.
    fn close(&self, py: Python<'_>) {
        py.detach(|| {
            self.handler.clear_on_region_added();
            self.handler.close();
        });
    }

    /// A page for a chunk of this many bytes.
    fn alloc<'py>(&self, py: Python<'py>, size: usize) -> PyResult<PageView<'py>> {
        self.check_size(size)?;
        self.hand_out(py, py.detach(|| self.handler.alloc(size)))
    }

    /// A page with a copy of a buffer in it.
    fn alloc_copy<'py>(&self, py: Python<'py>, data: &Bound<'py, PyAny>) -> PyResult<PageView<'py>> {
        let buffer = PyBuffer::<u8>::get(data)?;
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("a chunk has to lie in one piece; copy it with bytes()"));
        }
        self.check_size(buffer.len_bytes())?;
        let source = Source { buffer: &buffer };
        let page = py.detach(|| {
            let mut page = self.handler.alloc(source.len())?;
            source.copy_into(&mut page);
            Ok(page)
        });
        self.hand_out(py, page)
    }

    /// Gives a page back that was neither stored nor freed.
    fn free(
        &self,
        py: Python<'_>,
        region_id: u32,
        page_index: u32,
        shown: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        if !self.handler.owned_regions().contains(&region_id) {
            return Err(PyKeyError::new_err(format!("region {region_id} is not a region of this handler")));
        }
        let page = self.take(region_id, page_index, shown)?;
        py.detach(|| self.handler.free(page));
        Ok(())
    }

    /// Whether a page was allocated and neither stored nor freed.
    fn holds_page(&self, region_id: u32, page_index: u32, shown: Option<&Bound<'_, PyAny>>) -> bool {
        let page = self.held.page_at(PageLocation { region_id, page_index });
        page.is_some_and(|page| page_of(shown).is_none_or(|shown| Arc::ptr_eq(shown, &page)))
    }

    /// Makes pages visible under keys; whether each key has a chunk now. A page that is not held counts as a failure.
    fn store(&self, py: Python<'_>, keys: &Bound<'_, PyAny>, pages: Vec<Handle<'_>>) -> PyResult<Vec<bool>> {
        let prepared = self.prepare_store(keys, pages)?;
        let outcomes = py.detach(|| self.handler.batch_store(&prepared.keys, prepared.pages));
        Ok(prepared.order.outcomes(stored(value(outcomes)?)))
    }

    /// [`Client::store`], awaited.
    fn store_async<'py>(
        &self,
        py: Python<'py>,
        keys: &Bound<'_, PyAny>,
        pages: Vec<Handle<'_>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let prepared = self.prepare_store(keys, pages)?;
        let outcomes = self.handler.batch_store_async(&prepared.keys, prepared.pages);
        awaited(py, async move { Ok(prepared.order.outcomes(stored(value(outcomes.await)?))) })
    }

    /// Finds and pins one chunk.
    fn retrieve<'py>(&self, py: Python<'py>, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let digest = digest(&self.handler, key)?;
        let chunk = value(py.detach(|| self.handler.retrieve(digest)))?;
        self.chunks(vec![chunk]).into_pyobject(py)?.get_item(0)
    }

    /// Finds and pins chunks.
    fn batch_retrieve<'py>(&self, py: Python<'py>, keys: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let digests = digests(&self.handler, keys)?;
        let chunks = value(py.detach(|| self.handler.batch_retrieve(&digests)))?;
        Ok(self.chunks(chunks).into_pyobject(py)?.into_any())
    }

    /// [`Client::batch_retrieve`], awaited.
    fn batch_retrieve_async<'py>(
        &self,
        py: Python<'py>,
        keys: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let chunks = self.handler.batch_retrieve_async(&digests(&self.handler, keys)?);
        let (handler, held, writable) = (self.handler.clone(), Arc::clone(&self.held), self.writable);
        awaited(py, async move { Ok(Chunks::new(&handler, &held, writable, value(chunks.await)?)) })
    }

    /// Whether a key has a chunk.
    fn exists(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let digest = digest(&self.handler, key)?;
        value(py.detach(|| self.handler.exists(digest)))
    }

    /// Whether each key has a chunk.
    fn batch_exists(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<Vec<bool>> {
        let digests = digests(&self.handler, keys)?;
        value(py.detach(|| self.handler.batch_exists(&digests)))
    }

    /// [`Client::batch_exists`], awaited.
    fn batch_exists_async<'py>(
        &self,
        py: Python<'py>,
        keys: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let found = self.handler.batch_exists_async(&digests(&self.handler, keys)?);
        awaited(py, async move { value(found.await) })
    }

    /// Pins chunks by name up to the first that can't be.
    fn batch_pin(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<Vec<bool>> {
        let digests = digests(&self.handler, keys)?;
        value(py.detach(|| self.handler.batch_pin_kv(&digests))).map(pinned)
    }

    /// [`Client::batch_pin`], awaited.
    fn batch_pin_async<'py>(&self, py: Python<'py>, keys: &Bound<'_, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let outcomes = self.handler.batch_pin_kv_async(&digests(&self.handler, keys)?);
        awaited(py, async move { value(outcomes.await).map(pinned) })
    }

    /// Gives back one pin by name of each chunk.
    fn batch_unpin(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<Vec<bool>> {
        let digests = digests(&self.handler, keys)?;
        value(py.detach(|| self.handler.batch_unpin_kv(&digests))).map(unpinned)
    }

    /// [`Client::batch_unpin`], awaited.
    fn batch_unpin_async<'py>(
        &self,
        py: Python<'py>,
        keys: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let outcomes = self.handler.batch_unpin_kv_async(&digests(&self.handler, keys)?);
        awaited(py, async move { value(outcomes.await).map(unpinned) })
    }

    /// Deletes chunks that nobody reads.
    fn batch_delete(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<Vec<bool>> {
        let digests = digests(&self.handler, keys)?;
        value(py.detach(|| self.handler.batch_delete(&digests))).map(deleted)
    }

    /// [`Client::batch_delete`], awaited.
    fn batch_delete_async<'py>(
        &self,
        py: Python<'py>,
        keys: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let outcomes = self.handler.batch_delete_async(&digests(&self.handler, keys)?);
        awaited(py, async move { value(outcomes.await).map(deleted) })
    }

    /// A view of bytes of a mapped region, counted as if its pages were as long as chunks can be; `None` where there are
    /// no such bytes. Inside a page that is held, or a chunk that is being read here, it keeps that as it is.
    fn get_buffer_view<'py>(
        &self,
        py: Python<'py>,
        region_id: u32,
        offset: usize,
        size: usize,
    ) -> PyResult<Option<Bound<'py, PyMemoryView>>> {
        let Some(memory) = self.handler.region_memory(region_id) else { return Ok(None) };
        let (page, within) = (offset / self.chunk_size, offset % self.chunk_size);
        let has_own_pages = memory.page_size() == self.handler.page_size();
        if !has_own_pages || within.saturating_add(size) > self.chunk_size {
            // Only where pages and chunks have the same length, bytes of several pages lie side by side.
            let is_inside = offset.checked_add(size).is_some_and(|end| end <= memory.len());
            if !is_inside || has_own_pages && memory.page_size() != self.chunk_size {
                return Ok(None);
            }
            let writable = memory.is_own() || self.writable;
            let holder = Holder::Region(memory.clone());
            return Memory::new(holder, &memory, offset, size, writable).view(py).map(Some);
        }
        let Some(page_index) = u32::try_from(page).ok().filter(|page| *page < memory.pages()) else {
            return Ok(None);
        };
        let start = page * memory.page_size() + within;
        let location = PageLocation { region_id, page_index };
        let (holder, writable) = if let Some(page) = self.held.page_at(location) {
            (Holder::Page(page), true)
        } else if let Some(chunk) = self.held.chunk_at(location) {
            (Holder::Chunk(chunk), self.writable)
        } else {
            (Holder::Region(memory.clone()), memory.is_own() || self.writable)
        };
        Memory::new(holder, &memory, start, size, writable).view(py).map(Some)
    }

    /// Pages of a region, mapped now if it was not; `None` where there is none with pages like those of this instance.
    fn region_page_count(&self, py: Python<'_>, region_id: u32) -> PyResult<Option<u32>> {
        let memory = value(py.detach(|| self.handler.map_region(region_id)))?;
        let pages = memory.filter(|memory| memory.page_size() == self.handler.page_size());
        Ok(pages.map(|memory| memory.pages()))
    }

    /// Ids of the own regions in the order in which they came.
    fn owned_regions(&self) -> Vec<u32> {
        self.handler.owned_regions()
    }

    /// Has `callback(region_id, pages)` called for every own region, now and as they come.
    fn on_region_added(&self, py: Python<'_>, callback: Py<PyAny>) {
        py.detach(|| {
            self.handler.on_region_added(move |region| {
                Python::attach(|py| {
                    if let Err(error) = callback.call1(py, (region.region_id, region.pages)) {
                        error.write_unraisable(py, None);
                    }
                });
            });
        });
    }

    /// Figures of the server and of this instance.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let asked = py.detach(|| Ok((self.handler.stats()?, self.handler.regions()?)));
        let (server, regions) = value(asked)?;
        let own = PyDict::new(py);
        let figures = self.handler.client_stats();
        own.set_item("num_regions", figures.own_regions)?;
        own.set_item("total_page_count", figures.pages)?;
        own.set_item("total_free_pages", figures.free_pages)?;
        own.set_item("mapped_regions", figures.mapped_regions)?;
        own.set_item("rpcs", figures.rpcs)?;
        own.set_item("resumes", figures.resumes)?;
        own.set_item("revoked_chunks", figures.revoked_chunks)?;
        own.set_item("stale_chunks", figures.stale_chunks)?;
        let mut each = Vec::new();
        let number = self.handler.instance_number();
        for region in regions.iter().filter(|region| region.owner.get() == number) {
            let figures = PyDict::new(py);
            figures.set_item("region_id", region.region_id.get())?;
            figures.set_item("page_count", region.pages.get())?;
            figures.set_item("pool_size", region.size.get())?;
            figures.set_item("stored_pages", region.entries.get())?;
            each.push(figures);
        }
        own.set_item("regions", each)?;
        let all = PyDict::new(py);
        for (name, kind) in FIGURES {
            all.set_item(name, server.get(*kind))?;
        }
        all.set_item("own", own)?;
        Ok(all)
    }

    /// What each instance uses.
    fn usage<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let usage = value(py.detach(|| self.handler.usage()))?;
        let each = usage.iter().map(|usage| {
            let figures = PyDict::new(py);
            figures.set_item("instance_id", usage.instance_id.text().unwrap_or_default())?;
            figures.set_item("connections", usage.connections.get())?;
            figures.set_item("regions", usage.regions.get())?;
            figures.set_item("allocated_bytes", usage.region_bytes.get())?;
            figures.set_item("used_bytes", usage.entry_bytes.get())?;
            figures.set_item("entries", usage.entries.get())?;
            figures.set_item("pins", usage.pins.get())?;
            Ok(figures)
        });
        each.collect()
    }

    /// The pools.
    fn pools(&self, py: Python<'_>) -> PyResult<Vec<Pool>> {
        let pools = value(py.detach(|| self.handler.pools()))?;
        let each = pools.iter().map(|pool| {
            let path = pool.path().unwrap_or_default().to_owned();
            let is_device = pool.kind.get() == PoolKind::DevDax as u32;
            (path, is_device, pool.size.get(), pool.free.get(), pool.granularity.get())
        });
        Ok(each.collect())
    }
}

/// Figures of the server that Python sees, under their names there.
const FIGURES: &[(&str, StatKind)] = &[
    ("entries", StatKind::Entries),
    ("entry_bytes", StatKind::EntryBytes),
    ("regions", StatKind::Regions),
    ("region_bytes", StatKind::RegionBytes),
    ("orphans", StatKind::Orphans),
    ("pinned_entries", StatKind::PinnedEntries),
    ("pins", StatKind::Pins),
    ("instances", StatKind::Instances),
    ("connections", StatKind::Connections),
    ("freed_pages", StatKind::FreedPages),
    ("pool_bytes", StatKind::PoolBytes),
    ("pool_free_bytes", StatKind::PoolFreeBytes),
    ("uptime_ms", StatKind::UptimeMs),
    ("epoch", StatKind::Epoch),
    ("hits", StatKind::Hits),
    ("misses", StatKind::Misses),
    ("evictions", StatKind::Evictions),
];

/// A batch that is ready to be stored.
struct Prepared {
    keys: Vec<KeyDigest>,
    pages: Vec<PageMut>,
    order: Order,
}

/// Which items of a batch were sent.
struct Order(Vec<bool>);

impl Order {
    /// The outcome of each item; those that were not sent failed.
    fn outcomes(self, sent: Vec<bool>) -> Vec<bool> {
        let mut sent = sent.into_iter();
        self.0.into_iter().map(|was_sent| was_sent && sent.next() == Some(true)).collect()
    }
}

impl Client {
    fn check_size(&self, size: usize) -> PyResult<()> {
        if size > self.chunk_size {
            let text = format!("{size} bytes do not fit into a chunk of {}", self.chunk_size);
            return Err(PyValueError::new_err(text));
        }
        Ok(())
    }

    /// Shows a page to Python.
    fn hand_out<'py>(&self, py: Python<'py>, page: Result<PageMut, Error>) -> PyResult<PageView<'py>> {
        let page = page.map_err(|error| match error {
            // The original says so where a pool is full.
            Error::Refused { .. } => PyValueError::new_err(error.to_string()),
            error => exception(&error),
        })?;
        let (location, length) = (page.location(), page.len());
        let memory = self.handler.region_memory(location.region_id).expect("a region with a page is mapped");
        let offset = location.page_index as usize * memory.page_size();
        let page = self.held.page(page, memory.clone());
        let view = Memory::new(Holder::Page(page), &memory, offset, length, true).view(py)?;
        Ok((view, location.region_id, location.page_index))
    }

    fn take(&self, region_id: u32, page_index: u32, shown: Option<&Bound<'_, PyAny>>) -> PyResult<PageMut> {
        self.held.take(PageLocation { region_id, page_index }, page_of(shown)).ok_or_else(|| {
            let text = format!(
                "page {page_index} of region {region_id} is not held: it was stored or freed, or its last view is gone"
            );
            PyValueError::new_err(text)
        })
    }

    fn prepare_store(&self, keys: &Bound<'_, PyAny>, pages: Vec<Handle<'_>>) -> PyResult<Prepared> {
        let digests = digests(&self.handler, keys)?;
        if digests.len() != pages.len() {
            let (keys, pages) = (digests.len(), pages.len());
            return Err(exception(&Error::BatchMismatch { keys, pages }));
        }
        let mut prepared = Prepared { keys: Vec::new(), pages: Vec::new(), order: Order(Vec::new()) };
        for (digest, (region_id, page_index, length, shown)) in digests.into_iter().zip(pages) {
            let page = self.take(region_id, page_index, shown.as_ref()).and_then(|mut page| {
                value(page.resize(length))?;
                Ok(page)
            });
            prepared.order.0.push(page.is_ok());
            match page {
                Ok(page) => {
                    prepared.keys.push(digest);
                    prepared.pages.push(page);
                }
                Err(error) => tracing::warn!(%error, "a chunk can't be stored"),
            }
        }
        Ok(prepared)
    }

    fn chunks(&self, chunks: Vec<Option<maru_client::ChunkRef>>) -> Chunks {
        Chunks::new(&self.handler, &self.held, self.writable, chunks)
    }
}

/// The page that an object shows, if it is memory of a page.
fn page_of<'a>(shown: Option<&'a Bound<'_, PyAny>>) -> Option<&'a Arc<Page>> {
    shown?.cast::<Memory>().ok()?.get().page()
}

/// Has a future awaited by asyncio.
///
/// # Errors
/// `RuntimeError` in the child of a fork whose parent awaited something: the thread that would see to it is the parent's.
fn awaited<'py, T>(
    py: Python<'py>,
    future: impl Future<Output = PyResult<T>> + Send + 'static,
) -> PyResult<Bound<'py, PyAny>>
where
    T: for<'a> IntoPyObject<'a> + Send + 'static,
{
    static RUNS_SINCE_FORK: OnceLock<u32> = OnceLock::new();
    if *RUNS_SINCE_FORK.get_or_init(forks) != forks() {
        let text = "what the parent of a fork has awaited, its child can't await; start processes by spawn";
        return Err(PyRuntimeError::new_err(text));
    }
    future_into_py(py, future)
}

/// Maps all regions that there are. One that can't be mapped is an error when a chunk in it is read.
fn map_regions(handler: &MaruHandler) -> Result<(), Error> {
    for region in handler.regions()? {
        let region_id = region.region_id.get();
        if let Err(error) = handler.map_region(region_id) {
            tracing::warn!(region_id, %error, "could not map a region of another instance");
        }
    }
    Ok(())
}

/// The bytes of a buffer, copied while other Python threads run, which may write into it: the copy is of whatever is there.
struct Source<'a> {
    buffer: &'a PyBuffer<u8>,
}

// SAFETY: the buffer is exported, so it stays where it is; only its address and length are used.
unsafe impl Sync for Source<'_> {}
// SAFETY: the same.
unsafe impl Send for Source<'_> {}

impl Source<'_> {
    fn len(&self) -> usize {
        self.buffer.len_bytes()
    }

    fn copy_into(&self, page: &mut PageMut) {
        // SAFETY: the buffer has that many bytes in one piece, and is exported as long as `self` lives.
        let bytes = unsafe { std::slice::from_raw_parts(self.buffer.buf_ptr().cast::<u8>(), self.len()) };
        page.copy_from_slice(bytes);
    }
}
