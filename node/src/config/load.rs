//! Layers defaults, file, environment and flags, and reads TOML with line numbers. Relative paths
//! are left as they are: they start from the working directory, wherever they are written.

use std::{collections::BTreeMap, fs, io, ops::Range, path::Path};

use stateside_types::limits;
use toml_edit::{Document, Item, TableLike};

use super::{
    ConfigError, ConfigErrors, Loaded, Origin, Overrides, Settings, Surroundings, checks,
    keys::{KEYS, Key, Kind, SECTIONS, Value},
};

const CONFIG_VARIABLE: &str = "STATESIDE_CONFIG";

pub(super) fn load(
    overrides: &Overrides,
    surroundings: &Surroundings,
) -> Result<Loaded, ConfigErrors> {
    let mut layers = Layers {
        settings: Settings::defaults(surroundings),
        origins: BTreeMap::new(),
        errors: Vec::new(),
    };
    let variable = |name| (surroundings.environment)(name).filter(|value| !value.is_empty());
    let file = overrides.config.clone().or_else(|| variable(CONFIG_VARIABLE).map(Into::into));
    if let Some(path) = &file {
        layers.read_file(path);
    }
    for (key, name) in with_flag(|_, variable| variable) {
        if let Some(text) = variable(name) {
            layers.set_text(key, &text, Origin::Environment(name));
        }
    }
    for (key, flag) in with_flag(|flag, _| flag) {
        if let Some(text) = overrides.text_of(flag) {
            layers.set_text(key, &text, Origin::Flag(flag));
        }
    }
    if layers.errors.is_empty() {
        layers.errors = checks::check(&layers.settings, |key| layers.place_of(key));
    }
    if !layers.errors.is_empty() {
        return Err(ConfigErrors(layers.errors));
    }
    let warnings = checks::warnings(&layers.settings, surroundings);
    Ok(Loaded { settings: layers.settings, warnings, origins: layers.origins })
}

impl Overrides {
    fn text_of(&self, flag: &str) -> Option<String> {
        let path = |path: &Option<std::path::PathBuf>| {
            path.as_ref().map(|path| path.display().to_string())
        };
        match flag {
            "--data-dir" => path(&self.data_dir),
            "--listen" => self.listen.clone(),
            "--control-listen" => self.control_listen.clone(),
            "--metrics-listen" => self.metrics_listen.clone(),
            "--cores" => self.cores.clone(),
            "--ack" => self.ack.clone(),
            "--node-id" => self.node_id.clone(),
            "--unix-socket" => path(&self.unix_socket),
            "--registry" => path(&self.registry),
            "--log-format" => self.log_format.clone(),
            "--log-level" => self.log_level.clone(),
            other => unreachable!("the key table names the flag {other}, which Overrides lacks"),
        }
    }
}

/// Reads one value written in TOML.
pub(super) fn parse_value(toml: &str) -> Option<Value> {
    to_value(&toml.parse::<toml_edit::Value>().ok()?)
}

struct Layers {
    settings: Settings,
    origins: BTreeMap<&'static str, Origin>,
    errors: Vec<ConfigError>,
}

impl Layers {
    fn read_file(&mut self, path: &Path) {
        let text = match read_text(path) {
            Ok(text) => text,
            Err(message) => {
                let place = path.display().to_string();
                return self.errors.push(ConfigError { place, message });
            }
        };
        let lines = Lines { path, text: &text };
        match Document::parse(text.as_str()) {
            Ok(document) => self.read_table(&lines, "", document.as_table()),
            Err(error) => {
                // The parser's message is a block with a drawing; its first line says what.
                let message = error.message().lines().collect::<Vec<_>>().join(", ");
                self.fail(lines.place(error.span()), format!("not TOML: {message}"));
            }
        }
    }

    fn read_table(&mut self, lines: &Lines<'_>, section: &str, table: &dyn TableLike) {
        for (name, item) in table.iter() {
            let path =
                if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
            let span = table.key(name).and_then(toml_edit::Key::span).or_else(|| item.span());
            let is_section = is_section(&path);
            if let (true, Some(inner)) = (is_section, item.as_table_like()) {
                self.read_table(lines, &path, inner);
                continue;
            }
            let place = lines.place(span.clone());
            if is_section {
                self.fail(place, format!("`{path}` is a section: write [{path}]"));
            } else if let Some(key) = KEYS.iter().find(|key| key.path == path) {
                match read_value(key, item) {
                    Ok(value) => {
                        let line = lines.line(span);
                        let origin = Origin::File { path: lines.path.to_owned(), line };
                        self.set(key, value, origin);
                    }
                    Err((within, message)) => {
                        let place = within.map_or(place, |span| lines.place(Some(span)));
                        self.fail(place, format!("{path}: {message}"));
                    }
                }
            } else {
                self.fail(place, unknown(&path, section));
            }
        }
    }

    fn set_text(&mut self, key: &'static Key, text: &str, origin: Origin) {
        match key.parse_text(text) {
            Ok(value) => self.set(key, value, origin),
            Err(message) => self.fail(origin.to_string(), format!("{}: {message}", key.path)),
        }
    }

    fn set(&mut self, key: &'static Key, value: Value, origin: Origin) {
        match key.accept(&mut self.settings, value) {
            Ok(()) => {
                self.origins.insert(key.path, origin);
            }
            Err(message) => self.fail(origin.to_string(), format!("{}: {message}", key.path)),
        }
    }

    fn fail(&mut self, place: String, message: String) {
        self.errors.push(ConfigError { place, message });
    }

    fn place_of(&self, key: &str) -> String {
        self.origins.get(key).unwrap_or(&Origin::Default).to_string()
    }
}

/// A file's text, to turn positions into lines.
struct Lines<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Lines<'_> {
    fn line(&self, span: Option<std::ops::Range<usize>>) -> usize {
        let at = span.map_or(0, |span| span.start).min(self.text.len());
        1 + self.text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count()
    }

    fn place(&self, span: Option<std::ops::Range<usize>>) -> String {
        format!("{}:{}", self.path.display(), self.line(span))
    }
}

fn with_flag(
    which: impl Fn(&'static str, &'static str) -> &'static str,
) -> impl Iterator<Item = (&'static Key, &'static str)> {
    KEYS.iter().filter_map(move |key| {
        let (flag, variable) = key.flag?;
        Some((key, which(flag, variable)))
    })
}

fn read_text(path: &Path) -> Result<String, String> {
    let describe = |error: &io::Error| match error.kind() {
        io::ErrorKind::NotFound => "the configuration file does not exist".to_owned(),
        io::ErrorKind::PermissionDenied => "the configuration file may not be read".to_owned(),
        _ => format!("the configuration file cannot be read: {error}"),
    };
    let metadata = fs::metadata(path).map_err(|error| describe(&error))?;
    if !metadata.is_file() {
        return Err("the configuration file is no regular file".to_owned());
    }
    if metadata.len() > limits::TEXT_FILE_BYTES_MAX {
        return Err(format!(
            "the configuration file is larger than {} bytes",
            limits::TEXT_FILE_BYTES_MAX
        ));
    }
    let bytes = fs::read(path).map_err(|error| describe(&error))?;
    String::from_utf8(bytes).map_err(|_| "the configuration file is not UTF-8 text".to_owned())
}

fn is_section(path: &str) -> bool {
    SECTIONS.iter().any(|(section, _)| {
        *section == path || section.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'))
    })
}

fn unknown(path: &str, section: &str) -> String {
    let keys: Vec<_> = KEYS.iter().filter(|key| key.section() == section).map(Key::name).collect();
    let nested = SECTIONS.iter().filter_map(|(name, _)| {
        let rest = if section.is_empty() {
            name
        } else {
            name.strip_prefix(section)?.strip_prefix('.')?
        };
        Some(rest.split('.').next().unwrap_or(rest))
    });
    let mut sections: Vec<_> = nested.map(|name| format!("[{name}]")).collect();
    sections.dedup();
    let known = keys.into_iter().map(str::to_owned).chain(sections).collect::<Vec<_>>().join(", ");
    let of = if section.is_empty() { String::new() } else { format!(" in [{section}]") };
    format!("unknown key `{path}`; known{of}: {known}")
}

/// The value of a key, or what is wrong with it and where in it.
fn read_value(key: &Key, item: &Item) -> Result<Value, (Option<Range<usize>>, String)> {
    if key.kind == Kind::Pipeline {
        let read = stateside_registry::read_pipeline(item);
        return read.map(Value::Pipeline).map_err(|error| (error.span, error.message));
    }
    item.as_value().and_then(to_value).ok_or_else(|| (None, format!("expected {}", key.kind)))
}

fn to_value(value: &toml_edit::Value) -> Option<Value> {
    match value {
        toml_edit::Value::String(text) => Some(Value::Text(text.value().clone())),
        toml_edit::Value::Integer(number) => Some(Value::Integer(*number.value())),
        _ => None,
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
