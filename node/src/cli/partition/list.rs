//! `stateside partition list`.

use clap::Args;

use super::print_partitions;
use crate::{
    cli::{
        connection::{ControlArgs, TimeoutArgs},
        failure::Failure,
        output::Format,
    },
    exit::Exit,
};

/// List the partitions of the node.
#[derive(Args, Debug)]
pub(in crate::cli) struct ListArgs {
    #[command(flatten)]
    control: ControlArgs,
    #[command(flatten)]
    timeout: TimeoutArgs,
}

pub(super) async fn run(args: ListArgs, format: Format) -> Result<Exit, Failure> {
    let client = args.control.connect(args.timeout.timeout).await?;
    print_partitions(&client.list_partitions().await?, format)?;
    Ok(Exit::Done)
}
