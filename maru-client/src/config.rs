//! What a handler is told before it connects.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use maru_proto::{AuthToken, InstanceId};

use crate::error::{Error, Result};
use crate::memory::DeviceMap;

/// Page sizes are multiples of this many bytes.
const PAGE_SIZE_UNIT: usize = 4096;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket of this host.
    Unix(PathBuf),
    /// A host and port, as `host:port`. Where the server turns out to be on this host, the handler goes on on its Unix socket,
    /// unless it is told to [stay](Config::stay_on_tcp).
    Tcp(String),
    /// The same where the server speaks TLS ([`Config::tls_ca`], [`Config::tls_identity`]).
    Tls(String),
}

impl FromStr for Address {
    type Err = Error;

    /// Reads `unix:///path`, `/path`, `tcp://host:port`, `maru://host:port`, which is the same, or `tls://host:port`.
    fn from_str(text: &str) -> Result<Address> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        if path.starts_with('/') {
            return Ok(Address::Unix(PathBuf::from(path)));
        }
        let of_host = if text.starts_with("tls://") { Address::Tls } else { Address::Tcp };
        let rest = ["tcp://", "maru://", "tls://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        match rest.and_then(|address| address.rsplit_once(':').zip(Some(address))) {
            Some(((host, port), address)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(of_host(address.to_owned()))
            }
            _ => Err(Error::InvalidConfig(format!(
                "the address {text:?} is none of unix:///path, /path, tcp://host:port, maru://host:port and \
                 tls://host:port"
            ))),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => path.display().fmt(f),
            Address::Tcp(address) => write!(f, "tcp://{address}"),
            Address::Tls(address) => write!(f, "tls://{address}"),
        }
    }
}

/// Where a server of this user listens unless it is told otherwise: `$XDG_RUNTIME_DIR/maru/maru.sock`, else
/// `maru-UID/maru.sock` in the folder for temporary files.
pub fn default_socket_path() -> PathBuf {
    let folder = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(runtime) if !runtime.is_empty() => PathBuf::from(runtime).join("maru"),
        _ => std::env::temp_dir().join(format!("maru-{}", rustix::process::geteuid().as_raw())),
    };
    folder.join("maru.sock")
}

/// Files in PEM by which both sides of TLS know each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsFiles {
    /// Certificates of authorities that may sign the server's; those of this host where there is no file.
    pub(crate) authorities: Option<PathBuf>,
    /// The certificate of this client with those that lead to its authority, and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

/// How a handler connects, and how it gets its memory.
///
/// ```
/// use maru_client::Config;
///
/// let config = Config::new().page_size(4 << 20).region_size(1 << 30).instance_id("engine-0");
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) address: Address,
    pub(crate) instance_id: Option<String>,
    pub(crate) page_size: usize,
    pub(crate) region_size: u64,
    pub(crate) auto_expand: bool,
    pub(crate) expand_size: Option<u64>,
    pub(crate) eager: bool,
    pub(crate) prefault: bool,
    pub(crate) copy_on_write: bool,
    pub(crate) timeout: Duration,
    pub(crate) auth_token: Option<Vec<u8>>,
    pub(crate) tls: TlsFiles,
    pub(crate) stay_on_tcp: bool,
    pub(crate) no_grace: bool,
    pub(crate) device_map: DeviceMap,
    pub(crate) report_stats: bool,
    pub(crate) write_back: bool,
    pub(crate) checksum: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            address: Address::Unix(default_socket_path()),
            instance_id: None,
            page_size: 1 << 20,
            region_size: 128 << 20,
            auto_expand: true,
            expand_size: None,
            eager: false,
            prefault: true,
            copy_on_write: false,
            timeout: Duration::from_secs(5),
            auth_token: None,
            tls: TlsFiles::default(),
            stay_on_tcp: false,
            no_grace: false,
            device_map: DeviceMap::default(),
            report_stats: false,
            write_back: false,
            checksum: false,
        }
    }
}

impl Config {
    /// The defaults, each named at its setter.
    pub fn new() -> Config {
        Config::default()
    }

    /// Where the server listens. Default: the Unix socket at [`default_socket_path`].
    pub fn address(mut self, address: Address) -> Config {
        self.address = address;
        self
    }

    /// The instance's name, for people: 1 to 128 bytes without control characters. Default: host name, process id and
    /// eight random hexadecimal digits.
    pub fn instance_id(mut self, name: impl Into<String>) -> Config {
        self.instance_id = Some(name.into());
        self
    }

    /// Bytes of a page, which is the largest chunk: a multiple of 4096. Default: 1 MiB. Each chunk takes a whole page
    /// of the pool, however short it is.
    pub fn page_size(mut self, bytes: usize) -> Config {
        self.page_size = bytes;
        self
    }

    /// Bytes of the first region, at least a page. Default: 128 MiB. The pool gives that much to this instance
    /// alone, until the handler is closed.
    pub fn region_size(mut self, bytes: u64) -> Config {
        self.region_size = bytes;
        self
    }

    /// Whether there may be further regions when all pages are in use. Default: true.
    pub fn auto_expand(mut self, yes: bool) -> Config {
        self.auto_expand = yes;
        self
    }

    /// Bytes of each further region. Default: as many as the first has.
    pub fn expand_size(mut self, bytes: u64) -> Config {
        self.expand_size = Some(bytes);
        self
    }

    /// Whether the first region is asked for at connect rather than by the first `alloc`. Default: false, so a
    /// reader takes no memory.
    pub fn eager(mut self, yes: bool) -> Config {
        self.eager = yes;
        self
    }

    /// Whether the memory of own regions is mapped before it is written into, so that no write waits for it: the first
    /// 128 MiB of a region at once, the rest by a thread while pages are used already. Default: true. It takes about a
    /// second for 10 GiB on huge pages, ten times that without. False is for regions of which little may be used, where
    /// the server allocates memory lazily: otherwise all of a region is taken in the end.
    pub fn prefault(mut self, yes: bool) -> Config {
        self.prefault = yes;
        self
    }

    /// Whether regions of other instances are mapped so that this process can write into its own copy of what it
    /// touches, for consumers that refuse memory they can't write. Nobody else sees such a write, and this process no
    /// later one of the owner on the same 4 KiB: bytes that were written to are of no use once their chunk is gone.
    /// Default: false, the kernel lets nobody write.
    pub fn copy_on_write(mut self, yes: bool) -> Config {
        self.copy_on_write = yes;
        self
    }

    /// How long a request may take. Default: 5 s. A request for a region has a minute where that is more: its memory may have to
    /// be made first.
    pub fn timeout(mut self, timeout: Duration) -> Config {
        self.timeout = timeout;
        self
    }

    /// The secret that servers on TCP may ask for, at most 64 bytes. Default: none.
    pub fn auth_token(mut self, token: impl Into<Vec<u8>>) -> Config {
        self.auth_token = Some(token.into());
        self
    }

    /// File in PEM with the certificates of the authorities that a server on `tls://` is believed by. Default: those that this host
    /// has for all programs, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`. It is read again for each connection.
    pub fn tls_ca(mut self, path: impl Into<PathBuf>) -> Config {
        self.tls.authorities = Some(path.into());
        self
    }

    /// Files in PEM with the certificate that this client presents on `tls://`, and those that lead from it to an authority; and
    /// with its private key. Default: none. They are read again for each connection.
    pub fn tls_identity(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Config {
        self.tls.identity = Some((certificate.into(), key.into()));
        self
    }

    /// Whether a handler with a TCP address stays there although the server is on the same host. Default: false, so it moves onto
    /// the server's Unix socket, which is faster and over which memory comes as file descriptors. True is for those who
    /// measure or test the network.
    ///
    /// When the socket is gone after the server was restarted, or is another server's, the handler goes back to the TCP
    /// address, and asks again where the socket is.
    pub fn stay_on_tcp(mut self, yes: bool) -> Config {
        self.stay_on_tcp = yes;
        self
    }

    /// Whether the server ends the session with its last connection, and does not keep its pins and regions for the grace
    /// period. Default: false. True is for tools that look and go: nobody sees an instance that is gone, but a lost connection
    /// ends the handler too ([`Error::SessionEnded`]).
    pub fn no_grace(mut self, yes: bool) -> Config {
        self.no_grace = yes;
        self
    }

    /// Where pools lie on this host that are not found otherwise. It counts on TCP, where memory does not come as file
    /// descriptors. Default: a pool is looked for under the path that the server has for it, and a device among all `/dev/dax*`,
    /// by the UUID that it carries.
    pub fn device_map(mut self, map: DeviceMap) -> Config {
        self.device_map = map;
        self
    }

    /// Whether the handler measures how long its calls take, each from its beginning to its end, and tells the server every two
    /// seconds, where `maru top`, the metrics and [`MaruHandler::reports`](crate::MaruHandler::reports) show it by instance.
    /// Default: false, nothing is measured. It costs each call two readings of the clock and the handler 100 KiB.
    ///
    /// A call with many keys counts once, and one that fails counts as well, since its caller has waited for that. Of one that
    /// is awaited the time begins when it is first polled; one that is dropped does not count. A server that knows nothing
    /// of it is told nothing.
    pub fn report_stats(mut self, yes: bool) -> Config {
        self.report_stats = yes;
        self
    }

    /// Whether memory is taken for not coherent between hosts, whatever the server says of the pool: pages are written back
    /// from the cache before they are stored, and dropped from it before they are first read. Default: false, it is done
    /// where the pool needs it. True is for a host whose way to the pool is not coherent although that of others is, and for
    /// measuring what it costs.
    pub fn write_back(mut self, yes: bool) -> Config {
        self.write_back = yes;
        self
    }

    /// Whether chunks are stored with a checksum of their bytes. Default: false. Who reads a chunk that has one, with or
    /// without this option, looks at the bytes when it first reads them, and takes a chunk that is not what was stored for
    /// one that is not there: it logs an error, and counts it ([`stale_chunks`](crate::ClientStats::stale_chunks)). Both
    /// sides go through the bytes once more for it, on the thread that stores or reads, also where callers await.
    pub fn checksum(mut self, yes: bool) -> Config {
        self.checksum = yes;
        self
    }

    /// Bytes of the region that comes after `regions` others.
    pub(crate) fn size_of_region(&self, regions: usize) -> u64 {
        if regions == 0 { self.region_size } else { self.expand_size.unwrap_or(self.region_size) }
    }

    /// The checked name and token.
    pub(crate) fn identity(&self) -> Result<(InstanceId, AuthToken)> {
        let invalid = |error: &dyn fmt::Display| Error::InvalidConfig(error.to_string());
        let name = match &self.instance_id {
            Some(name) => name.clone(),
            None => default_instance_id()?,
        };
        let name = InstanceId::new(&name).map_err(|error| invalid(&error))?;
        let token = AuthToken::new(self.auth_token.as_deref().unwrap_or_default());
        Ok((name, token.map_err(|error| invalid(&error))?))
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let page_size = self.page_size;
        let invalid = |what: String| Err(Error::InvalidConfig(what));
        if page_size == 0 || !page_size.is_multiple_of(PAGE_SIZE_UNIT) || u32::try_from(page_size).is_err() {
            return invalid(format!(
                "the page size has to be a multiple of {PAGE_SIZE_UNIT} bytes below 4 GiB, not {page_size}"
            ));
        }
        for size in [self.region_size, self.expand_size.unwrap_or(self.region_size)] {
            if size < page_size as u64 {
                return invalid(format!("a region of {size} bytes can't hold a page of {page_size}"));
            }
        }
        if self.timeout.is_zero() {
            return invalid("the timeout has to be longer than nothing".to_owned());
        }
        Ok(())
    }
}

fn default_instance_id() -> Result<String> {
    let mut random = [0; 4];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::Io { what: "name the instance at random", source: error.into() })?;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let host = if host.is_empty() { "host" } else { host };
    Ok(format!("{host}-{}-{:08x}", std::process::id(), u32::from_ne_bytes(random)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_paths_or_urls() {
        let unix = |path: &str| Address::Unix(PathBuf::from(path));
        assert_eq!("/run/maru.sock".parse::<Address>().unwrap(), unix("/run/maru.sock"));
        assert_eq!("unix:///run/maru.sock".parse::<Address>().unwrap(), unix("/run/maru.sock"));
        assert_eq!("tcp://node-7:5555".parse::<Address>().unwrap(), Address::Tcp("node-7:5555".to_owned()));
        assert_eq!("tcp://[::1]:5555".parse::<Address>().unwrap(), Address::Tcp("[::1]:5555".to_owned()));
        assert_eq!("tls://node-7:5555".parse::<Address>().unwrap(), Address::Tls("node-7:5555".to_owned()));
        for bad in [
            "",
            "maru.sock",
            "tls://node",
            "tcp://",
            "tcp://node",
            "tcp://:5555",
            "tcp://node:port",
            "http://x:1",
        ] {
            let error = bad.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("tcp://host:port"), "{error}");
        }
    }

    #[test]
    fn maru_urls_are_tcp_addresses() {
        for address in ["localhost:5555", "node-7:1", "[::1]:5555"] {
            let parsed = format!("maru://{address}").parse::<Address>().unwrap();
            assert_eq!(parsed, Address::Tcp(address.to_owned()));
            assert_eq!(parsed.to_string(), format!("tcp://{address}"));
        }
        for bad in ["maru://", "maru://node", "maru://:5555", "maru://node:65536", "maru:///run/maru.sock"] {
            let error = bad.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("maru://host:port"), "{error}");
        }
    }

    #[test]
    fn addresses_are_shown_as_they_are_written() {
        for text in ["/run/maru.sock", "tcp://node-7:5555", "tls://node-7:5555"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(Config::new().validate().is_ok());
        for bad in [
            Config::new().page_size(0),
            Config::new().page_size(5000),
            Config::new().page_size(1 << 33),
            Config::new().region_size(1 << 19),
            Config::new().expand_size(1 << 19),
            Config::new().timeout(Duration::ZERO),
        ] {
            assert!(matches!(bad.validate(), Err(Error::InvalidConfig(_))), "{bad:?}");
        }
        assert!(matches!(Config::new().instance_id("").identity(), Err(Error::InvalidConfig(_))));
        assert!(matches!(Config::new().auth_token([0; 65]).identity(), Err(Error::InvalidConfig(_))));
    }

    #[test]
    fn instances_without_a_name_get_different_ones() {
        let names = [(); 2].map(|()| Config::new().identity().unwrap().0);
        let [first, second] = names.each_ref().map(|name| name.text().unwrap());
        assert_ne!(first, second);
        assert!(first.contains(&format!("-{}-", std::process::id())), "{first}");
    }
}
