//! What was done, what came of it, and which promises were broken.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A closed set of names, the same in JSON and in tables.
macro_rules! names {
    ($($(#[$enum_doc:meta])* $enum:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)* })*) => {
        $(
            $(#[$enum_doc])*
            #[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
            pub(super) enum $enum {
                $($(#[$doc])* #[serde(rename = $name)] $variant,)*
            }

            impl fmt::Display for $enum {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str(match self {
                        $($enum::$variant => $name,)*
                    })
                }
            }
        )*
    };
}

names! {
    /// What a client asks for.
    Operation {
        Acquire = "acquire",
        Retrieve = "retrieve",
        Exists = "exists",
        Alloc = "alloc",
        Store = "store",
        PinKv = "pin_kv",
        UnpinKv = "unpin_kv",
        Delete = "delete",
        /// A comparison of the client's own pages and pins with the server's.
        Audit = "audit",
        /// A look at all bytes of a guard, which checks that it was good all the while.
        Read = "read",
    }

    /// What came of one key or page of it.
    Outcome {
        Done = "done",
        Found = "found",
        NotFound = "not_found",
        Stored = "stored",
        AlreadyExists = "already_exists",
        PoolExhausted = "pool_exhausted",
        Pinned = "pinned",
        NotPinned = "not_pinned",
        Unpinned = "unpinned",
        Deleted = "deleted",
        Skipped = "skipped",
        /// It was there, nobody deleted it, and the server has evicted some.
        Evicted = "evicted",
        /// The server died over it, or was out of reach.
        Died = "died",
        /// The server was out of reach for so long that it had ended the session.
        SessionEnded = "session_ended",
        /// The server had released the pin, or may have.
        Revoked = "revoked",
        /// The caller did not wait for the answer.
        GivenUp = "given_up",
    }
}

/// All of it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Counts {
    /// Calls of the client library.
    pub(super) operations: u64,
    /// Bytes that were read under guards.
    pub(super) verified_bytes: u64,
    /// Those of them that were not what the key says.
    pub(super) wrong_bytes: u64,
    /// Pins that nobody holds.
    pub(super) leaked_pins: u64,
    /// Pages that are neither free, nor an entry's, nor waiting to be taken back.
    pub(super) leaked_pages: u64,
    /// Chunks that had to be there, and were not.
    pub(super) lost_acknowledged: u64,
    /// Sessions that the server had ended when it was reached again.
    pub(super) sessions_ended: u64,
    /// How long sessions were without the server each time, µs.
    pub(super) outages_us: Vec<u64>,
    /// Keys and pages by what was asked for and what came of it.
    pub(super) outcomes: BTreeMap<Operation, BTreeMap<Outcome, u64>>,
}

impl Counts {
    /// Counts keys or pages with the same outcome.
    pub(super) fn add(&mut self, operation: Operation, outcome: Outcome, count: u64) {
        if count > 0 {
            *self.outcomes.entry(operation).or_default().entry(outcome).or_default() += count;
        }
    }

    /// Adds what others counted.
    pub(super) fn merge(&mut self, other: &Counts) {
        self.operations += other.operations;
        self.verified_bytes += other.verified_bytes;
        self.wrong_bytes += other.wrong_bytes;
        self.leaked_pins += other.leaked_pins;
        self.leaked_pages += other.leaked_pages;
        self.lost_acknowledged += other.lost_acknowledged;
        self.sessions_ended += other.sessions_ended;
        self.outages_us.extend(&other.outages_us);
        for (operation, outcomes) in &other.outcomes {
            outcomes.iter().for_each(|(outcome, count)| self.add(*operation, *outcome, *count));
        }
    }

    /// Whether no promise was broken.
    pub(super) fn is_clean(&self) -> bool {
        [self.wrong_bytes, self.leaked_pins, self.leaked_pages, self.lost_acknowledged] == [0; 4]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_travel() {
        let mut one = Counts { operations: 2, verified_bytes: 10, ..Counts::default() };
        one.add(Operation::Delete, Outcome::Pinned, 1);
        one.add(Operation::Delete, Outcome::Deleted, 0);
        let text = serde_json::to_string(&one).unwrap();
        assert!(text.contains(r#""outcomes":{"delete":{"pinned":1}}"#), "{text}");
        let travelled = serde_json::from_str::<Counts>(&text).unwrap();
        assert_eq!(travelled, one);

        one.merge(&travelled);
        assert_eq!((one.operations, one.verified_bytes), (4, 20));
        assert_eq!(one.outcomes[&Operation::Delete], BTreeMap::from([(Outcome::Pinned, 2)]));
    }

    #[test]
    fn each_broken_promise_counts() {
        assert!(Counts { operations: 1, ..Counts::default() }.is_clean());
        for broken in [
            Counts { wrong_bytes: 1, ..Counts::default() },
            Counts { leaked_pins: 1, ..Counts::default() },
            Counts { leaked_pages: 1, ..Counts::default() },
            Counts { lost_acknowledged: 1, ..Counts::default() },
        ] {
            assert!(!broken.is_clean(), "{broken:?}");
        }
    }
}
