//! The `stateside` binary.

use std::process::ExitCode;

// Stores, messages and answers are many small allocations of a few sizes on threads of their own:
// what mimalloc is made for. Memory freed by another thread goes back to its owner.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    stateside_node::cli::run()
}
