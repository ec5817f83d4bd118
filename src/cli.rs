//! The command line as typed: which command, and what it prints.
//!
//! Knows words and exit codes, not servers. The settings of `nereid serve` are read by [`Config`]; here they are only
//! listed for the help. Exit codes: 0 done, 1 failed, 2 wrong words.

use std::ffi::OsStr;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::backend::{libtorch, onnx};
use crate::config::typed::parse_bool;
use crate::config::{Config, Door, flags};
use crate::engine;
use crate::error::{Error, Result};
use crate::protocol;
use crate::server;

/// What is left behind a server's stop, and is nobody's, may take to end.
const LEFTOVERS_TIME_MAX: Duration = Duration::from_millis(500);

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    // clap ends at the first mistake; `Config` reports all of them, so clap sees `serve` only to print its help.
    let wants_help = words.iter().skip(2).any(|word| word == "--help" || word == "-h");
    if words.get(1).is_some_and(|command| command == "serve") && !wants_help {
        return serve(&words[2..]);
    }
    match dispatch(&command().get_matches_from(words)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nereid: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &[String]) -> ExitCode {
    let config = match Config::from_process(args) {
        Ok(config) => config,
        Err(mistakes) => {
            for mistake in &mistakes.0 {
                eprintln!("nereid: {mistake}");
            }
            return ExitCode::from(2);
        }
    };
    // The threads that serve requests are the front end's own; what is left for this one is little.
    let result = runtime(1).and_then(|runtime| run_on(runtime, server::run(config)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nereid: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What `work` comes to. Calls of the system that go on behind it may never end, and are left alone after a moment: the
/// stop has waited, as long as it may, for all that has to be done.
fn run_on<T>(runtime: tokio::runtime::Runtime, work: impl Future<Output = T>) -> T {
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(LEFTOVERS_TIME_MAX);
    result
}

fn dispatch(matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("check", given)) => check(given),
        Some(("inspect", given)) => match given.get_one::<PathBuf>("compare") {
            Some(model) => compare(model),
            None => inspect(&path(given, "FILE")),
        },
        Some(("torchscript", given)) => match paths(given, "FILE").as_slice() {
            [source, out] => torchscript(source, None, out),
            [source, weights, out] => torchscript(source, Some(weights), out),
            _ => Err(Error::invalid("torchscript takes two or three files")),
        },
        Some(("health", given)) => health(given),
        _ => Err(Error::invalid("no command")),
    }
}

fn health(given: &ArgMatches) -> Result<()> {
    let (grpc, http) = match (given.get_one::<String>("grpc"), given.get_one::<String>("http")) {
        (None, None) => match Config::door_of_process() {
            Door::Grpc(address) => (Some(address), None),
            Door::Http(address) => (None, Some(address)),
        },
        (grpc, http) => (grpc.cloned(), http.cloned()),
    };
    let timeout = Duration::from_millis(*given.get_one::<u64>("timeout-ms").unwrap_or(&1000));
    let root = given.get_one::<PathBuf>("root-cert").map(PathBuf::as_path);
    let runtime = runtime(1)?;
    let live = given.get_flag("live");
    let what = if live { "live" } else { "ready" };
    if let Some(address) = grpc {
        runtime.block_on(protocol::grpc::probe::ask(&address, root, timeout, live))?;
        println!("{address} is {what}");
    }
    if let Some(address) = http {
        runtime.block_on(protocol::http::probe::ask(&address, root, timeout, live))?;
        println!("{address} is {what}");
    }
    Ok(())
}

fn runtime(threads: usize) -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("main")
        .enable_all()
        .build()
        .map_err(|error| Error::internal(format!("cannot start a thread: {error}")))
}

fn path(given: &ArgMatches, name: &str) -> PathBuf {
    given.get_one::<PathBuf>(name).cloned().unwrap_or_default()
}

fn paths(given: &ArgMatches, name: &str) -> Vec<PathBuf> {
    given.get_many::<PathBuf>(name).into_iter().flatten().cloned().collect()
}

fn path_arg(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).required(true).value_parser(value_parser!(PathBuf)).help(help)
}

fn command() -> Command {
    Command::new("nereid")
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(serve_command())
        .subcommand(
            Command::new("check")
                .about("Validate model repositories without serving: every mistake with file and line; exit 1 if any")
                .arg(path_arg("DIR", "Directory of models").num_args(1..))
                .args(["onnxruntime", "allow-aoti", "model-config-name"].into_iter().filter_map(flags::find).map(arg_of)),
        )
        .subcommand(
            Command::new("inspect")
                .about("Say what a file in TorchScript or ONNX, or a package of AOTInductor, takes and gives, and a config.pbtxt to start from")
                .arg(
                    path_arg("FILE", "Model file, such as model.pt, model.pt2 or model.onnx")
                        .required(false)
                        .required_unless_present("compare"),
                )
                .arg(
                    Arg::new("compare")
                        .long("compare")
                        .value_name("DIR")
                        .value_parser(value_parser!(PathBuf))
                        .conflicts_with("FILE")
                        .help("Instead: run a model's directory as configured and in fp32, and say how outputs differ"),
                ),
        )
        .subcommand(
            Command::new("torchscript")
                .about("Make a TorchScript file from source text and weights")
                .override_usage("nereid torchscript SOURCE [WEIGHTS] OUT")
                .arg(
                    path_arg("FILE", "TorchScript source; safetensors with its parameters; file to write")
                        .num_args(2..=3),
                ),
        )
        .subcommand(health_command())
}

fn health_command() -> Command {
    Command::new("health")
        .about("Ask a server whether it is ready; exit 0 if so")
        .arg(
            Arg::new("live")
                .long("live")
                .action(ArgAction::SetTrue)
                .help("Ask only whether it answers, ready or not: for who restarts it if it does not"),
        )
        .arg(Arg::new("grpc").long("grpc").value_name("HOST:PORT|unix:PATH").help(
            "Where the server's gRPC is [default: by NEREID_GRPC_ADDRESS and NEREID_GRPC_PORT, or the file of \
             NEREID_CONFIG, else 127.0.0.1:8001]",
        ))
        .arg(Arg::new("http").long("http").value_name("HOST:PORT|unix:PATH").help(
            "Where its HTTP is, to ask there [default if NEREID_ALLOW_GRPC is false: by NEREID_HTTP_ADDRESS and \
             NEREID_HTTP_PORT, or the file, else 127.0.0.1:8000]",
        ))
        .arg(
            Arg::new("root-cert")
                .long("root-cert")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Ask in TLS; the certificate of who signed the server's, in PEM"),
        )
        .arg(
            Arg::new("timeout-ms")
                .long("timeout-ms")
                .default_value("1000")
                .value_parser(value_parser!(u64).range(1..=600_000))
                .help("How long to wait for the answer"),
        )
}

/// `serve` for the help only: one line for each setting.
fn serve_command() -> Command {
    let serve = Command::new("serve")
        .about("Serve model repositories")
        .override_usage("nereid serve --model-repository DIR [--SETTING=VALUE]...")
        .after_help(
            "Each setting is also read from the environment (NEREID_GRPC_PORT for --grpc-port) and from a TOML file \
             (--config FILE, or NEREID_CONFIG). The command line goes before the environment, the environment before \
             the file. Names may be written with dashes or underscores.",
        );
    flags::FLAGS.iter().fold(serve, |serve, flag| serve.arg(help_of(flag)))
}

fn help_of(flag: &'static flags::Flag) -> Arg {
    let (value, words) = match flag.value {
        flags::Value::Bool => ("BOOL", String::new()),
        flags::Value::Number(..) => ("N", String::new()),
        flags::Value::Choice(words) => ("WORD", format!(": {}", words.join(", "))),
        flags::Value::Text(name) | flags::Value::List(name) | flags::Value::Phrases(name) => (name, String::new()),
    };
    let default = flag.default.map(|default| format!(" [default: {default}]")).unwrap_or_default();
    let help = format!("{}{words}{default}", flag.help);
    Arg::new(flag.name).long(flag.name).value_name(value).help(help).help_heading(flag.heading)
}

/// A setting of `serve` that another command takes, too.
fn arg_of(flag: &'static flags::Flag) -> Arg {
    match flag.value {
        // Its value is written with an equals sign, as what follows is the command's own.
        flags::Value::Bool => help_of(flag)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(|text: &str| parse_bool(text).ok_or("is not true or false")),
        _ => help_of(flag),
    }
}

fn check(given: &ArgMatches) -> Result<()> {
    let onnxruntime = given.get_one::<String>("onnxruntime").map(PathBuf::from);
    let allow_aoti = given.get_one::<bool>("allow-aoti").copied().unwrap_or_default();
    let config_name = given.get_one::<String>("model-config-name").map(String::as_str);
    let backends = server::backends(onnxruntime, allow_aoti);
    // The bound of the queues has no part in what is right or wrong.
    let facts = engine::facts(&backends, server::cuda_devices(), 1);
    let report = engine::check::check(&paths(given, "DIR"), config_name, &backends, &facts)?;
    println!("{report}");
    match report.mistakes() {
        0 => Ok(()),
        1 => Err(Error::invalid("1 mistake in the model repositories")),
        mistakes => Err(Error::invalid(format!("{mistakes} mistakes in the model repositories"))),
    }
}

fn inspect(file: &Path) -> Result<()> {
    let text = match file.extension().and_then(OsStr::to_str) {
        Some("onnx") => onnx::inspect(file)?,
        Some("pt2") => libtorch::aoti::inspect(file)?,
        _ => libtorch::inspect(file)?,
    };
    print!("{text}");
    Ok(())
}

fn compare(model: &Path) -> Result<()> {
    let backends = server::backends(None, false);
    let facts = engine::facts(&backends, server::cuda_devices(), 1);
    print!("{}", engine::compare::compare(model, &backends, &facts)?);
    Ok(())
}

fn torchscript(source: &Path, weights: Option<&PathBuf>, out: &Path) -> Result<()> {
    libtorch::script::build(source, weights.map(PathBuf::as_path), out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn the_help_of_serve_lists_every_setting_with_its_default() {
        let help = serve_command().render_help().to_string();
        for flag in flags::FLAGS {
            assert!(help.contains(&format!("--{} ", flag.name)), "{}", flag.name);
        }
        assert!(help.contains("[default: 8001]"), "{help}");
    }

    #[test]
    fn the_end_does_not_wait_for_a_call_that_hangs() {
        let (_hangs, never) = std::sync::mpsc::channel::<()>();
        let (end, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let work = async move {
                // It runs before its handle is dropped.
                let (begun, begins) = tokio::sync::oneshot::channel();
                tokio::task::spawn_blocking(move || begun.send(()).map(|()| never.recv()));
                begins.await
            };
            end.send(run_on(runtime(1).expect("a thread"), work))
        });
        let ended = ended.recv_timeout(Duration::from_secs(20)).expect("nobody waits for it");
        assert!(ended.is_ok(), "it had begun");
    }

    #[test]
    fn check_takes_what_serve_takes_of_models() {
        let given = |line: &str| {
            let matches = command().try_get_matches_from(line.split(' ')).expect(line);
            let given = matches.subcommand_matches("check").expect("it is the command").clone();
            let allow_aoti = given.get_one::<bool>("allow-aoti").copied();
            (paths(&given, "DIR"), allow_aoti, given.get_one::<String>("model-config-name").cloned())
        };
        let roots = vec![PathBuf::from("a"), PathBuf::from("b")];
        assert_eq!(given("nereid check a b"), (roots.clone(), None, None));
        let line = "nereid check --allow-aoti --model-config-name=gpu --onnxruntime x.so a b";
        assert_eq!(given(line), (roots.clone(), Some(true), Some("gpu".to_owned())));
        assert_eq!(given("nereid check --allow-aoti=off a b"), (roots, Some(false), None));
        assert!(command().try_get_matches_from(["nereid", "check", "--allow-aoti=maybe", "a"]).is_err());
    }

    #[test]
    fn a_file_to_inspect_is_required() {
        assert!(command().try_get_matches_from(["nereid", "inspect"]).is_err());
        assert!(command().try_get_matches_from(["nereid", "inspect", "model.pt"]).is_ok());
        assert!(command().try_get_matches_from(["nereid", "inspect", "--compare", "model"]).is_ok());
    }
}
