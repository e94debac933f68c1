//! Registers, values and verdicts.

use super::fields::Fields;
use crate::attr::{Attr, DecodeError, Writer};

/// A register as the kernel numbers them: 0 = verdict, 1 to 4 = the four 16-byte registers, 8 to 23 = the sixteen
/// 4-byte registers in the same 64 bytes.
pub type Register = u32;

/// The register `offset` bytes into the data registers; `offset` is a multiple of 4.
/// The kernel's own choice (nft_dump_register): the 16-byte name where one begins there.
pub const fn register_at(offset: u32) -> Register {
    if offset.is_multiple_of(16) { 1 + offset / 16 } else { 8 + offset / 4 }
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// NF_ACCEPT
    Accept,
    /// NF_DROP
    Drop,
    /// NFT_RETURN
    Return,
    /// NFT_JUMP to a chain
    Jump(String),
    /// NFT_GOTO to a chain
    Goto(String),
    /// Any other code (queue, continue, break).
    Other(u32),
}

const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// NFT_JUMP, NFT_GOTO and NFT_RETURN: -3, -4 and -5.
const JUMP: u32 = 0xffff_fffd;
const GOTO: u32 = 0xffff_fffc;
const RETURN: u32 = 0xffff_fffb;

impl Verdict {
    /// Writes a data attribute (`kind` is DATA of the expression or element) that holds this verdict.
    pub(super) fn encode(&self, w: &mut Writer<'_>, kind: u16) {
        let (code, chain) = match self {
            Self::Accept => (ACCEPT, None),
            Self::Drop => (DROP, None),
            Self::Return => (RETURN, None),
            Self::Jump(chain) => (JUMP, Some(chain)),
            Self::Goto(chain) => (GOTO, Some(chain)),
            Self::Other(code) => (*code, None),
        };
        w.nested(kind, |w| {
            w.nested(2, |w| {
                w.be32(1, code);
                if let Some(chain) = chain {
                    w.text(2, chain);
                }
            });
        });
    }

    /// Reads NFTA_DATA_VERDICT.
    pub(super) fn decode(attr: Attr<'_>) -> Result<Self, DecodeError> {
        let mut fields = Fields::read(attr.nested())?;
        Ok(match fields.be32(1)? {
            ACCEPT => Self::Accept,
            DROP => Self::Drop,
            RETURN => Self::Return,
            JUMP => Self::Jump(fields.text(2)?),
            GOTO => Self::Goto(fields.text(2)?),
            code => Self::Other(code),
        })
    }
}

/// Writes a data attribute that holds a value.
pub(super) fn encode_value(w: &mut Writer<'_>, kind: u16, value: &[u8]) {
    w.nested(kind, |w| w.bytes(1, value));
}
