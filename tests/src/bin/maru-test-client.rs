//! A client that does what a test tells it to: one [`Command`] a line on stdin, one [`Reply`] a line on stdout.

use std::io::BufRead;
use std::path::Path;

use maru_client::{
    ChunkRef, Config, Deleted, Error, MaruHandler, PageMut, Pinned, Prefix, Revocation, StatKind, Stored,
    Unpinned,
};
use maru_tests::{ClientConfig, Command, Reply, Stat, fill, is_intact};

/// What the client holds between steps.
#[derive(Default)]
struct Client {
    handler: Option<MaruHandler>,
    held: Vec<(Vec<String>, Prefix)>,
    pages: Vec<PageMut>,
}

fn main() {
    let mut client = Client::default();
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("stdin can be read");
        let command: Command = serde_json::from_str(&line).expect("a command is JSON");
        let reply = client.step(command).unwrap_or_else(|error| Reply::Failed(error.to_string()));
        println!("{}", serde_json::to_string(&reply).expect("a reply is JSON"));
    }
}

impl Client {
    fn step(&mut self, command: Command) -> Result<Reply, Error> {
        if let Command::Connect(config) = command {
            self.handler = Some(connect(&config)?);
            return Ok(Reply::Done);
        }
        let handler = self.handler.clone().expect("a test connects first");
        Ok(match command {
            Command::Connect(_) => unreachable!("handled above"),
            Command::Store(keys, length) => {
                Reply::Each(keys.iter().map(|key| word(store(&handler, key, length), stored)).collect())
            }
            Command::BatchStore(keys, length) => {
                let pages = keys.iter().map(|key| page(&handler, key, length)).collect::<Result<_, _>>()?;
                let outcomes = handler.batch_store(&keys, pages)?;
                Reply::Each(outcomes.into_iter().map(|outcome| word(outcome, stored)).collect())
            }
            Command::Acquire(keys) => {
                let prefix = handler.acquire(&keys)?;
                let count = prefix.len();
                self.held.push((keys, prefix));
                self.check_held()?;
                Reply::Count(count)
            }
            Command::Read(keys) => {
                let prefix = handler.acquire(&keys)?;
                check(&keys, &prefix);
                Reply::Count(prefix.len())
            }
            Command::CheckHeld => {
                self.check_held()?;
                Reply::Done
            }
            Command::ReadHeld => Reply::Each(self.read_held()),
            Command::ReleaseHeld => {
                self.held.clear();
                Reply::Done
            }
            Command::Exists(keys) => {
                let found = handler.batch_exists(&keys)?;
                Reply::Each(found.into_iter().map(|yes| if yes { "yes" } else { "no" }.to_owned()).collect())
            }
            Command::Pin(keys) => Reply::Each(
                handler.batch_pin_kv(&keys)?.into_iter().map(|outcome| pinned(outcome).to_owned()).collect(),
            ),
            Command::Unpin(keys) => Reply::Each(
                handler
                    .batch_unpin_kv(&keys)?
                    .into_iter()
                    .map(|outcome| unpinned(outcome).to_owned())
                    .collect(),
            ),
            Command::Delete(keys) => {
                Reply::Each(keys.iter().map(|key| word(handler.delete(key), deleted)).collect())
            }
            Command::BatchDelete(keys) => Reply::Each(
                handler.batch_delete(&keys)?.into_iter().map(|outcome| deleted(outcome).to_owned()).collect(),
            ),
            Command::HoldPage => {
                self.pages.push(handler.alloc(1)?);
                Reply::Done
            }
            Command::MakeForeignWritable(key) => {
                make_writable(&handler.retrieve(&key)?.expect("the chunk is there"))
            }
            Command::ScribbleOn(key) => {
                let chunk = handler.retrieve(&key)?.expect("the chunk is there");
                let byte = chunk.as_ptr().cast_mut();
                // SAFETY: none. The memory is mapped read-only, and that the write faults is what is tested.
                unsafe { byte.write_volatile(0xAA) };
                Reply::Failed("the write came back".to_owned())
            }
            Command::ServerAddress => Reply::Each(vec![handler.server_address().to_string()]),
            Command::Stats => {
                let stats = handler.stats()?;
                Reply::Stats(Stat {
                    entries: stats.get(StatKind::Entries),
                    regions: stats.get(StatKind::Regions),
                    orphans: stats.get(StatKind::Orphans),
                    pinned_entries: stats.get(StatKind::PinnedEntries),
                    pins: stats.get(StatKind::Pins),
                    instances: stats.get(StatKind::Instances),
                    connections: stats.get(StatKind::Connections),
                    pool_free_bytes: stats.get(StatKind::PoolFreeBytes),
                })
            }
            Command::FreePages => Reply::Count(
                usize::try_from(handler.client_stats().free_pages).expect("pages fit the address space"),
            ),
            Command::Mappings(pool) => Reply::Each(mappings(&pool)),
            Command::Close => {
                handler.close();
                Reply::Done
            }
        })
    }

    fn read_held(&self) -> Vec<String> {
        let held = self.held.iter().flat_map(|(keys, prefix)| {
            keys.iter().enumerate().filter_map(|(n, key)| Some((key, prefix.get(n)?)))
        });
        held.map(|(key, chunk)| read(key, &chunk).to_owned()).collect()
    }

    fn check_held(&self) -> Result<(), Error> {
        for (keys, prefix) in &self.held {
            check(keys, prefix);
        }
        Ok(())
    }
}

/// What came of a checked read; a wrong byte is nothing that a client could go on after.
fn read(key: &str, chunk: &ChunkRef) -> &'static str {
    let mut copy = vec![0; chunk.len()];
    let copied = chunk.copy_to(&mut copy);
    assert!(copied.is_err() || is_intact(key, &copy), "wrong bytes copied of {key}");
    match chunk.read(|bytes| is_intact(key, bytes)) {
        Ok(intact) => {
            assert!(intact, "wrong bytes under {key}");
            "intact"
        }
        Err(Error::Revoked(Revocation::InDoubt)) => "in doubt",
        Err(Error::Revoked(Revocation::Released)) => "released",
        Err(error) => panic!("{error}"),
    }
}

/// A wrong byte is nothing that a client could go on after.
fn check(keys: &[String], prefix: &Prefix) {
    for (key, bytes) in keys.iter().zip(prefix.iter()) {
        assert!(is_intact(key, bytes), "wrong bytes under {key}");
    }
}

fn connect(config: &ClientConfig) -> Result<MaruHandler, Error> {
    let mut handler = Config::new()
        .instance_id(&config.instance_id)
        .page_size(config.page_size)
        .region_size(config.region_size)
        .auto_expand(config.auto_expand)
        .eager(config.eager)
        .stay_on_tcp(config.stay_on_tcp)
        .report_stats(config.report_stats)
        .auth_token(config.auth_token.as_str())
        .device_map(config.device_map.parse()?)
        .timeout(config.timeout)
        .checksum(config.checksum)
        .write_back(config.write_back)
        .prefault(config.prefault);
    if !config.address.is_empty() {
        handler = handler.address(config.address.parse()?);
    }
    if let Some(path) = &config.tls_ca {
        handler = handler.tls_ca(path);
    }
    if let Some(size) = config.expand_size {
        handler = handler.expand_size(size);
    }
    MaruHandler::connect(handler)
}

fn page(handler: &MaruHandler, key: &str, length: usize) -> Result<PageMut, Error> {
    let mut page = handler.alloc(length)?;
    fill(key, &mut page);
    Ok(page)
}

fn store(handler: &MaruHandler, key: &str, length: usize) -> Result<Stored, Error> {
    handler.store(key, page(handler, key, length)?)
}

fn word<T, E: ToString>(outcome: Result<T, E>, name: impl Fn(T) -> &'static str) -> String {
    outcome.map_or_else(|error| error.to_string(), |outcome| name(outcome).to_owned())
}

fn stored(outcome: Stored) -> &'static str {
    match outcome {
        Stored::Stored => "stored",
        Stored::AlreadyExists => "exists",
    }
}

fn pinned(outcome: Pinned) -> &'static str {
    match outcome {
        Pinned::Pinned => "pinned",
        Pinned::NotFound => "not found",
        Pinned::PinLimit => "pin limit",
        Pinned::Skipped => "skipped",
    }
}

fn unpinned(outcome: Unpinned) -> &'static str {
    match outcome {
        Unpinned::Unpinned => "unpinned",
        Unpinned::NotPinned => "not pinned",
        Unpinned::NotFound => "not found",
    }
}

fn deleted(outcome: Deleted) -> &'static str {
    match outcome {
        Deleted::Deleted => "deleted",
        Deleted::NotFound => "not found",
        Deleted::Pinned => "pinned",
    }
}

/// Asks the kernel to let this process write into a page that a chunk begins in.
fn make_writable(chunk: &[u8]) -> Reply {
    use rustix::mm::{MprotectFlags, mprotect};
    let page = chunk.as_ptr().map_addr(|address| address & !4095).cast_mut();
    // SAFETY: more rights to a mapping take nothing away from whoever uses it; the kernel refuses, which is tested.
    match unsafe { mprotect(page.cast(), 4096, MprotectFlags::READ | MprotectFlags::WRITE) } {
        Ok(()) => Reply::Done,
        Err(error) => Reply::Failed(std::io::Error::from(error).to_string()),
    }
}

/// The rights of this process's mappings of files in a folder.
fn mappings(folder: &Path) -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux has /proc");
    let folder = folder.to_str().expect("a path of the tests is UTF-8");
    let of_folder = maps.lines().filter(|line| line.contains(folder));
    of_folder.filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect()
}
