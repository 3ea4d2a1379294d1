//! What the facts mean: one finding a check, and what to do where it is not well. Pure, so that every fault can be had.

use bytesize::ByteSize;
use maru_client::{Address, Error};
use maru_server::examination::PoolLock;

use super::facts::{Facts, ServerFacts, Socket, Told};
use crate::error::CliError;

/// Linux with what a server needs of io_uring, and with what its fast driver needs.
const KERNEL_LEAST: (u32, u32) = (6, 0);
const KERNEL_FAST: (u32, u32) = (6, 1);
/// Bytes that may be locked before anybody complains: what distributions grant.
const MEMLOCK_LEAST: u64 = 8 << 20;
/// Bytes of a pool's file system that make a pool worth having; the `/dev/shm` of a container has 64 MiB.
const POOL_LEAST: u64 = 1 << 30;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing to do.
    Ok,
    /// It works, and could be better.
    Warn,
    /// It does not work.
    Wrong,
}

impl Verdict {
    /// The word for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Wrong => "wrong",
        }
    }
}

/// What came of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// The check.
    pub(super) check: &'static str,
    /// How bad it is.
    pub(super) verdict: Verdict,
    /// What was found.
    pub(super) found: String,
    /// What to do.
    pub(super) fix: Option<String>,
}

fn ok(check: &'static str, found: impl Into<String>) -> Finding {
    Finding { check, verdict: Verdict::Ok, found: found.into(), fix: None }
}

fn warn(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { check, verdict: Verdict::Warn, found: found.into(), fix: Some(fix.into()) }
}

fn wrong(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Wrong, ..warn(check, found, fix) }
}

/// All findings, the host's first.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![kernel(&facts.kernel), ring(&facts.ring), memlock(facts.memlock)];
    findings.extend(pool(facts));
    if let Some(server) = &facts.server {
        findings.extend(server.socket.map(|found| socket(&server.address, found)));
        findings.push(answer(server));
    }
    findings
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    match numbers.next().zip(numbers.next()) {
        Some(version) if version < KERNEL_LEAST => wrong(
            "kernel",
            format!("Linux {release} is too old"),
            "run Linux 6.0 or later, best 6.1 or later",
        ),
        Some(version) if version < KERNEL_FAST => warn(
            "kernel",
            format!("Linux {release} has no fast driver for connections"),
            "run Linux 6.1 or later; the server uses --driver plain until then",
        ),
        Some(_) => ok("kernel", format!("Linux {release}")),
        None => warn("kernel", format!("Linux {release:?} has no number"), "see that it is 6.0 or later"),
    }
}

fn ring(ring: &Result<(), String>) -> Finding {
    match ring {
        Ok(()) => ok("io_uring", "this process gets a ring such as a server makes"),
        Err(error) => wrong("io_uring", "no ring", error.as_str()),
    }
}

fn memlock(limit: Option<u64>) -> Finding {
    match limit {
        None => ok("memlock", "any number of bytes may be locked"),
        Some(bytes) if bytes >= MEMLOCK_LEAST => ok("memlock", format!("{} may be locked", size(bytes))),
        Some(bytes) => warn(
            "memlock",
            format!("only {} may be locked", size(bytes)),
            "raise it where rings or pinned host memory are refused: ulimit -l unlimited, LimitMEMLOCK=infinity in a unit \
             of systemd, --ulimit memlock=-1 for a container",
        ),
    }
}

fn pool(facts: &Facts) -> Vec<Finding> {
    let path = facts.pool_path.display();
    let pool = match &facts.pool {
        Ok(pool) => pool,
        Err(error) => {
            let fix = "run this as the server's user, or name the pool with --pool-dir";
            return vec![wrong("pool", format!("{path} can't be looked at: {error}"), fix)];
        }
    };
    let is_memory = matches!(pool.file_system.as_str(), "tmpfs" | "hugetlbfs");
    let room = pool.free + pool.region_bytes;
    let found = format!("{path} on {}, {} free", pool.file_system, size(pool.free));
    let folder = if !is_memory {
        let fix = "choose a --pool on tmpfs, hugetlbfs or a DAX file system, such as below /dev/shm";
        warn("pool", format!("{found}: a file system of memory only where it is DAX"), fix)
    } else if room < POOL_LEAST {
        let fix = format!(
            "give it more: mount -o remount,size=SIZE {}, or --shm-size of the container",
            pool.mount_point.display()
        );
        // Not even one region fits.
        if room < 2 << 20 { wrong("pool", found, fix) } else { warn("pool", found, fix) }
    } else {
        ok("pool", found)
    };
    let huge_pages = if pool.has_huge_pages {
        ok("huge pages", format!("{} gives them", pool.mount_point.display()))
    } else {
        warn(
            "huge pages",
            format!(
                "{} gives none, so mapping regions takes about ten times as long",
                pool.mount_point.display()
            ),
            "start the server with --pool tmpfs:DIR,size=SIZE,mount as root, or mount one: mount -t tmpfs -o \
             size=SIZE,huge=within_size maru DIR",
        )
    };
    let left = format!("regions of {}", size(pool.region_bytes));
    let lock = match pool.lock {
        PoolLock::Unused => ok("pool lock", "no server has used it yet"),
        PoolLock::Held => ok("pool lock", format!("a server uses it: {left}")),
        PoolLock::Left if pool.regions == 0 => {
            ok("pool lock", "no server uses it, and nothing is left in it")
        }
        PoolLock::Left => warn(
            "pool lock",
            format!("no server uses it, but {left} are left and take memory"),
            format!(
                "start maru-server to go on from them, with --fresh to discard them, or give them up: rm -r {path}"
            ),
        ),
        PoolLock::Unknown => warn("pool lock", "its lock is another user's", "run this as the server's user"),
    };
    vec![folder, huge_pages, lock]
}

fn socket(address: &Address, socket: Socket) -> Finding {
    match socket {
        Socket::Missing => wrong(
            "socket",
            format!("{address} does not exist"),
            "start maru-server, or name its socket with --socket; mount its folder where a container should see it",
        ),
        Socket::OtherFile => wrong(
            "socket",
            format!("{address} is no socket"),
            "remove it, or choose another --socket for both",
        ),
        Socket::Forbidden => wrong(
            "socket",
            format!("this user may not connect to {address}"),
            "run this as the server's user, or start the server with --allow-uid or --allow-gid",
        ),
        Socket::Abandoned => wrong(
            "socket",
            format!("nobody listens on {address} any more: its server was killed"),
            "start maru-server again; it takes the socket over, and goes on from its pool",
        ),
        Socket::Open { is_replaceable: true } => warn(
            "socket",
            format!("others may put a socket of theirs in the place of {address}"),
            "let its folder be its owner's alone: chmod go-w",
        ),
        Socket::Open { is_replaceable: false } => ok("socket", address.to_string()),
    }
}

fn answer(server: &ServerFacts) -> Finding {
    let own = env!("CARGO_PKG_VERSION");
    match &server.answer {
        Ok(Told { release: Some(release), .. }) if release == own => {
            ok("server", format!("release {release} answers, as this program is"))
        }
        Ok(Told { release, .. }) => warn(
            "server",
            match release {
                Some(release) => format!("it is of release {release}, this program of {own}"),
                None => format!("it is older than this program, {own}, and does not know all that is asked"),
            },
            "update the older of them",
        ),
        Err(CliError::Server(Error::Refused { .. })) => wrong(
            "server",
            "it refuses",
            format!("{}; name the token with --auth-token-file", refusal(server)),
        ),
        Err(_) => wrong("server", "no answer", refusal(server)),
    }
}

fn refusal(server: &ServerFacts) -> String {
    server.answer.as_ref().err().map(ToString::to_string).unwrap_or_default()
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use maru_server::examination::PoolFolder;

    use super::*;

    fn folder() -> PoolFolder {
        PoolFolder {
            exists: true,
            mount_point: PathBuf::from("/dev/shm"),
            file_system: "tmpfs".to_owned(),
            has_huge_pages: true,
            free: 8 << 30,
            region_bytes: 1 << 30,
            regions: 2,
            lock: PoolLock::Held,
        }
    }

    /// A host on which nothing is to be done.
    fn facts() -> Facts {
        let told = Told { release: Some(env!("CARGO_PKG_VERSION").to_owned()), pool: None };
        Facts {
            kernel: "6.18.44-1".to_owned(),
            ring: Ok(()),
            memlock: None,
            pool_path: PathBuf::from("/dev/shm/maru-0"),
            pool: Ok(folder()),
            server: Some(ServerFacts {
                address: Address::Unix("/run/maru/maru.sock".into()),
                socket: Some(Socket::Open { is_replaceable: false }),
                answer: Ok(told),
            }),
        }
    }

    /// The one thing that is not well.
    fn only(facts: &Facts) -> Finding {
        let mut findings = judge(facts);
        findings.retain(|finding| finding.verdict != Verdict::Ok);
        assert_eq!(findings.len(), 1, "{findings:?}");
        findings.remove(0)
    }

    fn assert_is(finding: &Finding, check: &str, verdict: Verdict, fix: &str) {
        assert_eq!((finding.check, finding.verdict), (check, verdict), "{finding:?}");
        assert!(finding.fix.as_ref().is_some_and(|text| text.contains(fix)), "{finding:?}");
    }

    #[test]
    fn where_nothing_is_to_be_done_every_check_says_so() {
        let findings = judge(&facts());
        assert!(
            findings.iter().all(|finding| finding.verdict == Verdict::Ok && finding.fix.is_none()),
            "{findings:?}"
        );
        assert_eq!(findings.len(), 8);
    }

    #[test]
    fn an_old_kernel_is_wrong_and_one_without_the_fast_driver_is_not() {
        let of = |kernel: &str| only(&Facts { kernel: kernel.to_owned(), ..facts() });
        assert_is(&of("5.15.0-91-generic"), "kernel", Verdict::Wrong, "6.0 or later");
        assert_is(&of("6.0.12"), "kernel", Verdict::Warn, "--driver plain");
        assert_is(&of("mainline"), "kernel", Verdict::Warn, "6.0 or later");
    }

    #[test]
    fn a_refused_ring_says_what_the_server_would_say() {
        let ring = Err("io_uring is not available: sysctl kernel.io_uring_disabled=0".to_owned());
        assert_is(
            &only(&Facts { ring, ..facts() }),
            "io_uring",
            Verdict::Wrong,
            "kernel.io_uring_disabled=0",
        );
    }

    #[test]
    fn little_memory_that_may_be_locked_is_said() {
        let facts = Facts { memlock: Some(65_536), ..facts() };
        assert_is(&only(&facts), "memlock", Verdict::Warn, "memlock=-1");
    }

    #[test]
    fn a_pool_without_room_is_wrong_and_a_small_one_is_not() {
        let with = |free| Facts { pool: Ok(PoolFolder { free, region_bytes: 0, ..folder() }), ..facts() };
        assert_is(&only(&with(64 << 20)), "pool", Verdict::Warn, "--shm-size");
        assert_is(&only(&with(1 << 20)), "pool", Verdict::Wrong, "remount,size=");
    }

    #[test]
    fn a_pool_on_a_disk_or_without_huge_pages_is_said() {
        let on_disk = PoolFolder { file_system: "ext4".to_owned(), ..folder() };
        assert_is(&only(&Facts { pool: Ok(on_disk), ..facts() }), "pool", Verdict::Warn, "/dev/shm");
        let plain = PoolFolder { has_huge_pages: false, ..folder() };
        assert_is(
            &only(&Facts { pool: Ok(plain), ..facts() }),
            "huge pages",
            Verdict::Warn,
            "huge=within_size",
        );
        let hidden = Facts { pool: Err("permission denied".to_owned()), ..facts() };
        assert_is(&only(&hidden), "pool", Verdict::Wrong, "--pool-dir");
    }

    #[test]
    fn memory_that_a_dead_server_left_is_found() {
        let left = PoolFolder { lock: PoolLock::Left, ..folder() };
        assert_is(
            &only(&Facts { pool: Ok(left), ..facts() }),
            "pool lock",
            Verdict::Warn,
            "rm -r /dev/shm/maru-0",
        );
        let empty = PoolFolder { lock: PoolLock::Left, regions: 0, ..folder() };
        assert!(
            judge(&Facts { pool: Ok(empty), ..facts() }).iter().all(|finding| finding.verdict == Verdict::Ok)
        );
        let foreign = PoolFolder { lock: PoolLock::Unknown, ..folder() };
        assert_is(
            &only(&Facts { pool: Ok(foreign), ..facts() }),
            "pool lock",
            Verdict::Warn,
            "the server's user",
        );
    }

    #[test]
    fn each_state_of_a_socket_has_a_fix_of_its_own() {
        for (found, verdict, fix) in [
            (Socket::Missing, Verdict::Wrong, "start maru-server"),
            (Socket::OtherFile, Verdict::Wrong, "remove it"),
            (Socket::Forbidden, Verdict::Wrong, "--allow-uid"),
            (Socket::Abandoned, Verdict::Wrong, "takes the socket over"),
            (Socket::Open { is_replaceable: true }, Verdict::Warn, "chmod go-w"),
        ] {
            assert_is(&socket(&Address::Unix("/s".into()), found), "socket", verdict, fix);
        }
    }

    #[test]
    fn a_server_of_another_release_is_said_and_one_that_is_silent_is_wrong() {
        let with = |answer| {
            let address = Address::Tcp("h:1".to_owned());
            Facts { server: Some(ServerFacts { address, socket: None, answer }), ..facts() }
        };
        let other = Told { release: Some("0.0.1".to_owned()), pool: None };
        assert_is(&only(&with(Ok(other))), "server", Verdict::Warn, "update the older");
        assert_is(
            &only(&with(Ok(Told { release: None, pool: None }))),
            "server",
            Verdict::Warn,
            "update the older",
        );
        let silent = Error::ServerNotRunning { address: "tcp://h:1".to_owned() };
        assert_is(
            &only(&with(Err(CliError::Server(silent)))),
            "server",
            Verdict::Wrong,
            "start one with `maru-server`",
        );
    }

    #[test]
    fn before_the_first_start_only_the_host_is_looked_at() {
        let findings = judge(&Facts { server: None, ..facts() });
        assert!(findings.iter().all(|finding| !["socket", "server"].contains(&finding.check)));
    }
}
