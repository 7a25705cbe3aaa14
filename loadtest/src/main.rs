//! The load harness: drives a gateway, its floor, or any echo server, and says what it cost.

mod clock;
mod dialect;
mod engine;
mod floor;
mod ledger;
mod measure;
mod options;
mod report;
mod scenario;
mod stamp;
mod target;
mod token;
mod wire;

use clap::Parser;
use options::{Cli, Command};
use std::io::Write as _;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "ringway-loadtest: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode, String> {
    match &cli.command {
        Command::Floor(f) => {
            if let Some(a) = f.serve {
                return Err(floor::serve(f.kind, a, f.buffer_bytes, |_| ()).to_string());
            }
            let t = target::Target::floor(f.kind, f.options.payload_bytes, &f.options)?;
            let m = scenario::echo::measure("floor", &t, &f.options, f.options.payload_bytes)?;
            for x in &m.figures { let _ = writeln!(std::io::stdout(), "{} {:.1} {} {}", x.name, x.value, x.unit, x.void); }
            let _ = writeln!(std::io::stdout(), "{:?} {:?}", m.loss, m.problems);
            Ok(ExitCode::SUCCESS)
        }
        Command::Echo(o) => { let t = target::Target::of(o)?; let m = scenario::echo::measure("echo", &t, o, o.payload_bytes)?; for x in &m.figures { let _ = writeln!(std::io::stdout(), "{} {:.1} {} {}", x.name, x.value, x.unit, x.void); } Ok(ExitCode::SUCCESS) }
        _ => Ok(ExitCode::SUCCESS),
    }
}
