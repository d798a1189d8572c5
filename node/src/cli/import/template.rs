//! How a record's key is made of its columns: `name`, or a template such as `{country}/{name}`.

use std::{fmt, str::FromStr};

/// A column, or a field of a nested object by its dotted path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column(String);

impl Column {
    /// As it was written.
    pub(super) fn name(&self) -> &str {
        &self.0
    }

    /// The first step of a dotted path and the rest. A column whose own name has a dot is looked
    /// for under the whole name first.
    pub(super) fn split_path(path: &str) -> Option<(&str, &str)> {
        path.split_once('.').filter(|(first, rest)| !first.is_empty() && !rest.is_empty())
    }
}

impl FromStr for Column {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            Err("a column has a name".to_owned())
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

/// Literal text and columns, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyTemplate {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Literal(String),
    Column(Column),
}

impl KeyTemplate {
    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The columns it names.
    pub(super) fn columns(&self) -> impl Iterator<Item = &Column> {
        self.parts.iter().filter_map(|part| match part {
            Part::Column(column) => Some(column),
            Part::Literal(_) => None,
        })
    }
}

impl fmt::Display for KeyTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for KeyTemplate {
    type Err = String;

    /// Without braces the text is one column. With them, `{column}` is replaced, `{{` and `}}`
    /// stand for one brace.
    fn from_str(text: &str) -> Result<Self, String> {
        let whole = text.to_owned();
        if !text.contains(['{', '}']) {
            return Ok(Self { parts: vec![Part::Column(text.parse()?)], text: whole });
        }
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                literal.push_str(brace);
                rest = after;
            } else if brace == "}" {
                return Err(format!(
                    "`{text}` has a `}}` that closes nothing; write `}}}}` for a brace"
                ));
            } else {
                let Some((name, after)) = rest.split_once('}') else {
                    return Err(format!(
                        "`{text}` has a `{{` that is not closed; write `{{{{` for a brace"
                    ));
                };
                if name.contains('{') {
                    return Err(format!("`{text}` has a `{{` inside of a column's name"));
                }
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                let column = name
                    .parse()
                    .map_err(|_| format!("`{text}` has an empty `{{}}`: name a column"))?;
                parts.push(Part::Column(column));
                rest = after;
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        if !parts.iter().any(|part| matches!(part, Part::Column(_))) {
            return Err(format!("`{text}` names no column: every record would have the same key"));
        }
        Ok(Self { parts, text: whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Vec<String> {
        let template: KeyTemplate = text.parse().unwrap();
        let show = |part: &Part| match part {
            Part::Literal(literal) => format!("'{literal}'"),
            Part::Column(column) => column.name().to_owned(),
        };
        template.parts().iter().map(show).collect()
    }

    #[test]
    fn columns_and_templates_parse() {
        assert_eq!(parts("id"), ["id"]);
        assert_eq!(parts("user.id"), ["user.id"]);
        assert_eq!(parts("{country}/{name}"), ["country", "'/'", "name"]);
        assert_eq!(parts("{lat},{lng}!"), ["lat", "','", "lng", "'!'"]);
        assert_eq!(parts("{{{a}}}"), ["'{'", "a", "'}'"]);
        assert_eq!(parts("x{{y}}{z}"), ["'x{y}'", "z"]);
    }

    #[test]
    fn broken_templates_say_what_is_wrong() {
        for (text, part) in [
            ("", "has a name"),
            ("{a", "not closed"),
            ("a}", "closes nothing"),
            ("{}", "empty"),
            ("{a{b}", "inside"),
            ("{{a}}", "no column"),
        ] {
            let error = text.parse::<KeyTemplate>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
