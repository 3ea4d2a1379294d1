//! Which NUMA node memory lies on.

use std::io;
use std::path::Path;

use memmap2::{MmapOptions, MmapRaw};
use rustix::io::Errno;

const NODES: &str = "/sys/devices/system/node";

/// Memory can't be had from a node. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum InvalidNode {
    /// There is no such node.
    #[error("there is no such node with memory; those that there are: {0}")]
    Unknown(String),
    /// The system says nothing of nodes.
    #[error("this system knows no nodes ({0}); leave node= out")]
    NoNodes(io::Error),
    /// The kernel or a sandbox refuses.
    #[error("{advice}: {source}")]
    Refused {
        /// What is in the way, and what to do about it.
        advice: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// Where the memory lies is not the kernel's to choose.
    #[error("memory of {kind} lies where its device is; leave node= out")]
    OfDevice {
        /// The kind of the pool.
        kind: &'static str,
    },
    /// Where the memory lies is up to whoever touches it first.
    #[error(
        "memory of a hugetlbfs that is taken lazily lies where whoever touches it first runs; leave node= out, or use \
         --prefault eager"
    )]
    Lazy,
}

/// A node that memory can be had from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node(u32);

impl Node {
    /// A node by its number, tried with a page.
    pub(super) fn find(number: u32) -> Result<Node, InvalidNode> {
        let listed =
            std::fs::read_to_string(Path::new(NODES).join("has_memory")).map_err(InvalidNode::NoNodes)?;
        if !is_listed(number, &listed) {
            return Err(InvalidNode::Unknown(listed.trim().to_owned()));
        }
        let node = Node(number);
        let tried = MmapOptions::new().len(1).map_anon().and_then(|page| node.bind(&MmapRaw::from(page)));
        tried.map_err(|source| InvalidNode::Refused { advice: advice(&source), source })?;
        Ok(node)
    }

    /// Bytes that it has, whoever uses them.
    pub(super) fn bytes(self) -> io::Result<u64> {
        let path = Path::new(NODES).join(format!("node{}/meminfo", self.0));
        let text = std::fs::read_to_string(&path)?;
        let total = text.lines().find_map(|line| line.split_once("MemTotal:"));
        let kib = total.and_then(|(_, kib)| kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        let kib = kib.ok_or_else(|| io::Error::other(format!("{} has no MemTotal", path.display())))?;
        Ok(kib * 1024)
    }

    /// Has the kernel take the memory of a mapping from this node alone, from now on; a file of a tmpfs keeps that for all who
    /// touch it later.
    pub(super) fn bind(self, memory: &MmapRaw) -> io::Result<()> {
        const BITS: u32 = libc::c_ulong::BITS;
        let mut nodes = vec![0; self.0 as usize / BITS as usize + 1];
        nodes[self.0 as usize / BITS as usize] = libc::c_ulong::from(1u8) << (self.0 % BITS);
        // The kernel takes one bit less than it is told.
        let bits = nodes.len() as u64 * u64::from(BITS) + 1;
        // SAFETY: the range is a mapping of this process, in which the call changes no byte, and the mask has the bits that the
        // kernel is told it has. There are no flags, so that no page moves.
        let bound = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                memory.as_mut_ptr(),
                memory.len(),
                libc::MPOL_BIND,
                nodes.as_ptr(),
                bits,
                0 as libc::c_uint,
            )
        };
        if bound == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Whether a list such as `0-3,8` has this number.
fn is_listed(number: u32, list: &str) -> bool {
    let ranges = list.trim().split(',').map(|range| range.split_once('-').unwrap_or((range, range)));
    ranges
        .filter_map(|(first, last)| Some(first.parse::<u32>().ok()?..=last.parse().ok()?))
        .any(|range| range.contains(&number))
}

fn advice(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::PERM | Errno::ACCESS) => {
            "mbind is forbidden here; allow it in the seccomp profile of the container, as deploy/seccomp.json does, or leave \
             node= out"
        }
        Some(Errno::NOSYS) => "this kernel can't bind memory to nodes; leave node= out",
        Some(Errno::INVAL) => "this process may not have memory of it; widen its cpuset, or leave node= out",
        _ => "mbind failed; leave node= out",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_nodes_is_of_numbers_and_ranges() {
        for (list, has, lacks) in
            [("0\n", &[0][..], &[1][..]), ("0-1,4\n", &[0, 1, 4], &[2, 3, 5]), ("\n", &[], &[0])]
        {
            assert!(has.iter().all(|node| is_listed(*node, list)), "{list}");
            assert!(!lacks.iter().any(|node| is_listed(*node, list)), "{list}");
        }
    }

    #[test]
    fn whoever_is_refused_is_told_what_to_do() {
        for (errno, says) in [
            (Errno::PERM, "seccomp profile"),
            (Errno::NOSYS, "this kernel can't"),
            (Errno::INVAL, "widen its cpuset"),
        ] {
            let source = io::Error::from(errno);
            let refused = InvalidNode::Refused { advice: advice(&source), source }.to_string();
            assert!(refused.contains(says) && refused.contains("leave node= out"), "{refused}");
        }
    }
}
