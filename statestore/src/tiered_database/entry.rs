//! One entry of the fast tier, as it is in its file.
//!
//! ```text
//!  0        4         6        8       16     20          24
//! ┌────────┬─────────┬────────┬───────┬──────┬───────────┬─────┬───────┬──────────────┐
//! │ CRC32C │ key len │ absent │ stamp │ tree │ value len │ key │ value │ 0s up to 16 B│
//! │        │ u16     │ u16    │ u64   │ u32  │ u32       │     │       │              │
//! └────────┴─────────┴────────┴───────┴──────┴───────────┴─────┴───────┴──────────────┘
//! ```
//! Little-endian; the checksum covers everything behind it up to the padding. The stamp is that of the fill that the
//! entry was written with, and no two fills have the same, those of earlier processes included: so bytes that a
//! lost write left in their place never read as the entry.

use super::index::{ENTRY_BYTES_MAX, UNIT_BYTES};

const HEADER_BYTES: usize = 24;

/// What an entry says of its key.
pub(super) type Content<'a> = Option<&'a [u8]>;

/// Why bytes are not the entry that was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// They are not what was written.
    Damaged,
    /// They are the entry of another key with the same hash.
    OtherKey,
}

/// A value within the bytes of its entry.
pub(super) struct Value {
    bytes: Vec<u8>,
    from: usize,
    to: usize,
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.from..self.to]
    }
}

/// Length of an entry with its padding; none when it is longer than entries may be.
pub(super) fn length(key: &[u8], content: Content<'_>) -> Option<usize> {
    let bytes = HEADER_BYTES + key.len() + content.map_or(0, <[u8]>::len);
    let padded = bytes.next_multiple_of(UNIT_BYTES);
    (padded <= ENTRY_BYTES_MAX && key.len() <= usize::from(u16::MAX)).then_some(padded)
}

/// Appends an entry of [`length`] bytes.
pub(super) fn write(out: &mut Vec<u8>, stamp: u64, tree: u32, key: &[u8], content: Content<'_>) {
    let start = out.len();
    let value = content.unwrap_or_default();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
    out.extend_from_slice(&u16::from(content.is_none()).to_le_bytes());
    out.extend_from_slice(&stamp.to_le_bytes());
    out.extend_from_slice(&tree.to_le_bytes());
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value);
    let crc = crc32c::crc32c(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + (out.len() - start).next_multiple_of(UNIT_BYTES), 0);
}

/// Reads the entry of a key from bytes that a place pointed to. None: the key has no value.
pub(super) fn read(
    bytes: Vec<u8>,
    stamp: u64,
    tree: u32,
    key: &[u8],
) -> Result<Option<Value>, Unfit> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(Unfit::Damaged)?;
    let half = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let word = |at: usize| {
        u32::from_le_bytes(*header[at..].first_chunk().expect("it is within the header"))
    };
    let (key_len, value_len) = (half(4), word(20) as usize);
    let end = HEADER_BYTES.saturating_add(key_len).saturating_add(value_len);
    let written_stamp = u64::from_le_bytes(*header[8..].first_chunk().expect("it is within"));
    if end > bytes.len() || written_stamp != stamp || crc32c::crc32c(&bytes[4..end]) != word(0) {
        return Err(Unfit::Damaged);
    }
    if word(16) != tree || &rest[..key_len] != key {
        return Err(Unfit::OtherKey);
    }
    let is_absent = half(6) != 0;
    Ok((!is_absent).then_some(Value { from: HEADER_BYTES + key_len, to: end, bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(key: &[u8], content: Content<'_>) -> Vec<u8> {
        let mut out = vec![9; UNIT_BYTES];
        write(&mut out, 77, 3, key, content);
        out.drain(..UNIT_BYTES);
        assert_eq!(Some(out.len()), length(key, content));
        out
    }

    #[test]
    fn entries_read_back() {
        for (key, content) in [
            (&b"key"[..], Some(&b"value"[..])),
            (b"key", Some(b"")),
            (b"key", None),
            (b"", Some(b"of no key")),
            (&[1; 5_000], Some(&[2; 17_000])),
        ] {
            let value = read(written(key, content), 77, 3, key).unwrap();
            assert_eq!(value.as_ref().map(AsRef::as_ref), content);
        }
        assert_eq!(length(b"key", Some(&[0; ENTRY_BYTES_MAX])), None);
    }

    #[test]
    fn what_is_not_the_entry_does_not_read() {
        let bytes = written(b"key", Some(b"value"));
        let unfit = |bytes: Vec<u8>, stamp, tree, key: &[u8]| read(bytes, stamp, tree, key).err();
        assert_eq!(unfit(bytes.clone(), 78, 3, b"key"), Some(Unfit::Damaged));
        assert_eq!(unfit(bytes.clone(), 77, 4, b"key"), Some(Unfit::OtherKey));
        assert_eq!(unfit(bytes.clone(), 77, 3, b"kex"), Some(Unfit::OtherKey));
        for length in 0..HEADER_BYTES + 8 {
            assert_eq!(unfit(bytes[..length].to_vec(), 77, 3, b"key"), Some(Unfit::Damaged));
        }
        for bit in 0..(HEADER_BYTES + 8) * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unfit(damaged, 77, 3, b"key"), Some(Unfit::Damaged), "bit {bit}");
        }
    }
}
