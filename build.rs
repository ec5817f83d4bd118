//! Generates the wire types from `proto/`, compiles the C++ shim over libtorch, and says where libraries are at run time.

#![allow(clippy::disallowed_methods, reason = "a build script is told everything by its environment")]

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    generate_wire_types(&out)?;
    compile_shim(&out)?;
    compile_alone(Path::new("src/backend/libtorch/mkl_fast_path.c"), &out, &[])?;
    compile_alone(Path::new("src/backend/libtorch/aoti/libtorch.c"), &out, &["-Wl,-soname,libtorch.so"])?;
    run_time_search_paths();
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

/// The shim becomes a shared object of its own, which the binary embeds and loads when libtorch was found: so nothing in
/// the binary itself needs libtorch, and one that is missing is an error message instead of a failure to start.
fn compile_shim(out: &Path) -> Result<(), Box<dyn Error>> {
    let folder = Path::new("src/backend/libtorch");
    let sources = ["shim.cpp", "shim_aoti.cpp"];
    let headers = [
        "shim.h",
        "shim_aoti.h",
        "shim_base.h",
        "shim_convolution.h",
        "shim_frozen.h",
        "shim_packed.h",
        "shim_precision.h",
        "shim_storages.h",
    ];
    for file in sources.iter().chain(&headers) {
        println!("cargo:rerun-if-changed={}", folder.join(file).display());
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = PathBuf::from(env::var("LIBTORCH")?);
    if !libtorch.join("include/torch").is_dir() {
        return Err(format!("no libtorch in {}: run `make setup`, or set LIBTORCH", libtorch.display()).into());
    }
    let mut command = cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .pic(true)
        .debug(false)
        .flag("-fvisibility=hidden")
        .flag("-Wno-unused-parameter")
        .try_get_compiler()?
        .to_command();
    for include in ["include", "include/torch/csrc/api/include"] {
        command.arg("-isystem").arg(libtorch.join(include));
    }
    command.args(sources.map(|file| folder.join(file))).args(["-shared", "-s", "-o"]).arg(out.join("shim.so"));
    command.arg("-L").arg(libtorch.join("lib")).args(["-ltorch_cpu", "-lc10", "-Wl,-z,defs"]);
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("the shim does not compile: {status}").into()) }
}

/// A library of one source file that needs no other library.
fn compile_alone(source: &Path, out: &Path, flags: &[&str]) -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={}", source.display());
    let library = out.join(source.with_extension("so").file_name().ok_or("a source file has a name")?);
    let mut command = cc::Build::new().opt_level(2).pic(true).debug(false).try_get_compiler()?.to_command();
    command.arg(source).args(["-shared", "-s"]).args(flags).arg("-o").arg(library);
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("{} does not compile: {status}", source.display()).into()) }
}

/// A binary looks for libtorch and ONNX Runtime beside itself when installed, and in `third_party/` when run from
/// `target/`.
fn run_time_search_paths() {
    let installed = ["$ORIGIN/../lib", "$ORIGIN/../onnxruntime/lib"].map(str::to_owned);
    let fetched = ["libtorch/torch/lib", "onnxruntime/lib"]
        .into_iter()
        .flat_map(|folder| ["../..", "../../.."].map(|root| format!("$ORIGIN/{root}/third_party/{folder}")));
    let paths: Vec<String> = installed.into_iter().chain(fetched).collect();
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", paths.join(":"));
}
