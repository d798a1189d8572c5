//! Child processes of a step: output into the step's log, so that the terminal shows one line a
//! step, and the log's end when one fails.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::workspace;

/// The log file of one step.
pub(crate) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Starts an empty log for the step `name`.
    pub(crate) fn create(name: &str) -> io::Result<Self> {
        fs::create_dir_all(workspace::logs())?;
        let path = workspace::logs().join(format!("{name}.log"));
        let file = File::create(&path)?;
        Ok(Self { path, file })
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line.
    pub(crate) fn line(&mut self, text: &str) {
        // A log that cannot be written must not fail the step that it describes.
        let _ = writeln!(self.file, "{text}");
    }

    /// All of it so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.path).unwrap_or_default()).into_owned()
    }

    /// Runs `command` with its output in this log.
    ///
    /// # Errors
    /// A sentence: it could not be started, or how it ended when that was not success.
    pub(crate) fn run(&mut self, command: &mut Command) -> Result<(), String> {
        let shown = shown(command);
        self.line(&format!("$ {shown}"));
        let output = |log: &Self| log.file.try_clone().map(Stdio::from);
        let (stdout, stderr) = (output(self), output(self));
        let (Ok(stdout), Ok(stderr)) = (stdout, stderr) else {
            return Err(format!("cannot write {}", self.path.display()));
        };
        let status = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .status()
            .map_err(|error| format!("`{shown}` did not start: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("`{shown}` failed ({status})")) }
    }
}

/// A command that runs in the workspace's root.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(workspace::root());
    command
}

/// Cargo, the one that runs this program. No colours: the output goes into a log.
pub(crate) fn cargo() -> Command {
    let mut command = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // A failed assertion tells what failed; a backtrace of test code buries that.
    command.env("CARGO_TERM_COLOR", "never").env("RUST_BACKTRACE", "0");
    command
}

/// What `program --version` prints, or nothing when there is no such program.
pub(crate) fn first_line_of(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    if !output.status.success() {
        return None;
    }
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let mut text = program.to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}
