//! What a stage of one's own is made with, for binaries that embed the node: see
//! `examples/own-stage`.

pub use stateside_pipeline::{
    Changes, OptionDefinition, OptionError, OptionKind, Outlet, PREFIX, Prefixes, Progress,
    RegisterError, Stage, StageDefinition, Write, definitions, read_stage, register,
};
pub use stateside_types::{
    Change, OptionValue, PipelineSpec, Reason, Refusal, StageKind, StageSpec, WallClock, WriteEntry,
};
