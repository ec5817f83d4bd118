//! The settings as meant: validated once, complete, in the server's own types.
//!
//! [`Config::read`] is a pure function of the command line, the environment and the file; [`Config::from_process`] is
//! the only place that looks at the process's environment. All mistakes are reported at once. Begin with [`flags`].

mod cache;
pub mod flags;
mod front_ends;
mod instances;
mod memory;
mod metrics;
mod port;
mod restricted;
mod trace;
pub mod typed;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub use self::front_ends::{Grpc, Http, Metrics};
pub use self::port::Port;

use self::flags::Value;
use self::typed::{Environment, File, Given, Origin, Typed};
use crate::engine::{CacheSettings, Cloud, Device, MemoryLimit, Place, RemoteSettings, Root, SpillSettings};
use crate::telemetry::{self, logging};

/// Everything that `nereid serve` can be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The server's name in its metadata.
    pub id: String,
    /// The longest time a stop waits for requests in flight.
    pub exit_timeout: Duration,
    /// Whether a model that fails to load at the start ends the process.
    pub exit_on_error: bool,
    /// Whether the server is ready only when every model is.
    pub strict_readiness: bool,
    /// Threads for the network; at least one.
    pub threads: usize,
    /// Where models come from.
    pub repository: Repository,
    /// The library of ONNX Runtime; `None` for where it usually is.
    pub onnxruntime: Option<PathBuf>,
    /// Whether packages of AOTInductor, native code, may be loaded.
    pub allow_aoti: bool,
    /// What instances may take and where they run.
    pub instances: crate::engine::InstanceSettings,
    /// Whether MKL uses all instructions of processors that are not Intel's, too.
    pub mkl_fast_path: bool,
    /// What requests may hold together; `None` for the usual share of the host's memory.
    pub request_memory: Option<MemoryLimit>,
    /// The response cache; `None` for none.
    pub cache: Option<CacheSettings>,
    /// Regions of shared memory that clients may register; `None` if they may not.
    pub client_regions_max: Option<usize>,
    /// Whether gRPC is served on HTTP's port.
    pub single_port: bool,
    /// The gRPC front end; `None` for none.
    pub grpc: Option<Grpc>,
    /// The HTTP front end; `None` for none.
    pub http: Option<Http>,
    /// The metrics front end; `None` for none.
    pub metrics: Option<Metrics>,
    /// How to log.
    pub log: logging::Settings,
    /// What requests are traced, and where to.
    pub trace: telemetry::trace::Settings,
    /// What was given and ignored; to be logged once logging is there.
    pub warnings: Vec<String>,
}

/// Where models come from, and how they are loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Repository {
    /// Where models are; at least one place, all directories among them exist.
    pub roots: Vec<Root>,
    /// Whether each of them is a namespace, in which names may be those of others.
    pub namespacing: bool,
    /// How places in object stores are used.
    pub remote: RemoteSettings,
    /// Who decides what is loaded.
    pub control: Control,
    /// Whether configurations are completed from the model files.
    pub auto_complete: bool,
    /// The name of the configuration to prefer: `configs/NAME.pbtxt`.
    pub config_name: Option<String>,
    /// Models that load at the same time; at least one.
    pub load_threads: usize,
    /// How often a failed load is tried again.
    pub load_retries: u32,
    /// What a load may take before it is given up; `None` for any time.
    pub load_time_max: Option<Duration>,
    /// Above which used fraction of a CUDA device's memory no model is loaded on it, by its index.
    pub gpu_limits: BTreeMap<u32, f64>,
    /// How much memory models may take on a device, where it is not the usual share.
    pub memory_limits: BTreeMap<Device, MemoryLimit>,
    /// Where weights go that leave the host; `None` if they are dropped.
    pub spill: Option<SpillSettings>,
    /// The most bytes of files that a load request may bring; 0 for none at all.
    pub override_bytes_max: usize,
    /// Requests that wait per model whose configuration gives no limit; at least one.
    pub queue_size_default: usize,
    /// Responses of one request to a decoupled model that wait for the client; at least one.
    pub responses_max: usize,
    /// The longest that a decoupled model or an ensemble waits for the client to take a response.
    pub response_stall: Duration,
    /// How many requests must wait before a batching scheduler begins (`TRITONSERVER_DELAY_SCHEDULER`).
    pub delay_scheduler: usize,
    /// The same for the backlog of sequences (`TRITONSERVER_BACKLOG_DELAY_SCHEDULER`).
    pub backlog_delay_scheduler: usize,
}

/// Who decides what is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Everything at the start, nothing later.
    None,
    /// The directory, looked at in this interval.
    Poll(Duration),
    /// The callers; these models at the start.
    Explicit(Startup),
}

/// The models to load at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Startup {
    /// Every model of the repository.
    All,
    /// The models of these names.
    Named(Vec<String>),
}

/// Where on this machine a server tells its health: `HOST:PORT`, or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    /// gRPC's standard health service.
    Grpc(String),
    /// The route of KServe v2.
    Http(String),
}

/// Everything that is wrong with the settings, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

impl Config {
    /// The settings of this process: `args` are the words after `serve`.
    ///
    /// # Errors
    /// Every mistake, the unreadable file of `--config` included.
    pub fn from_process(args: &[String]) -> Result<Self, Mistakes> {
        let environment = environment();
        let path = Typed::read(args, &environment, None).texts("config").and_then(|mut texts| texts.pop());
        let Some(path) = path else { return Self::read(args, &environment, None) };
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::read(args, &environment, Some(File { path: &path, text: &text })),
            Err(error) => {
                let mut mistakes = vec![format!("{path}: {error}")];
                mistakes.extend(Self::read(args, &environment, None).err().map(|others| others.0).unwrap_or_default());
                Err(Mistakes(mistakes))
            }
        }
    }

    /// Where a server with this process's environment, and the file that it names, can be asked for its health, on this
    /// machine.
    pub fn door_of_process() -> Door {
        let environment = environment();
        let path = Typed::read(&[], &environment, None).texts("config").and_then(|mut texts| texts.pop());
        // A server does not start with a file that cannot be read, so that nobody will answer.
        let text = path.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let file = path.as_ref().zip(text.as_ref()).map(|(path, text)| File { path, text });
        Self::door(&environment, file)
    }

    /// Where a server with these variables and this file can be asked for its health.
    fn door(environment: &Environment, file: Option<File<'_>>) -> Door {
        let typed = Typed::read(&[], environment, file);
        let text = |name| typed.texts(name).and_then(|mut texts| texts.pop());
        let truth = |name| text(name).and_then(|text| typed::parse_bool(&text)).unwrap_or_default();
        let local = |address, port| match text(address).unwrap_or_default() {
            path if path.starts_with("unix:") => path,
            address => format!("{}:{}", host_of(&address), text(port).unwrap_or_default()),
        };
        let http = local("http-address", "http-port");
        match (truth("allow-grpc"), truth("single-port")) {
            (false, _) => Door::Http(http),
            (true, true) => Door::Grpc(http),
            (true, false) => Door::Grpc(local("grpc-address", "grpc-port")),
        }
    }

    /// The settings that these words, variables and file mean. Looks at nothing else, but whether directories exist.
    ///
    /// # Errors
    /// Every mistake, with the place where it was made.
    pub fn read(args: &[String], environment: &Environment, file: Option<File<'_>>) -> Result<Self, Mistakes> {
        let mut reader = Reader::new(Typed::read(args, environment, file), environment);
        let config = Self {
            id: reader.text("id"),
            exit_timeout: Duration::from_secs(reader.number("exit-timeout-secs")),
            exit_on_error: reader.truth("exit-on-error"),
            strict_readiness: reader.truth("strict-readiness"),
            threads: threads(reader.number("threads")),
            repository: Repository::read(&mut reader),
            onnxruntime: reader.optional("onnxruntime").map(PathBuf::from),
            allow_aoti: reader.truth("allow-aoti"),
            instances: instances::read(&mut reader),
            mkl_fast_path: reader.truth("mkl-fast-path"),
            request_memory: memory::requests(&mut reader),
            cache: cache::read(&mut reader),
            client_regions_max: client_regions_max(&reader),
            single_port: reader.truth("single-port"),
            grpc: Grpc::read(&mut reader),
            http: Http::read(&mut reader),
            metrics: Metrics::read(&mut reader),
            log: log_settings(&mut reader),
            trace: trace_settings(&mut reader),
            warnings: std::mem::take(&mut reader.typed.warnings),
        };
        front_ends::check_ports(&config, &mut reader);
        if reader.typed.mistakes.is_empty() { Ok(config) } else { Err(Mistakes(reader.typed.mistakes)) }
    }
}

/// How a client on this machine names the host of a server that listens on `address`.
fn host_of(address: &str) -> String {
    match address.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) if !ip.is_unspecified() => ip.to_string(),
        Ok(IpAddr::V6(ip)) if !ip.is_unspecified() => format!("[{ip}]"),
        // Who listens on `::` hears IPv4 as well, and there need not be an IPv6.
        _ => "127.0.0.1".to_owned(),
    }
}

fn environment() -> Environment {
    let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))).collect()
}

/// The network needs few threads: the models' own threads do the work.
fn threads(given: u64) -> usize {
    match given {
        0 => std::thread::available_parallelism().map_or(1, |count| count.get().min(4)),
        given => given as usize,
    }
}

fn client_regions_max(reader: &Reader) -> Option<usize> {
    reader.truth("allow-client-shm").then(|| reader.number("client-shm-max-regions") as usize)
}

impl Repository {
    fn read(reader: &mut Reader) -> Self {
        let startup = reader.list("load-model");
        let control = match reader.text("model-control-mode").as_str() {
            "poll" => Control::Poll(Duration::from_secs(reader.number("repository-poll-secs"))),
            "explicit" if startup.iter().any(|name| name == "*") => Control::Explicit(Startup::All),
            "explicit" => Control::Explicit(Startup::Named(startup.clone())),
            _ => Control::None,
        };
        if !startup.is_empty() && !matches!(control, Control::Explicit(_)) {
            let origin = reader.typed.origin("load-model");
            reader.mistake(&origin, "needs --model-control-mode=explicit");
        }
        Self {
            roots: roots(reader),
            remote: remote(reader),
            namespacing: reader.truth("model-namespacing"),
            control,
            auto_complete: !reader.truth("disable-auto-complete-config"),
            config_name: reader.optional("model-config-name"),
            load_threads: reader.number("model-load-thread-count") as usize,
            load_retries: reader.number("model-load-retry-count") as u32,
            load_time_max: match reader.number("model-load-timeout-secs") {
                0 => None,
                seconds => Some(Duration::from_secs(seconds)),
            },
            gpu_limits: gpu_limits(reader),
            memory_limits: memory::read(reader),
            spill: memory::spill(reader),
            override_bytes_max: reader.number("model-load-max-file-bytes") as usize,
            queue_size_default: reader.number("queue-size-default") as usize,
            responses_max: reader.number("grpc-max-response-pool-size") as usize,
            response_stall: Duration::from_secs(reader.number("response-stall-secs")),
            delay_scheduler: reader.variable("TRITONSERVER_DELAY_SCHEDULER"),
            backlog_delay_scheduler: reader.variable("TRITONSERVER_BACKLOG_DELAY_SCHEDULER"),
        }
    }
}

/// The fractions of `DEVICE:FRACTION`.
fn gpu_limits(reader: &mut Reader) -> BTreeMap<u32, f64> {
    let limit = |text: &str| {
        let (device, fraction) = text.split_once(':')?;
        let fraction = fraction.parse().ok().filter(|fraction| (0.0..=1.0).contains(fraction))?;
        Some((device.parse().ok()?, fraction))
    };
    let read = |text: &str| limit(text).ok_or_else(|| "is not DEVICE:FRACTION, such as 0:0.8".to_owned());
    reader.each("model-load-gpu-limit", read).into_iter().collect()
}

fn roots(reader: &mut Reader) -> Vec<Root> {
    let mut roots = Vec::new();
    let origin = reader.typed.origin("model-repository");
    let texts = reader.list("model-repository");
    if texts.is_empty() {
        reader.mistake(&origin, "is required: a directory with one directory for each model");
    }
    for text in texts {
        let root = match Place::parse(&text) {
            Some(Ok(place)) => Root::Remote(place),
            Some(Err(what)) => {
                reader.mistake(&origin, format!("'{text}' {what}"));
                continue;
            }
            None => Root::Directory(PathBuf::from(&text)),
        };
        if matches!(&root, Root::Directory(path) if !path.is_dir()) {
            reader.mistake(&origin, format!("'{text}' is not a directory"));
        }
        if roots.contains(&root) {
            reader.mistake(&origin, format!("'{text}' is given twice"));
        }
        roots.push(root);
    }
    roots
}

fn remote(reader: &Reader) -> RemoteSettings {
    let given = reader.optional("repository-cache-directory").map(PathBuf::from);
    let of_user = || {
        let variable =
            |name: &str| reader.environment.get(name).filter(|path| path.starts_with('/')).map(PathBuf::from);
        let caches = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
        caches.unwrap_or_else(std::env::temp_dir).join("nereid")
    };
    RemoteSettings {
        cloud: Cloud::of(reader.environment),
        cache: given.unwrap_or_else(of_user),
        cache_bytes_max: reader.number("repository-cache-bytes"),
        retries: reader.number("repository-retry-count") as u32,
        silence_max: Duration::from_secs(reader.number("repository-timeout-secs")),
    }
}

fn log_settings(reader: &mut Reader) -> logging::Settings {
    let levels = logging::Levels {
        error: reader.truth("log-error"),
        warning: reader.truth("log-warning"),
        info: reader.truth("log-info"),
        verbose: reader.number("log-verbose") as u32,
    };
    let directives = reader.optional("log-level").unwrap_or_default();
    if let Err(reason) = logging::check_directives(&directives) {
        let origin = reader.typed.origin("log-level");
        reader.mistake(&origin, format!("'{directives}': {reason}"));
    }
    let format = logging::Format::from_name(&reader.text("log-format")).unwrap_or(logging::Format::Default);
    logging::Settings { format, levels, directives, file: reader.optional("log-file").map(PathBuf::from) }
}

fn trace_settings(reader: &mut Reader) -> telemetry::trace::Settings {
    let (settings, mistakes) = trace::read(&reader.list("trace-config"));
    let origin = reader.typed.origin("trace-config");
    for mistake in mistakes {
        reader.mistake(&origin, mistake);
    }
    telemetry::trace::Settings {
        queue_size_max: reader.number("trace-queue-size") as usize,
        tensor_bytes_max: reader.number("trace-tensor-bytes") as usize,
        ..settings
    }
}

/// Turns texts into values; a text that is none becomes a mistake and a placeholder, so that reading goes on.
struct Reader<'a> {
    typed: Typed,
    environment: &'a Environment,
}

impl<'a> Reader<'a> {
    fn new(typed: Typed, environment: &'a Environment) -> Self {
        let mut reader = Self { typed, environment };
        for flag in flags::FLAGS {
            if let Some(given) = reader.typed.get(flag) {
                reader.check(flag.value, &given);
            }
        }
        reader
    }

    fn mistake(&mut self, origin: &Origin, what: impl fmt::Display) {
        self.typed.mistakes.push(format!("{origin}: {what}"));
    }

    fn check(&mut self, value: Value, given: &Given) {
        let [text] = given.texts.as_slice() else {
            if !matches!(value, Value::List(_) | Value::Phrases(_)) {
                self.mistake(&given.origin, format!("takes one value, not {}", given.texts.len()));
            }
            return;
        };
        let wrong = match value {
            Value::Bool if typed::parse_bool(text).is_none() => "is not true or false".to_owned(),
            Value::Number(min, max) if !u64::from_str(text).is_ok_and(|number| (min..=max).contains(&number)) => {
                format!("is not a whole number from {min} to {max}")
            }
            Value::Choice(words) if !words.contains(&text.as_str()) => format!("is not one of {}", words.join(", ")),
            Value::Text(_) if text.is_empty() => "is empty".to_owned(),
            _ => return,
        };
        self.mistake(&given.origin, format!("'{text}' {wrong}"));
    }

    /// A number that test tools give by a variable of the reference server's, which has no flag; 0 if they do not.
    fn variable(&mut self, name: &str) -> usize {
        let Some(text) = self.environment.get(name) else { return 0 };
        text.trim().parse().unwrap_or_else(|_| {
            self.mistake(&Origin::Variable(name.to_owned()), format!("'{text}' is not a whole number"));
            0
        })
    }

    fn list(&self, name: &'static str) -> Vec<String> {
        self.typed.texts(name).unwrap_or_default()
    }

    /// What each text of a list means; one that means nothing is a mistake.
    fn each<T>(&mut self, name: &'static str, read: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let origin = self.typed.origin(name);
        let mut meant = Vec::new();
        for text in self.list(name) {
            match read(&text) {
                Ok(value) => meant.push(value),
                Err(wrong) => self.mistake(&origin, format!("'{text}' {wrong}")),
            }
        }
        meant
    }

    fn optional(&self, name: &'static str) -> Option<String> {
        self.typed.texts(name).and_then(|mut texts| texts.pop())
    }

    fn text(&self, name: &'static str) -> String {
        self.optional(name).unwrap_or_default()
    }

    fn truth(&self, name: &'static str) -> bool {
        typed::parse_bool(&self.text(name)).unwrap_or_default()
    }

    fn maybe_number(&self, name: &'static str) -> Option<u64> {
        self.optional(name)?.parse().ok()
    }

    fn number(&self, name: &'static str) -> u64 {
        self.maybe_number(name).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings of a command line, with an existing directory for `DIR`.
    fn read(line: &str) -> Result<Config, Vec<String>> {
        let args: Vec<String> = line.replace("DIR", env!("CARGO_MANIFEST_DIR")).split(' ').map(str::to_owned).collect();
        Config::read(&args, &Environment::new(), None).map_err(|mistakes| mistakes.0)
    }

    #[test]
    fn the_defaults_are_those_of_the_reference_server() {
        let config = read("--model-repository=DIR").expect("nothing else is required");
        let grpc = config.grpc.expect("on by default");
        assert_eq!(grpc.port.address.to_string(), "0.0.0.0:8001");
        assert_eq!((grpc.request_bytes_max, grpc.response_bytes_max), (i32::MAX as usize, i32::MAX as usize));
        let http = config.http.expect("on by default");
        assert_eq!((http.port.address.to_string().as_str(), http.request_bytes_max), ("0.0.0.0:8000", 64 << 20));
        let metrics = config.metrics.expect("on by default");
        assert_eq!(metrics.port.address.to_string(), "0.0.0.0:8002");
        assert_eq!(metrics.host_interval, Some(Duration::from_secs(2)));
        assert_eq!(config.repository.control, Control::None);
        assert!(config.repository.auto_complete && config.strict_readiness);
        // The one difference: a broken model does not keep the others from being served.
        assert!(!config.exit_on_error);
        assert_eq!(config.client_regions_max, None);
        assert_eq!(config.exit_timeout, Duration::from_secs(30));
    }

    #[test]
    fn every_mistake_of_every_kind_is_reported_at_once() {
        let line = "--grpc-port=70000 --strict-readiness=maybe --model-control-mode=sometimes \
                    --grpc-address=nowhere --model-repository=/nonexistent --log-level=nereid=loud";
        let mistakes = read(line).expect_err("six mistakes");
        let expected = [
            "--strict-readiness: 'maybe' is not true or false",
            "--model-control-mode: 'sometimes' is not one of none, poll, explicit",
            "--grpc-port: '70000' is not a whole number from 0 to 65535",
            "--model-repository: '/nonexistent' is not a directory",
            "--grpc-address: 'nowhere' is not an IP address, nor unix: and a path",
        ];
        assert_eq!(mistakes[..5], expected);
        assert!(mistakes[5].starts_with("--log-level: 'nereid=loud'"), "{}", mistakes[5]);
        assert_eq!(mistakes.len(), 6);
    }

    #[test]
    fn a_mistake_names_the_variable_or_the_line_that_made_it() {
        let environment = Environment::from([("NEREID_GRPC_PORT".to_owned(), "many".to_owned())]);
        let file = File { path: "nereid.toml", text: "\nlog-verbose = -1\n" };
        let mistakes = Config::read(&[], &environment, Some(file)).expect_err("three mistakes").0;
        let expected = [
            "environment variable NEREID_GRPC_PORT: 'many' is not a whole number from 0 to 65535",
            "nereid.toml:2: log-verbose: '-1' is not a whole number from 0 to 9",
            "--model-repository: is required: a directory with one directory for each model",
        ];
        assert_eq!(mistakes, expected);
    }

    #[test]
    fn test_tools_hold_schedulers_by_the_variables_of_the_reference_server() {
        let read = |value: &str| {
            let environment = Environment::from([("TRITONSERVER_DELAY_SCHEDULER".to_owned(), value.to_owned())]);
            let args = ["--model-repository=.".to_owned()];
            Config::read(&args, &environment, None).map(|config| config.repository)
        };
        let repository = read("8").expect("a number");
        assert_eq!((repository.delay_scheduler, repository.backlog_delay_scheduler), (8, 0));
        let mistakes = read("many").expect_err("no number").0;
        assert_eq!(mistakes, ["environment variable TRITONSERVER_DELAY_SCHEDULER: 'many' is not a whole number"]);
    }

    #[test]
    fn two_servers_cannot_share_a_port() {
        let mistakes = |line: &str| read(&format!("--model-repository=DIR {line}")).expect_err("the same port");
        assert_eq!(mistakes("--grpc-port=9 --metrics-port=9"), ["--grpc-port: 9 is also the port of --metrics-port"]);
        assert_eq!(mistakes("--http-port=8001"), ["--grpc-port: 8001 is also the port of --http-port"]);
        assert_eq!(mistakes("--metrics-port=8000"), ["--http-port: 8000 is also the port of --metrics-port"]);
        assert!(read("--model-repository=DIR --grpc-port=0 --http-port=0 --metrics-port=0").is_ok());
        let apart =
            "--model-repository=DIR --grpc-port=9 --metrics-port=9 --grpc-address=127.0.0.1 --metrics-address=::1";
        assert!(read(apart).is_ok());
    }

    #[test]
    fn a_pattern_for_headers_must_be_one() {
        for flag in ["http-header-forward-pattern", "grpc-header-forward-pattern"] {
            assert!(read(&format!("--model-repository=DIR --{flag}=^x-")).is_ok());
            let mistakes = read(&format!("--model-repository=DIR --{flag}=(")).expect_err("no pattern");
            assert!(mistakes[0].starts_with(&format!("--{flag}: ")), "{mistakes:?}");
        }
    }

    #[test]
    fn a_response_cache_has_a_size() {
        let cache = |line: &str| read(&format!("--model-repository=DIR {line}")).map(|config| config.cache);
        let of = |bytes_max, ttl| Ok(Some(CacheSettings { bytes_max, ttl }));
        let ttl = Some(Duration::from_secs(60));
        assert_eq!(cache("--cache-config local,size=4096 --cache-config local,ttl-ms=60000"), of(4096, ttl));
        assert_eq!(cache("--response-cache-byte-size=4096 --cache-directory=/caches"), of(4096, None));
        assert_eq!(cache("--cache-config=local,size=0"), Ok(None));
        let mistakes = |line| cache(line).expect_err("it is wrong");
        assert_eq!(
            mistakes("--cache-config=redis,host=x"),
            [
                "--cache-config: there is no cache 'redis': local is the only one",
                "--cache-config: needs a size: local,size=<bytes>"
            ]
        );
        assert_eq!(
            mistakes("--cache-config=local,size=9 --cache-config=local,ttl-ms=0 --cache-config=local,colour=red"),
            [
                "--cache-config: ttl-ms '0' is not a whole number from 1 to 31622400000",
                "--cache-config: 'colour' is not a setting of cache local: size or ttl-ms",
                "--cache-config: a cache of 9 bytes holds nothing, it needs at least 1024",
            ]
        );
        assert_eq!(
            mistakes("--cache-config=local,size=4096 --response-cache-byte-size=4096"),
            ["--response-cache-byte-size: says the same as --cache-config; give one of them"]
        );
    }

    #[test]
    fn one_protocol_must_be_left() {
        let without = |line: &str| read(&format!("--model-repository=DIR {line}"));
        assert!(without("--allow-grpc=false").is_ok_and(|config| config.grpc.is_none()));
        assert!(without("--allow-http=false").is_ok_and(|config| config.http.is_none()));
        let mistakes = without("--allow-grpc=false --allow-http=false").expect_err("nothing to serve with");
        assert_eq!(mistakes, ["--allow-grpc: no protocol is left to serve inference with"]);
    }

    #[test]
    fn models_to_load_belong_to_explicit_mode() {
        assert!(read("--model-repository=DIR --load-model=a").is_err());
        let config = read("--model-repository=DIR --model-control-mode=explicit --load-model=a --load-model=b");
        let named = Startup::Named(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(config.expect("valid").repository.control, Control::Explicit(named));
        let config = read("--model-repository=DIR --model-control-mode=explicit --load-model=*");
        assert_eq!(config.expect("valid").repository.control, Control::Explicit(Startup::All));
    }

    #[test]
    fn health_is_asked_where_the_variables_and_the_file_say() {
        let door = |variables: &[(&str, &str)], text: &str| {
            let variables = variables.iter().map(|(name, value)| (format!("NEREID_{name}"), (*value).to_owned()));
            Config::door(&variables.collect(), Some(File { path: "f.toml", text }))
        };
        let grpc = |door| matches!(door, Door::Grpc(address) if address == "127.0.0.1:8001");
        assert!(grpc(door(&[], "")));
        assert!(grpc(door(&[("GRPC_ADDRESS", "0.0.0.0"), ("GRPC_PORT", "tcp://10.0.0.11:9")], "")));
        assert!(grpc(door(&[("GRPC_ADDRESS", "localhost")], "")));
        let at = |address: &str| door(&[("GRPC_ADDRESS", address)], "grpc-port = 9\n");
        assert_eq!(at("192.0.2.7"), Door::Grpc("192.0.2.7:9".to_owned()));
        assert_eq!(at("::"), Door::Grpc("127.0.0.1:9".to_owned()));
        assert_eq!(at("[2001:db8::7]"), Door::Grpc("[2001:db8::7]:9".to_owned()));
        assert_eq!(at("unix:/run/n.sock"), Door::Grpc("unix:/run/n.sock".to_owned()));
        let http = door(&[("HTTP_PORT", "9")], "allow-grpc = false\nhttp-port = 7\nhttp-address = \"192.0.2.7\"\n");
        assert_eq!(http, Door::Http("192.0.2.7:9".to_owned()));
    }

    #[test]
    fn metrics_listen_where_http_does_unless_told() {
        let config = read("--model-repository=DIR --http-address=127.0.0.1").expect("valid");
        assert_eq!(config.metrics.expect("on").port.address.to_string(), "127.0.0.1:8002");
    }
}
