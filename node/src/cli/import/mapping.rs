//! From a record of the input to a key and a value.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use stateside_types::limits::{BATCH_BYTES_MAX, KEY_BYTES_MAX};

use super::{
    csv_rows::Cells,
    rows::Content,
    template::{Column, KeyTemplate, Part},
};

/// Key and value together: a request holds at least one record, with a few bytes around it.
const RECORD_BYTES_MAX: usize = BATCH_BYTES_MAX - 64;

/// What of a record becomes the key, and what the value.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    pub(super) key: KeyTemplate,
    /// `None`: the whole record, as compact JSON.
    pub(super) value: Option<Column>,
}

/// Why a record has no key or no value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Unusable {
    /// Lines below the record's first.
    pub(super) line_offset: u64,
    pub(super) message: String,
}

impl From<String> for Unusable {
    fn from(message: String) -> Self {
        Self { line_offset: 0, message }
    }
}

impl Mapping {
    /// Names a column that none of `names` is; only formats that know their columns can tell.
    pub(super) fn missing_column(&self, names: &[String]) -> Option<&str> {
        let missing = |column: &&Column| !names.iter().any(|name| name == column.name());
        self.key.columns().chain(&self.value).find(missing).map(Column::name)
    }

    /// Writes key and value of a record; both are cleared first.
    pub(super) fn apply(
        &self,
        content: Content<'_>,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<(), Unusable> {
        key.clear();
        value.clear();
        match content {
            Content::Json(text) => self.apply_json(text, key, value)?,
            Content::Cells { names, cells } => self.apply_cells(names, cells, key, value)?,
        }
        if key.is_empty() {
            return Err(format!("the key `{}` is empty here", self.key).into());
        }
        if key.len() > KEY_BYTES_MAX {
            return Err(
                format!("the key has {} bytes, the limit is {KEY_BYTES_MAX}", key.len()).into()
            );
        }
        let record_bytes = key.len() + value.len();
        if record_bytes > RECORD_BYTES_MAX {
            let message =
                format!("key and value have {record_bytes} bytes, the limit is {RECORD_BYTES_MAX}");
            return Err(message.into());
        }
        Ok(())
    }

    fn apply_json(
        &self,
        text: &[u8],
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<(), Unusable> {
        let object: Object<'_> = serde_json::from_slice(text).map_err(|error| unusable(&error))?;
        for part in self.key.parts() {
            match part {
                Part::Literal(literal) => key.extend_from_slice(literal.as_bytes()),
                Part::Column(column) => {
                    let found = object.find(column)?;
                    match found.get().as_bytes().first() {
                        Some(b'{' | b'[') => {
                            let message = format!(
                                "`{}` is no plain value, so it cannot be part of a key",
                                column.name()
                            );
                            return Err(message.into());
                        }
                        _ => push_scalar(key, found, column)?,
                    }
                }
            }
        }
        match &self.value {
            None => compact(text, value),
            Some(column) => {
                let found = object.find(column)?;
                match found.get().as_bytes().first() {
                    Some(b'{' | b'[') => compact(found.get().as_bytes(), value),
                    _ => push_scalar(value, found, column)?,
                }
            }
        }
        Ok(())
    }

    fn apply_cells(
        &self,
        names: &[String],
        cells: &Cells,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<(), Unusable> {
        let find = |column: &Column| {
            let index = names.iter().position(|name| name == column.name());
            index
                .and_then(|index| cells.get(index))
                .ok_or_else(|| Unusable::from(format!("there is no column `{}`", column.name())))
        };
        for part in self.key.parts() {
            key.extend_from_slice(match part {
                Part::Literal(literal) => literal.as_bytes(),
                Part::Column(column) => find(column)?,
            });
        }
        if let Some(column) = &self.value {
            value.extend_from_slice(find(column)?);
            return Ok(());
        }
        value.push(b'{');
        for (index, (name, cell)) in names.iter().zip(cells.iter()).enumerate() {
            let cell = std::str::from_utf8(cell).map_err(|_| {
                Unusable::from(format!("column `{name}` is not UTF-8, which JSON needs"))
            })?;
            if index > 0 {
                value.push(b',');
            }
            push_json_string(value, name);
            value.push(b':');
            push_json_string(value, cell);
        }
        value.push(b'}');
        Ok(())
    }
}

/// The fields of a JSON object, their values unparsed but checked.
struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Object<'a> {
    fn find(&self, column: &Column) -> Result<&'a RawValue, Unusable> {
        let found = self.find_path(column.name())?;
        match found {
            None => Err(format!("there is no `{}`", column.name()).into()),
            Some(value) if value.get() == "null" => {
                Err(format!("`{}` is null", column.name()).into())
            }
            Some(value) => Ok(value),
        }
    }

    /// The field of this name, else by the first step of a dotted path within that field.
    fn find_path(&self, path: &str) -> Result<Option<&'a RawValue>, Unusable> {
        // The last of equal names counts, as in most readers of JSON.
        let field = |name: &str| self.0.iter().rev().find(|(field, _)| field == name);
        if let Some((_, value)) = field(path) {
            return Ok(Some(value));
        }
        let Some((first, rest)) = Column::split_path(path) else { return Ok(None) };
        match field(first) {
            Some((_, value)) if value.get().starts_with('{') => {
                let inner: Object<'a> =
                    serde_json::from_str(value.get()).map_err(|error| unusable(&error))?;
                inner.find_path(rest)
            }
            _ => Ok(None),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some((Name(name), value)) =
                    map.next_entry::<Name<'de>, &'de RawValue>()?
                {
                    fields.push((name, value));
                }
                Ok(Object(fields))
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

/// Says what is wrong with JSON text, without the place that is said beside it.
fn unusable(error: &serde_json::Error) -> Unusable {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    let message = if error.is_data() {
        what.to_owned()
    } else {
        format!("no valid JSON: {what} (column {})", error.column())
    };
    Unusable { line_offset: (error.line() as u64).saturating_sub(1), message }
}

/// Text without its quotes and escapes; numbers and words as they were written.
fn push_scalar(out: &mut Vec<u8>, value: &RawValue, column: &Column) -> Result<(), Unusable> {
    let text = value.get();
    if !text.starts_with('"') {
        out.extend_from_slice(text.as_bytes());
        return Ok(());
    }
    let text: Cow<'_, str> = match serde_json::from_str::<&str>(text) {
        Ok(plain) => plain.into(),
        Err(_) => serde_json::from_str::<String>(text)
            .map_err(|error| format!("`{}` is no valid text: {error}", column.name()))?
            .into(),
    };
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

/// Valid JSON without the white space between its tokens. Numbers keep every digit: they are not
/// parsed.
fn compact(json: &[u8], out: &mut Vec<u8>) {
    let (mut string, mut escape) = (false, false);
    for &byte in json {
        if string {
            string = escape || byte != b'"';
            escape = !escape && byte == b'\\';
        } else if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
            continue;
        } else {
            string = byte == b'"';
        }
        out.push(byte);
    }
}

fn push_json_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("writing text to memory does not fail");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{csv_rows::CsvRows, rows::Rows},
        *,
    };

    fn map(key: &str, value: Option<&str>, json: &str) -> Result<(String, String), String> {
        let mapping = Mapping {
            key: key.parse().unwrap(),
            value: value.map(|column| column.parse().unwrap()),
        };
        let (mut k, mut v) = (Vec::new(), Vec::new());
        mapping
            .apply(Content::Json(json.as_bytes()), &mut k, &mut v)
            .map_err(|unusable| format!("+{}: {}", unusable.line_offset, unusable.message))?;
        Ok((String::from_utf8(k).unwrap(), String::from_utf8(v).unwrap()))
    }

    #[test]
    fn keys_are_made_of_columns_and_values_are_the_compact_record() {
        let record = "{ \"country\": \"FR\",\n \"name\": \"Saint-\\u00c9tienne \\\"x\\\"\", \"lat\": 45.43390, \"on\": true }";
        let (key, value) = map("{country}/{name}@{lat}{on}", None, record).unwrap();
        assert_eq!(key, "FR/Saint-Étienne \"x\"@45.43390true");
        assert_eq!(
            value,
            "{\"country\":\"FR\",\"name\":\"Saint-\\u00c9tienne \\\"x\\\"\",\"lat\":45.43390,\"on\":true}"
        );
    }

    #[test]
    fn nested_fields_are_reached_by_dotted_paths_and_literal_names_win() {
        let record =
            r#"{"user":{"id":7,"tag":{"x":"y"}},"user.name":"ada","n":12345678901234567890123}"#;
        assert_eq!(
            map("user.id", Some("user.tag"), record),
            Ok(("7".into(), r#"{"x":"y"}"#.into()))
        );
        assert_eq!(map("{user.tag.x}", Some("user.name"), record), Ok(("y".into(), "ada".into())));
        assert_eq!(map("n", Some("n"), record).unwrap().0, "12345678901234567890123");
    }

    #[test]
    fn what_gives_no_key_or_value_is_told_with_its_column() {
        for (key, value, record, part) in [
            ("id", None, r#"{"name":1}"#, "there is no `id`"),
            ("id", None, r#"{"id":null}"#, "`id` is null"),
            ("id", None, r#"{"id":""}"#, "the key `id` is empty here"),
            ("id", None, r#"{"id":[1]}"#, "`id` is no plain value"),
            ("a.b", None, r#"{"a":"b"}"#, "there is no `a.b`"),
            ("id", Some("v"), r#"{"id":1}"#, "there is no `v`"),
            ("id", None, "[1]", "a JSON object"),
            ("id", None, "{\"id\":1,\n\"b\":tru}", "+1: no valid JSON"),
            ("id", None, r#"{"id":1} x"#, "trailing characters"),
            ("id", None, r#"{"id":1"#, "no valid JSON: EOF"),
            ("id", None, r#"{"id":"\ud800"}"#, "no valid text"),
        ] {
            let error = map(key, value, record).unwrap_err();
            assert!(error.contains(part), "{record}: {error}");
        }
        let long = format!("{{\"id\":\"{}\"}}", "k".repeat(KEY_BYTES_MAX + 1));
        assert!(map("id", None, &long).unwrap_err().contains("the limit is 4096"));
    }

    #[test]
    fn cells_become_an_object_of_strings() {
        let text = &b"id,\"na\"\"me\"\n7,\"a\nb\"\n"[..];
        let mut rows = CsvRows::new(text, b',', 1 << 20).unwrap();
        let names = rows.names().unwrap().to_vec();
        let mapping = Mapping { key: "{id}/x".parse().unwrap(), value: None };
        let (mut key, mut value) = (Vec::new(), Vec::new());
        let row = rows.next().unwrap().unwrap();
        mapping.apply(row.content.unwrap(), &mut key, &mut value).unwrap();
        assert_eq!(key, b"7/x");
        assert_eq!(String::from_utf8(value).unwrap(), r#"{"id":"7","na\"me":"a\nb"}"#);
        assert_eq!(mapping.missing_column(&names), None);
        let other = Mapping { key: "{nope}".parse().unwrap(), value: None };
        assert_eq!(other.missing_column(&names), Some("nope"));
    }

    proptest! {
        #[test]
        fn compact_json_means_the_same(text in "[a-z\\\\\" \n]{0,12}", number in any::<i64>()) {
            let value = serde_json::json!({ "t x": text, "n": [number, { "e": " " }] });
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let mut out = Vec::new();
            compact(pretty.as_bytes(), &mut out);
            prop_assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }
    }
}
