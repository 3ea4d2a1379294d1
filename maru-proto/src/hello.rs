//! HELLO: how a connection is opened, and how an instance is named and resumed.

use std::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{DigestKey, VERSION};

/// Bytes of the longest instance id.
pub const INSTANCE_ID_MAX: usize = 128;

/// Bytes of the longest auth token.
pub const AUTH_TOKEN_MAX: usize = 64;

/// A feature of HELLO: the session that is opened ends with its last connection, instead of outliving it for the grace
/// period. For tools that look and go: they leave nothing behind.
pub const FEATURE_NO_GRACE: u64 = 1;

/// A name that an instance gives itself, for people: UTF-8, 1 to [`INSTANCE_ID_MAX`] bytes, no control characters.
/// Two instances may bear the same name; what identifies an instance is its [`SessionToken`].
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct InstanceId {
    bytes: [u8; INSTANCE_ID_MAX],
}

/// The text can't name an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an instance id is 1 to {INSTANCE_ID_MAX} bytes of UTF-8 without control characters")]
pub struct InvalidInstanceId;

impl InstanceId {
    /// An instance id with this text.
    ///
    /// # Errors
    /// [`InvalidInstanceId`] when it is empty, too long or has control characters.
    pub fn new(text: &str) -> Result<InstanceId, InvalidInstanceId> {
        if text.is_empty() || text.len() > INSTANCE_ID_MAX || text.chars().any(char::is_control) {
            return Err(InvalidInstanceId);
        }
        let mut bytes = [0; INSTANCE_ID_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(InstanceId { bytes })
    }

    /// The text, as far as the bytes, which came from a peer, are a valid id.
    ///
    /// # Errors
    /// [`InvalidInstanceId`] when they are not.
    pub fn text(&self) -> Result<&str, InvalidInstanceId> {
        let length = self.bytes.iter().position(|&byte| byte == 0).unwrap_or(INSTANCE_ID_MAX);
        let text = str::from_utf8(&self.bytes[..length]).map_err(|_| InvalidInstanceId)?;
        if self.bytes[length..].iter().any(|&byte| byte != 0) {
            return Err(InvalidInstanceId);
        }
        InstanceId::new(text).map(|_| text)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InstanceId").field(&self.text()).finish()
    }
}

/// What a session is resumed with: known only to the server and the instance. All zero stands for none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(transparent)]
pub struct SessionToken(pub [u8; 16]);

impl SessionToken {
    /// No session: a new instance is asked for.
    pub const NONE: SessionToken = SessionToken([0; 16]);
}

impl fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == SessionToken::NONE { "SessionToken(none)" } else { "SessionToken(secret)" })
    }
}

/// The secret that the operator gave to the server and to its clients. Empty stands for none.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct AuthToken {
    length: U16,
    reserved: [u8; 6],
    bytes: [u8; AUTH_TOKEN_MAX],
}

/// The auth token is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an auth token has at most {AUTH_TOKEN_MAX} bytes")]
pub struct AuthTokenTooLong;

impl AuthToken {
    /// No token.
    pub const NONE: AuthToken =
        AuthToken { length: U16::new(0), reserved: [0; 6], bytes: [0; AUTH_TOKEN_MAX] };

    /// A token of these bytes.
    ///
    /// # Errors
    /// [`AuthTokenTooLong`] above [`AUTH_TOKEN_MAX`] bytes.
    pub fn new(token: &[u8]) -> Result<AuthToken, AuthTokenTooLong> {
        let mut auth = AuthToken::NONE;
        auth.bytes.get_mut(..token.len()).ok_or(AuthTokenTooLong)?.copy_from_slice(token);
        auth.length = u16::try_from(token.len()).map_err(|_| AuthTokenTooLong)?.into();
        Ok(auth)
    }

    /// Whether both are the same, in a time that does not depend on where they differ.
    pub fn matches(&self, other: &AuthToken) -> bool {
        let differing = self.as_bytes().iter().zip(other.as_bytes()).fold(0, |bits, (a, b)| bits | (a ^ b));
        std::hint::black_box(differing) == 0
    }
}

impl fmt::Debug for AuthToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.length.get() == 0 { "AuthToken(none)" } else { "AuthToken(secret)" })
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ConnectionKind {
    /// Requests and responses only.
    Data = 0,
    /// Responses that describe a region carry its file descriptor (Unix sockets only).
    Control = 1,
}

/// The body of a HELLO request.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct HelloRequest {
    /// The versions that the client speaks.
    pub versions: VersionRange,
    /// Features that the client would use: [`FEATURE_NO_GRACE`]. Others are passed over.
    pub features: U64,
    /// The wire value of a [`ConnectionKind`].
    pub kind: u8,
    /// 1 where the client lost a connection: every other connection of the session is ended before this one is answered,
    /// and what they asked for and was not served by then never is. 0 to join the session beside them.
    pub resume: u8,
    /// 0.
    pub reserved: [u8; 6],
    /// The instance's name.
    pub instance_id: InstanceId,
    /// The session to join or resume, or [`SessionToken::NONE`].
    pub session: SessionToken,
    /// The operator's token, where the server asks for one.
    pub auth: AuthToken,
}

impl HelloRequest {
    /// The request of a connection of this kind for the instance with this name.
    pub fn new(instance_id: InstanceId, kind: ConnectionKind, session: SessionToken) -> HelloRequest {
        HelloRequest {
            versions: VersionRange::SPOKEN,
            features: 0.into(),
            kind: kind as u8,
            resume: 0,
            reserved: [0; 6],
            instance_id,
            session,
            auth: AuthToken::NONE,
        }
    }

    /// What the connection is for, `None` where the value is unknown.
    pub const fn connection_kind(&self) -> Option<ConnectionKind> {
        match self.kind {
            0 => Some(ConnectionKind::Data),
            1 => Some(ConnectionKind::Control),
            _ => None,
        }
    }
}

/// The body of a HELLO response.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct HelloResponse {
    /// The number of the server's run; grows at each start.
    pub epoch: U64,
    /// The session, with which further connections join and lost ones resume.
    pub session: SessionToken,
    /// The secret that keys digests.
    pub digest_key: DigestKey,
    /// Features that the server grants.
    pub features: U64,
    /// The instance's number, by which regions name their owner; never 0, never given twice in one run.
    pub instance: U32,
    /// Bytes of the largest request body.
    pub max_body: U32,
    /// Pins that one entry may have.
    pub max_pins_per_entry: U32,
    /// Milliseconds that the session outlives its last connection.
    pub grace_ms: U32,
    /// 1 when an existing session was joined or resumed, 0 when it is new.
    pub resumed: u8,
    /// The version that this connection speaks from here on.
    pub version: u8,
    /// 0.
    pub reserved: [u8; 6],
}

/// Versions of the wire, both ends included; also the body of a response with the status UNSUPPORTED_VERSION.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct VersionRange {
    /// The oldest version spoken.
    pub oldest: u8,
    /// The newest version spoken.
    pub newest: u8,
    /// 0.
    pub reserved: [u8; 6],
}

impl VersionRange {
    /// What this crate speaks.
    pub const SPOKEN: VersionRange = VersionRange { oldest: VERSION, newest: VERSION, reserved: [0; 6] };

    /// Whether a version is among them.
    pub const fn contains(&self, version: u8) -> bool {
        self.oldest <= version && version <= self.newest
    }
}

const _: () = {
    assert!(size_of::<HelloRequest>() == 8 + 8 + 8 + 128 + 16 + 72);
    assert!(size_of::<HelloResponse>() == 72);
    assert!(size_of::<VersionRange>() == 8);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_id_is_short_printable_text() {
        let longest = "x".repeat(INSTANCE_ID_MAX);
        for text in ["a", "pod-7/engine 0", "größe", &longest] {
            assert_eq!(InstanceId::new(text).unwrap().text(), Ok(text));
        }
        for text in ["", "line\nbreak", "nul\0", &format!("{longest}x")] {
            assert_eq!(InstanceId::new(text), Err(InvalidInstanceId), "{text:?}");
        }
    }

    #[test]
    fn an_instance_id_from_a_peer_is_checked() {
        let cast = |bytes| InstanceId { bytes };
        let mut bytes = [0; INSTANCE_ID_MAX];
        assert_eq!(cast(bytes).text(), Err(InvalidInstanceId), "empty");
        bytes[0] = 0xFF;
        assert_eq!(cast(bytes).text(), Err(InvalidInstanceId), "not UTF-8");
        bytes[..3].copy_from_slice(b"a\0b");
        assert_eq!(cast(bytes).text(), Err(InvalidInstanceId), "text after its end");
    }

    #[test]
    fn auth_tokens_match_only_themselves() {
        let token = |bytes: &[u8]| AuthToken::new(bytes).unwrap();
        assert!(token(b"secret").matches(&token(b"secret")));
        for other in [&b"secre"[..], b"secret\0", b"Secret", b""] {
            assert!(!token(b"secret").matches(&token(other)));
        }
        assert!(token(b"").matches(&AuthToken::NONE));
        assert_eq!(AuthToken::new(&[0; AUTH_TOKEN_MAX + 1]).unwrap_err(), AuthTokenTooLong);
    }

    #[test]
    fn secrets_are_not_printed() {
        let mut hello =
            HelloRequest::new(InstanceId::new("a").unwrap(), ConnectionKind::Data, SessionToken([0xAB; 16]));
        hello.auth = AuthToken::new(b"hunter2").unwrap();
        let printed = format!("{hello:?}");
        assert!(
            printed.contains("SessionToken(secret)") && printed.contains("AuthToken(secret)"),
            "{printed}"
        );
    }
}
