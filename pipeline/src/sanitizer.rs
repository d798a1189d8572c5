//! The sanitizer stage: drops or masks fields of values before anything is recorded.
//!
//! The fields are named by their paths, see `field_path`. A value that cannot be read is refused
//! unless the stage is told to let it pass: whoever wants a field gone wants to know when it could
//! not be looked for.

use stateside_types::{Change, Reason, Refusal, StageKind, StageSpec};

use crate::{
    Changes, OptionDefinition, OptionError, OptionKind, Outlet, PREFIX, Prefixes, Stage,
    StageDefinition, Write,
    field_path::{Action, FieldTree, Format},
    json::{self, NotJson},
    protobuf::{self, NotProtobuf},
};

pub(crate) const FORMAT: OptionDefinition = OptionDefinition {
    name: "format",
    kind: OptionKind::Choice(Format::NAMES),
    default: "\"json\"",
    doc: "How values are read.",
};
pub(crate) const UNREADABLE: OptionDefinition = OptionDefinition {
    name: "unreadable",
    kind: OptionKind::Choice(&["refuse", "pass"]),
    default: "\"refuse\"",
    doc: "What becomes of a value that is not in that format: it is refused with VALUE_UNREADABLE, or passes as it is.",
};
pub(crate) const DESCRIPTOR_SET: OptionDefinition = OptionDefinition {
    name: "descriptor_set",
    kind: OptionKind::Text,
    default: "paths are numbers",
    doc: "A file that `protoc --descriptor_set_out=FILE --include_imports` wrote: the paths of `drop` and `mask` name fields as the schema does. It is read when the declaration is: at a start, and when the registry file changes.",
};
pub(crate) const MESSAGE: OptionDefinition = OptionDefinition {
    name: "message",
    kind: OptionKind::Text,
    default: "none",
    doc: "With `descriptor_set`: the full name of the values' type, such as `shop.v1.Order`.",
};
pub(crate) const DROP: OptionDefinition = OptionDefinition {
    name: "drop",
    kind: OptionKind::Texts,
    default: "none",
    doc: "Paths of fields to take out.",
};
pub(crate) const MASK: OptionDefinition = OptionDefinition {
    name: "mask",
    kind: OptionKind::Texts,
    default: "none",
    doc: "Paths of fields whose value is replaced. In protobuf strings and bytes are, and numbers become 0.",
};
const MASK_WITH: OptionDefinition = OptionDefinition {
    name: "mask_with",
    kind: OptionKind::Text,
    default: "\"***\"",
    doc: "What a masked value becomes; in JSON a string.",
};

pub(crate) const DEFINITION: StageDefinition = StageDefinition {
    kind: StageKind::Sanitizer,
    doc: "Drops or masks fields of values, JSON or protobuf. A path is `/card/number` or, in protobuf without a `descriptor_set`, field numbers, `/3/1`; the step `*` stands for every member or element, `~1` for a slash in a name, `~0` for a tilde. What is not touched stays byte for byte.",
    options: &[PREFIX, FORMAT, DESCRIPTOR_SET, MESSAGE, DROP, MASK, MASK_WITH, UNREADABLE],
    build: |spec| Ok(Box::new(Sanitizer::new(spec)?)),
};

/// See the module's header.
#[derive(Debug)]
struct Sanitizer {
    prefix: Prefixes,
    format: Format,
    fields: FieldTree,
    /// As it is written into values of the format.
    mask: Vec<u8>,
    unreadable: Unreadable,
}

/// What becomes of values that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    Refuse,
    Pass,
}

impl Sanitizer {
    fn new(spec: &StageSpec) -> Result<Self, OptionError> {
        for option in [&DESCRIPTOR_SET, &MESSAGE] {
            if spec.text(option.name).is_some() {
                // Where there are no files: a declaration that was read from one has numbers.
                return Err(option.wrong("there are no files here: name fields by their numbers"));
            }
        }
        let format = Format::read(spec);
        let mut fields = FieldTree::default();
        for (option, action) in [(&DROP, Action::Drop), (&MASK, Action::Mask)] {
            fields.add(spec, option, format, action)?;
        }
        if fields == FieldTree::NOTHING {
            let message = "a sanitizer needs one of drop, mask";
            return Err(OptionError { option: None, message: message.to_owned() });
        }
        let mask = spec.text(MASK_WITH.name).unwrap_or("***");
        Ok(Self {
            prefix: Prefixes::read(spec, &PREFIX)?,
            format,
            fields,
            mask: match format {
                Format::Json => json::quote(mask).into_bytes(),
                Format::Protobuf => mask.as_bytes().to_vec(),
            },
            unreadable: Unreadable::read(spec),
        })
    }
}

impl Stage for Sanitizer {
    fn kind(&self) -> StageKind {
        StageKind::Sanitizer
    }

    fn change(
        &mut self,
        write: &Write<'_>,
        changes: &mut Changes,
        _: &mut dyn Outlet,
    ) -> Result<(), Refusal> {
        for (at, entry) in write.entries.iter().enumerate() {
            let Change::Put(value) = entry.change else { continue };
            if self.prefix.select(entry.key) {
                changes.replace(at, |out| {
                    let (fields, mask) = (&self.fields, self.mask.as_slice());
                    rewrite(value, self.format, fields, mask, &[], out)
                        .or_else(|what| self.unreadable.settle(at, &what))
                })?;
            }
        }
        Ok(())
    }
}

/// Rewrites a value in its format.
///
/// # Errors
/// It is not in the format, in words.
pub(crate) fn rewrite(
    value: &[u8],
    format: Format,
    tree: &FieldTree,
    mask: &[u8],
    append: &[u8],
    out: &mut Vec<u8>,
) -> Result<bool, String> {
    match format {
        Format::Json => json::rewrite(value, json::Rewrite { tree, mask, append }, out).map_err(
            |NotJson { at, expected }| {
                format!("the value is not JSON: {expected} expected at byte {at}")
            },
        ),
        Format::Protobuf => protobuf::rewrite(value, protobuf::Rewrite { tree, mask, append }, out)
            .map_err(|NotProtobuf { expected }| {
                format!("the value is not a protobuf message: {expected} expected")
            }),
    }
}

impl Unreadable {
    pub(crate) fn read(spec: &StageSpec) -> Self {
        if spec.text(UNREADABLE.name) == Some("pass") { Self::Pass } else { Self::Refuse }
    }

    /// What becomes of an entry whose value cannot be read: it stays as it is, or is refused.
    pub(crate) fn settle(self, entry: usize, what: &str) -> Result<bool, Refusal> {
        match self {
            Self::Pass => Ok(false),
            Self::Refuse => {
                Err(Refusal::new(Reason::ValueUnreadable, what.to_owned()).with("entry", entry))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use stateside_types::OptionValue;

    use crate::pipeline::tests::{pass, texts};

    #[test]
    fn json_and_protobuf_are_sanitized_by_path() {
        let json =
            [("drop", texts(&["/cvc"])), ("mask", texts(&["/card"])), ("prefix", texts(&["o/"]))];
        let written =
            pass(&[("sanitizer", &json)], &[("o/1", br#"{"cvc":1,"card":"4111"}"#), ("p", b"{")]);
        assert_eq!(written.unwrap(), [br#"{"card":"***"}"#.to_vec(), b"{".to_vec()]);
        let protobuf = [
            ("format", OptionValue::Text("protobuf".to_owned())),
            ("mask", texts(&["/1"])),
            ("mask_with", OptionValue::Text("?".to_owned())),
        ];
        let written = pass(&[("sanitizer", &protobuf)], &[("k", b"\x0a\x03abc\x10\x05")]).unwrap();
        assert_eq!(written, [b"\x0a\x01?\x10\x05"]);
    }

    #[test]
    fn what_cannot_be_read_is_refused_or_passes() {
        let drop = ("drop", texts(&["/a"]));
        let refusal =
            pass(&[("sanitizer", std::slice::from_ref(&drop))], &[("k", b"{}"), ("l", b"{]")])
                .unwrap_err();
        assert_eq!(refusal.reason.as_str(), "VALUE_UNREADABLE");
        assert_eq!(refusal.metadata[0], ("entry".into(), "1".to_owned()));
        assert!(refusal.message.contains("a member's name expected at byte 1"), "{refusal}");
        let lenient = [drop, ("unreadable", OptionValue::Text("pass".to_owned()))];
        assert_eq!(pass(&[("sanitizer", &lenient)], &[("k", b"{]")]).unwrap(), [b"{]"]);
    }
}
