//! The executable.

use std::process::ExitCode;

fn main() -> ExitCode {
    nereid::cli::main()
}
