//! JSON merge patch. Source: RFC 7396, "JSON Merge Patch", the procedure of its section 2.
//!
//! Works on text: members that a patch does not name keep every byte of theirs, so numbers beyond
//! what a float holds survive, and members keep their order. Depth is bounded, since the bytes come
//! from clients and the procedure descends.

use std::{collections::HashMap, fmt};

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// Deepest nesting of objects that a patch may have.
/// Each level is read once more for every level above it.
const DEPTH_MAX: usize = 32;

/// Why nothing was merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MergeError {
    /// The present value is no JSON document.
    Value,
    /// The patch is no JSON document.
    Patch,
    /// The patch is nested too deeply.
    Depth,
}

/// An object's members, in their order.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<String, &RawValue>()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// The merged document; `value` is None where there is none yet.
pub(crate) fn merge(value: Option<&[u8]>, patch: &[u8]) -> Result<Vec<u8>, MergeError> {
    let patch: &RawValue = serde_json::from_slice(patch).map_err(|_| MergeError::Patch)?;
    let value: Option<&RawValue> = match value {
        Some(bytes) => Some(serde_json::from_slice(bytes).map_err(|_| MergeError::Value)?),
        None => None,
    };
    let mut out = String::new();
    write_merged(value, patch, DEPTH_MAX, &mut out)?;
    Ok(out.into_bytes())
}

fn write_merged(
    value: Option<&RawValue>,
    patch: &RawValue,
    depth: usize,
    out: &mut String,
) -> Result<(), MergeError> {
    if !is_object(patch) {
        out.push_str(patch.get());
        return Ok(());
    }
    let Some(depth) = depth.checked_sub(1) else { return Err(MergeError::Depth) };
    let patches = Object::read(patch).map_err(|_| MergeError::Patch)?;
    let present = match value.filter(|value| is_object(value)) {
        Some(value) => Object::read(value).map_err(|_| MergeError::Value)?,
        None => Object::default(),
    };
    out.push('{');
    let mut first = true;
    let mut begin = |name: &str, out: &mut String| {
        if !std::mem::take(&mut first) {
            out.push(',');
        }
        out.push_str(&serde_json::to_string(name).expect("a string is a JSON string"));
        out.push(':');
    };
    for (name, value) in &present.members {
        match patches.get(name) {
            Some(patch) if patch.get() == "null" => {}
            Some(patch) => {
                begin(name, out);
                write_merged(Some(value), patch, depth, out)?;
            }
            None => {
                begin(name, out);
                out.push_str(value.get());
            }
        }
    }
    for (name, patch) in &patches.members {
        if present.get(name).is_none() && patch.get() != "null" {
            begin(name, out);
            write_merged(None, patch, depth, out)?;
        }
    }
    out.push('}');
    Ok(())
}

fn is_object(value: &RawValue) -> bool {
    value.get().starts_with('{')
}

/// An object: its members in their order, and where each name stands.
#[derive(Default)]
struct Object<'a> {
    members: Vec<(String, &'a RawValue)>,
    places: HashMap<String, usize>,
}

impl<'a> Object<'a> {
    /// Of a name that stands twice the last value counts, where the first one stood.
    fn read(object: &'a RawValue) -> Result<Self, serde_json::Error> {
        let Members(all) = serde_json::from_str(object.get())?;
        let mut read = Self::default();
        for (name, value) in all {
            match read.places.get(&name) {
                Some(&place) => read.members[place].1 = value,
                None => {
                    read.places.insert(name.clone(), read.members.len());
                    read.members.push((name, value));
                }
            }
        }
        Ok(read)
    }

    fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.places.get(name).map(|&place| self.members[place].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(value: &str, patch: &str) -> String {
        let value = (!value.is_empty()).then_some(value.as_bytes());
        String::from_utf8(merge(value, patch.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn the_examples_of_the_rfc_hold() {
        // Appendix A of RFC 7396.
        for (value, patch, expected) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
            (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
            (r#"{"a":"foo"}"#, "null", "null"),
            (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            ("[1,2]", r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
            ("", r#"{"a":1,"b":null}"#, r#"{"a":1}"#),
        ] {
            assert_eq!(merged(value, patch), expected, "{value} with {patch}");
        }
    }

    #[test]
    fn what_is_not_named_keeps_its_bytes_and_its_place() {
        let value = r#"{"z": 123456789012345678901234567890, "y": 1.50, "x": [ 1 ]}"#;
        let expected = r#"{"z":123456789012345678901234567890,"y":2,"x":[ 1 ]}"#;
        assert_eq!(merged(value, r#"{"y":2}"#), expected);
        assert_eq!(merged(r#"{"a":1,"b":2,"a":3}"#, r#"{"b":4}"#), r#"{"a":3,"b":4}"#);
    }

    #[test]
    fn what_is_no_document_or_too_deep_is_told_apart() {
        assert_eq!(merge(Some(b"plain"), b"{}"), Err(MergeError::Value));
        assert_eq!(merge(None, b"{"), Err(MergeError::Patch));
        assert_eq!(merge(Some(b"\xff"), b"{}"), Err(MergeError::Value));
        let deep = |depth: usize| format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        assert!(merge(None, deep(DEPTH_MAX).as_bytes()).is_ok());
        assert_eq!(merge(None, deep(DEPTH_MAX + 1).as_bytes()), Err(MergeError::Depth));
    }
}
