//! The load harness: drives a gateway, its floor, or any echo server, and reports the costs.

mod clock;
mod dialect;
mod engine;
mod floor;
mod hostile;
mod ledger;
mod measure;
mod options;
mod report;
mod runner;
mod scenario;
mod scrape;
mod session;
mod stamp;
mod target;
mod token;
mod wire;

use clap::Parser;
use options::{Cli, Command, Options};
use report::Report;
use runner::Scenario;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match (&cli.command, &cli.compare[..]) {
        (Some(command), _) => run(command),
        (None, [before, after]) => compare(before, after),
        (None, _) => Err("a scenario, or --compare with two results".to_owned()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "ringway-loadtest: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs a command. Returns `true` if every promise was kept.
fn run(command: &Command) -> Result<bool, String> {
    let (scenario, options) = match command {
        Command::Connect(options) => (Scenario::Connect, options),
        Command::Idle(options) => (Scenario::Idle, options),
        Command::Echo(options) => (Scenario::Echo, options),
        Command::Relay(options) => (Scenario::Relay, options),
        Command::Fanout(options) => (Scenario::Fanout, options),
        Command::Rooms(options) => (Scenario::Rooms, options),
        Command::Channel(options) => (Scenario::Channel, options),
        Command::Slow(options) => (Scenario::Slow, options),
        Command::Reconnect(options) => (Scenario::Reconnect, options),
        Command::Crash(options) => (Scenario::Crash, options),
        Command::Soak(options) => (Scenario::Soak, options),
        Command::History(options) => (Scenario::History, options),
        Command::Sessions(options) => (Scenario::Sessions, options),
        Command::Smoke(options) => return smoke(options),
        Command::Hostile(options) => return hostile::run(options),
        Command::Sink { serve } => return Err(format!("the sink on {serve} stopped: {}", hostile::sink::serve(*serve))),
        Command::Floor(floor) => return run_floor(floor),
        Command::Compare { before, after } => return compare(before, after),
    };
    show(&runner::scenario(scenario, options)?, options)
}

fn compare(before: &Path, after: &Path) -> Result<bool, String> {
    print(&report::compare::render(&runner::read(before)?, &runner::read(after)?))?;
    Ok(true)
}

fn run_floor(floor: &options::FloorOptions) -> Result<bool, String> {
    match floor.serve {
        None => show(&runner::floor(floor.kind, &floor.options)?, &floor.options),
        Some(listen) => {
            let said = |bound| {
                let _ = writeln!(std::io::stdout(), "floor {:?} listens on {bound}", floor.kind);
            };
            Err(format!("the floor server on {listen} stopped: {}", floor::serve(floor.kind, listen, floor.buffer_bytes, said)))
        }
    }
}

fn smoke(options: &Options) -> Result<bool, String> {
    let reports = runner::smoke(options)?;
    for report in &reports {
        print(&report::table::render(report))?;
        print("\n")?;
    }
    Ok(reports.iter().all(|report| report.passed))
}

fn show(report: &Report, options: &Options) -> Result<bool, String> {
    print(&report::table::render(report))?;
    runner::write_files(report, options)?;
    Ok(report.passed)
}

fn print(text: &str) -> Result<(), String> {
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| format!("cannot write to standard output: {error}"))
}
