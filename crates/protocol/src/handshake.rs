//! The first 32 bytes each way, before anything is multiplexed.

/// Version of everything in this crate. Both ends come from one build, so any difference is an error, not a negotiation.
pub const VERSION: u16 = 2;
/// Bytes of a nonce.
pub const NONCE_LEN: usize = 16;
/// Bytes of an encoded [`Hello`].
pub const HELLO_LEN: usize = 32;

const HOST_MAGIC: [u8; 8] = *b"lcowHOST";
const GUEST_MAGIC: [u8; 8] = *b"lcowAGNT";

/// Which end said it: the two have different magics, so a port that echoes is not mistaken for an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The process that started the virtual machine; speaks first.
    Host,
    /// PID 1 of the virtual machine; answers with the host's nonce.
    Guest,
}

impl Role {
    const fn magic(self) -> [u8; 8] {
        match self {
            Self::Host => HOST_MAGIC,
            Self::Guest => GUEST_MAGIC,
        }
    }
}

/// One end's opening.
///
/// | bytes | field |
/// |---|---|
/// | 0–7 | magic: `lcowHOST` or `lcowAGNT` |
/// | 8–9 | version, little endian |
/// | 10–15 | zero |
/// | 16–31 | nonce: chosen by the host, repeated by the guest |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Who speaks.
    pub role: Role,
    /// Ties the answer to this host's question: bytes left in a port by an earlier conversation can't answer it.
    pub nonce: [u8; NONCE_LEN],
}

/// Why the peer's opening was not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandshakeError {
    /// Not an agent, or not a host, of this program.
    #[error("the other end does not speak this protocol (first bytes {found:02x?})")]
    Magic {
        /// The first eight bytes it sent.
        found: [u8; 8],
    },
    /// An agent of another version.
    #[error("the other end speaks protocol version {found}, this end version {VERSION}")]
    Version {
        /// The version it sent.
        found: u16,
    },
    /// An answer to another question.
    #[error("the other end answered an earlier handshake (nonce differs)")]
    Nonce,
    /// Bytes that must be zero are not.
    #[error("reserved bytes of the handshake are set")]
    Reserved,
}

impl Hello {
    /// The bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; HELLO_LEN] {
        let mut out = [0; HELLO_LEN];
        out[..8].copy_from_slice(&self.role.magic());
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[16..].copy_from_slice(&self.nonce);
        out
    }

    /// Reads what the end in `role` sent.
    ///
    /// # Errors
    /// [`HandshakeError`] for a wrong magic, version or reserved byte. The nonce is not judged here.
    pub fn decode(role: Role, bytes: &[u8; HELLO_LEN]) -> Result<Self, HandshakeError> {
        let mut found = [0; 8];
        found.copy_from_slice(&bytes[..8]);
        if found != role.magic() {
            return Err(HandshakeError::Magic { found });
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != VERSION {
            return Err(HandshakeError::Version { found: version });
        }
        if bytes[10..16] != [0; 6] {
            return Err(HandshakeError::Reserved);
        }
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&bytes[16..]);
        Ok(Self { role, nonce })
    }

    /// Reads the guest's answer and checks that it answers `nonce`.
    ///
    /// # Errors
    /// As [`decode`](Self::decode), and [`HandshakeError::Nonce`].
    pub fn accept(
        bytes: &[u8; HELLO_LEN],
        nonce: &[u8; NONCE_LEN],
    ) -> Result<Self, HandshakeError> {
        let hello = Self::decode(Role::Guest, bytes)?;
        if hello.nonce != *nonce {
            return Err(HandshakeError::Nonce);
        }
        Ok(hello)
    }
}
