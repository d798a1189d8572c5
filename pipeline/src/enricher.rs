//! The enricher stage: adds what the node knows to values before anything is recorded.
//!
//! A header field needs a place. Values are opaque bytes to the store, and wrapping them in an
//! envelope would give readers something else than what was written; so a header field is a member
//! of the value's JSON object, or a field of its protobuf message. A value that is neither has no
//! place for one: it is refused, or passes as it is.
//!
//! A field of the same name that came with the value goes: a client cannot write what only the
//! node may say. The timestamp is the node's wall clock when the write arrived, before the clock
//! stage made it monotonic. A replay reads all of it from the log and adds nothing anew.

use stateside_types::{Change, OptionValue, Refusal, StageKind, StageSpec, WallClock};

use crate::{
    Changes, OptionDefinition, OptionError, OptionKind, Outlet, PREFIX, Prefixes, Stage,
    StageDefinition, Write,
    field_path::{Action, FieldTree, Format},
    json, protobuf,
    sanitizer::{FORMAT, UNREADABLE, Unreadable, rewrite},
};

const TIMESTAMP: OptionDefinition = OptionDefinition {
    name: "timestamp",
    kind: OptionKind::Text,
    default: "not added",
    doc: "Name of the field that gets the time at which the write arrived: milliseconds since 1970, a number.",
};
const NODE: OptionDefinition = OptionDefinition {
    name: "node",
    kind: OptionKind::Text,
    default: "not added",
    doc: "Name of the field that gets the node's id, a string.",
};
const SET: OptionDefinition = OptionDefinition {
    name: "set",
    kind: OptionKind::Table,
    default: "nothing",
    doc: "Fields and their values, the same for every value.",
};

pub(crate) const DEFINITION: StageDefinition = StageDefinition {
    kind: StageKind::Enricher,
    doc: "Adds fields to values: members at the end of a JSON object, or fields at the end of a protobuf message, where a name is the field's number. Fields of these names that came with the value are taken out.",
    options: &[PREFIX, FORMAT, TIMESTAMP, NODE, SET, UNREADABLE],
    build: |spec| Ok(Box::new(Enricher::new(spec)?)),
};

/// See the module's header.
#[derive(Debug)]
struct Enricher {
    prefix: Prefixes,
    format: Format,
    /// The names of what is added.
    replaced: FieldTree,
    fields: Vec<(Field, Source)>,
    unreadable: Unreadable,
    /// Whether a field has the time.
    is_timed: bool,
    /// What is appended, and the time and node that it is made of: the writes of a turn share it.
    append: Vec<u8>,
    prepared: Option<(WallClock, Box<str>)>,
}

/// What a field is called.
#[derive(Debug)]
enum Field {
    /// A name in JSON, quoted.
    Json(String),
    Protobuf(u32),
}

/// What goes into it.
#[derive(Debug)]
enum Source {
    Timestamp,
    Node,
    Constant(OptionValue),
}

impl Enricher {
    fn new(spec: &StageSpec) -> Result<Self, OptionError> {
        let format = Format::read(spec);
        let mut fields = Vec::new();
        let mut replaced = FieldTree::default();
        let mut names = Vec::new();
        let mut add = |option: &OptionDefinition, name: &str, source| {
            if names.contains(&name.to_owned()) {
                return Err(option.wrong(format!("`{name}` is added twice")));
            }
            names.push(name.to_owned());
            let escaped = name.replace('~', "~0").replace('/', "~1");
            if name == "*" {
                return Err(option.wrong("`*` is no name of a field that can be added"));
            }
            replaced
                .add_path(&format!("/{escaped}"), format, Action::Drop)
                .map_err(|message| option.wrong(message))?;
            let field = match format {
                Format::Json => Field::Json(json::quote(name)),
                // A path of protobuf is a number.
                Format::Protobuf => Field::Protobuf(name.parse().unwrap_or_default()),
            };
            fields.push((field, source));
            Ok(())
        };
        for (option, source) in [(&TIMESTAMP, Source::Timestamp), (&NODE, Source::Node)] {
            if let Some(name) = spec.text(option.name) {
                add(option, name, source)?;
            }
        }
        for (name, value) in spec.table(SET.name) {
            add(&SET, name, Source::Constant(value.clone()))?;
        }
        if fields.is_empty() {
            let message = "an enricher needs one of timestamp, node, set";
            return Err(OptionError { option: None, message: message.to_owned() });
        }
        let unreadable = Unreadable::read(spec);
        let prefix = Prefixes::read(spec, &PREFIX)?;
        let is_timed = fields.iter().any(|(_, source)| matches!(source, Source::Timestamp));
        Ok(Self {
            prefix,
            format,
            replaced,
            fields,
            unreadable,
            is_timed,
            append: Vec::new(),
            prepared: None,
        })
    }

    fn prepare(&mut self, now: WallClock, node: &str) {
        match &mut self.prepared {
            Some((at, by)) if **by == *node && (*at == now || !self.is_timed) => return,
            Some((at, by)) if **by == *node => *at = now,
            prepared => *prepared = Some((now, node.into())),
        }
        self.append.clear();
        for (field, source) in &self.fields {
            match field {
                Field::Json(name) => {
                    if !self.append.is_empty() {
                        self.append.push(b',');
                    }
                    self.append.extend_from_slice(name.as_bytes());
                    self.append.push(b':');
                    let text = match source {
                        Source::Timestamp => now.0.to_string(),
                        Source::Node => json::quote(node),
                        Source::Constant(OptionValue::Text(text)) => json::quote(text),
                        Source::Constant(other) => other.to_string(),
                    };
                    self.append.extend_from_slice(text.as_bytes());
                }
                Field::Protobuf(number) => {
                    let out = &mut self.append;
                    match source {
                        Source::Timestamp => protobuf::put_number(out, *number, now.0),
                        Source::Node => protobuf::put_text(out, *number, node),
                        Source::Constant(OptionValue::Integer(value)) => {
                            protobuf::put_number(out, *number, value.cast_unsigned());
                        }
                        Source::Constant(OptionValue::Boolean(value)) => {
                            protobuf::put_number(out, *number, u64::from(*value));
                        }
                        Source::Constant(OptionValue::Text(text)) => {
                            protobuf::put_text(out, *number, text);
                        }
                        Source::Constant(OptionValue::Texts(_) | OptionValue::Table(_)) => {
                            unreachable!("a table of options holds plain values")
                        }
                    }
                }
            }
        }
    }
}

impl Stage for Enricher {
    fn kind(&self) -> StageKind {
        StageKind::Enricher
    }

    fn change(
        &mut self,
        write: &Write<'_>,
        changes: &mut Changes,
        outlet: &mut dyn Outlet,
    ) -> Result<(), Refusal> {
        let mut is_prepared = false;
        for (at, entry) in write.entries.iter().enumerate() {
            let Change::Put(value) = entry.change else { continue };
            if !self.prefix.select(entry.key) {
                continue;
            }
            if !is_prepared {
                self.prepare(write.now, outlet.node());
                is_prepared = true;
            }
            changes.replace(at, |out| {
                rewrite(value, self.format, &self.replaced, &[], &self.append, out)
                    .or_else(|what| self.unreadable.settle(at, &what))
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use stateside_types::OptionValue;

    use crate::{
        pipeline::tests::{pass, texts},
        read_stage,
    };

    fn text(text: &str) -> OptionValue {
        OptionValue::Text(text.to_owned())
    }

    fn set() -> OptionValue {
        OptionValue::Table(vec![
            ("15".to_owned(), OptionValue::Integer(-1)),
            ("16".to_owned(), text("eu\"")),
            ("17".to_owned(), OptionValue::Boolean(true)),
        ])
    }

    #[test]
    fn fields_are_added_and_forged_ones_go() {
        let json = [("timestamp", text("at")), ("node", text("a/~")), ("set", set())];
        let written = pass(&[("enricher", &json)], &[("k", br#"{"at":"never","x":1}"#)]).unwrap();
        let expected = br#"{"x":1,"at":7000,"a/~":"vm-1","15":-1,"16":"eu\"","17":true}"#;
        assert_eq!(String::from_utf8_lossy(&written[0]), String::from_utf8_lossy(expected));
        let format = ("format", text("protobuf"));
        let protobuf = [format, ("timestamp", text("1")), ("node", text("2")), ("set", set())];
        let written = pass(&[("enricher", &protobuf)], &[("k", b"\x08\x01\x18\x05")]).unwrap();
        let minus_one = [&[0x78_u8][..], &[0xff; 9], &[1]].concat();
        let expected =
            [&b"\x18\x05\x08\xd8\x36\x12\x04vm-1"[..], &minus_one, b"\x82\x01\x03eu\"\x88\x01\x01"];
        assert_eq!(written[0], expected.concat());
    }

    #[test]
    fn values_without_a_place_for_a_field_are_refused_or_pass() {
        let node = ("node", text("node"));
        let refusal =
            pass(&[("enricher", std::slice::from_ref(&node))], &[("k", b"[1]")]).unwrap_err();
        assert!(refusal.message.contains("an object expected at byte 0"), "{refusal}");
        let lenient = [node, ("unreadable", text("pass")), ("prefix", texts(&["k"]))];
        assert_eq!(pass(&[("enricher", &lenient)], &[("k", b"[1]")]).unwrap(), [b"[1]"]);
    }

    #[test]
    fn options_that_make_no_enricher_are_refused() {
        let owned = |options: &[(&str, OptionValue)]| {
            options.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
        };
        let nested = OptionValue::Table(vec![("a".to_owned(), texts(&["x"]))]);
        for (options, says) in [
            (vec![], "needs one of timestamp"),
            (vec![("node", text("a")), ("timestamp", text("a"))], "`a` is added twice"),
            (vec![("node", text("*"))], "`*` is no name"),
            (vec![("node", text("a")), ("format", text("protobuf"))], "the number of a field"),
            (
                vec![("node", text("a")), ("format", text("xml"))],
                "expected \"json\" or \"protobuf\"",
            ),
            (vec![("set", nested)], "a: expected a string or a number"),
        ] {
            let error = read_stage("enricher", owned(&options)).unwrap_err();
            assert!(error.message.contains(says), "{error}");
        }
    }
}
