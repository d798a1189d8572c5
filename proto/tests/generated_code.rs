//! The committed generated code is what the `.proto` files say.

use std::{fs, path::Path};

#[test]
fn committed_code_matches_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile(
        ["stateside/v1/data_plane.proto", "stateside/v1/control_plane.proto"],
        [root],
    )
    .expect("the .proto files compile");
    let out = tempfile::tempdir().unwrap();
    let descriptor_file = out.path().join("descriptors.bin");
    fs::write(&descriptor_file, prost::Message::encode_to_vec(&descriptors)).unwrap();
    tonic_prost_build::configure()
        .build_transport(false)
        .out_dir(out.path())
        .compile_fds(descriptors)
        .expect("code generation succeeds");
    for name in ["stateside.v1.rs", "descriptors.bin"] {
        let fresh = fs::read(out.path().join(name)).unwrap();
        let committed = root.join("src/generated").join(name);
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            fs::create_dir_all(committed.parent().unwrap()).unwrap();
            fs::write(&committed, &fresh).unwrap();
        }
        assert!(
            fs::read(&committed).unwrap_or_default() == fresh,
            "{} is out of date: UPDATE_GENERATED=1 cargo test -p stateside-proto --test generated_code",
            committed.display()
        );
    }
}
