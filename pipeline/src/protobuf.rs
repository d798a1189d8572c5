//! Rewrites a protobuf message without its schema: drops and masks fields by number, appends
//! fields.
//!
//! A path says which fields are messages: `/3/1` is field 1 of the message that is field 3. What
//! is not changed stays byte for byte. Every occurrence of a field counts, since readers merge
//! them. Wire format: <https://protobuf.dev/programming-guides/encoding/>

use stateside_types::limits::FIELD_DEPTH_MAX;

use crate::field_path::{Action, FieldTree, Name, Walk};

/// The value is not a protobuf message, as far as the paths look into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotProtobuf {
    pub(crate) expected: &'static str,
}

/// What to do with a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rewrite<'a> {
    pub(crate) tree: &'a FieldTree,
    /// What strings and bytes become; numbers become 0.
    pub(crate) mask: &'a [u8],
    /// Encoded fields to append.
    pub(crate) append: &'a [u8],
}

const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const GROUP: u64 = 3;
const GROUP_END: u64 = 4;
const FIXED_32: u64 = 5;

/// Writes the new message, if it differs from the old one: then true.
///
/// # Errors
/// It is not a message, or one that a path leads to is none.
pub(crate) fn rewrite(
    bytes: &[u8],
    what: Rewrite<'_>,
    out: &mut Vec<u8>,
) -> Result<bool, NotProtobuf> {
    let mut walk = Walk::new(what.tree);
    let changed = message(bytes, 0, what, &mut walk, out)?;
    if what.append.is_empty() {
        return Ok(changed);
    }
    if !changed {
        out.extend_from_slice(bytes);
    }
    out.extend_from_slice(what.append);
    Ok(true)
}

/// Appends a message to `out`, if it differs from what it was.
fn message(
    bytes: &[u8],
    depth: usize,
    what: Rewrite<'_>,
    walk: &mut Walk<'_>,
    out: &mut Vec<u8>,
) -> Result<bool, NotProtobuf> {
    if depth > FIELD_DEPTH_MAX {
        return fail("at most 128 levels");
    }
    let (mut at, mut copied, mut changed) = (0, 0, false);
    while at < bytes.len() {
        let begin = at;
        let (number, wire) = read_tag(bytes, &mut at)?;
        let after_tag = at;
        skip(bytes, &mut at, number, wire, depth)?;
        let (action, came) = walk.enter(Name::Number(number));
        match action {
            Some(Action::Drop) => {
                out.extend_from_slice(&bytes[copied..begin]);
                (copied, changed) = (at, true);
            }
            Some(Action::Mask) => {
                out.extend_from_slice(&bytes[copied..after_tag]);
                match wire {
                    VARINT => out.push(0),
                    FIXED_64 => out.extend_from_slice(&[0; 8]),
                    FIXED_32 => out.extend_from_slice(&[0; 4]),
                    BYTES => {
                        put_varint(out, what.mask.len() as u64);
                        out.extend_from_slice(what.mask);
                    }
                    _ => return fail("no group where a path leads"),
                }
                (copied, changed) = (at, true);
            }
            None if walk.goes_on() && wire == BYTES => {
                let mut inner = after_tag;
                let length = read_varint(bytes, &mut inner)? as usize;
                debug_assert_eq!(inner + length, at);
                let place = out.len();
                if message(&bytes[inner..at], depth + 1, what, walk, out)? {
                    // Only now is its length known, and whether it is needed at all.
                    let mut before = bytes[copied..after_tag].to_vec();
                    put_varint(&mut before, (out.len() - place) as u64);
                    out.splice(place..place, before);
                    (copied, changed) = (at, true);
                }
            }
            None if walk.goes_on() && wire == GROUP => return fail("no group where a path leads"),
            None => {}
        }
        walk.leave(came);
    }
    if changed {
        out.extend_from_slice(&bytes[copied..]);
    }
    Ok(changed)
}

/// A field's value, as far as it can be told without a schema.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Field<'a> {
    /// A variable-length number.
    Number(u64),
    /// A string, bytes, a message or a packed list.
    Bytes(&'a [u8]),
    /// A number of fixed length, or a group.
    Other,
}

/// Hands the fields of a message to `take`, with their numbers, in their order.
///
/// # Errors
/// It is not a message; and what `take` says.
pub(crate) fn fields<'a>(
    bytes: &'a [u8],
    mut take: impl FnMut(u32, Field<'a>) -> Result<(), NotProtobuf>,
) -> Result<(), NotProtobuf> {
    let mut at = 0;
    while at < bytes.len() {
        let (number, wire) = read_tag(bytes, &mut at)?;
        let mut begin = at;
        skip(bytes, &mut at, number, wire, 0)?;
        let field = match wire {
            VARINT => Field::Number(read_varint(bytes, &mut begin)?),
            BYTES => {
                read_varint(bytes, &mut begin)?;
                Field::Bytes(&bytes[begin..at])
            }
            _ => Field::Other,
        };
        take(number, field)?;
    }
    Ok(())
}

fn read_tag(bytes: &[u8], at: &mut usize) -> Result<(u32, u64), NotProtobuf> {
    let tag = read_varint(bytes, at)?;
    match u32::try_from(tag >> 3) {
        Ok(number) if (1..1 << 29).contains(&number) => Ok((number, tag & 7)),
        _ => fail("the number of a field"),
    }
}

/// Moves past a field's value.
fn skip(
    bytes: &[u8],
    at: &mut usize,
    number: u32,
    wire: u64,
    depth: usize,
) -> Result<(), NotProtobuf> {
    let length = match wire {
        VARINT => return read_varint(bytes, at).map(drop),
        FIXED_64 => 8,
        FIXED_32 => 4,
        BYTES => usize::try_from(read_varint(bytes, at)?).unwrap_or(usize::MAX),
        GROUP if depth < FIELD_DEPTH_MAX => loop {
            let (inner, wire) = read_tag(bytes, at)?;
            match wire {
                GROUP_END if inner == number => return Ok(()),
                GROUP_END => return fail("the end of another group"),
                _ => skip(bytes, at, inner, wire, depth + 1)?,
            }
        },
        GROUP => return fail("at most 128 levels"),
        _ => return fail("a wire type"),
    };
    if length > bytes.len() - *at {
        return fail("the rest of a field");
    }
    *at += length;
    Ok(())
}

fn read_varint(bytes: &[u8], at: &mut usize) -> Result<u64, NotProtobuf> {
    let mut value = 0_u64;
    for shift in (0..70).step_by(7) {
        let Some(byte) = bytes.get(*at) else { return fail("the rest of a number") };
        *at += 1;
        // Of a tenth byte readers take the one bit that fits.
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if *byte < 0x80 {
            return Ok(value);
        }
    }
    fail("a number of at most 10 bytes")
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a field that is a number.
pub(crate) fn put_number(out: &mut Vec<u8>, field: u32, value: u64) {
    put_varint(out, u64::from(field) << 3 | VARINT);
    put_varint(out, value);
}

/// Appends a field that is a string.
pub(crate) fn put_text(out: &mut Vec<u8>, field: u32, text: &str) {
    put_varint(out, u64::from(field) << 3 | BYTES);
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn fail<T>(expected: &'static str) -> Result<T, NotProtobuf> {
    Err(NotProtobuf { expected })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::field_path::{Format, tests::tree};

    #[derive(Clone, Debug, PartialEq)]
    enum Field {
        Number(u32, u64),
        Fixed(u32, [u8; 4]),
        Text(u32, String),
        Message(u32, Vec<Field>),
    }

    fn encode(fields: &[Field]) -> Vec<u8> {
        let mut out = Vec::new();
        for field in fields {
            match field {
                Field::Number(number, value) => put_number(&mut out, *number, *value),
                Field::Fixed(number, value) => {
                    put_varint(&mut out, u64::from(*number) << 3 | FIXED_32);
                    out.extend_from_slice(value);
                }
                Field::Text(number, text) => put_text(&mut out, *number, text),
                Field::Message(number, fields) => {
                    let inner = encode(fields);
                    put_varint(&mut out, u64::from(*number) << 3 | BYTES);
                    put_varint(&mut out, inner.len() as u64);
                    out.extend_from_slice(&inner);
                }
            }
        }
        out
    }

    fn run(bytes: &[u8], drop: &[&str], mask: &[&str]) -> Result<Vec<u8>, NotProtobuf> {
        let tree = tree(drop, mask, Format::Protobuf);
        let mut out = Vec::new();
        let what = Rewrite { tree: &tree, mask: b"***", append: &[] };
        let changed = rewrite(bytes, what, &mut out)?;
        assert!(changed || out.is_empty());
        Ok(if changed { out } else { bytes.to_vec() })
    }

    /// What it means, on fields. Numbers 8 and above are messages.
    fn model(fields: &[Field], path: &[u32], action: Action) -> Vec<Field> {
        let (step, rest) = path.split_first().unwrap();
        let act = |field: &Field| {
            let number = match field {
                Field::Number(n, _)
                | Field::Fixed(n, _)
                | Field::Text(n, _)
                | Field::Message(n, _) => *n,
            };
            if number != *step {
                return Some(field.clone());
            }
            match (field, rest.is_empty(), action) {
                (_, true, Action::Drop) => None,
                (Field::Number(n, _), true, _) => Some(Field::Number(*n, 0)),
                (Field::Fixed(n, _), true, _) => Some(Field::Fixed(*n, [0; 4])),
                (Field::Text(n, _) | Field::Message(n, _), true, _) => {
                    Some(Field::Text(*n, "***".to_owned()))
                }
                (Field::Message(n, inner), false, _) => {
                    Some(Field::Message(*n, model(inner, rest, action)))
                }
                (other, false, _) => Some(other.clone()),
            }
        };
        fields.iter().filter_map(act).collect()
    }

    fn any_fields() -> impl Strategy<Value = Vec<Field>> {
        let leaf = prop_oneof![
            (1_u32..4, any::<u64>()).prop_map(|(n, value)| Field::Number(n, value)),
            (4_u32..6, any::<[u8; 4]>()).prop_map(|(n, value)| Field::Fixed(n, value)),
            (6_u32..8, "\\PC{0,40}").prop_map(|(n, text)| Field::Text(n, text)),
        ];
        let field = leaf.prop_recursive(4, 40, 6, |inner| {
            (8_u32..11, prop::collection::vec(inner, 0..6)).prop_map(|(n, f)| Field::Message(n, f))
        });
        prop::collection::vec(field, 0..8)
    }

    proptest! {
        #[test]
        fn the_result_is_what_it_would_be_on_fields(
            fields in any_fields(),
            outer in prop::collection::vec(8_u32..11, 0..3),
            last in 1_u32..11,
            is_drop in any::<bool>(),
        ) {
            let path: Vec<u32> = outer.into_iter().chain([last]).collect();
            let text: String = path.iter().map(|step| format!("/{step}")).collect();
            let (drop, mask) = if is_drop { (vec![&*text], vec![]) } else { (vec![], vec![&*text]) };
            let action = if is_drop { Action::Drop } else { Action::Mask };
            let result = run(&encode(&fields), &drop, &mask).unwrap();
            prop_assert_eq!(result, encode(&model(&fields, &path, action)));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = run(&bytes, &["/1/2/*", "/*/*"], &["/3", "/2/1"]);
        }
    }

    #[test]
    fn fields_are_appended_and_a_long_message_keeps_its_length_right() {
        let tree = tree(&["/15"], &["/1/2"], Format::Protobuf);
        let long =
            Field::Message(1, vec![Field::Text(3, "x".repeat(300)), Field::Number(2, 1 << 60)]);
        let bytes = encode(&[Field::Text(15, "forged".to_owned()), long]);
        let append = encode(&[Field::Text(15, "vm-1".to_owned())]);
        let mut out = Vec::new();
        let what = Rewrite { tree: &tree, mask: b"", append: &append };
        assert_eq!(rewrite(&bytes, what, &mut out), Ok(true));
        let long = Field::Message(1, vec![Field::Text(3, "x".repeat(300)), Field::Number(2, 0)]);
        assert_eq!(out, encode(&[long, Field::Text(15, "vm-1".to_owned())]));
    }

    #[test]
    fn groups_pass_unless_a_path_leads_into_them() {
        let group = [0x0b, 0x10, 0x05, 0x0c];
        assert_eq!(run(&group, &["/2"], &[]).unwrap(), group);
        assert!(run(&group, &["/1"], &[]).unwrap().is_empty());
        assert_eq!(
            run(&group, &["/1/2"], &[]).unwrap_err().expected,
            "no group where a path leads"
        );
        assert_eq!(
            run(&[0x0b, 0x14], &["/2"], &[]).unwrap_err().expected,
            "the end of another group"
        );
        assert_eq!(run(&[0x0b; 300], &["/2"], &[]).unwrap_err().expected, "at most 128 levels");
        assert_eq!(
            run(&[0x12, 0x05, 0x61], &[], &["/1"]).unwrap_err().expected,
            "the rest of a field"
        );
        assert_eq!(
            run(&[0xff; 11], &["/2"], &[]).unwrap_err().expected,
            "a number of at most 10 bytes"
        );
    }
}
