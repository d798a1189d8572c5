//! The cases through the grpcurl command, one process a call.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{
    cases::{Call, Caller},
    requirements::workspace_root,
    rpc::{Failure, code_name},
};

/// The grpcurl command, aimed at one node.
pub struct Grpcurl {
    program: PathBuf,
    address: String,
}

impl Grpcurl {
    /// `program` is the command's path, `address` the data plane's `host:port`.
    pub fn new(program: &Path, address: &str) -> Self {
        Self { program: program.to_owned(), address: address.to_owned() }
    }

    fn run(&self, call: &Call) -> Result<(bool, String), String> {
        let root = workspace_root();
        let mut command = Command::new(&self.program);
        command
            .args(["-plaintext", "-format-error", "-max-msg-sz", "33554432", "-d", "@"])
            .arg("-import-path")
            .arg(root.join("proto"))
            .arg("-import-path")
            .arg(root.join("e2e/proto"))
            .args(["-proto", "stateside/v1/data_plane.proto", "-proto", "undefined.proto"])
            .args(["-proto", "grpc/health/v1/health.proto"])
            .args(["-proto", "google/rpc/error_details.proto"]);
        if let Some(limit_ms) = call.deadline_ms {
            command.arg("-max-time").arg((limit_ms as f64 / 1e3).to_string());
        }
        command.arg(&self.address).arg(&call.method);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{} did not start: {error}", self.program.display()))?;
        let mut stdin = child.stdin.take().expect("its standard input is a pipe");
        // grpcurl reads all of its input before it writes, so this cannot block for ever.
        let written = stdin.write_all(call.request.to_string().as_bytes());
        drop(stdin);
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        written.map_err(|error| format!("{error}: {}", text(&output.stderr)))?;
        let answer = if output.status.success() { &output.stdout } else { &output.stderr };
        Ok((output.status.success(), text(answer)))
    }
}

impl Caller for Grpcurl {
    fn name(&self) -> &'static str {
        "grpcurl"
    }

    fn call(&mut self, call: &Call) -> Result<Value, Box<Failure>> {
        let broken = |message: String| {
            Box::new(Failure {
                code: "NO_ANSWER".to_owned(),
                message,
                reason: String::new(),
                domain: String::new(),
                metadata: Default::default(),
                retry_after: None,
            })
        };
        let (succeeded, text) = self.run(call).map_err(broken)?;
        let parsed: Option<Value> = serde_json::from_str(text.trim()).ok();
        match parsed {
            Some(answer) if succeeded => Ok(answer),
            None if succeeded && text.trim().is_empty() => Ok(Value::Null),
            Some(status) => Err(Box::new(failure(&status))),
            None => Err(broken(text)),
        }
    }
}

/// Reads the `google.rpc.Status` that `-format-error` prints.
fn failure(status: &Value) -> Failure {
    let code = status["code"].as_i64().unwrap_or(2) as i32;
    let mut failure = Failure {
        code: code_name(tonic::Code::from_i32(code)).to_owned(),
        message: status["message"].as_str().unwrap_or_default().to_owned(),
        reason: String::new(),
        domain: String::new(),
        metadata: Default::default(),
        retry_after: None,
    };
    for detail in status["details"].as_array().into_iter().flatten() {
        let kind = detail["@type"].as_str().unwrap_or_default();
        let text = |name: &str| detail[name].as_str().unwrap_or_default().to_owned();
        if kind.ends_with("google.rpc.ErrorInfo") {
            failure.reason = text("reason");
            failure.domain = text("domain");
        } else if kind.ends_with("google.rpc.RetryInfo") {
            failure.retry_after = seconds(&text("retryDelay"));
        }
    }
    failure
}

/// A duration in protobuf's JSON form, `1.5s`.
fn seconds(text: &str) -> Option<Duration> {
    let number: f64 = text.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(number).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn details_are_read() {
        let failure = failure(&json!({"code": 8, "message": "m", "details": [
            {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "OVERLOADED", "domain": "d"},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.020s"}]}));
        assert_eq!(
            (failure.code.as_str(), failure.reason.as_str()),
            ("RESOURCE_EXHAUSTED", "OVERLOADED")
        );
        assert_eq!(failure.retry_after, Some(Duration::from_millis(20)));
    }
}
