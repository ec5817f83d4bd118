//! Every setting of `nereid serve`: one table, read by the command line, the environment, the file and the help.

/// What a setting's text must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// true, false, on, off, 1 or 0; alone on the command line it means true.
    Bool,
    /// A whole number within the bounds.
    Number(u64, u64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Any text; the placeholder in the help.
    Text(&'static str),
    /// Any number of texts: repeated on the command line, separated by commas in the environment, an array in the file.
    List(&'static str),
    /// As a list, of texts that may have commas in them: separated by semicolons in the environment.
    Phrases(&'static str),
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// The name on the command line, without the leading dashes.
    pub name: &'static str,
    /// What its text must be.
    pub value: Value,
    /// The text that holds if nobody gives one; `None` for unset.
    pub default: Option<&'static str>,
    /// The heading in the help.
    pub heading: &'static str,
    /// One sentence for the help.
    pub help: &'static str,
}

const MILLISECONDS_MAX: u64 = 7 * 24 * 3_600_000;
const SECONDS_MAX: u64 = 7 * 24 * 3_600;
const HEADER_BYTES_MAX: u64 = 1 << 20;
const GENERAL: &str = "General";
const REPOSITORY: &str = "Models";
const INSTANCES: &str = "Instances";
const SHARED_MEMORY: &str = "Shared memory";
const GRPC: &str = "gRPC";
const HTTP: &str = "HTTP";
const METRICS: &str = "Metrics";
const CACHE: &str = "Response cache";
const LOG: &str = "Log";
const TRACE: &str = "Trace";

const fn flag(
    heading: &'static str,
    name: &'static str,
    value: Value,
    default: &'static str,
    help: &'static str,
) -> Flag {
    let default = if default.is_empty() { None } else { Some(default) };
    Flag { name, value, default, heading, help }
}

/// All settings, by heading. A long table on purpose: one line each.
#[rustfmt::skip]
pub const FLAGS: &[Flag] = &[
    flag(GENERAL, "config", Value::Text("FILE"), "", "TOML file with settings under the same names"),
    flag(GENERAL, "id", Value::Text("NAME"), "nereid", "The server's name in its metadata"),
    flag(GENERAL, "exit-timeout-secs", Value::Number(0, SECONDS_MAX), "30", "The longest time a stop waits for requests in flight"),
    flag(GENERAL, "exit-on-error", Value::Bool, "false", "End if a model fails to load at the start, or a repository cannot be read, instead of serving the others"),
    flag(GENERAL, "strict-readiness", Value::Bool, "true", "Ready only when every model is"),
    flag(GENERAL, "single-port", Value::Bool, "false", "Serve gRPC on HTTP's port too, with HTTP's limits, and on no other"),
    flag(GENERAL, "ssl-reload-interval-ms", Value::Number(10, MILLISECONDS_MAX), "1000", "Milliseconds between looks at the files of TLS"),
    flag(GENERAL, "request-memory-limit", Value::Text("BYTES|FRACTION"), "", "How much memory requests that are read or wait may hold together, such as 2GB, or 0.1 of the host's; an eighth of it by default"),
    flag(GENERAL, "threads", Value::Number(0, 1024), "0", "Threads for the network; 0 for one per processor, at most 4"),

    flag(REPOSITORY, "model-repository", Value::List("DIR|URL"), "", "Directory of models, or s3://, gs:// or as:// and a path; required, repeatable"),
    flag(REPOSITORY, "model-namespacing", Value::Bool, "false", "Let repositories have models of the same name; a model that is made of others takes those of its own repository first"),
    flag(REPOSITORY, "model-control-mode", Value::Choice(&["none", "poll", "explicit"]), "none", "Who decides what is loaded: the start, the directory, or the callers"),
    flag(REPOSITORY, "repository-poll-secs", Value::Number(1, SECONDS_MAX), "15", "How often mode poll looks at the directory"),
    flag(REPOSITORY, "repository-cache-directory", Value::Text("DIR"), "", "Where files of object stores are kept; ~/.cache/nereid by default"),
    flag(REPOSITORY, "repository-cache-bytes", Value::Number(0, i64::MAX as u64), "107374182400", "The most bytes kept there; what was not used for longest goes first"),
    flag(REPOSITORY, "repository-retry-count", Value::Number(0, 100), "5", "How often a request to an object store is tried again"),
    flag(REPOSITORY, "repository-timeout-secs", Value::Number(1, SECONDS_MAX), "30", "The longest that an object store may say nothing"),
    flag(REPOSITORY, "load-model", Value::List("NAME"), "", "Model to load at the start in mode explicit; repeatable, * for all"),
    flag(REPOSITORY, "disable-auto-complete-config", Value::Bool, "false", "Take configurations as they are written"),
    flag(REPOSITORY, "model-config-name", Value::Text("NAME"), "", "Prefer configs/NAME.pbtxt over config.pbtxt"),
    flag(REPOSITORY, "model-load-thread-count", Value::Number(1, 256), "4", "Models that load at the same time"),
    flag(REPOSITORY, "model-load-max-file-bytes", Value::Number(0, i32::MAX as u64), "2147483647", "The most bytes of files that a load request may bring in mode explicit; 0 for none"),
    flag(REPOSITORY, "model-load-retry-count", Value::Number(0, 1000), "0", "How often a failed load is tried again"),
    flag(REPOSITORY, "model-load-timeout-secs", Value::Number(0, SECONDS_MAX), "3600", "Seconds until a load that does not end is given up, and its thread left alone; 0 for never"),
    flag(REPOSITORY, "model-load-gpu-limit", Value::List("DEVICE:FRACTION"), "", "Load nothing on a CUDA device of whose memory more than this fraction is used, such as 0:0.8; repeatable"),
    flag(REPOSITORY, "onnxruntime", Value::Text("FILE"), "", "The library that runs models in ONNX, ONNX Runtime for the CPU; libonnxruntime.so.1 beside the executable or of the system by default"),
    flag(REPOSITORY, "allow-aoti", Value::Bool, "false", "Load packages of AOTInductor (model.pt2): a package is native code, which runs with all rights of the server"),
    flag(REPOSITORY, "memory-limit", Value::List("DEVICE:BYTES|FRACTION"), "", "How much memory models may hold on a device (host, or a GPU's number), such as host:8GB or 0:0.9; by default 0.8 of what there is, less on a small host; repeatable"),
    flag(REPOSITORY, "memory-spill-directory", Value::Text("DIR"), "", "Directory for the weights of idle models that leave the host's memory for others, from where they come back much faster than by a load; without it they are dropped"),
    flag(REPOSITORY, "memory-spill-bytes", Value::Number(0, i64::MAX as u64), "17179869184", "The most bytes of weights there; what was not used for longest goes first"),
    flag(REPOSITORY, "queue-size-default", Value::Number(1, 10_000_000), "4096", "Requests that wait per model whose max_queue_size is 0"),
    flag(REPOSITORY, "grpc-max-response-pool-size", Value::Number(1, i32::MAX as u64), "64", "Responses of one request to a decoupled model that wait for the client"),
    flag(REPOSITORY, "response-stall-secs", Value::Number(1, SECONDS_MAX), "60", "The longest that a decoupled model or an ensemble waits for a client to take a response"),

    flag(INSTANCES, "rate-limit", Value::Choice(&["off", "execution_count"]), "off", "Whether instances execute only while they hold what their rate_limiter asks for"),
    flag(INSTANCES, "rate-limit-resource", Value::Phrases("NAME:COUNT[:DEVICE]"), "", "How much there is of a resource, on each device or on one (a GPU's number, or cpu), repeatable; the most that any instance asks for by default"),
    flag(INSTANCES, "host-policy", Value::Phrases("NAME,SETTING=VALUE"), "", "Where instances run whose group names this policy, repeatable: numa-node=NUMBER, cpu-cores=FIRST-LAST; groups that name none have the policy cpu or gpu_NUMBER"),
    flag(INSTANCES, "execution-timeout-ms", Value::Number(0, MILLISECONDS_MAX), "0", "Milliseconds until an execution is given up and its instance replaced, unless a model's execution.timeout_us says otherwise; 0 for never"),
    flag(INSTANCES, "lost-instances-max", Value::Number(0, 1024), "3", "Instances of a model version that are replaced after they were given up; once no instance is left the version is unavailable"),
    flag(INSTANCES, "mkl-fast-path", Value::Bool, "false", "Let Intel's MKL, which multiplies matrices on the CPU, use all instructions of other vendors' processors, too; numbers may differ in their last digits"),

    flag(CACHE, "cache-config", Value::Phrases("local,NAME=VALUE"), "", "Response cache for the models that ask for one, repeatable: local,size=BYTES; local,ttl-ms=MILLISECONDS until an entry is too old"),
    flag(CACHE, "response-cache-byte-size", Value::Number(0, 1 << 48), "", "The older way to write --cache-config=local,size=BYTES"),
    flag(CACHE, "cache-directory", Value::Text("DIR"), "", "Without effect: the cache is part of this server"),

    flag(SHARED_MEMORY, "allow-client-shm", Value::Bool, "false", "Let clients on this machine pass tensors in shared memory; all of them can reach all regions"),
    flag(SHARED_MEMORY, "client-shm-max-regions", Value::Number(1, 65536), "1024", "Regions of shared memory that clients may register"),

    flag(GRPC, "allow-grpc", Value::Bool, "true", "Serve gRPC"),
    flag(GRPC, "grpc-address", Value::Text("ADDRESS"), "0.0.0.0", "Address to listen on, or unix:PATH"),
    flag(GRPC, "grpc-port", Value::Number(0, 65535), "8001", "Port to listen on; 0 for any that is free"),
    flag(GRPC, "grpc-max-request-bytes", Value::Number(1024, i32::MAX as u64), "2147483647", "The largest request message"),
    flag(GRPC, "grpc-max-response-bytes", Value::Number(1024, i32::MAX as u64), "2147483647", "The largest response message"),
    flag(GRPC, "grpc-header-forward-pattern", Value::Text("REGEX"), "", "Metadata whose names match become string parameters of the request"),
    flag(GRPC, "reuse-grpc-port", Value::Bool, "false", "Let other processes listen on the same port (SO_REUSEPORT)"),
    flag(GRPC, "grpc-handshake-timeout", Value::Number(1, MILLISECONDS_MAX), "10000", "Milliseconds for a new connection to agree on TLS and begin to speak HTTP/2"),
    flag(GRPC, "grpc-keepalive-time", Value::Number(1, i32::MAX as u64), "7200000", "Milliseconds without traffic before a ping"),
    flag(GRPC, "grpc-keepalive-timeout", Value::Number(1, i32::MAX as u64), "20000", "Milliseconds until an unanswered ping ends the connection"),
    flag(GRPC, "grpc-max-connection-idle", Value::Number(0, MILLISECONDS_MAX), "0", "Milliseconds until a connection without calls is asked to end; 0 for never"),
    flag(GRPC, "grpc-max-connection-age", Value::Number(1, MILLISECONDS_MAX), "", "Milliseconds until a connection is asked to end"),
    flag(GRPC, "grpc-max-connection-age-grace", Value::Number(1, MILLISECONDS_MAX), "", "Milliseconds more until it is ended"),
    flag(GRPC, "grpc-body-timeout", Value::Number(0, MILLISECONDS_MAX), "60000", "Milliseconds for which a request may stop arriving; a stream may be silent between requests; 0 for any time"),
    flag(GRPC, "grpc-send-timeout", Value::Number(0, MILLISECONDS_MAX), "120000", "Milliseconds for which a client may take nothing of what is sent to it; 0 for any time"),
    flag(GRPC, "grpc-max-header-bytes", Value::Number(1024, HEADER_BYTES_MAX), "16384", "The most bytes of a call's headers"),
    flag(GRPC, "grpc-max-connections", Value::Number(1, 1_000_000), "4096", "Connections at a time; at the limit idle ones are closed"),
    flag(GRPC, "grpc-max-concurrent-streams", Value::Number(1, u32::MAX as u64), "4096", "Calls at a time on one connection"),
    flag(GRPC, "grpc-max-stream-requests", Value::Number(1, 1_000_000), "1024", "Requests at a time on one stream of inference"),
    flag(GRPC, "grpc-use-ssl", Value::Bool, "false", "Encrypt by TLS"),
    flag(GRPC, "grpc-use-ssl-mutual", Value::Bool, "false", "Encrypt by TLS, and refuse clients without a certificate"),
    flag(GRPC, "grpc-server-cert", Value::Text("FILE"), "", "The server's certificate and those of who signed it, in PEM; read again when it changes"),
    flag(GRPC, "grpc-server-key", Value::Text("FILE"), "", "The certificate's private key, in PEM; read again when it changes"),
    flag(GRPC, "grpc-root-cert", Value::Text("FILE"), "", "The certificates of who may sign clients' certificates, in PEM; read again when it changes"),
    flag(GRPC, "grpc-restricted-protocol", Value::Phrases("CATEGORY[,CATEGORY]:KEY=SECRET"), "", "Calls that need a secret in the header triton-grpc-protocol-KEY, repeatable; @PATH for a secret in a file, env:NAME for one in a variable"),

    flag(HTTP, "allow-http", Value::Bool, "true", "Serve HTTP"),
    flag(HTTP, "allow-console", Value::Bool, "true", "Serve the console, a page that shows the models, at / of the HTTP port"),
    flag(HTTP, "http-address", Value::Text("ADDRESS"), "0.0.0.0", "Address to listen on, or unix:PATH"),
    flag(HTTP, "http-port", Value::Number(0, 65535), "8000", "Port to listen on; 0 for any that is free"),
    flag(HTTP, "http-max-input-size", Value::Number(1024, i32::MAX as u64), "67108864", "The largest request body in bytes, also when it is decompressed"),
    flag(HTTP, "http-header-forward-pattern", Value::Text("REGEX"), "", "Headers whose names match become string parameters of the request"),
    flag(HTTP, "reuse-http-port", Value::Bool, "false", "Let other processes listen on the same port (SO_REUSEPORT)"),
    flag(HTTP, "http-handshake-timeout", Value::Number(1, MILLISECONDS_MAX), "10000", "Milliseconds for a new connection to agree on TLS and begin to speak HTTP"),
    flag(HTTP, "http-header-timeout", Value::Number(1, MILLISECONDS_MAX), "10000", "Milliseconds for the headers of a request"),
    flag(HTTP, "http-idle-timeout", Value::Number(0, MILLISECONDS_MAX), "120000", "Milliseconds until a connection without requests is closed; 0 for never"),
    flag(HTTP, "http-body-timeout", Value::Number(0, MILLISECONDS_MAX), "60000", "Milliseconds for which a request may stop arriving; 0 for any time"),
    flag(HTTP, "http-send-timeout", Value::Number(0, MILLISECONDS_MAX), "120000", "Milliseconds for which a client may take nothing of what is sent to it; 0 for any time"),
    flag(HTTP, "http-max-header-bytes", Value::Number(1024, HEADER_BYTES_MAX), "65536", "The most bytes of a request's headers"),
    flag(HTTP, "http-max-headers", Value::Number(1, 10_000), "100", "The most header lines of a request"),
    flag(HTTP, "http-max-connections", Value::Number(1, 1_000_000), "4096", "Connections at a time; at the limit idle ones are closed"),
    flag(HTTP, "http-max-concurrent-streams", Value::Number(1, u32::MAX as u64), "1024", "Requests at a time on one connection over HTTP/2"),
    flag(HTTP, "http-use-ssl", Value::Bool, "false", "Encrypt by TLS"),
    flag(HTTP, "http-use-ssl-mutual", Value::Bool, "false", "Encrypt by TLS, and refuse clients without a certificate"),
    flag(HTTP, "http-server-cert", Value::Text("FILE"), "", "The server's certificate and those of who signed it, in PEM; read again when it changes"),
    flag(HTTP, "http-server-key", Value::Text("FILE"), "", "The certificate's private key, in PEM; read again when it changes"),
    flag(HTTP, "http-root-cert", Value::Text("FILE"), "", "The certificates of who may sign clients' certificates, in PEM; read again when it changes"),
    flag(HTTP, "http-restricted-api", Value::Phrases("CATEGORY[,CATEGORY]:KEY=SECRET"), "", "Requests that need a secret in the header KEY, repeatable; @PATH for a secret in a file, env:NAME for one in a variable"),
    flag(HTTP, "http-cors-origin", Value::List("ORIGIN"), "", "Origin of pages that may call from a browser, such as https://example.com, repeatable; * for all"),

    flag(METRICS, "allow-metrics", Value::Bool, "true", "Serve /metrics"),
    flag(METRICS, "allow-cpu-metrics", Value::Bool, "true", "Sample the host's processors and memory"),
    flag(METRICS, "metrics-address", Value::Text("ADDRESS"), "", "Address to listen on, or unix:PATH; http-address by default"),
    flag(METRICS, "metrics-port", Value::Number(0, 65535), "8002", "Port to listen on; 0 for any that is free"),
    flag(METRICS, "metrics-max-connections", Value::Number(1, 1_000_000), "256", "Connections at a time; at the limit idle ones are closed"),
    flag(METRICS, "metrics-use-ssl", Value::Bool, "false", "Encrypt by TLS"),
    flag(METRICS, "metrics-use-ssl-mutual", Value::Bool, "false", "Encrypt by TLS, and refuse clients without a certificate"),
    flag(METRICS, "metrics-server-cert", Value::Text("FILE"), "", "The server's certificate and those of who signed it, in PEM; read again when it changes"),
    flag(METRICS, "metrics-server-key", Value::Text("FILE"), "", "The certificate's private key, in PEM; read again when it changes"),
    flag(METRICS, "metrics-root-cert", Value::Text("FILE"), "", "The certificates of who may sign clients' certificates, in PEM; read again when it changes"),
    flag(METRICS, "metrics-interval-ms", Value::Number(10, MILLISECONDS_MAX), "2000", "Milliseconds between samples of the host"),
    flag(METRICS, "metrics-config", Value::Phrases("NAME=VALUE"), "", "How times are counted, repeatable: counter_latencies, histogram_latencies and summary_latencies are true or false; summary_quantiles are QUANTILE:ERROR,..."),

    flag(TRACE, "trace-config", Value::Phrases("[MODE,]NAME=VALUE"), "", "Trace setting, repeatable: level, rate, count, mode; triton,file; triton,log-frequency; opentelemetry,url; README.md has all"),
    flag(TRACE, "trace-queue-size", Value::Number(1, 10_000_000), "2048", "Traces that wait to be written to files; more are dropped"),
    flag(TRACE, "trace-tensor-bytes", Value::Number(0, 1 << 30), "65536", "The most bytes kept of all tensors of one trace"),

    flag(LOG, "log-format", Value::Choice(&["default", "ISO8601", "json"]), "default", "Form of the log lines"),
    flag(LOG, "log-level", Value::Text("LEVELS"), "", "Levels by module, such as info,nereid::engine=debug"),
    flag(LOG, "log-verbose", Value::Number(0, 9), "0", "1 for debug lines, more for trace lines"),
    flag(LOG, "log-info", Value::Bool, "true", "Log state changes"),
    flag(LOG, "log-warning", Value::Bool, "true", "Log warnings"),
    flag(LOG, "log-error", Value::Bool, "true", "Log errors"),
    flag(LOG, "log-file", Value::Text("FILE"), "", "File to append to instead of standard error"),
];

/// Other names of settings.
pub const ALIASES: &[(&str, &str)] =
    &[("model-store", "model-repository"), ("strict-model-config", "disable-auto-complete-config")];

/// Settings of the reference server that tune what this one does otherwise: nothing that is served depends on them, so
/// that they are read and have no effect.
#[rustfmt::skip]
pub const WITHOUT_EFFECT: &[&str] = &[
    "enable-peer-access", "http-thread-count", "grpc-infer-thread-count", "grpc-infer-allocation-pool-size",
    "grpc-keepalive-permit-without-calls", "grpc-http2-max-pings-without-data",
    "grpc-http2-min-recv-ping-interval-without-data", "grpc-http2-max-ping-strikes", "allow-gpu-metrics",
    "pinned-memory-pool-byte-size", "cuda-memory-pool-byte-size", "cuda-virtual-address-size",
    "buffer-manager-thread-count", "backend-directory", "repoagent-directory",
];

/// Settings that the reference server has and this one has not, or not yet: named, so that the message can be plain.
#[rustfmt::skip]
pub const UNSUPPORTED: &[&str] = &[
    "grpc-infer-response-compression-level", "allow-sagemaker", "sagemaker-port", "sagemaker-safe-port-range",
    "sagemaker-thread-count", "allow-vertex-ai", "vertex-ai-port", "vertex-ai-thread-count", "vertex-ai-default-model",
    "min-supported-compute-capability", "backend-config", "trace-file", "trace-level", "trace-rate", "trace-count",
    "trace-log-frequency",
];

/// The setting of that name, written with dashes or underscores, alias names included.
pub fn find(name: &str) -> Option<&'static Flag> {
    let name = name.replace('_', "-");
    let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name.as_str(), |(_, meant)| meant);
    FLAGS.iter().find(|flag| flag.name == name)
}

/// Whether a setting of that name is read and has no effect.
pub fn is_without_effect(name: &str) -> bool {
    WITHOUT_EFFECT.contains(&name.replace('_', "-").as_str())
}

/// Why there is no setting of that name: not supported, or unknown with the nearest name there is.
pub fn why_unknown(name: &str) -> String {
    let dashed = name.replace('_', "-");
    if is_without_effect(name) {
        return "has no effect: it tunes the reference server".to_owned();
    }
    if UNSUPPORTED.contains(&dashed.as_str()) {
        return "is not supported by this server version".to_owned();
    }
    let distance = |flag: &&Flag| strsim::damerau_levenshtein(flag.name, &dashed);
    match FLAGS.iter().min_by_key(distance).filter(|flag| distance(flag) <= dashed.len().div_ceil(3)) {
        Some(nearest) => format!("is unknown; did you mean {}?", nearest.name),
        None => "is unknown; nereid serve --help lists all settings".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_stands_twice() {
        let mut names: Vec<_> = FLAGS.iter().map(|flag| flag.name).chain(UNSUPPORTED.iter().copied()).collect();
        names.extend(WITHOUT_EFFECT);
        names.extend(ALIASES.iter().map(|(alias, _)| alias));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        assert_eq!(why_unknown("grpc-prot"), "is unknown; did you mean grpc-port?");
        assert!(why_unknown("sagemaker_port").contains("not supported"));
        assert!(why_unknown("xyzzy").contains("--help"));
    }
}
