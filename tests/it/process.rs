//! A server in a process of its own, for tests of what a process is seen by: its files, its log, its signals.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use tempfile::NamedTempFile;

/// A server in a process of its own, on free ports of the loopback address.
pub struct Process {
    child: Child,
    /// What it said when it was ready.
    greeting: String,
    /// Kept open, as the server writes on.
    _stdout: BufReader<ChildStdout>,
    /// Its log, for when a test fails.
    stderr: NamedTempFile,
}

impl Process {
    /// Starts a server over a repository and waits until it is ready.
    pub fn start(root: &Path, flags: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nereid"));
        command.arg("serve").arg("--model-repository").arg(root);
        command.args(["--http-address", "127.0.0.1", "--http-port", "0"]);
        command.args(["--grpc-address", "127.0.0.1", "--grpc-port", "0", "--allow-metrics", "false"]);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("NEREID_") {
                command.env_remove(variable);
            }
        }
        let stderr = NamedTempFile::new().expect("a temporary file");
        command.args(flags).stdout(Stdio::piped()).stderr(stderr.reopen().expect("it is there"));
        let mut child = command.spawn().expect("the executable starts");
        let mut greeting = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("it is a pipe"));
        while !greeting.starts_with("nereid ready:") {
            greeting.clear();
            if stdout.read_line(&mut greeting).expect("it writes text") == 0 {
                break;
            }
        }
        let server = Self { child, greeting, _stdout: stdout, stderr };
        assert!(server.greeting.starts_with("nereid ready:"), "{}", server.log());
        server
    }

    /// Where it serves, such as `grpc`.
    pub fn address(&self, front_end: &str) -> &str {
        let mut words = self.greeting.split_whitespace();
        words.find_map(|word| word.strip_prefix(front_end)?.strip_prefix('=')).expect("it is served")
    }

    /// The libraries and files that it has mapped, as the system lists them.
    pub fn mapped(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/maps", self.child.id())).expect("it runs")
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(mut self) {
        let asked = Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status().expect("kill is there");
        assert!(asked.success());
        let ended = self.child.wait().expect("it was started");
        assert!(ended.success(), "{ended}\n{}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.stderr.path()).unwrap_or_default()
    }
}

impl Drop for Process {
    /// Does not outlive a test that has failed.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
