//! The contract: `.proto` files, the types generated from them, and the data plane's own codec.
//!
//! `generated/` is committed, so a build needs neither `protoc` nor a code generator; the test
//! `generated_code` makes it anew from the `.proto` files and fails when it differs
//! (`UPDATE_GENERATED=1 cargo test -p stateside-proto --test generated_code` rewrites it).
//!
//! [`v1`] has the prost types, for clients and the control plane. The node's data plane uses
//! [`codec`] instead: it reads requests where they lie and allocates nothing per entry.

pub mod codec;
mod convert;
pub mod scan;
pub mod session;

/// Types, clients and servers of package `stateside.v1`.
pub mod v1 {
    #![allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
    include!("generated/stateside.v1.rs");
}

/// Descriptors of every contract file, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptors.bin");
