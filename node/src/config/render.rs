//! The settings as text: the commented default file, the effective settings with their origins,
//! and the page `docs/configuration.md`. All from the table of keys.

use std::fmt::Write as _;

use super::{
    Loaded,
    keys::{Default, KEYS, Key, Kind, SECTIONS},
};

/// Width of comments in the default file.
const COMMENT_COLUMNS: usize = 96;

/// One key for `config show`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownKey {
    /// `log.segment_mb`
    pub key: &'static str,
    /// Written in TOML; none: nobody set it and its default is no fixed value.
    pub value: Option<String>,
    /// What holds then, in words.
    pub default: String,
    /// `MiB`; may be empty.
    pub unit: &'static str,
    /// `default`, `FILE:LINE`, a variable or a flag.
    pub origin: String,
}

impl Loaded {
    /// Every key with its value and origin, by section.
    pub fn shown(&self) -> Vec<ShownKey> {
        let shown = |key: &Key| ShownKey {
            key: key.path,
            value: (key.get)(&self.settings).map(|value| value.to_string()),
            default: key.default_text(),
            unit: key.unit,
            origin: self.origin(key.path).to_string(),
        };
        KEYS.iter().map(shown).collect()
    }

    /// The effective settings as a configuration file, each line with its origin.
    pub fn show(&self) -> String {
        let mut out = String::new();
        for (section, _) in SECTIONS {
            let _ = writeln!(out, "{}[{section}]", if out.is_empty() { "" } else { "\n" });
            for key in keys_of(section) {
                let origin = self.origin(key.path);
                let line = match (key.get)(&self.settings) {
                    Some(value) => format!("{} = {value}", key.name()),
                    None => format!("# {} is not set: {}", key.name(), key.default_text()),
                };
                let _ = writeln!(out, "{line:<48}  # {origin}");
            }
        }
        out
    }
}

/// A configuration file that documents every key and, as it is, sets none.
pub fn default_file() -> String {
    let mut out = String::from(
        "# Configuration of `stateside serve`. Every key is shown with its default, commented out;\n\
         # remove the leading # to set it. A flag is stronger than an environment variable, that is\n\
         # stronger than this file. Relative paths start from the working directory.\n",
    );
    for (section, about) in SECTIONS {
        let _ = writeln!(out, "\n# {about}\n[{section}]");
        for key in keys_of(section) {
            let mut text = key.doc.to_owned();
            if !key.unit.is_empty() {
                let _ = write!(text, " Unit: {}.", key.unit);
            }
            if let Default::Words(words, _) = key.default {
                let _ = write!(text, " Default: {words}.");
            }
            if let Some((flag, variable)) = key.flag {
                let _ = write!(text, " Also {flag} and {variable}.");
            }
            out.push('\n');
            for line in wrap(&text) {
                let _ = writeln!(out, "# {line}");
            }
            let (Default::Is(value) | Default::Words(_, value)) = key.default;
            let _ = writeln!(out, "#{} = {value}", key.name());
            if key.kind == Kind::Pipeline {
                stages(&mut out);
            }
        }
    }
    out
}

/// What a pipeline can be made of, as comments.
fn stages(out: &mut String) {
    for definition in stateside_pipeline::definitions() {
        let _ = writeln!(out, "\n# Stage \"{}\".", definition.kind);
        for line in wrap(definition.doc) {
            let _ = writeln!(out, "# {line}");
        }
        for option in definition.all_options() {
            let text = format!(
                "  {}: {}. {} Default: {}.",
                option.name, option.kind, option.doc, option.default
            );
            for line in wrap(&text) {
                let _ = writeln!(out, "# {line}");
            }
        }
    }
}

/// The page `docs/configuration.md`.
pub fn documentation() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         `stateside serve` takes its settings from a TOML file (`--config FILE` or `STATESIDE_CONFIG`), environment\n\
         variables and flags. A flag is stronger than a variable, a variable stronger than the file, the file stronger\n\
         than the default. An unknown key is refused with file and line. Relative paths start from the working directory.\n\n\
         - `stateside config default` prints a file with every key, commented.\n\
         - `stateside config show` prints the settings in force and where each came from.\n\
         - `stateside config check` reports everything that is wrong, also rules between settings.\n\n\
         This page is made from the table that the node itself uses: `UPDATE_DOCS=1 cargo test -p stateside-node documentation`.\n",
    );
    for (section, about) in SECTIONS {
        let _ = writeln!(out, "\n## [{section}]\n\n{about}\n");
        let _ = writeln!(out, "| key | default | unit | flag, variable | meaning |");
        let _ = writeln!(out, "|---|---|---|---|---|");
        for key in keys_of(section) {
            let flag = key
                .flag
                .map_or(String::new(), |(flag, variable)| format!("`{flag}`, `{variable}`"));
            let (name, default, unit, doc) = (key.name(), key.default, key.unit, key.doc);
            let _ = writeln!(out, "| `{name}` | {default} | {unit} | {flag} | {doc} |");
        }
    }
    out
}

/// The table of the stores' options in `docs/pipeline.md`.
#[cfg(test)]
pub(super) fn store_options() -> String {
    let mut out = String::from("\n| option | default | unit | meaning |\n|---|---|---|---|\n");
    for key in KEYS.iter().filter(|key| key.path.starts_with("store.")) {
        let _ = writeln!(out, "| `{}` | {} | {} | {} |", key.path, key.default, key.unit, key.doc);
    }
    out.push('\n');
    out
}

fn keys_of(section: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.section() == section)
}

fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() > COMMENT_COLUMNS {
            lines.push(word.to_owned());
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines
}
