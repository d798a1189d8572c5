//! A pipeline in the manifest: a stage is its name, or an object of its name and options.
//!
//! ```json
//! ["clock", {"stage":"filter","deny":["tmp/"],"value_bytes_max":4096}]
//! ```

use serde_json::{Map, Value};
use stateside_pipeline::read_stage;
use stateside_types::{OptionValue, PipelineSpec, StageSpec};

const STAGE: &str = "stage";

/// A pipeline as the manifest has it.
pub(crate) fn to_json(pipeline: &PipelineSpec) -> Vec<Value> {
    pipeline.iter().map(stage_to_json).collect()
}

/// Reads it back.
///
/// # Errors
/// It is not a pipeline that this process can run, in words.
pub(crate) fn from_json(stages: &[Value]) -> Result<PipelineSpec, String> {
    let stages = stages.iter().map(stage_from_json).collect::<Result<Vec<_>, _>>()?;
    Ok(stages.into())
}

fn stage_to_json(stage: &StageSpec) -> Value {
    let name = Value::from(stage.kind().as_str());
    if stage.options().is_empty() {
        return name;
    }
    let mut object = Map::new();
    object.insert(STAGE.to_owned(), name);
    for (option, value) in stage.options() {
        object.insert((*option).to_owned(), option_to_json(value));
    }
    Value::Object(object)
}

fn option_to_json(value: &OptionValue) -> Value {
    match value {
        OptionValue::Text(text) => text.as_str().into(),
        OptionValue::Integer(number) => (*number).into(),
        OptionValue::Boolean(value) => (*value).into(),
        OptionValue::Texts(texts) => texts.as_slice().into(),
        OptionValue::Table(values) => {
            let values = values.iter().map(|(name, value)| (name.clone(), option_to_json(value)));
            Value::Object(values.collect())
        }
    }
}

fn stage_from_json(stage: &Value) -> Result<StageSpec, String> {
    let read = |name: &str, options| read_stage(name, options).map_err(|error| error.message);
    match stage {
        Value::String(name) => read(name, Vec::new()),
        Value::Object(object) => {
            let name = object.get(STAGE).and_then(Value::as_str);
            let name = name.ok_or("a stage of the pipeline has no name")?;
            let options = object.iter().filter(|(option, _)| *option != STAGE);
            let options = options.map(|(option, value)| Ok((option.clone(), option_value(value)?)));
            read(name, options.collect::<Result<_, String>>()?)
        }
        other => Err(format!("{other} is no stage of a pipeline")),
    }
}

fn option_value(value: &Value) -> Result<OptionValue, String> {
    let wrong = || format!("{value} is no option of a stage");
    Ok(match value {
        Value::String(text) => OptionValue::Text(text.clone()),
        Value::Bool(value) => OptionValue::Boolean(*value),
        Value::Number(number) => OptionValue::Integer(number.as_i64().ok_or_else(wrong)?),
        Value::Array(items) => {
            let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
            OptionValue::Texts(texts.collect::<Option<_>>().ok_or_else(wrong)?)
        }
        Value::Object(values) => {
            let values =
                values.iter().map(|(name, value)| Ok((name.clone(), option_value(value)?)));
            OptionValue::Table(values.collect::<Result<_, String>>()?)
        }
        Value::Null => return Err(wrong()),
    })
}
