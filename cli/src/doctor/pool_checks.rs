//! What the facts of a pool mean: a finding each for its place, its header, its memory and its lock.

use std::fmt::Display;

use maru_proto::{PoolHeaderError, PoolKind};
use maru_server::examination::{HeaderFacts, PoolDevice, PoolFolder, PoolLock, PoolPlace};

use super::checks::{Finding, ok, size, warn, wrong};
use super::facts::PoolFacts;

/// Bytes of memory that make a pool worth having; the `/dev/shm` of a container has 64 MiB.
const POOL_LEAST: u64 = 1 << 30;
/// The smallest region, and the smallest huge page.
const REGION_LEAST: u64 = 2 << 20;

/// The findings on one pool.
pub(super) fn judge(pool: &PoolFacts) -> Vec<Finding> {
    let path = pool.path.display();
    match &pool.found {
        Ok(PoolPlace::Folder(folder)) => judge_folder(&path, folder),
        Ok(PoolPlace::Device(device)) => judge_device(&path, device),
        Err(error) => {
            let fix = "run this as the server's user, or name the pool with --pool";
            vec![wrong("pool", format!("{path} can't be looked at: {error}"), fix)]
        }
    }
}

fn judge_folder(path: &impl Display, pool: &PoolFolder) -> Vec<Finding> {
    let mut findings = vec![room(path, pool)];
    // What gives huge pages to a file of a DAX file system is where it lies, which is nobody's to choose.
    if pool.kind != PoolKind::FsDax {
        findings.push(huge_pages(pool));
    }
    findings.extend(
        pool.header
            .filter(|facts| facts.header != Err(PoolHeaderError::Missing))
            .map(|facts| header(path, &facts)),
    );
    let left = format!("regions of {}", size(pool.region_bytes));
    findings.push(match pool.lock {
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
    });
    findings
}

fn room(path: &impl Display, pool: &PoolFolder) -> Finding {
    let room = pool.free + pool.region_bytes;
    let mut found = format!("{path} on {}, {} free", pool.file_system, size(pool.free));
    if pool.kind == PoolKind::Hugetlbfs {
        found += &format!(": {} huge pages of {}", pool.free / pool.page_size.max(1), size(pool.page_size));
    }
    if pool.kind == PoolKind::FsDax && !pool.is_dax {
        let fix = "choose a --pool on tmpfs, hugetlbfs or a DAX file system, such as below /dev/shm";
        return warn("pool", format!("{found}: a file system of memory only where it is DAX"), fix);
    }
    if room >= POOL_LEAST {
        return ok("pool", found);
    }
    let fix = match pool.kind {
        PoolKind::Hugetlbfs => "reserve more huge pages: sysctl vm.nr_hugepages=N, best at boot".to_owned(),
        PoolKind::Tmpfs => format!(
            "give it more: mount -o remount,size=SIZE {}, or --shm-size of the container",
            pool.mount_point.display()
        ),
        _ => "make room there, or choose another --pool".to_owned(),
    };
    if room < REGION_LEAST { wrong("pool", found, fix) } else { warn("pool", found, fix) }
}

fn huge_pages(pool: &PoolFolder) -> Finding {
    let point = pool.mount_point.display();
    if pool.has_huge_pages {
        return ok("huge pages", format!("{point} gives them"));
    }
    warn(
        "huge pages",
        format!("{point} gives none, so mapping regions takes about ten times as long"),
        "start the server with --pool tmpfs:DIR,size=SIZE,mount as root, or mount one: mount -t tmpfs -o \
         size=SIZE,huge=within_size maru DIR",
    )
}

fn judge_device(path: &impl Display, pool: &PoolDevice) -> Vec<Finding> {
    let found = format!("{path}, a device of {}", size(pool.size));
    if pool.size < pool.least_size {
        let fix = format!("choose a larger one: a pool takes at least {}", size(pool.least_size));
        return vec![wrong("pool", found, fix)];
    }
    let mut findings = vec![ok("pool", found)];
    findings.extend(pool.alignment.map(|bytes| alignment(path, bytes)));
    findings.push(access(path, pool));
    findings.extend(pool.header.map(|facts| header(path, &facts)));
    findings.push(match pool.lock {
        PoolLock::Held => ok("pool lock", "a server uses it"),
        PoolLock::Unused | PoolLock::Left => ok("pool lock", "no server of this host uses it"),
        PoolLock::Unknown => warn("pool lock", "this user can't tell", "run this as the server's user"),
    });
    findings
}

fn alignment(path: &impl Display, bytes: u64) -> Finding {
    if bytes >= REGION_LEAST {
        return ok("alignment", format!("{path} is mapped in units of {}", size(bytes)));
    }
    warn(
        "alignment",
        format!("{path} is mapped in units of {}, so without huge pages", size(bytes)),
        "make the device with --align 2M, which discards what is on it: daxctl create-device, or ndctl create-namespace",
    )
}

fn access(path: &impl Display, pool: &PoolDevice) -> Finding {
    let missing = match (pool.is_readable, pool.is_writable) {
        (true, true) => return ok("access", format!("this user may read {path} and write to it")),
        (true, false) => "may not write to",
        _ => "may not read",
    };
    wrong(
        "access",
        format!("this user {missing} {path}"),
        "run this as the server's user; give that user the device by a rule of udev: SUBSYSTEM==\"dax\", GROUP=\"maru\", \
         MODE=\"0660\"",
    )
}

fn header(path: &impl Display, facts: &HeaderFacts) -> Finding {
    let fix = match facts.header {
        Ok(header) => {
            return ok("header", format!("the pool {}, incarnation {}", header.uuid(), header.incarnation()));
        }
        Err(PoolHeaderError::Missing) => {
            format!("if nothing on it is needed, make it a pool: maru pool init {path}")
        }
        Err(PoolHeaderError::Version(_)) => {
            format!("run that version; if nothing in it is needed, maru pool wipe {path}")
        }
        Err(PoolHeaderError::Damaged) => {
            format!("see maru pool show {path}; maru pool wipe {path} gives it up")
        }
    };
    let found = facts.header.err().map(|error| error.to_string()).unwrap_or_default();
    wrong("header", format!("{path}: {found}"), fix)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use maru_proto::{PoolHeader, PoolUuid};

    use super::super::checks::Verdict;
    use super::*;

    fn facts(header: Result<PoolHeader, PoolHeaderError>) -> Option<HeaderFacts> {
        Some(HeaderFacts { header, slots: [header, Err(PoolHeaderError::Missing)] })
    }

    fn whole() -> Option<HeaderFacts> {
        facts(Ok(PoolHeader::new(PoolUuid::from_random([7; 16]))))
    }

    fn folder() -> PoolFolder {
        PoolFolder {
            exists: true,
            kind: PoolKind::Tmpfs,
            mount_point: PathBuf::from("/dev/shm"),
            file_system: "tmpfs".to_owned(),
            has_huge_pages: true,
            is_dax: false,
            free: 8 << 30,
            page_size: 4096,
            region_bytes: 1 << 30,
            regions: 2,
            header: whole(),
            lock: PoolLock::Held,
        }
    }

    fn device() -> PoolDevice {
        PoolDevice {
            size: 64 << 30,
            alignment: Some(2 << 20),
            granularity: 2 << 20,
            least_size: 4 << 20,
            is_readable: true,
            is_writable: true,
            header: whole(),
            lock: PoolLock::Held,
        }
    }

    fn findings(found: Result<PoolPlace, String>) -> Vec<Finding> {
        judge(&PoolFacts { path: PathBuf::from("/a/pool"), found })
    }

    fn of_folder(folder: PoolFolder) -> Vec<Finding> {
        findings(Ok(PoolPlace::Folder(folder)))
    }

    fn of_device(device: PoolDevice) -> Vec<Finding> {
        findings(Ok(PoolPlace::Device(device)))
    }

    /// One thing is not well: this.
    fn assert_only(mut findings: Vec<Finding>, check: &str, verdict: Verdict, fix: &str) {
        findings.retain(|finding| finding.verdict != Verdict::Ok);
        assert_eq!(findings.len(), 1, "{findings:?}");
        let finding = findings.remove(0);
        assert_eq!((finding.check, finding.verdict), (check, verdict), "{finding:?}");
        assert!(finding.fix.as_ref().is_some_and(|text| text.contains(fix)), "{finding:?}");
    }

    #[test]
    fn where_nothing_is_to_be_done_every_check_says_so() {
        for (findings, checks) in [
            (of_folder(folder()), &["pool", "huge pages", "header", "pool lock"][..]),
            (of_device(device()), &["pool", "alignment", "access", "header", "pool lock"]),
        ] {
            assert_eq!(findings.iter().map(|finding| finding.check).collect::<Vec<_>>(), checks);
            assert!(
                findings.iter().all(|finding| finding.verdict == Verdict::Ok && finding.fix.is_none()),
                "{findings:?}"
            );
        }
    }

    #[test]
    fn a_pool_without_room_is_wrong_and_a_small_one_is_not() {
        let with = |free| of_folder(PoolFolder { free, region_bytes: 0, ..folder() });
        assert_only(with(64 << 20), "pool", Verdict::Warn, "--shm-size");
        assert_only(with(1 << 20), "pool", Verdict::Wrong, "remount,size=");
    }

    #[test]
    fn a_pool_on_a_disk_or_without_huge_pages_is_said() {
        let on_disk = PoolFolder { file_system: "ext4".to_owned(), kind: PoolKind::FsDax, ..folder() };
        assert_only(of_folder(on_disk.clone()), "pool", Verdict::Warn, "/dev/shm");
        let is_well = |findings: Vec<Finding>| findings.iter().all(|finding| finding.verdict == Verdict::Ok);
        assert!(is_well(of_folder(PoolFolder { is_dax: true, has_huge_pages: false, ..on_disk })));
        let plain = PoolFolder { has_huge_pages: false, ..folder() };
        assert_only(of_folder(plain), "huge pages", Verdict::Warn, "huge=within_size");
        assert_only(findings(Err("permission denied".to_owned())), "pool", Verdict::Wrong, "--pool");
    }

    #[test]
    fn huge_pages_that_are_free_are_counted() {
        let huge = PoolFolder {
            kind: PoolKind::Hugetlbfs,
            file_system: "hugetlbfs".to_owned(),
            page_size: 2 << 20,
            free: 0,
            region_bytes: 0,
            ..folder()
        };
        let found = of_folder(PoolFolder { free: 4 << 30, ..huge.clone() })[0].found.clone();
        assert!(found.contains("2048 huge pages of 2.0 MiB"), "{found}");
        assert_only(of_folder(huge), "pool", Verdict::Wrong, "vm.nr_hugepages");
    }

    #[test]
    fn memory_that_a_dead_server_left_is_found() {
        let left = PoolFolder { lock: PoolLock::Left, ..folder() };
        assert_only(of_folder(left.clone()), "pool lock", Verdict::Warn, "rm -r /a/pool");
        let empty = of_folder(PoolFolder { regions: 0, ..left.clone() });
        assert!(empty.iter().all(|finding| finding.verdict == Verdict::Ok));
        let foreign = PoolFolder { lock: PoolLock::Unknown, header: None, ..left };
        assert_only(of_folder(foreign), "pool lock", Verdict::Warn, "the server's user");
        // What a server left on a device takes nobody's memory.
        let device = of_device(PoolDevice { lock: PoolLock::Left, ..device() });
        assert!(device.iter().all(|finding| finding.verdict == Verdict::Ok));
    }

    #[test]
    fn each_fault_of_a_header_has_a_fix_of_its_own() {
        for (error, fix) in [
            (PoolHeaderError::Missing, "maru pool init /a/pool"),
            (PoolHeaderError::Version(9), "run that version"),
            (PoolHeaderError::Damaged, "maru pool show /a/pool"),
        ] {
            let header = facts(Err(error));
            assert_only(of_device(PoolDevice { header, ..device() }), "header", Verdict::Wrong, fix);
        }
        let bare = of_folder(PoolFolder { header: facts(Err(PoolHeaderError::Missing)), ..folder() });
        assert!(bare.iter().all(|finding| finding.verdict == Verdict::Ok), "the server makes it: {bare:?}");
        let damaged = PoolFolder { header: facts(Err(PoolHeaderError::Damaged)), ..folder() };
        assert_only(of_folder(damaged), "header", Verdict::Wrong, "maru pool wipe");
    }

    #[test]
    fn a_device_that_can_not_be_used_is_wrong_and_a_slow_one_is_not() {
        let small = PoolDevice { size: 1 << 20, ..device() };
        assert_only(of_device(small), "pool", Verdict::Wrong, "at least 4.0 MiB");
        let slow = PoolDevice { alignment: Some(4096), ..device() };
        assert_only(of_device(slow), "alignment", Verdict::Warn, "--align 2M");
        let others = PoolDevice { is_writable: false, ..device() };
        assert_only(of_device(others), "access", Verdict::Wrong, "udev");
    }
}
