//! The behaviours in `e2e/cases.json`, carried out by a client that speaks JSON.
//!
//! The same file is interpreted by a Python and a Node program; README.md explains the notation.
//! Messages are in protobuf's JSON form: lowerCamelCase names, bytes in base64, 64-bit numbers as
//! strings; a field that is absent has its default.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Map, Value, json};

use crate::{
    requirements::workspace_root,
    rpc::{Failure, OVERLOADED, OVERLOADED_RETRIES},
};

/// The domain of every ErrorInfo of Stateside.
const DOMAIN: &str = "stateside.dev";

/// How long a step waits for the answer that it expects.
const PATIENCE: Duration = Duration::from_secs(10);

/// One call, ready to be made.
#[derive(Clone, Debug)]
pub struct Call {
    /// `package.Service/Method`.
    pub method: String,
    /// The request in JSON form.
    pub request: Value,
    /// Deadline, milliseconds; 0 has passed before the call begins.
    pub deadline_ms: Option<u64>,
}

/// Something that can make calls: tonic, grpcurl.
pub trait Caller {
    /// The name that a case's `except` uses.
    fn name(&self) -> &'static str;
    /// Makes a call; the answer is in JSON form.
    ///
    /// # Errors
    /// The failure that the client saw.
    fn call(&mut self, call: &Call) -> Result<Value, Box<Failure>>;
}

/// Carries out all cases; answers how many passed.
///
/// # Errors
/// Every case that failed, with the step and what was wrong.
pub fn run_all(caller: &mut impl Caller, run: &str) -> Result<usize, String> {
    let path = workspace_root().join("e2e/cases.json");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let file: Value =
        serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    let cases = file["cases"].as_array().ok_or("cases.json holds no cases")?;
    let mut failed = Vec::new();
    for case in cases {
        let name = case["name"].as_str().unwrap_or("a case without a name");
        let mut runner = Runner { caller, run, variables: BTreeMap::new() };
        match runner.run_case(case) {
            Ok(()) => println!("ok {name}"),
            Err(problem) => {
                println!("FAILED {name}: {problem}");
                failed.push(format!("{name}: {problem}"));
            }
        }
    }
    if failed.is_empty() { Ok(cases.len()) } else { Err(failed.join("\n")) }
}

struct Runner<'a, C> {
    caller: &'a mut C,
    run: &'a str,
    variables: BTreeMap<String, u64>,
}

impl<C: Caller> Runner<'_, C> {
    fn run_case(&mut self, case: &Value) -> Result<(), String> {
        for (index, step) in case["steps"].as_array().into_iter().flatten().enumerate() {
            self.run_step(step).map_err(|problem| {
                format!("step {} ({}): {problem}", index + 1, step["call"].as_str().unwrap_or("?"))
            })?;
        }
        Ok(())
    }

    fn run_step(&mut self, step: &Value) -> Result<(), String> {
        if !step["except"][self.caller.name()].is_null() {
            return Ok(());
        }
        if step["untilExpected"] == json!(true) {
            return self.run_until_expected(step);
        }
        let until_error = step["untilError"] == json!(true);
        for i in 0..step["repeat"].as_u64().unwrap_or(1) {
            let call = Call {
                method: full_method(step["call"].as_str().unwrap_or_default()),
                request: self.expand(&step["request"], i)?,
                deadline_ms: step["deadlineMs"].as_u64(),
            };
            match (self.call_patiently(&call), &step["error"]) {
                (Ok(_), error) if until_error && !error.is_null() => {}
                (Ok(answer), Value::Null) => self.check(&step["expect"], &answer, "answer", i)?,
                (Ok(_), error) => return Err(format!("succeeded, expected {error}")),
                (Err(failure), Value::Null) => {
                    return Err(format!(
                        "failed: {} {} ({})",
                        failure.code, failure.reason, failure.message
                    ));
                }
                (Err(failure), error) => return check_failure(error, &failure),
            }
        }
        if until_error { Err("no call failed".to_owned()) } else { Ok(()) }
    }

    fn run_until_expected(&mut self, step: &Value) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let call = Call {
                method: full_method(step["call"].as_str().unwrap_or_default()),
                request: self.expand(&step["request"], 0)?,
                deadline_ms: None,
            };
            let answer = self.call_patiently(&call).map_err(|failure| failure.message)?;
            match self.check(&step["expect"], &answer, "answer", 0) {
                Err(_) if Instant::now() < deadline => {}
                done => return done,
            }
        }
    }

    /// Sends what was refused as `OVERLOADED` again, after the delay that the node asks for.
    fn call_patiently(&mut self, call: &Call) -> Result<Value, Box<Failure>> {
        for _ in 0..OVERLOADED_RETRIES {
            match self.caller.call(call) {
                Err(failure) if failure.reason == OVERLOADED => {
                    std::thread::sleep(failure.retry_after.unwrap_or_default());
                }
                other => return other,
            }
        }
        self.caller.call(call)
    }

    /// Writes out the notation of a request.
    fn expand(&self, value: &Value, i: u64) -> Result<Value, String> {
        match value {
            Value::Object(fields) => {
                if let Some(bytes) = self.bytes(fields, i) {
                    return Ok(bytes?.into());
                }
                if let Some(name) = fields.get("$value") {
                    return Ok(self.variable(name)?.to_string().into());
                }
                if let Some(count) = fields.get("$each") {
                    let count = count.as_u64().ok_or("$each takes a number")?;
                    return (0..count).map(|i| self.expand(&fields["of"], i)).collect();
                }
                fields
                    .iter()
                    .map(|(name, value)| Ok((name.clone(), self.expand(value, i)?)))
                    .collect::<Result<Map<_, _>, String>>()
                    .map(Value::Object)
            }
            Value::Array(items) => items.iter().map(|item| self.expand(item, i)).collect(),
            other => Ok(other.clone()),
        }
    }

    /// `$text`, `$hex` and `$fill`: bytes, in base64.
    fn bytes(&self, fields: &Map<String, Value>, i: u64) -> Option<Result<String, String>> {
        let bytes = if let Some(text) = fields.get("$text").and_then(Value::as_str) {
            text.replace("{run}", self.run).replace("{i}", &i.to_string()).into_bytes()
        } else if let Some(hex) = fields.get("$hex").and_then(Value::as_str) {
            let pairs = (0..hex.len()).step_by(2);
            match pairs.map(|at| u8::from_str_radix(&hex[at..at + 2], 16)).collect() {
                Ok(bytes) => bytes,
                Err(error) => return Some(Err(format!("$hex {hex}: {error}"))),
            }
        } else {
            let fill = fields.get("$fill").and_then(Value::as_str)?;
            fill.repeat(fields.get("bytes").and_then(Value::as_u64).unwrap_or(0) as usize)
                .into_bytes()
        };
        Some(Ok(BASE64.encode(bytes)))
    }

    fn variable(&self, name: &Value) -> Result<u64, String> {
        let name = name.as_str().unwrap_or_default();
        self.variables.get(name).copied().ok_or_else(|| format!("nothing saved as {name}"))
    }

    /// Compares an answer with what was expected; fields that are not named are not looked at.
    fn check(
        &mut self,
        expected: &Value,
        actual: &Value,
        path: &str,
        i: u64,
    ) -> Result<(), String> {
        let differs = || {
            let shown: String = actual.to_string().chars().take(200).collect();
            Err(format!("{path} is {shown}, expected {expected}"))
        };
        match expected {
            Value::Object(fields) => {
                if let Some(bytes) = self.bytes(fields, i) {
                    let bytes = bytes?;
                    return if actual.as_str().unwrap_or_default() == bytes {
                        Ok(())
                    } else {
                        differs()
                    };
                }
                if fields.keys().any(|name| name.starts_with('$')) {
                    return if ["$length", "$first", "$last", "$all"]
                        .iter()
                        .any(|n| fields.contains_key(*n))
                    {
                        self.check_list(fields, actual, path, i)
                    } else {
                        self.check_scalar(fields, actual, path)
                    };
                }
                for (name, value) in fields {
                    self.check(value, &actual[name], &format!("{path}.{name}"), i)?;
                }
                Ok(())
            }
            Value::Array(items) => {
                let actual = actual.as_array().map_or(&[][..], Vec::as_slice);
                if items.len() != actual.len() {
                    return Err(format!(
                        "{path} has {} elements, expected {}",
                        actual.len(),
                        items.len()
                    ));
                }
                for (at, (item, actual)) in items.iter().zip(actual).enumerate() {
                    self.check(item, actual, &format!("{path}[{at}]"), i)?;
                }
                Ok(())
            }
            scalar => {
                if shown(scalar) == shown(actual) {
                    Ok(())
                } else {
                    differs()
                }
            }
        }
    }

    fn check_list(
        &mut self,
        fields: &Map<String, Value>,
        actual: &Value,
        path: &str,
        i: u64,
    ) -> Result<(), String> {
        let list = actual.as_array().map_or(&[][..], Vec::as_slice);
        if let Some(length) = fields.get("$length").and_then(Value::as_u64)
            && list.len() as u64 != length
        {
            return Err(format!("{path} has {} elements, expected {length}", list.len()));
        }
        if let (Some(expected), Some(first)) = (fields.get("$first"), list.first()) {
            self.check(expected, first, &format!("{path}[0]"), i)?;
        }
        if let (Some(expected), Some(last)) = (fields.get("$last"), list.last()) {
            self.check(expected, last, &format!("{path}[last]"), i)?;
        }
        if let Some(expected) = fields.get("$all") {
            for (at, item) in list.iter().enumerate() {
                self.check(expected, item, &format!("{path}[{at}]"), i)?;
            }
        }
        Ok(())
    }

    fn check_scalar(
        &mut self,
        fields: &Map<String, Value>,
        actual: &Value,
        path: &str,
    ) -> Result<(), String> {
        if fields.contains_key("$nonempty") {
            let empty = actual.as_str().unwrap_or_default().is_empty();
            return if empty { Err(format!("{path} is empty")) } else { Ok(()) };
        }
        let number: u64 = match shown(actual).as_str() {
            "" => 0,
            text => text.parse().map_err(|_| format!("{path} is {text}, expected a number"))?,
        };
        for (rule, argument) in fields {
            let holds = match rule.as_str() {
                "$nonzero" => number != 0,
                "$same" => number == self.variable(argument)?,
                "$next" => number == self.variable(argument)? + 1,
                "$above" => number > self.variable(argument)?,
                "$save" => true,
                other => return Err(format!("cases.json: there is no rule {other}")),
            };
            if !holds {
                let against = self.variable(argument).map_or(String::new(), |v| format!(" of {v}"));
                return Err(format!("{path} is {number}, which is not {rule} {argument}{against}"));
            }
        }
        // After the comparisons: a step may compare with the value that it then replaces.
        if let Some(name) = fields.get("$save").and_then(Value::as_str) {
            self.variables.insert(name.to_owned(), number);
        }
        Ok(())
    }
}

fn full_method(short: &str) -> String {
    if short.contains('.') { short.to_owned() } else { format!("stateside.v1.{short}") }
}

/// A scalar's text; absent fields and defaults have none.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    if ["0", "false", "[]", "{}"].contains(&text.as_str()) { String::new() } else { text }
}

fn check_failure(expected: &Value, failure: &Failure) -> Result<(), String> {
    let wanted = |name: &str| expected[name].as_str();
    let mut wrong = Vec::new();
    if wanted("code").is_some_and(|code| code != failure.code) {
        wrong.push(format!("code is {} ({})", failure.code, failure.message));
    }
    if let Some(reason) = wanted("reason") {
        if reason != failure.reason {
            wrong.push(format!("reason is `{}` ({})", failure.reason, failure.message));
        }
        if failure.domain != DOMAIN {
            wrong.push(format!("domain is `{}`", failure.domain));
        }
        if failure.message.is_empty() {
            wrong.push("there is no message".to_owned());
        }
    }
    if expected["retry"].as_bool().is_some_and(|retry| retry != failure.retry_after.is_some()) {
        wrong.push(format!("retry delay is {:?}", failure.retry_after));
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("{}; expected {expected}", wrong.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers every call with the same JSON.
    struct Fixed(Result<Value, Box<Failure>>);

    impl Caller for Fixed {
        fn name(&self) -> &'static str {
            "fixed"
        }
        fn call(&mut self, _: &Call) -> Result<Value, Box<Failure>> {
            self.0.clone()
        }
    }

    fn run(answer: Result<Value, Box<Failure>>, steps: Value) -> Result<(), String> {
        let mut caller = Fixed(answer);
        let mut runner = Runner { caller: &mut caller, run: "r", variables: BTreeMap::new() };
        runner.run_case(&json!({ "steps": steps }))
    }

    #[test]
    fn absent_fields_are_defaults_and_wrong_ones_are_named() {
        let answer = || Ok(json!({"results": [{"version": "7"}]}));
        assert_eq!(
            run(
                answer(),
                json!([{"call": "A/B", "expect": {"results": [{"version": "7", "error": null, "timestamp": "0"}]}}])
            ),
            Ok(())
        );
        let wrong =
            run(answer(), json!([{"call": "A/B", "expect": {"results": [{"version": "8"}]}}]));
        assert!(wrong.unwrap_err().contains("answer.results[0].version"));
        assert!(run(answer(), json!([{"call": "A/B", "expect": {"results": []}}])).is_err());
    }

    #[test]
    fn saved_numbers_are_compared() {
        let answer = || Ok(json!({"version": "7"}));
        let save = json!({"call": "A/B", "expect": {"version": {"$save": "v"}}});
        let with = |rule: &str| json!([save, {"call": "A/B", "expect": {"version": {rule: "v"}}}]);
        assert!(run(answer(), with("$same")).is_ok());
        assert!(run(answer(), with("$next")).is_err());
        assert!(run(answer(), with("$above")).is_err());
        assert!(
            run(answer(), json!([{"call": "A/B", "expect": {"version": {"$same": "w"}}}])).is_err()
        );
    }

    #[test]
    fn a_success_where_a_failure_was_expected_is_one() {
        assert!(
            run(Ok(json!({})), json!([{"call": "A/B", "error": {"code": "INTERNAL"}}])).is_err()
        );
        assert!(
            run(
                Ok(json!({})),
                json!([{"call": "A/B", "repeat": 3, "untilError": true, "error": {}}])
            )
            .is_err()
        );
    }

    #[test]
    fn bytes_are_written_out() {
        let mut caller = Fixed(Ok(json!({})));
        let runner = Runner { caller: &mut caller, run: "r", variables: BTreeMap::new() };
        let expanded = runner.expand(
            &json!([{"$text": "{run}{i}"}, {"$hex": "00ff"}, {"$fill": "x", "bytes": 3}, {"$each": 2, "of": {"$text": "{i}"}}]),
            4,
        );
        let b = |bytes: &[u8]| BASE64.encode(bytes);
        assert_eq!(
            expanded.unwrap(),
            json!([b(b"r4"), b(b"\x00\xff"), b(b"xxx"), [b(b"0"), b(b"1")]])
        );
    }
}
