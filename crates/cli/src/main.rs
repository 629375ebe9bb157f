//! The `marcot` program; everything is in the library.

fn main() -> std::process::ExitCode {
    marcot_cli::main()
}
