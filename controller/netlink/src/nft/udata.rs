//! User data of nftables objects: what nft and libnftnl store beside them, as `u8 type; u8 len; value`.
//!
//! The kernel keeps these bytes and never looks into them. Types are those of libnftnl/udata.h.

/// NFTNL_UDATA_*_COMMENT of tables, chains, rules and objects.
pub const COMMENT: u8 = 0;
/// NFTNL_UDATA_SET_KEYBYTEORDER
pub const SET_KEY_BYTEORDER: u8 = 0;
/// NFTNL_UDATA_SET_DATABYTEORDER
pub const SET_DATA_BYTEORDER: u8 = 1;
/// NFTNL_UDATA_SET_ELEM_FLAGS of elements.
pub const ELEMENT_FLAGS: u8 = 1;
/// NFTNL_SET_ELEM_F_INTERVAL_OPEN: the interval reaches to the highest value and has no end element.
pub const INTERVAL_OPEN: u32 = 1;

/// NFTNL_UDATA_COMMENT_MAXLEN: bytes of a comment with its NUL.
pub const COMMENT_MAX: usize = 128;

/// One entry. A value longer than 255 bytes is cut, which callers prevent.
pub fn entry(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    let mut bytes = vec![kind, length];
    bytes.extend_from_slice(&value[..usize::from(length)]);
    bytes
}

/// A comment as nft stores it: text with a NUL.
pub fn comment(text: &str) -> Vec<u8> {
    let mut value = text.as_bytes().to_vec();
    value.push(0);
    entry(COMMENT, &value)
}

/// A number in host byte order, as libnftnl stores it.
pub fn number(kind: u8, value: u32) -> Vec<u8> {
    entry(kind, &value.to_ne_bytes())
}

/// The value of the first entry of a type; `None` also when the bytes are not user data.
pub fn find(bytes: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = bytes;
    while let [kind, length, tail @ ..] = rest {
        let value = tail.get(..usize::from(*length))?;
        if *kind == wanted {
            return Some(value);
        }
        rest = &tail[usize::from(*length)..];
    }
    None
}

/// The comment of a table, chain, rule or object.
pub fn find_comment(bytes: &[u8]) -> Option<String> {
    let value = find(bytes, COMMENT)?;
    let text = value.strip_suffix(&[0]).unwrap_or(value);
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_has_the_bytes_that_nft_writes() {
        assert_eq!(comment("hi"), [0, 3, b'h', b'i', 0]);
        assert_eq!(find_comment(&comment("hi")).as_deref(), Some("hi"));
    }

    #[test]
    fn entries_are_found_behind_others_and_broken_ones_end_the_search() {
        let mut bytes = number(1, 7);
        bytes.extend(entry(9, b"x"));
        assert_eq!(find(&bytes, 9), Some(&b"x"[..]));
        assert_eq!(find(&[1, 200, 0], 1), None);
        assert_eq!(find(&[1], 1), None);
    }
}
