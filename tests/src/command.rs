//! What a test tells a client process to do, and what it answers.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How the client's handler is configured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClientConfig {
    /// Where the server listens: a path or a URL, or nothing for the default.
    pub address: String,
    /// The instance's name.
    pub instance_id: String,
    /// Bytes of a page.
    pub page_size: usize,
    /// Bytes of the first region.
    pub region_size: u64,
    /// Bytes of further regions, where not the same.
    pub expand_size: Option<u64>,
    /// Whether there may be further regions.
    pub auto_expand: bool,
    /// Whether the first region is asked for at connect.
    pub eager: bool,
    /// Whether memory is mapped before it is written into.
    pub prefault: bool,
    /// Whether a TCP address is stayed at.
    pub stay_on_tcp: bool,
    /// Whether it reports how long its calls take.
    pub report_stats: bool,
    /// The file with the authority of a server that speaks TLS.
    pub tls_ca: Option<PathBuf>,
    /// Where pools lie on the client's host, `UUID=PATH,…`, where that is not the server's path.
    pub device_map: String,
    /// What is presented to a server on TCP.
    pub auth_token: String,
    /// How long a request may take.
    pub timeout: Duration,
    /// Whether chunks are stored with a checksum.
    pub checksum: bool,
    /// Whether memory is taken for not coherent.
    pub write_back: bool,
}

impl ClientConfig {
    /// A client with small pages at a socket.
    pub fn new(socket: &std::path::Path, instance_id: &str) -> ClientConfig {
        ClientConfig {
            address: socket.display().to_string(),
            instance_id: instance_id.to_owned(),
            page_size: 4096,
            region_size: 1 << 20,
            expand_size: None,
            auto_expand: true,
            eager: false,
            prefault: true,
            stay_on_tcp: false,
            report_stats: false,
            tls_ca: None,
            device_map: String::new(),
            auth_token: String::new(),
            timeout: Duration::from_secs(5),
            checksum: false,
            write_back: false,
        }
    }
}

/// One step of a client process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Connect, once.
    Connect(ClientConfig),
    /// Store chunks of this many bytes, one by one.
    Store(Vec<String>, usize),
    /// Store chunks of this many bytes in one batch.
    BatchStore(Vec<String>, usize),
    /// Acquire a prefix, check its bytes, keep its guards.
    Acquire(Vec<String>),
    /// Acquire a prefix, check its bytes, keep nothing.
    Read(Vec<String>),
    /// Check the bytes of all guards that are kept.
    CheckHeld,
    /// Read all guards that are kept as one does where the server may be out of reach: whether each is intact, or why it is of
    /// no use.
    ReadHeld,
    /// Drop all guards.
    ReleaseHeld,
    /// Which of these exist.
    Exists(Vec<String>),
    /// Pin in one batch.
    Pin(Vec<String>),
    /// Unpin in one batch.
    Unpin(Vec<String>),
    /// Delete, one by one.
    Delete(Vec<String>),
    /// Delete in one batch.
    BatchDelete(Vec<String>),
    /// Take a page and keep it unstored until the end.
    HoldPage,
    /// Try to make the memory of a chunk that somebody else stored writable.
    MakeForeignWritable(String),
    /// Write into the memory of a chunk that somebody else stored: must not come back.
    ScribbleOn(String),
    /// Where the server is reached.
    ServerAddress,
    /// The server's figures.
    Stats,
    /// Pages that the handler could hand out without asking.
    FreePages,
    /// The region files that this process maps, with their rights, from the kernel's view of it.
    Mappings(PathBuf),
    /// Close the handler.
    Close,
}

/// The figures of the server that tests look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// Entries in the directory.
    pub entries: u64,
    /// Regions.
    pub regions: u64,
    /// Orphans among them.
    pub orphans: u64,
    /// Entries with a pin.
    pub pinned_entries: u64,
    /// Pins.
    pub pins: u64,
    /// Instances.
    pub instances: u64,
    /// Connections.
    pub connections: u64,
    /// Bytes of the pools in no region.
    pub pool_free_bytes: u64,
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// A number: chunks found, pages free.
    Count(usize),
    /// One word a key.
    Each(Vec<String>),
    /// The figures.
    Stats(Stat),
    /// Refused, with the text that a user would see.
    Failed(String),
}

impl Reply {
    /// The text of a refusal.
    pub fn failed(self) -> Option<String> {
        match self {
            Reply::Failed(text) => Some(text),
            _ => None,
        }
    }
}
