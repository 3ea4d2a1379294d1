//! What whoever operates a server asks it: what it is, where an entry lies, who has it pinned. None of it needs memory of the
//! pool, counts as a look-up, or keeps an entry from being evicted.

use std::time::Duration;

use maru_proto::{
    EntryRecord, EntryRequest, HeldPinsRecord, KeyDigest, ListPinsRequest, RecordStatus, ReleasePinsRecord,
    ServerRecord,
};

use super::MaruHandler;
use crate::error::{Error, ProtocolError, Result};
use crate::key::AsKey;
use crate::lists::whole_list;
use crate::rpc::request::{GetEntry, GetServer, ListPins, ReleasePins};

/// Pins that are released by one request: no server takes less than their 1024 bytes at once.
const RELEASED_TOGETHER: usize = 32;

/// Which pins are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinQuery {
    /// Those on one entry alone.
    pub digest: Option<KeyDigest>,
    /// Those of the instance with this number alone.
    pub instance: Option<u32>,
    /// Those of which the first on the entry is at least so old; the server counts whole seconds.
    pub held: Duration,
}

/// What became of pins by name that were to be released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// They are gone.
    Released,
    /// The instance has none on the entry, or only such as it took since they were listed.
    NotPinned,
    /// The entry, or the instance, is gone, and the pins with it.
    NotFound,
}

impl MaruHandler {
    /// What the server is, and what it allows.
    ///
    /// # Errors
    /// [`Error::Refused`] with `UnsupportedOpcode` where the server is older than this; else those of any request.
    pub fn server(&self) -> Result<ServerRecord> {
        self.shared.check_open()?;
        self.shared.ask(&GetServer([]))
    }

    /// Where the entry of a key is, who owns its page, and how many pins it has, as of one moment: nothing keeps it there.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], and those of [`MaruHandler::server`].
    pub fn entry(&self, key: impl AsKey) -> Result<Option<EntryRecord>> {
        self.shared.check_open()?;
        let request = EntryRequest { digest: self.digest(key)? };
        Ok(self.shared.ask(&GetEntry(request))?.pop())
    }

    /// The pins of all instances: one record for each instance and entry that it has pinned, in no particular order. What
    /// was pinned all the while is in it once.
    ///
    /// # Errors
    /// Those of [`MaruHandler::server`].
    pub fn pins(&self, query: &PinQuery) -> Result<Vec<HeldPinsRecord>> {
        self.shared.check_open()?;
        let held_s = u32::try_from(query.held.as_secs()).unwrap_or(u32::MAX);
        let cursor = |pins: &HeldPinsRecord| pins.cursor.get();
        let all = whole_list(cursor, |after| {
            self.shared.ask(&ListPins(ListPinsRequest {
                digest: query.digest.unwrap_or(KeyDigest::from_bytes([0; 16])),
                after: after.into(),
                instance: query.instance.unwrap_or(0).into(),
                held_s: held_s.into(),
                of_digest: u32::from(query.digest.is_some()).into(),
                reserved: 0.into(),
            }))
        })?;
        // The others say only how far the server has looked.
        Ok(all.into_iter().filter(|pins| pins.instance.get() != 0).collect())
    }

    /// Releases pins by name of any instance, as they were listed; what became of each. Pins that guards hold stay, since
    /// somebody may be reading, and so do pins by name where the instance has begun anew to pin the entry since.
    ///
    /// The instance is told nothing. Its next [`unpin_kv`](MaruHandler::unpin_kv) answers
    /// [`NotPinned`](crate::Unpinned::NotPinned), as for a pin that ran out, and when its session goes on after a lost connection,
    /// the pin does not come back. After a restart of the server it does, with a new age, where the instance has not noticed:
    /// the server knows of no pins then, and believes what it is told.
    ///
    /// # Errors
    /// [`Error::Refused`] with `Unauthorized` unless this process is of the server's own user, or root, and connected by the
    /// Unix socket; else those of [`MaruHandler::server`]. Before an error some may have been released.
    pub fn release_pins(&self, pins: &[HeldPinsRecord]) -> Result<Vec<Released>> {
        self.shared.check_open()?;
        let record = |pins: &HeldPinsRecord| ReleasePinsRecord {
            digest: pins.digest,
            generation: pins.generation,
            instance: pins.instance,
            held_s: pins.held_s,
        };
        let mut outcomes = Vec::with_capacity(pins.len());
        for pins in pins.chunks(RELEASED_TOGETHER) {
            let records = pins.iter().map(record).collect::<Vec<_>>();
            for status in self.shared.ask(&ReleasePins(&records))? {
                outcomes.push(match status {
                    RecordStatus::Ok => Released::Released,
                    RecordStatus::NotPinned => Released::NotPinned,
                    RecordStatus::NotFound => Released::NotFound,
                    _ => return Err(Error::Protocol(ProtocolError::Records { expected: records.len() })),
                });
            }
        }
        Ok(outcomes)
    }
}
