//! The client of maru: map pools, store chunks, read those of others in place.
//!
//! A [`MaruHandler`] is one instance. It allocates pages in shared memory ([`MaruHandler::alloc`]), makes them visible
//! under a key ([`MaruHandler::store`]), and reads chunks of any instance where they lie ([`MaruHandler::acquire`]). It
//! is cheap to clone and used from any thread; no runtime is needed.
//!
//! ```no_run
//! use maru_client::{Config, MaruHandler};
//!
//! # fn main() -> Result<(), maru_client::Error> {
//! let maru = MaruHandler::connect(Config::new().page_size(1 << 20))?;
//! let mut page = maru.alloc(1 << 20)?;
//! page.copy_from_slice(&[7; 1 << 20]);
//! maru.store("chunk-17", page)?;
//!
//! let prefix = maru.acquire(&["chunk-17", "chunk-18"])?;
//! assert_eq!(prefix.len(), 1);
//! assert!(prefix[0].iter().all(|&byte| byte == 7));
//! # Ok(())
//! # }
//! ```

mod calls;
mod config;
mod error;
mod guard;
mod handler;
mod key;
mod lease;
mod lists;
mod maintenance;
mod memory;
mod page;
mod pins;
mod relocation;
mod reporter;
mod rpc;
mod session;
mod shared;
mod stats;
mod sync;

pub use config::{Address, Config, default_socket_path};
pub use error::{Error, MAX_KEY_LEN, PageState, ProtocolError, Result, Revocation};
pub use guard::{ChunkRef, Prefix, PrefixIter, WeakChunkRef};
pub use handler::{
    Deleted, MaruHandler, Pending, PinQuery, Pinned, RegionAdded, Released, Stored, StoredEach, Unpinned,
};
pub use key::AsKey;
pub use maru_proto::{
    CacheLines, ClientOperation, EntryRecord, HeldPinsRecord, KeyDigest, Opcode, PoolCoherence, PoolKind,
    PoolRecord, PoolUuid, RecordStatus, RegionRecord, ServerRecord, StatKind, UsageRecord, VersionRange,
};
pub use memory::{DeviceMap, RegionMemory, copy_nontemporal};
pub use page::{PageLocation, PageMut};
#[doc(hidden)]
pub use rpc::fuzzing;
pub use stats::{ClientStats, Latencies, ReportedLatencies, ServerLatencies, ServerStats};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// And so do those of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../docs/rust.md")]
struct Guide;
