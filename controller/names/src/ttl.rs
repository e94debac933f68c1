//! TTLs changed in place: everything else in a message stays as its server wrote it.

use crate::answer::Malformed;
use crate::records::{Place, ttl_at_offset, walk};

/// Lowers every TTL above `max` seconds to it; the fields of OPT and TSIG are no TTLs.
///
/// # Errors
/// The message is cut short; then nothing of it has changed.
pub fn lower_ttls(message: &mut [u8], max: u32) -> Result<(), Malformed> {
    change(message, |ttl| ttl.min(max))
}

/// Takes the seconds that a message has been kept off every TTL; none goes below 0.
///
/// # Errors
/// The message is cut short; then nothing of it has changed.
pub fn age_ttls(message: &mut [u8], seconds: u32) -> Result<(), Malformed> {
    change(message, |ttl| ttl.saturating_sub(seconds))
}

/// Offsets of all TTLs, each four octets in network byte order.
///
/// # Errors
/// The message is cut short.
pub fn ttl_offsets(message: &[u8]) -> Result<Vec<usize>, Malformed> {
    let mut offsets = Vec::new();
    let each = |place: Place| {
        if place.has_ttl() {
            offsets.push(place.ttl_at);
        }
    };
    walk(message, each).map_err(|_| Malformed::Cut)?;
    Ok(offsets)
}

fn change(message: &mut [u8], new: impl Fn(u32) -> u32) -> Result<(), Malformed> {
    for at in ttl_offsets(message)? {
        let ttl = ttl_at_offset(message, at).map_err(|_| Malformed::Cut)?;
        if let Some(field) = message.get_mut(at..at + 4) {
            field.copy_from_slice(&new(ttl).to_be_bytes());
        }
    }
    Ok(())
}
