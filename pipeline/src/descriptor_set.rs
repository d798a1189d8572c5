//! Names of protobuf fields: with a set of descriptors, as `protoc --descriptor_set_out --include_imports` writes
//! it, a declaration names fields as the schema does.
//!
//! ```text
//!   /card/number ─► in shop.Order: card is 3, a shop.Card ─► in shop.Card: number is 1 ─► /3/1
//! ```
//! That happens when a declaration is read: at a start, and when the registry file has changed. From there on it
//! has numbers: stages, manifest and the hot path know nothing of names, and a schema that renames a field
//! changes nothing until the declaration is read again.
//!
//! The set is read by hand: ten fields of five messages, for which a generated reader would bring its types
//! for everything else. Source: google/protobuf/descriptor.proto.

use std::collections::BTreeMap;

use stateside_types::{OptionValue, limits::FIELD_DEPTH_MAX};

use crate::{
    OptionError,
    field_path::Action,
    protobuf::{Field, NotProtobuf, fields},
    sanitizer::{DESCRIPTOR_SET, DROP, FORMAT, MASK, MESSAGE},
};

/// Gives a file's bytes, or says why not: files are read by whoever reads declarations.
pub type ReadFile<'a> = &'a dyn Fn(&str) -> Result<Vec<u8>, String>;

/// Names that an error lists at most.
const NAMES_SHOWN: usize = 8;

// FieldDescriptorProto.Type and Label.
const STRING: u64 = 9;
const GROUP: u64 = 10;
const A_MESSAGE: u64 = 11;
const BYTES: u64 = 12;
const REPEATED: u64 = 3;

/// The messages of a set, by their full names.
#[derive(Debug, Default)]
struct DescriptorSet {
    messages: BTreeMap<String, Vec<FieldDescriptor>>,
}

#[derive(Debug, Default)]
struct FieldDescriptor {
    name: String,
    number: u64,
    label: u64,
    kind: u64,
    /// Of a message: its full name.
    type_name: String,
}

/// Puts numbers in the place of names, if the options of a sanitizer name a set.
///
/// # Errors
/// The set cannot be read, or a path leads nowhere in it; with the option that says so.
pub(crate) fn resolve(
    declared: &mut Vec<(String, OptionValue)>,
    read_file: ReadFile<'_>,
) -> Result<(), OptionError> {
    let text = |name: &str| {
        let value = declared.iter().find(|(have, _)| have == name).map(|(_, value)| value);
        match value {
            Some(OptionValue::Text(text)) => Some(text.as_str()),
            _ => None,
        }
    };
    let (path, message) = match (text(DESCRIPTOR_SET.name), text(MESSAGE.name)) {
        // What is set to something else than a text is told by whoever checks kinds.
        (None, None) => return Ok(()),
        (Some(_), None) => {
            return Err(DESCRIPTOR_SET.wrong("it needs `message`, the type of the values"));
        }
        (None, Some(_)) => return Err(MESSAGE.wrong("it needs `descriptor_set`, a file")),
        (Some(path), Some(message)) => (path, message),
    };
    if text(FORMAT.name) != Some("protobuf") {
        let text = "it names fields of protobuf: set format = \"protobuf\"";
        return Err(DESCRIPTOR_SET.wrong(text));
    }
    let wrong = |why: String| DESCRIPTOR_SET.wrong(format!("{path}: {why}"));
    let bytes = read_file(path).map_err(wrong)?;
    let set = DescriptorSet::read(&bytes).map_err(|NotProtobuf { expected }| {
        wrong(format!("this is no set of descriptors, {expected} expected"))
    })?;
    if !set.messages.contains_key(message) {
        let names = some_of(set.messages.keys());
        return Err(MESSAGE.wrong(format!("{path} has no message `{message}`; it has {names}")));
    }
    let message = message.to_owned();
    for (option, action) in [(&DROP, Action::Drop), (&MASK, Action::Mask)] {
        let value = declared.iter_mut().find(|(name, _)| name == option.name);
        let paths = match value {
            Some((_, OptionValue::Texts(paths))) => paths.iter_mut().collect(),
            Some((_, OptionValue::Text(path))) => vec![path],
            _ => Vec::new(),
        };
        for path in paths {
            *path = set.numbers(&message, path, action).map_err(|why| option.wrong(why))?;
        }
    }
    declared.retain(|(name, _)| *name != DESCRIPTOR_SET.name && *name != MESSAGE.name);
    Ok(())
}

impl DescriptorSet {
    fn read(bytes: &[u8]) -> Result<Self, NotProtobuf> {
        let mut set = Self::default();
        fields(bytes, |number, field| match (number, field) {
            (1, Field::Bytes(file)) => set.read_file(file),
            _ => Ok(()),
        })?;
        Ok(set)
    }

    fn read_file(&mut self, bytes: &[u8]) -> Result<(), NotProtobuf> {
        let (mut package, mut messages) = (String::new(), Vec::new());
        fields(bytes, |number, field| {
            match (number, field) {
                (2, Field::Bytes(name)) => package = text(name)?,
                (4, Field::Bytes(message)) => messages.push(message),
                _ => {}
            }
            Ok(())
        })?;
        messages.into_iter().try_for_each(|message| self.read_message(message, &package, 0))
    }

    fn read_message(
        &mut self,
        bytes: &[u8],
        within: &str,
        depth: usize,
    ) -> Result<(), NotProtobuf> {
        if depth > FIELD_DEPTH_MAX {
            return Err(NotProtobuf { expected: "at most 128 levels" });
        }
        let (mut name, mut inner, mut of_message) = (String::new(), Vec::new(), Vec::new());
        fields(bytes, |number, field| {
            match (number, field) {
                (1, Field::Bytes(text_of_it)) => name = text(text_of_it)?,
                (2, Field::Bytes(field)) => of_message.push(FieldDescriptor::read(field)?),
                (3, Field::Bytes(message)) => inner.push(message),
                _ => {}
            }
            Ok(())
        })?;
        let name = if within.is_empty() { name } else { format!("{within}.{name}") };
        inner.into_iter().try_for_each(|message| self.read_message(message, &name, depth + 1))?;
        self.messages.insert(name, of_message);
        Ok(())
    }

    /// A path of names as one of numbers.
    ///
    /// # Errors
    /// It leads nowhere, in words.
    fn numbers(&self, message: &str, path: &str, action: Action) -> Result<String, String> {
        let Some(steps) = path.strip_prefix('/') else {
            return Err(format!("`{path}` is no path: it begins with a slash, like /card/number"));
        };
        let mut numbers = String::new();
        // None behind `*`.
        let mut within = Some(message);
        let mut steps = steps.split('/').peekable();
        while let Some(step) = steps.next() {
            if step == "*" {
                numbers.push_str("/*");
                within = None;
                continue;
            }
            let Some(message) = within else {
                return Err(format!("`{path}`: behind * may be any message, so no name"));
            };
            let fields = &self.messages[message];
            let Some(field) = fields.iter().find(|field| field.name == step) else {
                let names = some_of(fields.iter().map(|field| &field.name));
                return Err(format!("`{path}`: {message} has no field `{step}`; it has {names}"));
            };
            numbers.push_str(&format!("/{}", field.number));
            if steps.peek().is_some() {
                within =
                    Some(self.inside(message, field).map_err(|why| format!("`{path}`: {why}"))?);
            } else if action == Action::Mask {
                field.check_mask().map_err(|why| format!("`{path}`: {why}"))?;
            }
        }
        Ok(numbers)
    }

    /// The message that a field is.
    fn inside<'a>(&'a self, message: &str, field: &'a FieldDescriptor) -> Result<&'a str, String> {
        let FieldDescriptor { name, kind, type_name, .. } = field;
        match *kind {
            A_MESSAGE if self.messages.contains_key(type_name) => Ok(type_name),
            A_MESSAGE => Err(format!(
                "field `{name}` of {message} is a {type_name}, which the set lacks; make the set with --include_imports"
            )),
            GROUP => {
                Err(format!("field `{name}` of {message} is a group, which no path leads into"))
            }
            _ => {
                Err(format!("field `{name}` of {message} is no message, so there is nothing in it"))
            }
        }
    }
}

impl FieldDescriptor {
    fn read(bytes: &[u8]) -> Result<Self, NotProtobuf> {
        let mut read = Self::default();
        fields(bytes, |number, field| {
            match (number, field) {
                (1, Field::Bytes(name)) => read.name = text(name)?,
                (3, Field::Number(number)) => read.number = number,
                (4, Field::Number(label)) => read.label = label,
                (5, Field::Number(kind)) => read.kind = kind,
                (6, Field::Bytes(name)) => {
                    text(name)?.trim_start_matches('.').clone_into(&mut read.type_name);
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(read)
    }

    /// Whether readers can read the field when it is masked.
    fn check_mask(&self) -> Result<(), &'static str> {
        match self.kind {
            A_MESSAGE | GROUP => Err("a message cannot be masked: mask its fields, or drop it"),
            STRING | BYTES => Ok(()),
            _ if self.label == REPEATED => {
                Err("a list of numbers may be packed and cannot be masked: drop it")
            }
            _ => Ok(()),
        }
    }
}

fn text(bytes: &[u8]) -> Result<String, NotProtobuf> {
    let text = str::from_utf8(bytes).map_err(|_| NotProtobuf { expected: "a name in UTF-8" })?;
    Ok(text.to_owned())
}

/// Names for an error.
fn some_of<'a>(names: impl ExactSizeIterator<Item = &'a String>) -> String {
    let more = names.len().saturating_sub(NAMES_SHOWN);
    let mut shown: Vec<&str> = names.take(NAMES_SHOWN).map(String::as_str).collect();
    let others = format!("{more} others");
    if more > 0 {
        shown.push(&others);
    }
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::{pipeline::tests::texts, read_stage, read_stage_with_files};

    /// The set of `tests/protos`.
    fn compiled(imports: bool) -> Vec<u8> {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/protos");
        let mut compiler = protox::Compiler::new([root]).unwrap();
        compiler.include_imports(imports).open_file("shop/order.proto").unwrap();
        compiler.file_descriptor_set().encode_to_vec()
    }

    fn declared(options: &[(&str, OptionValue)]) -> Vec<(String, OptionValue)> {
        options.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    fn declaration(option: &str, path: &str, message: &str) -> Vec<(String, OptionValue)> {
        let text = |text: &str| OptionValue::Text(text.to_owned());
        declared(&[
            ("format", text("protobuf")),
            ("descriptor_set", text("shop.binpb")),
            ("message", text(message)),
            (option, texts(&[path])),
        ])
    }

    fn resolved(option: &str, path: &str) -> Result<Vec<String>, OptionError> {
        let declared = declaration(option, path, "shop.v1.Order");
        let spec = read_stage_with_files("sanitizer", declared, &|name| {
            assert_eq!(name, "shop.binpb");
            Ok(compiled(true))
        })?;
        assert_eq!(spec.text("descriptor_set").or(spec.text("message")), None);
        Ok(spec.texts(option).to_vec())
    }

    #[test]
    fn names_become_the_numbers_of_the_schema() {
        for (path, numbers) in [
            ("/id", "/1"),
            ("/card/number", "/3/1"),
            ("/card/cvc", "/3/2000"),
            ("/items/note", "/4/2"),
            ("/items/part/part/note", "/4/9/9/2"),
            // A map is a list of messages of a key and a value.
            ("/cards/key", "/5/1"),
            ("/cards/value/number", "/5/2/1"),
            // A oneof is no step of a path.
            ("/phone", "/6"),
            ("/address/street", "/17/1"),
            ("/total", "/8"),
            ("/items/*", "/4/*"),
            ("/*/*", "/*/*"),
        ] {
            for option in ["drop", "mask"] {
                assert_eq!(resolved(option, path).unwrap(), [numbers], "{path}");
            }
        }
        for (path, numbers) in [("/card", "/3"), ("/cents", "/7"), ("/card/owner", "/3/3")] {
            assert_eq!(resolved("drop", path).unwrap(), [numbers], "{path}");
        }
        // What is there in the end is what one would have written with numbers.
        let by_name = declaration("drop", "/card/cvc", "shop.v1.Order");
        let by_name = read_stage_with_files("sanitizer", by_name, &|_| Ok(compiled(true)));
        let by_number = declared(&[
            ("format", OptionValue::Text("protobuf".to_owned())),
            ("drop", texts(&["/3/2000"])),
        ]);
        assert_eq!(by_name, read_stage("sanitizer", by_number));
    }

    #[test]
    fn a_path_that_leads_nowhere_is_refused_with_what_there_is() {
        for (option, path, says) in [
            ("drop", "id", "`id` is no path: it begins with a slash"),
            ("drop", "/", "shop.v1.Order has no field ``; it has id, card, items"),
            ("drop", "/crad", "has no field `crad`; it has id, card, items, cards, phone"),
            ("mask", "/card/pan", "shop.v1.Card has no field `pan`; it has number, cvc, owner"),
            ("drop", "/3/1", "shop.v1.Order has no field `3`"),
            ("drop", "/reached_by", "has no field `reached_by`"),
            ("drop", "/id/x", "field `id` of shop.v1.Order is no message"),
            ("drop", "/cents/0", "field `cents` of shop.v1.Order is no message"),
            ("drop", "/card/owner/name", "field `owner` of shop.v1.Card is a group"),
            ("drop", "/*/number", "behind * may be any message"),
            ("mask", "/card", "a message cannot be masked"),
            ("mask", "/cards", "a message cannot be masked"),
            ("mask", "/card/owner", "a message cannot be masked"),
            ("mask", "/cents", "a list of numbers may be packed"),
        ] {
            let error = resolved(option, path).unwrap_err();
            assert!(error.message.contains(says), "{path}: {error}");
            assert_eq!(error.option.as_deref(), Some(option), "{path}");
        }
    }

    #[test]
    fn a_set_or_message_that_does_not_fit_is_refused() {
        let text = |text: &str| OptionValue::Text(text.to_owned());
        let all = declaration("drop", "/card/number", "shop.v1.Order");
        let without = |name: &str| all.iter().filter(|(have, _)| have != name).cloned().collect();
        let unknown = declaration("drop", "/id", "Order");
        let read = |declared: Vec<_>, set: Result<Vec<u8>, String>| {
            let read_file = |_: &str| set.clone();
            read_stage_with_files("sanitizer", declared, &read_file).unwrap_err()
        };
        let set = || Ok(compiled(true));
        for (error, option, says) in [
            (read(without("message"), set()), "descriptor_set", "it needs `message`"),
            (read(without("descriptor_set"), set()), "message", "it needs `descriptor_set`"),
            (read(without("format"), set()), "descriptor_set", "set format = \"protobuf\""),
            (read(unknown, set()), "message", "shop.binpb has no message `Order`; it has shop.v1"),
            (
                read(all.clone(), Ok(Vec::new())),
                "message",
                "no message `shop.v1.Order`; it has none",
            ),
            (read(all.clone(), Ok(b"PNG".to_vec())), "descriptor_set", "no set of descriptors"),
            (read(all.clone(), Err("gone".into())), "descriptor_set", "shop.binpb: gone"),
            (
                read(all.clone(), Ok(compiled(false))),
                "drop",
                "`card` of shop.v1.Order is a shop.v1.Card, which the set lacks; make the set with --inc",
            ),
        ] {
            assert!(error.message.contains(says), "{error}");
            assert_eq!(error.option.as_deref(), Some(option), "{error}");
        }
        // Where no file is read, none may be named.
        let error = read_stage("sanitizer", all.clone()).unwrap_err();
        assert!(error.message.contains("there are no files here"), "{error}");
        // A kind that does not fit is told as for every option.
        let number = declared(&[("descriptor_set", OptionValue::Integer(1)), ("drop", text("/a"))]);
        assert!(read(number, set()).message.contains("descriptor_set: expected a string"));
    }

    proptest! {
        /// Files are named by operators and may be anything.
        #[test]
        fn a_damaged_set_is_refused_or_read_and_never_panics(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = compiled(true);
            for (at, with) in flips {
                let at = at.index(bytes.len());
                bytes[at] = with;
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            let all = declaration("drop", "/items/part/note", "shop.v1.Order");
            let _ = read_stage_with_files("sanitizer", all, &|_| Ok(bytes.clone()));
        }
    }
}
