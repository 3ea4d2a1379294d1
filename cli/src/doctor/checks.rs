//! What the facts mean: one finding a check, and what to do where it is not well. Pure, so that every fault can be had.

use bytesize::ByteSize;
use maru_client::{Address, Error};

use super::facts::{Facts, ServerFacts, Socket, Told};
use super::pool_checks;
use crate::error::CliError;

/// Linux with what a server needs of io_uring, and with what its fast driver needs.
const KERNEL_LEAST: (u32, u32) = (6, 0);
const KERNEL_FAST: (u32, u32) = (6, 1);
/// Bytes that may be locked before anybody complains: what distributions grant.
const MEMLOCK_LEAST: u64 = 8 << 20;

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

/// Nothing is to be done.
pub(super) fn ok(check: &'static str, found: impl Into<String>) -> Finding {
    Finding { check, verdict: Verdict::Ok, found: found.into(), fix: None }
}

/// It works, and this would make it better.
pub(super) fn warn(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { check, verdict: Verdict::Warn, found: found.into(), fix: Some(fix.into()) }
}

/// It does not work until this is done.
pub(super) fn wrong(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Wrong, ..warn(check, found, fix) }
}

/// All findings, the host's first.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![kernel(&facts.kernel), ring(&facts.ring), memlock(facts.memlock)];
    findings.extend(facts.pools.iter().flat_map(pool_checks::judge));
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

/// Bytes, for people.
pub(super) fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host on which nothing is to be done.
    fn facts() -> Facts {
        let told = Told { release: Some(env!("CARGO_PKG_VERSION").to_owned()), pools: Vec::new() };
        Facts {
            kernel: "6.18.44-1".to_owned(),
            ring: Ok(()),
            memlock: None,
            pools: Vec::new(),
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
        assert_eq!(findings.len(), 5);
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
        let other = Told { release: Some("0.0.1".to_owned()), pools: Vec::new() };
        assert_is(&only(&with(Ok(other))), "server", Verdict::Warn, "update the older");
        assert_is(
            &only(&with(Ok(Told { release: None, pools: Vec::new() }))),
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
