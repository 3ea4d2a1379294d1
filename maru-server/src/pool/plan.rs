//! What the operator says of a pool: `[KIND:]PATH,KEY=VALUE…`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use bytesize::ByteSize;
use maru_proto::{PoolCoherence, PoolKind};

use super::default_pool_path;

/// A pool that is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolPlan {
    /// What it has to be made of; whatever is there where not given.
    pub kind: Option<PoolKind>,
    /// The folder, or the device.
    pub path: PathBuf,
    /// Bytes; where not given, a quarter of what is free in a folder, or all of a device.
    pub size: Option<ByteSize>,
    /// What it takes that hosts see each other's writes.
    pub coherence: PoolCoherence,
    /// Whether a tmpfs with huge pages is to be mounted on the path.
    pub mount: bool,
    /// The NUMA node that its memory is to lie on; wherever the kernel puts it where not given.
    pub node: Option<u32>,
    /// When its regions get their memory; the same for all pools.
    pub prefault: Prefault,
}

/// When the memory of a region is allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Prefault {
    /// All of it before it is given to an instance.
    #[default]
    Eager,
    /// As it is touched.
    Lazy,
}

impl Default for PoolPlan {
    /// A quarter of the memory that is free under `/dev/shm`.
    fn default() -> PoolPlan {
        PoolPlan {
            kind: None,
            path: default_pool_path(),
            size: None,
            coherence: PoolCoherence::Coherent,
            mount: false,
            node: None,
            prefault: Prefault::Eager,
        }
    }
}

/// A text says of no pool what it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPool {
    /// There is no such kind.
    #[error("{0:?} is no kind of pool; kinds are {kinds}", kinds = kinds())]
    Kind(String),
    /// The path is missing.
    #[error("the pool has no path; write it behind its kind, as in devdax:/dev/dax0.0")]
    NoPath,
    /// There is no such setting.
    #[error(
        "{0:?} is nothing that can be set of a pool; write size=64GiB, coherence=writeback, node=0, or mount (a path has no \
         commas)"
    )]
    Setting(String),
    /// A setting does not take the value.
    #[error("{setting}={value} of a pool: {reason}")]
    Value {
        /// The setting.
        setting: &'static str,
        /// What it was to be.
        value: String,
        /// What is wrong with that.
        reason: String,
    },
    /// What is mounted is a tmpfs, and not on what is there already.
    #[error("mount takes a tmpfs and where it is to be mounted, as in tmpfs:/mnt/maru,size=64GiB,mount")]
    Mount,
}

fn kinds() -> String {
    PoolKind::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

impl FromStr for PoolPlan {
    type Err = InvalidPool;

    fn from_str(text: &str) -> Result<PoolPlan, InvalidPool> {
        let mut plan = PoolPlan::default();
        let mut settings = text.split(',').peekable();
        let named = settings.next_if(|first| !first.contains('=') && *first != "mount");
        if let Some(named) = named {
            let path = match named.split_once(':') {
                // A colon in a path is one of the path.
                Some((kind, path)) if !kind.contains('/') => {
                    let known = PoolKind::ALL.iter().find(|known| known.name() == kind);
                    plan.kind = Some(*known.ok_or_else(|| InvalidPool::Kind(kind.to_owned()))?);
                    path
                }
                _ => named,
            };
            if path.is_empty() {
                return Err(InvalidPool::NoPath);
            }
            plan.path = path.into();
        }
        for setting in settings {
            match setting.split_once('=') {
                Some(("size", value)) => plan.size = Some(size(value)?),
                Some(("coherence", value)) => plan.coherence = coherence(value)?,
                Some(("node", value)) => plan.node = Some(node(value)?),
                None if setting == "mount" => plan.mount = true,
                _ => return Err(InvalidPool::Setting(setting.to_owned())),
            }
        }
        if plan.mount && (plan.kind.is_some_and(|kind| kind != PoolKind::Tmpfs) || named.is_none()) {
            return Err(InvalidPool::Mount);
        }
        Ok(plan)
    }
}

fn size(value: &str) -> Result<ByteSize, InvalidPool> {
    let invalid = |reason| InvalidPool::Value { setting: "size", value: value.to_owned(), reason };
    value.parse::<ByteSize>().map_err(invalid)
}

fn coherence(value: &str) -> Result<PoolCoherence, InvalidPool> {
    let known = PoolCoherence::ALL.iter().find(|known| known.name() == value);
    known.copied().ok_or_else(|| InvalidPool::Value {
        setting: "coherence",
        value: value.to_owned(),
        reason: "it is coherent or writeback".to_owned(),
    })
}

fn node(value: &str) -> Result<u32, InvalidPool> {
    value.parse().map_err(|_| InvalidPool::Value {
        setting: "node",
        value: value.to_owned(),
        reason: "it is the number of a NUMA node, as in node=0".to_owned(),
    })
}

impl fmt::Display for PoolPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(kind) = self.kind {
            write!(f, "{}:", kind.name())?;
        }
        self.path.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PoolPlan, InvalidPool> {
        text.parse()
    }

    #[test]
    fn a_pool_is_its_kind_and_path_and_what_is_set_of_it() {
        let plan = parse("devdax:/dev/dax0.0,size=64GiB,coherence=writeback").unwrap();
        let expected = PoolPlan {
            kind: Some(PoolKind::DevDax),
            path: "/dev/dax0.0".into(),
            size: Some(ByteSize::gib(64)),
            coherence: PoolCoherence::Writeback,
            ..PoolPlan::default()
        };
        assert_eq!(plan, expected);
        assert_eq!(plan.to_string(), "devdax:/dev/dax0.0");
        assert!(parse("tmpfs:/mnt/maru,size=1GiB,mount").unwrap().mount);
        assert_eq!(parse("tmpfs:/mnt/maru,node=1").unwrap().node, Some(1));
    }

    #[test]
    fn without_a_path_it_is_memory_of_this_host() {
        let plan = parse("size=4GiB").unwrap();
        assert_eq!(plan, PoolPlan { size: Some(ByteSize::gib(4)), ..PoolPlan::default() });
    }

    #[test]
    fn without_a_kind_it_is_whatever_is_there() {
        let plan = parse("/mnt/a:b,size=4GiB").unwrap();
        assert_eq!((plan.kind, plan.to_string()), (None, "/mnt/a:b".to_owned()));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        for (text, advice) in [
            ("ramfs:/x", "tmpfs, hugetlbfs, fsdax, devdax"),
            ("devdax:", "as in devdax:/dev/dax0.0"),
            ("", "has no path"),
            ("fsdax:/mnt,pmem", "write size=64GiB"),
            ("fsdax:/mnt,size=much", "size=much"),
            ("fsdax:/mnt,coherence=some", "coherent or writeback"),
            ("fsdax:/mnt,size=1GiB,mount", "takes a tmpfs"),
            ("size=1GiB,mount", "tmpfs:/mnt/maru"),
            ("tmpfs:/mnt/maru,node=near", "as in node=0"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(advice), "{text}: {error}");
        }
    }
}
