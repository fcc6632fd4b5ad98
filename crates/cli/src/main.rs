//! The program `taskhub`.

use std::process::ExitCode;

use taskhub_cli::args::Cli;
use taskhub_cli::{Console, Environment};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::of_process(std::env::args_os()).unwrap_or_else(|error| error.exit());
    taskhub_cli::start_logging(cli.common.verbose);
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        // Whoever reads the output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            #[allow(clippy::print_stderr, reason = "the program's own error message")]
            {
                eprintln!("Error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut console = Console::process(cli.common.output);
    let exit =
        runtime.block_on(async { taskhub_cli::run(cli, &Environment::process()?, &mut console).await });
    // What still runs, blocked perhaps, does not hold the program.
    runtime.shutdown_background();
    Ok(exit?.code())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|e| e.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
