//! Rewrites a JSON text: drops and masks fields, appends members to its object.
//!
//! What is not changed stays as it was written, byte for byte: numbers, order, spacing. So the
//! text is scanned and copied, not parsed into values and printed again.
//!
//! Hazard: whoever reads the value later must see the fields that this scanner saw. So it takes
//! only what RFC 8259 calls JSON, compares names after their escapes are resolved, and treats
//! every one of several members of a name alike.

use stateside_types::limits::FIELD_DEPTH_MAX;

use crate::field_path::{Action, FieldTree, Name, Walk};

/// The value is not JSON, or not what it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotJson {
    /// Byte at which that shows.
    pub(crate) at: usize,
    pub(crate) expected: &'static str,
}

/// What to do with a text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rewrite<'a> {
    pub(crate) tree: &'a FieldTree,
    /// JSON that stands in for masked values.
    pub(crate) mask: &'a [u8],
    /// Members to append, `"a":1,"b":2`; the text must be an object then.
    pub(crate) append: &'a [u8],
}

/// Writes the new text, if it differs from the old one: then true.
///
/// # Errors
/// It is not JSON.
pub(crate) fn rewrite(text: &[u8], what: Rewrite<'_>, out: &mut Vec<u8>) -> Result<bool, NotJson> {
    if let Err(error) = std::str::from_utf8(text) {
        return Err(NotJson { at: error.valid_up_to(), expected: "UTF-8" });
    }
    let walk = Walk::new(what.tree);
    let mut scanner = Scanner { text, at: 0, copied: 0, changed: false, walk, what, out };
    scanner.space();
    if !what.append.is_empty() && scanner.peek() != Some(b'{') {
        return scanner.fail("an object");
    }
    scanner.value(0)?;
    scanner.space();
    if scanner.at != text.len() {
        return scanner.fail("nothing more");
    }
    if scanner.changed {
        let rest = scanner.copied;
        scanner.out.extend_from_slice(&text[rest..]);
    }
    Ok(scanner.changed)
}

struct Scanner<'a, 'o> {
    /// UTF-8.
    text: &'a [u8],
    at: usize,
    /// Up to where `text` has been copied or left out.
    copied: usize,
    changed: bool,
    walk: Walk<'a>,
    what: Rewrite<'a>,
    out: &'o mut Vec<u8>,
}

/// The members or elements of one object or array, as they pass.
#[derive(Default)]
struct Items {
    /// Whether one before this was kept.
    any_kept: bool,
    /// Where the one before ended.
    end: usize,
    /// Where the first of dropped ones begins that have none kept before them.
    dropped_from: Option<usize>,
}

impl<'a> Scanner<'a, '_> {
    /// A value that paths lead into, or the whole text.
    fn value(&mut self, depth: usize) -> Result<(), NotJson> {
        if depth > FIELD_DEPTH_MAX {
            return self.fail(TOO_DEEP);
        }
        match self.peek() {
            Some(b'{') => self.items(depth, b'}'),
            Some(b'[') => self.items(depth, b']'),
            _ => self.pass(depth),
        }
    }

    /// A value that is looked at no closer, but for its end and whether it is JSON.
    fn pass(&mut self, depth: usize) -> Result<(), NotJson> {
        if depth > FIELD_DEPTH_MAX {
            return self.fail(TOO_DEEP);
        }
        let close = match self.peek() {
            Some(b'"') => return self.string().map(drop),
            Some(b'-' | b'0'..=b'9') => return self.number(),
            Some(b't') => return self.literal(b"true"),
            Some(b'f') => return self.literal(b"false"),
            Some(b'n') => return self.literal(b"null"),
            Some(b'{') => b'}',
            Some(b'[') => b']',
            _ => return self.fail("a value"),
        };
        self.at += 1;
        self.space();
        if self.peek() == Some(close) {
            self.at += 1;
            return Ok(());
        }
        loop {
            if close == b'}' {
                self.name()?;
            }
            self.pass(depth + 1)?;
            if self.is_last(close)? {
                self.at += 1;
                return Ok(());
            }
        }
    }

    /// An object or an array, by its last byte.
    fn items(&mut self, depth: usize, close: u8) -> Result<(), NotJson> {
        self.at += 1;
        self.space();
        let mut items = Items { end: self.at, ..Items::default() };
        let mut position = 0;
        if self.peek() != Some(close) {
            loop {
                let begin = self.at;
                if let Some(from) = items.dropped_from.filter(|_| !items.any_kept) {
                    // The ones before are gone, and the comma with them.
                    self.cut(from, begin);
                    items.dropped_from = None;
                }
                let (action, came) = if close == b'}' {
                    match self.name()? {
                        (name, false) => self.walk.enter(Name::Member(name)),
                        (name, true) => self.walk.enter(Name::Member(unescape(name).as_bytes())),
                    }
                } else {
                    self.walk.enter(Name::Number(position))
                };
                self.item(depth, action, begin, &mut items)?;
                self.walk.leave(came);
                position += 1;
                if self.is_last(close)? {
                    break;
                }
            }
        }
        if let Some(from) = items.dropped_from.filter(|_| !items.any_kept) {
            self.cut(from, items.end);
        }
        if depth == 0 && !self.what.append.is_empty() {
            self.cut(items.end, items.end);
            if items.any_kept {
                self.out.push(b',');
            }
            self.out.extend_from_slice(self.what.append);
        }
        self.at += 1;
        Ok(())
    }

    /// One value of an object or array that begins (with its name) at `begin`.
    #[inline]
    fn item(
        &mut self,
        depth: usize,
        action: Option<Action>,
        begin: usize,
        items: &mut Items,
    ) -> Result<(), NotJson> {
        let value = self.at;
        // What is dropped or masked is looked at no closer, nor what no path leads into.
        if action.is_none() && self.walk.goes_on() {
            self.value(depth + 1)?;
        } else {
            self.pass(depth + 1)?;
        }
        match action {
            None => items.any_kept = true,
            Some(Action::Drop) if items.any_kept => self.cut(items.end, self.at),
            Some(Action::Drop) => {
                items.dropped_from.get_or_insert(begin);
            }
            Some(Action::Mask) => {
                if self.text[value..self.at] != *self.what.mask {
                    self.cut(value, self.at);
                    self.out.extend_from_slice(self.what.mask);
                }
                items.any_kept = true;
            }
        }
        items.end = self.at;
        Ok(())
    }

    /// Leaves out a part of the text that has not been copied yet.
    fn cut(&mut self, from: usize, to: usize) {
        self.changed = true;
        self.out.extend_from_slice(&self.text[self.copied..from]);
        self.copied = to;
    }

    /// What stands behind a member or element: false, a comma, and the next begins.
    #[inline]
    fn is_last(&mut self, close: u8) -> Result<bool, NotJson> {
        self.space();
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                self.space();
                Ok(false)
            }
            Some(byte) if byte == close => Ok(true),
            _ => self.fail("a comma or the end"),
        }
    }

    /// A member's name, up to its value: what stands between its quotes, and whether that has escapes.
    #[inline]
    fn name(&mut self) -> Result<(&'a [u8], bool), NotJson> {
        let Some(b'"') = self.peek() else { return self.fail("a member's name") };
        let name = self.string()?;
        self.space();
        if self.peek() != Some(b':') {
            return self.fail("a colon");
        }
        self.at += 1;
        self.space();
        Ok(name)
    }

    /// A string: what stands between its quotes, and whether that has escapes.
    #[inline]
    fn string(&mut self) -> Result<(&'a [u8], bool), NotJson> {
        self.at += 1;
        let begin = self.at;
        let mut has_escapes = false;
        loop {
            self.at += plain(&self.text[self.at..]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok((&self.text[begin..self.at - 1], has_escapes));
                }
                Some(b'\\') => {
                    has_escapes = true;
                    self.escape()?;
                }
                _ => return self.fail("the end of a string"),
            }
        }
    }

    fn escape(&mut self) -> Result<(), NotJson> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return self.fail("four hexadecimal digits");
                    }
                    self.at += 1;
                }
            }
            _ => return self.fail("an escape"),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), NotJson> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    #[inline]
    fn digits(&mut self) -> Result<(), NotJson> {
        let digits = self.text[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += digits;
        if digits == 0 { self.fail("a digit") } else { Ok(()) }
    }

    fn literal(&mut self, word: &'static [u8]) -> Result<(), NotJson> {
        if !self.text[self.at..].starts_with(word) {
            return self.fail("a value");
        }
        self.at += word.len();
        Ok(())
    }

    #[inline]
    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    #[cold]
    fn fail<T>(&self, expected: &'static str) -> Result<T, NotJson> {
        Err(NotJson { at: self.at, expected })
    }
}

const TOO_DEEP: &str = "at most 128 levels";
const _: () = assert!(FIELD_DEPTH_MAX == 128);

/// How many bytes at the front of a text are neither a quote nor a backslash nor a control character. Eight at a
/// time: strings are most of a text, and byte by byte they took most of the time.
#[inline]
fn plain(text: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = ONES << 7;
    // The high bit of the lowest byte that is below `bound`, at most 0x80; those above it may be wrong.
    let below = |word: u64, bound: u64| word.wrapping_sub(ONES * bound) & !word & HIGHS;
    let (words, rest) = text.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let quote = below(word ^ (ONES * u64::from(b'"')), 1);
        let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
        let special = quote | backslash | below(word, 0x20);
        if special != 0 {
            return at * 8 + special.trailing_zeros() as usize / 8;
        }
    }
    let is_plain = |byte: &&u8| !matches!(byte, b'"' | b'\\' | 0..0x20);
    words.len() * 8 + rest.iter().take_while(is_plain).count()
}

/// A name with its escapes resolved. Halves of surrogate pairs that stand alone are no
/// characters: no path names them.
fn unescape(raw: &[u8]) -> String {
    let raw = String::from_utf8_lossy(raw);
    let mut units: Vec<u16> = Vec::with_capacity(raw.len());
    let mut characters = raw.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            units.extend_from_slice(character.encode_utf16(&mut [0; 2]));
            continue;
        }
        let escape = characters.next().unwrap_or('\\');
        units.push(match escape {
            'b' => 0x8,
            'f' => 0xc,
            'n' => 0xa,
            'r' => 0xd,
            't' => 0x9,
            'u' => (0..4).fold(0, |unit, _| {
                let digit = characters.next().and_then(|digit| digit.to_digit(16)).unwrap_or(0);
                unit << 4 | digit as u16
            }),
            other => other as u16,
        });
    }
    String::from_utf16_lossy(&units)
}

/// A string as JSON.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            control if control < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::field_path::tests::tree;

    const MASK: &[u8] = b"\"***\"";

    fn run(text: &str, drop: &[&str], mask: &[&str], append: &str) -> Result<String, NotJson> {
        let tree = tree(drop, mask, crate::field_path::Format::Json);
        let what = Rewrite { tree: &tree, mask: MASK, append: append.as_bytes() };
        let mut out = Vec::new();
        let changed = rewrite(text.as_bytes(), what, &mut out)?;
        let out = String::from_utf8(out).unwrap();
        assert!(changed || out.is_empty());
        Ok(if changed { out } else { text.to_owned() })
    }

    #[test]
    fn fields_are_dropped_and_masked_and_the_rest_stays_as_it_was() {
        let text = r#"{ "a" : 1.50 , "card":{"number":"4111","cvc":123, "x":[]}, "z":true }"#;
        for (drop, mask, expected) in [
            (&["/a"][..], &[][..], r#"{ "card":{"number":"4111","cvc":123, "x":[]}, "z":true }"#),
            (&["/z"], &[], r#"{ "a" : 1.50 , "card":{"number":"4111","cvc":123, "x":[]} }"#),
            (
                &["/card/cvc"],
                &["/card/number"],
                r#"{ "a" : 1.50 , "card":{"number":"***", "x":[]}, "z":true }"#,
            ),
            (&["/a", "/card", "/z"], &[], r#"{  }"#),
            (&["/a", "/card"], &[], r#"{ "z":true }"#),
            (&["/*"], &[], r#"{  }"#),
            (&[], &["/card", "/none"], r#"{ "a" : 1.50 , "card":"***", "z":true }"#),
            (&["/card/*"], &["/card/cvc"], r#"{ "a" : 1.50 , "card":{}, "z":true }"#),
            (&["/a/b", "/nothing"], &[], text),
        ] {
            assert_eq!(run(text, drop, mask, "").unwrap(), expected, "{drop:?} {mask:?}");
        }
        let list = r#"[{"k":1,"s":2},{"k":3,"s":4},5]"#;
        assert_eq!(run(list, &["/*/s"], &[], "").unwrap(), r#"[{"k":1},{"k":3},5]"#);
        assert_eq!(run(list, &["/1"], &["/2"], "").unwrap(), r#"[{"k":1,"s":2},"***"]"#);
    }

    #[test]
    fn a_name_cannot_hide_behind_escapes_or_a_namesake() {
        let text = r#"{"c\u0061rd":1,"card":2,"a\/b~":3,"\ud83d\ude00":4}"#;
        let left = run(text, &["/card", "/a~1b~0", "/\u{1f600}"], &[], "").unwrap();
        assert_eq!(left, "{}");
    }

    #[test]
    fn members_are_appended() {
        let new = r#""n":1"#;
        assert_eq!(run("{}", &[], &[], new).unwrap(), r#"{"n":1}"#);
        assert_eq!(run(r#"{ "a":{} }"#, &[], &[], new).unwrap(), r#"{ "a":{},"n":1 }"#);
        assert_eq!(run(r#"{"n":0,"a":1,"n":2}"#, &["/n"], &[], new).unwrap(), r#"{"a":1,"n":1}"#);
        assert_eq!(run(r#" {"n":0} "#, &["/n"], &[], new).unwrap(), r#" {"n":1} "#);
        assert_eq!(run("[]", &[], &[], new), Err(NotJson { at: 0, expected: "an object" }));
    }

    #[test]
    fn what_is_not_json_is_refused_where_it_shows() {
        for (text, at) in [
            ("", 0),
            ("{", 1),
            ("{\"a\"}", 4),
            ("{\"a\":1,}", 7),
            ("[1,]", 3),
            ("01", 1),
            ("1.", 2),
            ("\"\\x\"", 2),
            ("\"\u{1}\"", 1),
            ("nul", 0),
            ("{} x", 3),
            ("[1 2]", 3),
            ("'a'", 0),
        ] {
            assert_eq!(run(text, &["/x"], &[], "").unwrap_err().at, at, "{text}");
        }
        let deep = "[".repeat(FIELD_DEPTH_MAX + 2);
        assert_eq!(run(&deep, &[], &[], "").unwrap_err().expected, "at most 128 levels");
        let mut out = Vec::new();
        let what = Rewrite { tree: &FieldTree::NOTHING, mask: MASK, append: &[] };
        assert_eq!(rewrite(b"\"\xff\"", what, &mut out).unwrap_err().expected, "UTF-8");
    }

    /// What dropping and masking means, on values.
    fn model(value: &mut Value, path: &[&str], action: Action) {
        let Some((step, rest)) = path.split_first() else { return };
        match value {
            Value::Object(members) => {
                let names: Vec<_> = members.keys().cloned().collect();
                for name in names.iter().filter(|name| *step == "*" || name == step) {
                    match (rest.is_empty(), action) {
                        (true, Action::Drop) => drop(members.remove(name)),
                        (true, Action::Mask) => members[name] = json!("***"),
                        _ => model(&mut members[name], rest, action),
                    }
                }
            }
            Value::Array(items) if *step == "*" => {
                for item in items.iter_mut() {
                    match (rest.is_empty(), action) {
                        (true, Action::Mask) => *item = json!("***"),
                        _ => model(item, rest, action),
                    }
                }
                if rest.is_empty() && action == Action::Drop {
                    items.clear();
                }
            }
            _ => {}
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c]|\\PC{1,2}", inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_plain_is_found_eight_bytes_at_a_time_as_one_at_a_time(
            text in prop::collection::vec(prop_oneof![
                6 => any::<u8>(), 1 => Just(b'"'), 1 => Just(b'\\'), 1 => 0x1e..0x24_u8, 8 => b'a'..=b'z',
            ], 0..40),
        ) {
            let expected = text.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
            prop_assert_eq!(plain(&text), expected.unwrap_or(text.len()));
        }

        #[test]
        fn the_result_is_what_it_would_be_on_parsed_values(
            value in any_json(),
            path in prop::collection::vec("[a-c*]", 1..4),
            is_drop in any::<bool>(),
            is_pretty in any::<bool>(),
        ) {
            let print = if is_pretty { serde_json::to_string_pretty } else { serde_json::to_string };
            let text = print(&value).unwrap();
            let joined = format!("/{}", path.join("/"));
            let (drop, mask) = if is_drop { (vec![&*joined], vec![]) } else { (vec![], vec![&*joined]) };
            let result = run(&text, &drop, &mask, "").unwrap();
            let mut expected = serde_json::from_str(&text).unwrap();
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            model(&mut expected, &path, if is_drop { Action::Drop } else { Action::Mask });
            prop_assert_eq!(serde_json::from_str::<Value>(&result).unwrap(), expected);
        }

        /// This scanner takes exactly what another parser takes.
        #[test]
        fn no_text_panics_and_what_is_json_is_agreed_upon(text in "([\\[\\]{}:,\"\\\\ ua0-9.eE+-]|true|null|\"a\":|\"\\PC\"){0,16}") {
            let ours = run(&text, &["/a"], &[], "").is_ok();
            let theirs = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(ours, theirs, "{}", text);
        }
    }
}
