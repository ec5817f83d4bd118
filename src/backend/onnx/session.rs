//! An open model file: ONNX Runtime's session, which all instances run at the same time.
//!
//! ONNX Runtime lets several threads run one session (docs/reference/high-level-design: "Multiple threads can invoke the
//! Run() method on the same inference session object"), and the kernels of its own provider for the host's processors
//! keep nothing between executions. The `ort` crate allows that for no session, since some providers for devices break
//! the promise; they are not used here, so this file calls the library itself to run.

use std::borrow::Cow;
use std::ffi::CStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use ort::AsPointer as _;
use ort::environment::{Environment, ThreadManager};
use ort::ep;
use ort::logging::LogLevel;
use ort::session::RunOptions;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use super::description::{Description, Outlet};
use super::options::{Level, Options};
use super::value::{Value, check};
use crate::error::{Error, Kind, Result};

/// How a session works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The model's own parameters.
    pub options: Options,
    /// What is done to its graph.
    pub level: Level,
    /// Threads for one operation, the caller's included; at least one.
    pub threads: usize,
}

/// A model file, ready to be run.
pub struct Session {
    session: ort::session::Session,
    run_options: Option<RunOptions>,
}

impl Session {
    /// Reads the file. Blocking.
    ///
    /// # Errors
    /// [`Kind::Backend`] if the library does not take it.
    pub fn open(environment: &Environment, path: &Path, settings: &Settings) -> Result<Self> {
        // The bindings give up where a file's types are ones that they do not know.
        let opened = catch_unwind(AssertUnwindSafe(|| Self::open_unguarded(environment, path, settings)));
        opened.unwrap_or_else(|_| Err(Error::new(Kind::Backend, "an input or output is of a type that is not known")))
    }

    fn open_unguarded(environment: &Environment, path: &Path, settings: &Settings) -> Result<Self> {
        let builder = ort::session::Session::builder(environment)?;
        let mut builder = configured(builder.with_log_id(name_of(path))?, settings)?;
        let session = builder.commit_from_file(path)?;
        let run_options = settings.options.shrinks.then(shrinking).transpose()?;
        Ok(Self { session, run_options })
    }

    /// What the file says about its inputs and outputs.
    pub fn describe(&self) -> Description {
        let of = |outlet: &ort::value::Outlet| Outlet::of(outlet.name(), outlet.dtype(), false);
        let with_default = self.session.overridable_initializers();
        let with_default = with_default.iter().map(|outlet| Outlet::of(outlet.name(), outlet.dtype(), true));
        Description {
            inputs: self.session.inputs().iter().map(of).chain(with_default).collect(),
            outputs: self.session.outputs().iter().map(of).collect(),
        }
    }

    /// One execution: the named `inputs` in, the values of `outputs` out. Blocking; several at a time may run.
    ///
    /// # Errors
    /// [`Kind::Backend`] with the library's reason.
    pub fn run(&self, inputs: (&[&CStr], &[Value]), outputs: &[&CStr]) -> Result<Vec<Value>> {
        let (names, values) = inputs;
        assert_eq!(names.len(), values.len(), "each input has a name");
        let names: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        let values: Vec<_> = values.iter().map(Value::raw).collect();
        let wanted: Vec<_> = outputs.iter().map(|name| name.as_ptr()).collect();
        let mut results = vec![ptr::null_mut(); outputs.len()];
        let options = self.run_options.as_ref().map_or(ptr::null(), |options| options.ptr());
        // SAFETY: the session and all names and values live until the call returns; the lengths are those of the vectors;
        // results that are null are made by the library. That other threads call at the same time is allowed, as the head
        // of this file says.
        let status = unsafe {
            (ort::api().Run)(
                self.session.ptr().cast_mut(),
                options,
                names.as_ptr(),
                values.as_ptr(),
                values.len(),
                wanted.as_ptr(),
                wanted.len(),
                results.as_mut_ptr(),
            )
        };
        // SAFETY: each is null or was made for us by this call. Taken over before the status is looked at, so that none is lost.
        let results: Vec<_> = results.into_iter().map(|raw| unsafe { Value::of(raw) }).collect();
        check(status)?;
        let missing = || Error::new(Kind::Backend, "the model did not give all outputs");
        results.into_iter().map(|value| value.ok_or_else(missing)).collect()
    }
}

/// The name that the library's log lines have: that of the model's folder.
fn name_of(path: &Path) -> Cow<'_, str> {
    path.ancestors().nth(2).and_then(Path::file_name).unwrap_or_default().to_string_lossy()
}

fn configured(builder: SessionBuilder, settings: &Settings) -> Result<SessionBuilder> {
    let Settings { options, level, threads } = settings;
    let level = match level {
        Level::None => GraphOptimizationLevel::Disable,
        Level::Basic => GraphOptimizationLevel::Level1,
        Level::Extended => GraphOptimizationLevel::Level2,
        Level::All => GraphOptimizationLevel::All,
    };
    let mut builder = builder
        .with_log_level(LogLevel::Warning)?
        .with_optimization_level(level)?
        .with_intra_threads(*threads)?
        .with_intra_op_spinning(options.spins)?
        .with_inter_op_spinning(options.spins_beside)?
        .with_memory_pattern(options.pattern)?
        .with_parallel_execution(options.inter_threads.is_some())?
        .with_execution_providers([ep::CPU::default().with_arena_allocator(options.arena).build()])?
        .with_thread_manager(Pool)?;
    if let Some(threads) = options.inter_threads {
        builder = builder.with_inter_threads(threads)?;
    }
    if options.weights_outside {
        builder = builder.with_device_allocated_initializers()?;
    }
    Ok(builder)
}

fn shrinking() -> Result<RunOptions> {
    let mut options = RunOptions::new()?;
    options.set("memory.enable_memory_arena_shrinkage", "cpu:0")?;
    Ok(options)
}

/// Starts the threads that sessions share operations among.
///
/// A session is made by a thread that gives way to others, and each thread has the priority of the one that starts it:
/// so these are started by the runtime's, where there is one.
struct Pool;

impl ThreadManager for Pool {
    type Thread = JoinHandle<()>;

    fn create(&self, work: impl FnOnce() + Send + 'static) -> ort::Result<Self::Thread> {
        let start = move || thread::Builder::new().name("nereid-onnx".to_owned()).spawn(work);
        let started = match tokio::runtime::Handle::try_current() {
            Err(_) => start(),
            Ok(runtime) => {
                let (end, wait) = mpsc::channel();
                runtime.spawn(async move { end.send(start()) });
                wait.recv().map_err(ort::Error::wrap)?
            }
        };
        started.map_err(ort::Error::wrap)
    }

    fn join(thread: Self::Thread) -> ort::Result<()> {
        thread.join().map_err(|_| ort::Error::new("a thread panicked"))
    }
}
